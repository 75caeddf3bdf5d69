"""``python -m scripts.bundle export``: a trained network for other programs."""

import json
import logging
import warnings
from pathlib import Path

from custom.errors import InputError
from custom.export import ExportedModel, export_onnx, export_torchscript, exported_model
from scripts.steps import BUNDLE
from scripts.strict import strict

SUFFIX = {"torchscript": ".ts", "onnx": ".onnx", "bioimageio": ".zip"}
README = """# {name}

{description}.

The network sees one window of {shape} voxels (z, y, x) at a time and gives probabilities.
{inputs}

How raw is windowed, how tokens are made and how probabilities become objects is told by the bundle
that this network comes from.
"""
OF_RAW = "Its only input is raw, its intensity window mapped to -1 and 1."
OF_TOKENS = (
    "Its inputs are raw, its intensity window mapped to -1 and 1, and patch features of a frozen "
    "backbone ({backbone}): `tokens_*` of the slices along a plane, and `placement_*`, where the "
    "first of them begins and how far they are apart, in voxels."
)


@strict
def export(form: str, model_dir: str = "models", out: str = "", name: str = "") -> None:
    """Write a trained network as TorchScript, ONNX or a package of bioimage.io.

    What is written is run once more and compared with the network; where it differs it is not kept.
    Inputs have the size of one window of training, and the file needs none of this project's code.

    Args:
        form: "torchscript", "onnx" or "bioimageio".
        model_dir: folder with model.pt and model.json.
        out: file to write; by default model.ts, model.onnx or model.zip in model_dir.
        name: of the model in a package of bioimage.io; by default that of the bundle.
    """
    if form not in SUFFIX:
        raise InputError(f"there is no export '{form}': choose one of {', '.join(SUFFIX)}")
    path = Path(out) if out else Path(model_dir) / f"model{SUFFIX[form]}"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision's absence, at length
    model = exported_model(model_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but what MONAI's bundles use
        difference = _written(form, model, path, name)
    print(f"{path}: probabilities differ by at most {difference:.1e} from those of the network")


def _written(form: str, model: ExportedModel, path: Path, name: str) -> float:
    try:
        if form == "bioimageio":
            from custom.bioimageio import export_bioimageio

            metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
            name = name or metadata["name"]
            return export_bioimageio(model, path, name, metadata, _readme(model, name, metadata))
        return {"onnx": export_onnx, "torchscript": export_torchscript}[form](model, path)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the export needs {error.name}, which is not installed: pip install 'emseg[export]'"
        ) from error


def _readme(model: ExportedModel, name: str, metadata: dict[str, str]) -> str:
    spec = model.description["features"]
    of_tokens = OF_TOKENS.format(backbone=spec["backbone"])
    return README.format(
        name=name,
        description=metadata["description"],
        shape=" x ".join(str(n) for n in model.inputs["image"].shape[2:]),
        inputs=OF_RAW if len(model.inputs) == 1 else of_tokens,
    )
