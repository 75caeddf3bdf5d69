import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from custom.errors import InputError
from custom.features.backbone import Backbone, load_backbone, weights_digest
from custom.features.image_statistics import IMAGENET_MEAN

VIT = {
    "model_type": "dinov3_vit",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_register_tokens": 4,
    "patch_size": 8,
}
DINOV2 = {
    "model_type": "dinov2",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 28,
}
REGISTERS = {**DINOV2, "model_type": "dinov2_with_registers", "num_register_tokens": 3}
CONVNEXT = {
    "model_type": "dinov3_convnext",
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 1, 1, 1],
}
SPECIAL = [(VIT, 5), (DINOV2, 1), (REGISTERS, 4), (CONVNEXT, 1)]


def images(backbone: Backbone, height: int = 3, width: int = 2) -> torch.Tensor:
    """Two images of 3 x 2 patches."""
    size = (2, 3, height * backbone.patch_size, width * backbone.patch_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the weights of a tiny DINOv3."""
    path = tmp_path / "tiny"
    load_backbone(VIT).model.save_pretrained(path)
    return path


@pytest.mark.parametrize(("config", "special"), SPECIAL, ids=lambda c: str(c)[:30])
def test_features_are_the_patch_tokens_in_row_order(config: dict[str, Any], special: int) -> None:
    backbone = load_backbone(config)
    x = images(backbone)
    tokens = backbone.model(pixel_values=x).last_hidden_state
    features = backbone(x)
    assert features.shape == (2, backbone.channels, 3, 2)
    assert features.dtype == torch.float32
    for row in range(3):
        for column in range(2):
            expected = tokens[:, special + row * 2 + column]
            torch.testing.assert_close(features[:, :, row, column], expected, atol=1e-6, rtol=0)


def test_a_patch_moves_when_its_pixels_move() -> None:
    config = {**VIT, "num_hidden_layers": 1, "rope_theta": 1e-6, "layerscale_value": 1e-3}
    backbone = load_backbone(config, final_norm=False)
    blank = torch.zeros(1, 3, 32, 24)
    marked = blank.clone()
    marked[:, :, 8:16, 16:24] = 3.0
    change = (backbone(marked) - backbone(blank)).abs().sum(1)[0]
    assert change.argmax() == 1 * 3 + 2


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("config", [VIT, DINOV2, REGISTERS], ids=lambda c: c["model_type"])
def test_layers_are_outputs_of_blocks_in_the_order_asked_for(
    config: dict[str, Any], final_norm: bool
) -> None:
    backbone = load_backbone(config, layers=[2, 1], final_norm=final_norm)
    x = images(backbone)
    hidden = backbone.model(pixel_values=x, output_hidden_states=True).hidden_states
    norm = backbone.model.norm if config is VIT else backbone.model.layernorm
    special = {"dinov3_vit": 5, "dinov2": 1, "dinov2_with_registers": 4}[config["model_type"]]
    parts = [norm(hidden[i]) if final_norm else hidden[i] for i in (2, 1)]
    expected = torch.cat([p[:, special:] for p in parts], dim=2).mT.reshape(2, -1, 3, 2)
    torch.testing.assert_close(backbone(x), expected)
    assert backbone.channels == expected.shape[1]


@pytest.mark.parametrize("final_norm", [True, False])
def test_block_2_is_the_second_one(final_norm: bool) -> None:
    config = {**VIT, "num_hidden_layers": 12}
    backbone = load_backbone(config, layers=[2, 5, 8, 11], final_norm=final_norm)
    outputs: list[torch.Tensor] = []
    blocks = [m for m in backbone.model.modules() if type(m).__name__ == "DINOv3ViTLayer"]
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    features = backbone(images(backbone))
    assert (len(outputs), backbone.channels) == (12, 4 * 32)
    for part, layer in zip(features.split(32, dim=1), (2, 5, 8, 11), strict=True):
        output = outputs[layer - 1]
        patches = (backbone.model.norm(output) if final_norm else output)[:, 5:]
        torch.testing.assert_close(part, patches.mT.reshape(2, 32, 3, 2))


def test_negative_layers_count_from_the_end() -> None:
    last, named = load_backbone(VIT, layers=[-1, -3]), load_backbone(VIT, layers=[3, 1])
    assert last.layers == named.layers == (3, 1)
    torch.testing.assert_close(last(images(last)), named(images(named)), rtol=0, atol=0)


@pytest.mark.parametrize(("stage", "size", "channels"), [(1, 4, 8), (3, 16, 16), (4, 32, 20)])
def test_a_convnext_gives_the_map_of_one_stage(stage: int, size: int, channels: int) -> None:
    backbone = load_backbone(CONVNEXT, layers=[stage], final_norm=False)
    x = images(backbone, 96 // size, 64 // size)
    assert (backbone.patch_size, backbone.channels) == (size, channels)
    hidden = backbone.model(pixel_values=x, output_hidden_states=True).hidden_states[stage]
    torch.testing.assert_close(backbone(x), hidden)


def test_stages_of_a_convnext_meet_at_the_finest_one() -> None:
    stages = {n: load_backbone(CONVNEXT, layers=[n], final_norm=False) for n in (2, 4)}
    normed, both = load_backbone(CONVNEXT), load_backbone(CONVNEXT, layers=[4, 2])
    raw = load_backbone(CONVNEXT, layers=[2, 4], final_norm=False)
    x = images(normed)
    assert (both.patch_size, both.channels, both.image_multiple) == (8, 32, 32)
    fine, coarse = stages[2](x), stages[4](x)
    assert both(x).shape == (2, 32, 12, 8)
    torch.testing.assert_close(both(x)[:, 20:], fine, rtol=0, atol=0)
    torch.testing.assert_close(both(x)[:, :20], _linear(normed(x), 4), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(raw(x)[:, :12], fine, rtol=0, atol=0)
    torch.testing.assert_close(raw(x)[:, 12:], _linear(coarse, 4), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="multiples of 32"):
        both(torch.zeros(1, 3, 40, 64))


def _linear(features: torch.Tensor, factor: int) -> torch.Tensor:
    """Entries at the centres of patches that are finer by a factor, clamped at the border."""
    for axis in (2, 3):
        size = features.shape[axis]
        at = ((torch.arange(size * factor) + 0.5) / factor - 0.5).clamp(0, size - 1)
        low = at.floor().long()
        high = (low + 1).clamp(max=size - 1)
        share = (at - low).view([-1 if a == axis else 1 for a in range(4)])
        below, above = features.index_select(axis, low), features.index_select(axis, high)
        features = below * (1 - share) + above * share
    return features


def test_the_backbone_is_frozen_and_gives_tensors_that_a_trained_layer_can_use() -> None:
    backbone = load_backbone(VIT).train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules())
    layer = torch.nn.Conv2d(32, 2, 1)
    layer(backbone(images(backbone))).sum().backward()
    assert layer.weight.grad is not None


def test_amp_computes_in_bfloat16_and_returns_float32() -> None:
    exact, fast = load_backbone(VIT), load_backbone(VIT, amp=True)
    x = images(exact)
    difference = (exact(x) - fast(x)).abs().max()
    assert fast(x).dtype == torch.float32
    assert 0 < difference < 0.1


def test_images_of_broken_patches_are_refused() -> None:
    backbone = load_backbone(VIT)
    with pytest.raises(ValueError, match="multiples of 8"):
        backbone(torch.zeros(1, 3, 16, 20))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        backbone(torch.zeros(1, 1, 16, 16))


# --- random weights ---


def test_random_weights_follow_their_seed_and_leave_the_callers_random_state(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = load_backbone(VIT), load_backbone({**VIT, "seed": 0})
    other = load_backbone({**VIT, "seed": 1})
    assert torch.equal(before, torch.get_rng_state())
    assert first.digest == again.digest != other.digest
    assert (first.seed, other.seed, first.name) == (0, 1, "random dinov3_vit")
    assert "RANDOM weights (seed 1)" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**VIT, "model_type": "vit"}, "model_type 'vit' is not supported"),
        ({"hidden_size": 8}, "model_type None is not supported"),
        ({**VIT, "hiden_size": 8}, "no setting 'hiden_size'; did you mean 'hidden_size'"),
        ({**VIT, "seed": "one"}, "seed must be an integer"),
    ],
)
def test_a_wrong_configuration_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_backbone(config)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (VIT, {"layers": [4]}, "4 does not exist in random dinov3_vit; its blocks are 1 to 3"),
        (VIT, {"layers": [0]}, "0 does not exist"),
        (VIT, {"layers": [-4]}, "-4 does not exist"),
        (VIT, {"layers": [1.0]}, "1.0 does not exist"),
        (VIT, {"layers": []}, "must be a list"),
        (VIT, {"layers": 2}, "must be a list"),
        (VIT, {"layers": [3, -1]}, "twice"),
        (VIT, {"amp": "false"}, "amp must be true or false"),
        (VIT, {"final_norm": "true"}, "final_norm must be true or false"),
        (VIT, {"device": "gpu"}, "device 'gpu' is not available"),
        (CONVNEXT, {"layers": [2]}, "final_norm belongs to the last stage.* not to stage 2"),
        (CONVNEXT, {"layers": [1, 3]}, "final_norm belongs to the last stage.* not to stage 1, 3"),
    ],
)
def test_a_wrong_argument_is_refused(
    config: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_backbone(config, **arguments)


# --- folders ---


def test_a_folder_gives_the_weights_that_were_saved(folder: Path) -> None:
    saved, loaded = load_backbone(VIT), load_backbone(folder)
    assert loaded.digest == saved.digest
    assert (loaded.name, loaded.seed, loaded.image_mean) == (str(folder), None, IMAGENET_MEAN)
    torch.testing.assert_close(loaded(images(saved)), saved(images(saved)), rtol=0, atol=0)


def test_the_digest_is_of_the_weights_not_of_their_file(folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    shards = tmp_path / "shards"
    model.save_pretrained(shards, max_shard_size="10KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert load_backbone(shards).digest == load_backbone(folder).digest
    with torch.no_grad():
        model.norm.bias[0] += 1e-3
    assert weights_digest(model) != load_backbone(folder).digest


def test_float16_weights_are_used_as_float32(tmp_path: Path) -> None:
    load_backbone(VIT).model.half().save_pretrained(tmp_path / "half")
    backbone = load_backbone(tmp_path / "half")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    expected = AutoModel.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert backbone.digest == weights_digest(expected)


def test_image_statistics_come_from_the_folder(folder: Path) -> None:
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    backbone = load_backbone(folder)
    assert (backbone.image_mean, backbone.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_folder_that_is_no_backbone_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_backbone(tmp_path / "empty")
    with pytest.raises(InputError, match="neither a folder that exists"):
        load_backbone(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a file"):
        load_backbone(folder / "config.json")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_backbone(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        load_backbone(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_backbone(folder)
    (folder / "config.json").write_text('{"architecture": "vit_small_patch16_dinov3"}')
    (folder / "pytorch_model.bin").write_bytes(b"not read in this form")
    with pytest.raises(InputError, match="has no weights"):
        load_backbone(folder)
    (folder / "config.json").write_text('{"num_hidden_layers": 2}')
    with pytest.raises(InputError, match="model_type None is not supported"):
        load_backbone(folder)


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(InputError, match=r"lack \d+ of the tensors"):
        load_backbone(folder)
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 16}))
    with pytest.raises(InputError, match="do not fit its config"):
        load_backbone(folder)


@pytest.mark.weights
def test_a_pretrained_folder_loads(shared_backbone: Path) -> None:
    backbone = load_backbone(shared_backbone)
    assert backbone(images(backbone)).std() > 0.1
