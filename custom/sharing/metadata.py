"""``metadata.json``, packages and an example datalist of a shared bundle."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

LSDS = (
    "offset z,offset y,offset x,variance z,variance y,variance x,"
    "correlation zy,correlation zx,correlation yx,mass"
)


def model_metadata(
    shipped: Mapping[str, Any], name: str, description: Mapping[str, Any]
) -> dict[str, Any]:
    """The shipped metadata with name and channels of a model.

    Args:
        shipped: content of ``metadata.json``.
        name: of the bundle.
        description: of the model, as in ``model.json``.
    """
    found: dict[str, Any] = deepcopy(dict(shipped))
    names = list(channel_names(description))
    found["name"] = name
    pred = found["network_data_format"]["outputs"]["pred"]
    pred["num_channels"] = len(names)
    pred["channel_def"] = {str(k): title for k, title in enumerate(names)}
    if description.get("num_classes"):
        pred["format"] = "probabilities of classes"
        found["pred_classes"] = "probabilities of classes; the network gives logits"
    return found


def channel_names(description: Mapping[str, Any]) -> Iterator[str]:
    """What each channel of the network's output is."""
    channels = description["channels"]
    if "classes" in channels:
        names = (description.get("predicted_classes") or {}).get("names") or []
        for k in range(*channels["classes"]):
            yield f"class {names[k]}" if k < len(names) else f"class {k}"
        return
    for k in range(*channels["affinities"]):
        yield "affinity " + " ".join(str(step) for step in description["affinity_offsets"][k])
    start, stop = channels["lsds"]
    titles = LSDS.split(",") if stop - start == 10 else [str(k) for k in range(stop - start)]
    yield from (f"LSD {title}" for title in titles[: stop - start])


def requirements(metadata: Mapping[str, Any]) -> str:
    """Packages with their versions, as pip takes them."""
    own = {
        name: metadata[f"{key}_version"]
        for name, key in (("monai", "monai"), ("torch", "pytorch"), ("numpy", "numpy"))
    }
    lines = [
        f"{name}=={version}"
        for name, version in {**own, **metadata["required_packages_version"]}.items()
    ]
    return "\n".join(sorted(lines)) + "\n"


def example_datalist(description: Mapping[str, Any]) -> str:
    """A datalist to be filled in: one volume to segment, at the model's voxel size."""
    sizes = {"raw": description["voxel_size_nm"]}
    entry = {"id": "volume", "raw": "volume.zarr/raw", "voxel_size_nm": sizes}
    return json.dumps({"name": "to be filled in", "test": [entry]}, indent=4) + "\n"
