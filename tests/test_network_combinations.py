"""What holds when settings of networks, inference and outputs meet."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from custom.channels import ChannelLayout
from custom.context import whole_contexts
from custom.inferers import PrepareTokenBatch, TokenSlidingWindowInferer
from custom.networks.fusion import TokenUNet
from custom.pipeline import Pipeline
from custom.planes import NORMAL_AXIS, PLANES
from tests.bundle.overlays import config
from tests.bundle.tiny import CONFIGS
from tests.test_pipeline import SETTINGS, WINDOW, noise, pipeline

pytestmark = pytest.mark.slow

TOKEN_CHANNELS = 5
RENORM = {"name": "batch_renorm", "warmup_steps": 0, "momentum": 0.3}
SMALL: dict[str, Any] = {
    "token_channels": TOKEN_CHANNELS,
    "fused_channels": 2,
    "unet_channels": [4, 6, 8],
    "unet_strides": [[1, 2, 2], [2, 1, 3]],
    "unet_norm": RENORM,
    "affinity_offsets": [[0, 9, 9]],
    "num_classes": 6,
}
SECTIONS = {"dimensions": 2, "features#planes": ["xy"], "context_factor": [1, 3, 2]}
VOLUMES = {"context_factor": [2, 1, 3]}
DENSE = {"features#layout": "dense"}
POINTWISE = {"unet_kernels": [1, 1, 1], "unet_strides": [1, 1]}
STEP = 3.3  # voxels per token


def parsed(**changes: Any) -> ConfigParser:
    """The training's configuration with a small network."""
    parser = ConfigParser({**config("training"), "bootstrap": None})
    for key, value in {**SMALL, **changes}.items():
        parser[key] = value
    return parser


def built(parser: ConfigParser) -> TokenUNet:
    """Its network, no weight zero as some begin, running statistics far from the batch's."""
    torch.manual_seed(0)
    network: TokenUNet = parser.get_parsed_content("network_def", lazy=False)  # a new one
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.4)
    nn.init.normal_(network.network.head.weight)
    for name, buffer in network.named_buffers():
        if name.endswith("running_std"):
            buffer.mul_(0.4)
    return network


def volume(
    shape: Sequence[int], planes: Sequence[str], batch: int = 1, dense: bool = False
) -> dict[str, Tensor]:
    """Image and features by the network's argument names."""
    generator = torch.Generator().manual_seed(0)
    found = {"image": torch.randn(batch, 1, *shape, generator=generator)}
    if dense:
        found["features"] = torch.randn(batch, TOKEN_CHANNELS, *shape, generator=generator)
        return found
    for plane in planes:
        inside = [axis != NORMAL_AXIS[plane] for axis in range(3)]
        count = [int(n / STEP) + 2 if i else n for n, i in zip(shape, inside, strict=True)]
        values = torch.randn(batch, TOKEN_CHANNELS, *count, generator=generator)
        place = [[-1.2 * i for i in inside], [STEP if i else 1.0 for i in inside]]
        found |= {f"tokens_{plane}": values, f"placement_{plane}": torch.tensor([place] * batch)}
    return found


def with_context(given: Mapping[str, Tensor], factor: Any) -> dict[str, Tensor]:
    """The same with the context of the whole volumes."""
    tokens = {name: value for name, value in given.items() if name != "image"}
    return {**given, **whole_contexts(given["image"], tokens, factor)}


def predicted(parser: ConfigParser, given: Mapping[str, Tensor], **changes: Any) -> Tensor:
    """What the inferer of validation makes of a volume, other arguments given."""
    for name, value in changes.items():
        parser[f"validate#inferer#{name}"] = value
    inferer = parser.get_parsed_content("validate#inferer")
    assert isinstance(inferer, TokenSlidingWindowInferer)
    inputs, _, _, tokens = PrepareTokenBatch()(given)
    return inferer(inputs, built(parser).eval(), **tokens)


# --- inference ---


@pytest.mark.parametrize("where", [SECTIONS, VOLUMES, {**VOLUMES, **DENSE}, {}], ids=str)
@pytest.mark.parametrize(
    ("output_type", "mirror"),
    [("labels", True), ("affinities_lsds", False), ("affinities_lsds", True)],
)
def test_a_network_of_voxels_does_not_see_windows_or_mirrors(
    where: dict[str, Any], output_type: str, mirror: bool
) -> None:
    """Kernels and strides of 1: every voxel has its own tokens and its own place in the context,
    in windows at borders, too."""
    parser = parsed(**where, **POINTWISE, output_type=output_type, amp=False)
    dense = parser["features#layout"] == "dense"
    given = volume((5, 9, 11), parser["features#planes"], dense=dense)
    whole = predicted(parser, given, roi_size=[99, 99, 99])
    windows = {"roi_size": [3, 5, 6], "overlap": 0.3, "sw_batch_size": 2, "mirror": mirror}
    found = predicted(parser, given, **windows)
    if mirror and output_type != "labels":  # LSDs of mirror images are others
        whole, found = whole[:, :1], found[:, :1]
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
    assert whole.std() > 1e-2


@pytest.mark.parametrize("where", [SECTIONS, VOLUMES], ids=str)
@pytest.mark.parametrize("shape", [(1, 7, 9), (5, 1, 3), (7, 9, 11)], ids=str)
@pytest.mark.parametrize("fusion", ["concat", "weighted"])
def test_a_volume_smaller_than_the_window_is_one_window(
    where: dict[str, Any], shape: tuple[int, ...], fusion: str
) -> None:
    """Of any size, with its context, whatever the strides."""
    changes = {"fusion": fusion, "learned_upsampling_steps": 1, "output_type": "labels"}
    parser = parsed(**where, **changes, amp=False)
    given = volume(shape, parser["features#planes"])
    found = predicted(parser, given, roi_size=[8, 64, 64])
    with torch.no_grad():
        logits = built(parser).eval()(**with_context(given, where["context_factor"]))
    torch.testing.assert_close(found, logits.softmax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [None, [1, 2, 3]], ids=str)
@pytest.mark.parametrize("planes", [["xy"], list(PLANES)], ids=str)
def test_a_pipeline_gives_probabilities_of_classes_with_and_without_an_inferer(
    factor: Any, planes: list[str]
) -> None:
    dimensions = 2 if planes == ["xy"] else 3
    changes = {"token_channels": 16, "dimensions": dimensions, "features#planes": planes}
    network = built(parsed(**changes, context_factor=factor, output_type="labels"))
    source, layout = pipeline(settings={**SETTINGS, "planes": planes}), ChannelLayout(0, 0, 6)
    settings = {"layout": layout, "context_factor": factor}
    whole = TokenSlidingWindowInferer((99, 99, 99), **settings, dimensions=dimensions)
    raw = noise(2, 1, 5, 9, 11)
    one, other = (
        Pipeline(network, WINDOW, source.backbone, source.spec, inferer, **settings).predict(raw)
        for inferer in (None, whole)
    )
    torch.testing.assert_close(one.sum(1), torch.ones_like(one[:, 0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert one.std() > 1e-2


# --- training ---


def trained(parser: ConfigParser, given: Mapping[str, Tensor], amp: bool) -> dict[str, Tensor]:
    """Logits, gradients and buffers after one training step, dropout drawn from seed 1."""
    network = built(parser).train()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        logits = network(**given)
    logits.float().square().mean().backward()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(network.parameters()))
    return {"logits": logits.detach(), **gradients, **dict(network.named_buffers())}


@pytest.mark.parametrize("where", [SECTIONS, VOLUMES], ids=str)
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{"fusion": "concat", "unet_residual": True}, {"unet_upsampling": "interpolation"}],
    ids=str,
)
def test_checkpointing_changes_nothing_with_batch_renorm_and_context(
    where: dict[str, Any], amp: bool, changes: dict[str, Any]
) -> None:
    settings = {**where, **changes, "unet_dropout": 0.2, "learned_upsampling_steps": 1}
    given = with_context(
        volume((3, 7, 9), parsed(**settings)["features#planes"], batch=2), where["context_factor"]
    )
    plain, saving = (
        trained(parsed(**settings, checkpointing=checkpointing), given, amp)
        for checkpointing in (False, True)
    )
    assert plain.keys() == saving.keys()
    for name, value in plain.items():
        torch.testing.assert_close(saving[name], value, rtol=1e-6, atol=1e-9, msg=name)
    steps = {int(value) for name, value in saving.items() if name.endswith(".steps")}
    assert steps == {1}, "running statistics move once a step"
    assert any(name.startswith("context.blocks") and "running" in name for name in saving)


# --- tools ---


@pytest.mark.parametrize("where", [SECTIONS, VOLUMES], ids=str)
@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_a_network_with_a_context_can_be_traced(where: dict[str, Any], fusion: str) -> None:
    parser = parsed(**where, fusion=fusion)
    network = built(parser).eval()
    shape, planes = (3, 7, 9), parser["features#planes"]
    given = with_context(volume(shape, planes), where["context_factor"])
    with torch.no_grad():
        with pytest.warns(torch.jit.TracerWarning):  # that sizes become constants
            traced = torch.jit.trace(network, example_kwarg_inputs=given)
        other = {n: v + 1 if "placement" not in n else v for n, v in given.items()}
        torch.testing.assert_close(traced(**other), network(**other))
        assert not torch.allclose(traced(**other), traced(**given))


def shared(folder: Path, changes: Mapping[str, Any]) -> Path:
    """A bundle whose training has other settings, with random weights."""
    bundle = folder / "emseg"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "models").mkdir()
    (bundle / "configs" / "metadata.json").write_text((CONFIGS / "metadata.json").read_text())
    parser = parsed(**changes)
    parser["bootstrap"] = config("training")["bootstrap"]
    (bundle / "configs" / "train.json").write_text(json.dumps(parser.get()))
    torch.save(built(parser).state_dict(), bundle / "models" / "model.pt")
    return bundle


@pytest.mark.parametrize("where", [SECTIONS, VOLUMES], ids=str)
def test_monai_loads_and_exports_a_network_with_a_context(
    where: dict[str, Any], tmp_path: Path
) -> None:
    bundle = shared(tmp_path, where)
    place = {"bundle_dir": str(tmp_path), "source": "github", "device": "cpu"}
    loaded = monai.bundle.load("emseg", workflow_type="train", **place).eval()
    image = torch.randn(1, 1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = loaded(image)
        torch.testing.assert_close(built(parsed(**where)).eval()(image), expected)
    with pytest.warns(torch.jit.TracerWarning):
        monai.bundle.ckpt_export(
            net_id="network_def",
            filepath=str(tmp_path / "model.ts"),
            ckpt_file=str(bundle / "models" / "model.pt"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(bundle / "configs" / "train.json"),
            use_trace=True,
            input_shape=[1, 1, 4, 8, 12],
        )
    exported = torch.jit.load(str(tmp_path / "model.ts"))
    torch.testing.assert_close(exported(image), expected)
