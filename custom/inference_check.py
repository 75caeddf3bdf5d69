"""A look at the arrays of an inference before any work."""

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from monai.bundle import ConfigParser

from custom.array_report import ArrayReport, cached, placed, refuse_memory
from custom.blockwise.lattice import (
    Shape,
    WindowLattice,
    block_size,
    bytes_of_sums,
    written_channels,
)
from custom.channels import ChannelLayout
from custom.datalist import entries_in, place_entry
from custom.disk_space import refuse_full_disk
from custom.errors import InputError
from custom.features.backbone import available_device
from custom.features.cache import open_cache
from custom.features.lattice import grid_bytes
from custom.features.settings import asked_of
from custom.features.spec import FeatureSpec
from custom.model_files import read_description, refuse_other_features
from custom.output import (
    check_prediction,
    refuse_other_network,
    refuse_other_offsets,
    refuse_places,
)
from custom.segmentation_settings import chosen_method
from custom.volume_datasets import REGIONS, region_of

LABEL_BYTES = 1  # of a voxel's uint64 id, which compression brings far below
SMALLER = "segment a smaller ROI (region 'roi'), or take another device"


def check_inference(parser: ConfigParser) -> ArrayReport:
    """Volumes, model, places of the results, room on the disk and in memory.

    Raises:
        InputError: names the first mistake.
    """
    value = parser.get_parsed_content
    layout = value("channels")
    description = read_description(value("model_dir"))
    if value("source") == "cache":
        volumes = open_cache(value("cache_dir"), value("section"))
        spec, found = volumes[0].spec, cached(volumes)
    else:
        spec, found = None, _listed(parser)
    check_model(parser, description, spec)
    if layout.num_affinities:
        chosen_method(description, value("segmenter"), value("segmentation_settings"))
    refuse_places(value("output_dir"), [volume["id"] for volume in found])
    shapes = [volume["shape"] for volume in found]
    lsds = bool(value("write_lsds"))
    disk = output_bytes(shapes, layout, lsds, value("output_format").pyramid)
    if isinstance(parser.get("blocks"), Mapping):
        disk += _bytes_of_features(parser, description)
        blocks = [_block_in(parser, shape, layout, lsds) for shape in shapes]
        largest, each = max(blocks, key=lambda block: block[1])
        needed = int(value("threads")) * each
        what = f"the prediction of blocks of {list(largest)} voxels"
        way_out = "take a smaller block_size or fewer threads"
    else:
        needed, way_out = prediction_bytes(shapes, layout), SMALLER
        what = f"the prediction of a volume of {max(shapes, key=math.prod)} voxels"
    refuse_full_disk("output_dir", value("output_dir"), disk, "choose another one, or make room")
    refuse_memory(needed, available_device(value("device")), what, way_out)
    return ArrayReport({value("section"): found}, {"output_dir": disk}, needed)


def check_model(
    parser: ConfigParser, description: Mapping[str, Any], spec: FeatureSpec | None
) -> None:
    """Refuse a model that was trained as another one than the configuration says.

    Args:
        parser: of the configuration.
        description: of the model.
        spec: of the features that it will be given; None where they are not extracted yet.

    Raises:
        InputError: names what differs.
    """
    value = parser.get_parsed_content
    layout = value("channels")
    if value("token_channels"):
        trained = FeatureSpec.from_json(description["features"])
        wanted = spec or asked_of(trained, value("features"))
        refuse_other_features(value("model_dir"), description, wanted)
    check_prediction(description, layout, value("dimensions"), value("model_dir"))
    if layout.num_affinities:
        refuse_other_offsets(description, value("affinity_offsets"), value("model_dir"))
    refuse_other_network(description, deepcopy(parser.get("")), value("model_dir"))


def _listed(parser: ConfigParser) -> list[dict[str, Any]]:
    """What is to be segmented of a datalist's section."""
    value = parser.get_parsed_content
    region = value("region")
    if region not in REGIONS:
        raise InputError(f"region must be one of {', '.join(REGIONS)}, got {region!r}.")
    opened = [place_entry(entry) for entry in entries_in(value("datalist"), value("section"))]
    found = placed(opened)
    if region == "roi":
        return found
    return [
        {"id": o.entry.id, "offset": [0, 0, 0], "shape": list(o.raw.metadata.shape)} for o in opened
    ]


def _block_in(
    parser: ConfigParser, shape: Sequence[int], layout: ChannelLayout, lsds: bool
) -> tuple[Shape, int]:
    """Block of a volume, and what its prediction takes in memory beside the network, about.

    The sums of its windows, two slabs as uint8, and the raw that its windows reach, float32.
    """
    value = parser.get_parsed_content
    (z, y, x), channels = shape, written_channels(layout, lsds)
    lattice = WindowLattice((z, y, x), value("inferer").window_in(shape), value("window_overlap"))
    unit = value("output_format").unit
    block = block_size(value("block_size"), lattice, channels, unit)
    area = math.prod(b + 2 * (w - 1) for b, w in zip(block[1:], lattice.window[1:], strict=True))
    sums = bytes_of_sums(lattice, block[1:], channels, unit)
    return block, sums + 2 * unit * math.prod(block[1:]) * channels + 4 * lattice.window[0] * area


def _bytes_of_features(parser: ConfigParser, description: Mapping[str, Any]) -> int:
    """What features of raw take on the disk until their volume is predicted."""
    value = parser.get_parsed_content
    if value("source") == "cache" or not value("token_channels"):
        return 0
    spec = asked_of(FeatureSpec.from_json(description["features"]), value("features"))
    stores = []
    for entry in entries_in(value("datalist"), value("section")):
        opened = place_entry(entry)
        roi = region_of(opened, value("region"))
        stores.append(grid_bytes(spec, opened.raw.metadata.shape, roi, opened.raw_axes))
    return sum(stores) if value("keep_features") else max(stores)


def output_bytes(
    shapes: Iterable[Sequence[int]], layout: ChannelLayout, lsds: bool, pyramid: bool
) -> int:
    """What results take on the disk, about: what is predicted hardly compresses, ids do.

    Args:
        shapes: of all volumes.
        layout: of the predicted channels.
        lsds: whether LSDs are written, too.
        pyramid: whether coarser levels are written, too: 1/8 of the voxels, 1/64 and so on.
    """
    channels = written_channels(layout, lsds)
    voxels = sum(math.prod(shape) for shape in shapes)
    return (voxels * 8 // 7 if pyramid else voxels) * (channels + LABEL_BYTES)


def prediction_bytes(shapes: Iterable[Sequence[int]], layout: ChannelLayout) -> int:
    """What the prediction of the largest volume takes in memory, about.

    Raw, the weights of its windows and the prediction as float32, which is blended in place; then
    the same as uint8.

    Args:
        shapes: of all volumes.
        layout: of the predicted channels.
    """
    return max(math.prod(shape) for shape in shapes) * (4 * (2 + layout.num_outputs))
