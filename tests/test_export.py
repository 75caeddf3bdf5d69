"""Exports of untrained networks of every kind, each compared with the network itself."""

import gc
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import onnxruntime
import pytest
import torch
from bioimageio.core import load_model_description
from monai.bundle import ConfigParser
from monai.data import load_net_with_metadata
from torch import nn

from custom import export
from custom.bioimageio import export_bioimageio
from custom.errors import InputError
from custom.export import export_onnx, export_torchscript, exported_model
from custom.model_folder import write_model
from tests.bundle import overlays, tiny
from tests.features.cached import SPEC

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
    ),
]

CROP = (8, 16, 24)
KINDS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "raw_only": {"token_channels": 0},
    "context": {"context_factor": [1, 2, 2]},
    "labels": {"output_type": "labels", "num_classes": 3},
    "two_dimensions": {
        **{"dimensions": 2, "features#planes": ["xy"], "crop_size": [1, 16, 24]},
        "affinity_offsets": [[0, 1, 0], [0, 0, 1]],
    },
    "dense": {"features#layout": "dense"},
    "concat": {"fusion": "concat", "learned_upsampling_steps": 1},
    "batch_renorm": {"unet_norm": "batch_renorm", "checkpointing": True},
    "dynunet": overlays.content("dynunet"),
}


def model_folder(folder: Path, kind: str) -> Path:
    """A model of random weights, as training leaves it."""
    parser = ConfigParser()
    parser.read_config(str(tiny.CONFIGS / "train.json"))
    settings = {**tiny.NETWORK, "crop_size": list(CROP), "token_channels": SPEC.channels}
    for key, value in {**settings, **KINDS[kind]}.items():
        parser[key] = value
    config = json.loads(json.dumps(parser.get()))
    planes = tuple(config["features"]["planes"])
    steps = (1, 1, 1) if planes == ("xy",) else SPEC.slice_step
    layout = config["features"]["layout"]
    spec = replace(SPEC, planes=planes, slice_step=steps, layout=layout, dtype="float16")
    parser["bootstrap"] = None
    torch.manual_seed(0)
    state = parser.get_parsed_content("network_def").state_dict()
    weights = {name: value.clone() for name, value in state.items()}
    classes = {"names": ["background", "mito", "er"]} if kind == "labels" else None
    description = {
        "features": spec.to_json(),
        "affinity_offsets": config["affinity_offsets"],
        "predicted_classes": classes,
        "voxel_size_nm": [40.0, 8.0, 4.0],
        "config": config,
    }
    write_model(folder, weights, description, {})
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_becomes_torchscript_that_gives_the_same(
    tmp_path: Path, kind: str
) -> None:
    model = exported_model(model_folder(tmp_path, kind))
    assert export_torchscript(model, tmp_path / "model.ts") <= 1e-5
    loaded, metadata, _ = load_net_with_metadata(str(tmp_path / "model.ts"))
    assert metadata["affinity_offsets"] == model.description["affinity_offsets"]
    output = loaded(*model.inputs.values())
    torch.testing.assert_close(output, model.output(), rtol=0, atol=1e-5)
    assert 0 <= output.min() < output.max() <= 1


@pytest.mark.parametrize("kind", ["tokens", "raw_only", "context", "labels", "two_dimensions"])
def test_onnx_gives_the_same(tmp_path: Path, kind: str) -> None:
    model = exported_model(model_folder(tmp_path, kind))
    assert export_onnx(model, tmp_path / "model.onnx") <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    fed = {name: value.numpy() for name, value in model.inputs.items()}
    (output,) = session.run(["probabilities"], fed)
    np.testing.assert_allclose(output, model.output().numpy(), rtol=0, atol=1e-4)


def test_the_window_is_that_of_inference(tmp_path: Path) -> None:
    inputs = exported_model(model_folder(tmp_path, "context")).inputs
    assert inputs["image"].shape == (1, 1, *CROP)
    assert {"context_image", "context_tokens_xz", "context_placement", "tokens_yz"} <= set(inputs)
    assert list(exported_model(model_folder(tmp_path, "raw_only")).inputs) == ["image"]


class Branching(nn.Module):
    """Python decides by a value, which a trace knows nothing of."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * float(image.flatten()[0])


def test_an_export_that_differs_is_not_kept(tmp_path: Path) -> None:
    model = exported_model(model_folder(tmp_path / "model", "raw_only"))
    model.network.network = Branching()
    (tmp_path / "model.ts").write_bytes(b"before")
    with pytest.raises(InputError, match=r"differs from the network by .* was not kept"):
        export_torchscript(model, tmp_path / "model.ts")
    assert (tmp_path / "model.ts").read_bytes() == b"before"


def test_tolerances_are_finite_numbers_that_nan_does_not_meet(tmp_path: Path) -> None:
    model = exported_model(model_folder(tmp_path / "model", "raw_only"))
    nan = torch.full_like(model.output(), float("nan"))
    with pytest.raises(InputError, match="differs from the network by nan"):
        export._checked("onnx", model, lambda inputs: nan)


def test_monais_own_exports_of_the_bundle_give_what_the_network_gives(tmp_path: Path) -> None:
    """They know one input: a network on raw is whole, one with tokens sees zeros instead."""
    model = exported_model(model_folder(tmp_path, "raw_only"))
    config = tmp_path / "train.json"
    config.write_text(json.dumps(model.description["config"] | {"bootstrap": None}))
    common: dict[str, Any] = {
        "net_id": "network_def",
        "ckpt_file": str(tmp_path / "model.pt"),
        "meta_file": str(tiny.CONFIGS / "metadata.json"),
        "config_file": str(config),
        "input_shape": [1, 1, *CROP],
    }
    image = model.inputs["image"]
    with torch.no_grad():
        expected = model.network.network(image)
    monai.bundle.ckpt_export(filepath=str(tmp_path / "m.ts"), use_trace=True, **common)
    torch.testing.assert_close(torch.jit.load(tmp_path / "m.ts")(image), expected)
    monai.bundle.onnx_export(filepath=str(tmp_path / "m.onnx"), use_trace=True, **common)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(output, expected.numpy(), rtol=0, atol=1e-4)


@pytest.fixture
def _unclosed_files() -> Iterator[None]:
    """bioimage.io's library leaves files to the garbage collector, which complains."""
    yield
    gc.collect()


@pytest.mark.slow
@pytest.mark.usefixtures("_unclosed_files")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_package_of_bioimageio_passes_its_own_test(tmp_path: Path) -> None:
    model = exported_model(model_folder(tmp_path, "tokens"))
    metadata = json.loads((tiny.CONFIGS / "metadata.json").read_text())
    assert export_bioimageio(model, tmp_path / "m.zip", "Cells", metadata, "# Cells") <= 1e-4
    described = load_model_description(tmp_path / "m.zip")
    assert [entry.id for entry in described.inputs] == list(model.inputs)
    scales = [axis.scale for axis in described.outputs[0].axes if axis.type == "space"]
    assert scales == [40.0, 8.0, 4.0]
    names = set(zipfile.ZipFile(tmp_path / "m.zip").namelist())
    assert {"rdf.yaml", "model.ts", "model.onnx", "probabilities.npy"} <= names


@pytest.mark.slow
@pytest.mark.usefixtures("_unclosed_files")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_package_that_bioimageio_refuses_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = exported_model(model_folder(tmp_path, "raw_only"))
    right = model.output()
    monkeypatch.setattr(type(model), "output", lambda self: 1 - right)
    metadata = json.loads((tiny.CONFIGS / "metadata.json").read_text())
    with pytest.raises(InputError, match=r"bioimage\.io refuses the package"):
        export_bioimageio(model, tmp_path / "m.zip", "Cells", metadata, "# Cells")
    assert not (tmp_path / "m.zip").exists()
