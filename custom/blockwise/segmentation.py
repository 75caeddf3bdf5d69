"""The chain of tasks from affinities to segments."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from volara.lut import LUT

from custom.blockwise.chain import FRAGMENTS, described_method
from custom.blockwise.fragments import Fragments
from custom.blockwise.graph_database import graph_of
from custom.blockwise.graph_solve import Solve
from custom.blockwise.region_graph import Regions
from custom.blockwise.relabel import Relabel
from custom.blockwise.tracked import Tracked
from custom.file_stamps import file_stamp
from custom.outputs.settings import OutputSettings
from custom.segmentation.method import SegmentationMethod, Triple

TABLE = "segments.npz"


def segmentation_tasks(
    method: SegmentationMethod,
    store: Path,
    state_dir: Path,
    shape: Triple,
    block_size: Triple,
    voxel_size_nm: Sequence[float],
    offset_nm: Sequence[float] = (0.0, 0.0, 0.0),
    written: OutputSettings | None = None,
    database: Mapping[str, Any] | None = None,
    mask: str | None = None,
    mask_offset: Triple = (0, 0, 0),
    attributes: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Tracked]:
    """Tasks that segment the affinities of a volume.

    Args:
        method: of the segmentation.
        store: the OME-Zarr with ``affinities`` (K, D, H, W) uint8; gets ``fragments`` and
            ``labels/segmentation``. The affinities need not be there yet.
        state_dir: folder of the run's state.
        shape: (D, H, W) of the volume.
        block_size: (D, H, W) of a block.
        voxel_size_nm: voxel size, zyx.
        offset_nm: position of the centre of voxel (0, 0, 0), zyx.
        written: how arrays are written.
        database: as of ``graph_of``.
        mask: as of ``Fragments``.
        mask_offset: as of ``Fragments``.
        attributes: of the segments.
        settings: of all tasks: ``threads``, ``retries`` and ``worker_config``.

    Returns:
        ``fragments``, ``regions``, ``graph`` and ``relabel``, to be run in this order, after what
        writes the affinities.

    Raises:
        InputError: the database cannot be used.
    """
    graph = graph_of(database, state_dir, store.stem)
    shared = {
        "state_dir": state_dir,
        "method": described_method(method),
        "output": store,
        "shape": shape,
        "block": block_size,
        "graph": graph,
        "voxel_size_nm": voxel_size_nm,
        "offset_nm": offset_nm,
        "written": asdict(written or OutputSettings()),
        **(settings or {}),
    }
    kind = described_method(method)["class"]
    blocks = {"block size": list(block_size), "shape": list(shape)}
    of_fragments = {"method": kind, **method.describe_fragments(), **blocks}
    masked = {
        "mask": mask,
        "mask offset": list(mask_offset),
        "mask files": mask and file_stamp(mask),
    }
    lut = LUT(path=state_dir / "graph" / TABLE)
    return [
        Fragments(
            name=FRAGMENTS,
            identity={**of_fragments, **masked, "graph": graph.place},
            mask=mask,
            mask_offset=mask_offset,
            **shared,
        ),
        Regions(name="regions", identity={"links": list(method.links)}, **shared),
        Solve(name="graph", identity=method.describe(), lut=lut, **shared),
        Relabel(name="relabel", lut=lut, attributes=dict(attributes or {}), **shared),
    ]
