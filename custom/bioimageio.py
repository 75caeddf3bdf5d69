"""A trained network as a package of bioimage.io."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from bioimageio.core import test_description
from bioimageio.spec import ValidationSummary, save_bioimageio_package
from bioimageio.spec.model.v0_5 import ModelDescr
from torch import Tensor

from custom.errors import InputError
from custom.export import ExportedModel, export_onnx, export_torchscript
from custom.files import replacing

SPACE = ("z", "y", "x")
OUTPUT = "probabilities"
CITATIONS = {
    "Simeoni et al. DINOv3, 2025": "10.48550/arXiv.2508.10104",
    "Oquab et al. DINOv2, TMLR 2024": "10.48550/arXiv.2304.07193",
    "Wolf et al. The Mutex Watershed, TPAMI 2021": "10.1109/TPAMI.2020.2980827",
    "Sheridan et al. Local shape descriptors, Nature Methods 2023": "10.1038/s41592-022-01711-z",
}


def export_bioimageio(
    model: ExportedModel, path: Path, name: str, metadata: Mapping[str, Any], readme: str
) -> float:
    """Write a zip with ``rdf.yaml``, the network as TorchScript and as ONNX, and test tensors.

    Args:
        model: to write.
        path: of the zip, which is replaced.
        name: of the model, for people: letters, numbers, spaces, underscores, parentheses, hyphens.
        metadata: of the bundle: ``authors``, ``version``, ``description``.
        readme: Markdown, of how the inputs are made.

    Returns:
        Largest difference of a probability between the network and either of its exports.

    Raises:
        InputError: it is too large, or bioimage.io's own test of the package fails.

    Source:
        bioimage.io model description 0.5, https://bioimage.io.
    """
    with TemporaryDirectory() as folder, replacing(path) as part:
        files = Path(folder)
        difference = max(
            export_torchscript(model, files / "model.ts"), export_onnx(model, files / "model.onnx")
        )
        (files / "README.md").write_text(readme)
        package = files / "package.zip"
        save_bioimageio_package(_described(model, files, name, metadata), output_path=package)
        summary = test_description(package)
        if summary.status != "passed":
            raise InputError(
                f"bioimage.io refuses the package ({_first_error(summary)}); it was not kept."
            )
        part.write_bytes(package.read_bytes())
    return difference


def _first_error(summary: ValidationSummary) -> str:
    errors = [error.msg for detail in summary.details for error in detail.errors]
    return errors[0].strip().splitlines()[0] if errors else summary.status


def _described(
    model: ExportedModel, files: Path, name: str, metadata: Mapping[str, Any]
) -> ModelDescr:
    """The package's ``rdf.yaml``; the test tensors are written into ``files``."""
    output = model.output()
    opset = onnx.load(files / "model.onnx", load_external_data=False).opset_import[0].version
    torchscript = {
        "source": files / "model.ts",
        "pytorch_version": torch.__version__.split("+")[0],
    }
    about = {
        "type": "model",
        "format_version": ModelDescr.implemented_format_version,
        "name": name,
        "description": metadata["description"],
        "version": metadata["version"],
        "authors": [{"name": metadata["authors"]}],
        "cite": [{"text": text, "doi": doi} for text, doi in CITATIONS.items()],
        "license": "Apache-2.0",
        "documentation": {"source": files / "README.md"},
        "tags": ["electron-microscopy", "instance-segmentation", "3d", "pytorch"],
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
        "inputs": [_tensor(files, name, value, model) for name, value in model.inputs.items()],
        "outputs": [_tensor(files, OUTPUT, output, model)],
        "weights": {
            "torchscript": torchscript,
            "onnx": {"source": files / "model.onnx", "opset_version": opset},
        },
    }
    return ModelDescr.model_validate(about)


def _tensor(files: Path, name: str, value: Tensor, model: ExportedModel) -> dict[str, Any]:
    """An input or the output, whose values become a file."""
    path = files / f"{name}.npy"
    np.save(path, value.numpy())
    axes = _placement_axes() if "placement" in name else _axes(name, value, model)
    return {
        "id": name,
        "axes": [{"type": "batch", "size": 1}, *axes],
        "test_tensor": {"source": path},
    }


def _placement_axes() -> list[dict[str, Any]]:
    rows = {"type": "index", "id": "index", "size": 2, "description": "start, step, in voxels"}
    return [rows, {"type": "channel", "channel_names": list(SPACE)}]


def _axes(name: str, value: Tensor, model: ExportedModel) -> list[dict[str, Any]]:
    """Channels and space, with the voxel size where an entry is a voxel."""
    sizes_nm = model.description["voxel_size_nm"] if name in ("image", OUTPUT) else None
    space: list[dict[str, Any]] = []
    for number, (axis, size) in enumerate(zip(SPACE, value.shape[2:], strict=True)):
        scale = {} if sizes_nm is None else {"unit": "nanometer", "scale": sizes_nm[number]}
        space.append({"type": "space", "id": axis, "size": size, **scale})
    if name == OUTPUT:
        names = _channel_names(value, model)
    else:
        kind = "raw" if "image" in name else "feature"
        names = [f"{kind}{number}" for number in range(value.shape[1])]
    return [{"type": "channel", "channel_names": names}, *space]


def _channel_names(output: Tensor, model: ExportedModel) -> list[str]:
    """What every channel of the output is."""
    if classes := model.description.get("predicted_classes"):
        return list(classes["names"])
    offsets = model.description["affinity_offsets"]
    affinities = ["affinity " + " ".join(map(str, offset)) for offset in offsets]
    return affinities + [f"LSD {number}" for number in range(output.shape[1] - len(offsets))]
