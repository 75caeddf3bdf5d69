"""EM-like volumes with known cells, for the demo and for tests.

python -m scripts.synthetic --out ../demo/data --size 128
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import fire
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from skimage.measure import label as connected_objects

from custom.errors import InputError
from custom.files import write_atomically
from custom.volumes import create_ome_zarr_array
from scripts.strict import strict

Floats = NDArray[np.float32]
Number = TypeVar("Number", int, float)

CYTOPLASM, MEMBRANE, EXTRACELLULAR, MITOCHONDRION, VESICLE = 165.0, 62.0, 205.0, 98.0, 215.0
NEIGHBOURS = 6
HELD_OUT = 0.3
GAP_NM = 160.0
FAR_NM = 1e6


def synthetic_volume(
    shape: Sequence[int],
    seed: int,
    voxel_size_nm: Sequence[float] = (16.0, 16.0, 16.0),
    cell_diameter_nm: float = 440.0,
    membrane_nm: float = 36.0,
    extracellular_nm: float = 0.0,
    noise: float = 11.0,
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Raw of tightly packed cells with dark membranes, and the cells' labels.

    Cells are unions of neighbouring Voronoi regions of random points in a smoothly warped space, so
    walls are curved and shapes are not convex. Everything is laid out in nanometres and then
    sampled, so that another voxel size shows the same kind of tissue with other sampling.

    Args:
        shape: (D, H, W) in voxels.
        seed: equal seeds (and arguments) give equal volumes.
        voxel_size_nm: zyx, may be anisotropic.
        cell_diameter_nm: typical distance between the points that cells are made of.
        membrane_nm: thickness of the dark wall between two cells, both membranes together.
        extracellular_nm: width of a bright gap between cells; it is label 0.
        noise: standard deviation of the detector noise in grey values.

    Returns:
        raw: (D, H, W) uint8.
        labels: (D, H, W) uint32, every label one face-connected object; 0 only in the gap.

    Raises:
        InputError: a size is not positive.
    """
    voxel_size = np.asarray(voxel_size_nm, dtype=np.float64)
    if len(shape) != 3 or len(voxel_size) != 3 or min(shape) < 1 or min(voxel_size) <= 0:
        raise InputError(
            f"a synthetic volume needs three positive sizes, got shape {tuple(shape)} "
            f"and voxel size {tuple(voxel_size_nm)} nm"
        )
    rng = np.random.default_rng(seed)
    position = _warped_positions(shape, voxel_size, cell_diameter_nm, rng)
    points, cell_of_point = _cells(np.asarray(shape) * voxel_size, cell_diameter_nm, rng)
    cell, wall_nm = _nearest_cell(position, points, cell_of_point, voxel_size)
    depth_nm = wall_nm - extracellular_nm / 2
    labels = connected_objects(np.where(depth_nm > 0, cell + 1, 0), connectivity=1)

    grey = _cytoplasm(cell, voxel_size, rng)
    _add_organelles_(grey, position, depth_nm - membrane_nm / 2, points, voxel_size, rng)
    wall = np.exp(-((np.maximum(depth_nm, 0) / (membrane_nm / 2)) ** 2))
    grey += (MEMBRANE - grey) * wall
    grey[depth_nm <= 0] = EXTRACELLULAR
    return _imaged(grey, voxel_size, noise, rng), labels.astype(np.uint32)


def write_demo_data(
    folder: str | os.PathLike[str], shape: Sequence[int], seed: int, voxel_size_nm: Sequence[float]
) -> Path:
    """Write ``synthetic.zarr`` (raw and labels/cells) and ``datalist.json`` into a folder.

    The volume is split along y: training, a gap, and the last part held out for validation. The
    test entry is the whole raw volume with the held-out part as its ROI::

        y  |--------- training ---------|  gap  |-- validation, test --|

    Data of an earlier run are replaced. The datalist is written last and atomically, so data
    without one are unfinished.

    Args:
        folder: created if missing.
        shape: (D, H, W) in voxels.
        seed: see ``synthetic_volume``.
        voxel_size_nm: zyx.

    Returns:
        Path of the datalist.
    """
    folder = Path(folder)
    datalist = folder / "datalist.json"
    content = json.dumps(demo_datalist(shape, voxel_size_nm), indent=2) + "\n"
    raw, labels = synthetic_volume(shape, seed, voxel_size_nm)
    datalist.unlink(missing_ok=True)
    shutil.rmtree(folder / "synthetic.zarr", ignore_errors=True)
    for path, array, axes in (("raw", raw, "zyx"), ("labels/cells", labels, "zyx")):
        store = create_ome_zarr_array(
            folder / "synthetic.zarr",
            path,
            shape=array.shape,
            dtype=str(array.dtype),
            axes=axes,
            voxel_size_nm=tuple(float(size) for size in voxel_size_nm),
            offset_nm=(0.0, 0.0, 0.0),
            chunks=tuple(min(64, size) for size in array.shape),
            attributes={"synthetic_seed": seed},
        )
        store[...] = array
    write_atomically(datalist, content.encode())
    return datalist


def demo_datalist(shape: Sequence[int], voxel_size_nm: Sequence[float]) -> dict[str, object]:
    """Datalist of one volume: training, a gap, and a held-out part along y."""
    depth, height, width = (int(size) for size in shape)
    held_out = round(height * HELD_OUT)
    training = height - held_out - round(GAP_NM / voxel_size_nm[1])
    if training < held_out:
        raise InputError(
            f"a height of {height} voxels is too small to hold training and validation parts; "
            "use a larger --size"
        )
    source = {"raw": "synthetic.zarr/raw", "labels": "synthetic.zarr/labels/cells"}
    held_out_roi = {
        "offset": [0, height - held_out, 0],
        "shape": [depth, held_out, width],
    }
    training_roi = {"offset": [0, 0, 0], "shape": [depth, training, width]}
    return {
        "name": "synthetic cells",
        "training": [{"id": "synthetic-training", **source, "roi": training_roi}],
        "validation": [{"id": "synthetic-validation", **source, "roi": held_out_roi}],
        "test": [{"id": "synthetic", **source, "roi": held_out_roi}],
    }


def smooth_noise(
    shape: Sequence[int],
    voxel_size: NDArray[np.float64],
    scale_nm: float,
    rng: np.random.Generator,
) -> Floats:
    """Noise of unit variance that varies over ``scale_nm``: a cubic B-spline of white noise."""
    bases = [_spline_basis(n, size / scale_nm) for n, size in zip(shape, voxel_size, strict=True)]
    coarse = rng.standard_normal([basis.shape[1] for basis in bases]).astype(np.float32)
    for basis in bases:
        coarse = np.tensordot(coarse, basis, axes=(0, 1))
    return coarse / np.float32((151 / 315) ** 1.5)


def _spline_basis(n: int, step: float) -> Floats:
    """Values of cubic B-splines at ``(i + 0.5) * step`` (n, number of knots)."""
    at = (np.arange(n) + 0.5) * step
    knots = np.arange(-1, int(np.ceil(n * step)) + 2)
    distance = np.abs(at[:, None] - knots)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def _warped_positions(
    shape: Sequence[int],
    voxel_size: NDArray[np.float64],
    cell_diameter_nm: float,
    rng: np.random.Generator,
) -> Floats:
    """Position of every voxel centre in the warped space, nm, (3, D, H, W)."""
    axes = [(np.arange(n) + 0.5) * size for n, size in zip(shape, voxel_size, strict=True)]
    position = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    for scale, amplitude in ((1.0, 0.22), (0.45, 0.05)):
        for axis in range(3):
            field = smooth_noise(shape, voxel_size, scale * cell_diameter_nm, rng)
            position[axis] += np.float32(amplitude * cell_diameter_nm) * field
    return position


def _cells(
    extent_nm: NDArray[np.float64], diameter_nm: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Points in and around the box (n, 3), and the cell each belongs to (n,)."""
    counts = np.ceil(extent_nm / diameter_nm).astype(int) + 3
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in counts], indexing="ij"), axis=-1)
    points = (
        grid.reshape(-1, 3) - 1.5 + rng.uniform(-0.45, 0.45, (counts.prod(), 3))
    ) * diameter_nm
    _, nearest = cKDTree(points).query(points, k=2)
    joins = np.flatnonzero(rng.uniform(size=len(points)) < 0.45)
    graph = coo_array(
        (np.ones(len(joins)), (joins, nearest[joins, 1])), shape=(len(points), len(points))
    )
    return points, connected_components(graph, directed=False)[1].astype(np.intp)


def _nearest_cell(
    position: Floats,
    points: NDArray[np.float64],
    cell_of_point: NDArray[np.intp],
    voxel_size: NDArray[np.float64],
) -> tuple[NDArray[np.intp], Floats]:
    """Cell of every voxel, and the distance to the wall towards the closest other cell in nm."""
    shape = position.shape[1:]
    cell = np.empty(shape, dtype=np.intp)
    wall_nm = np.empty(shape, dtype=np.float32)
    tree = cKDTree(points)
    for z in range(shape[0]):
        distance, index = tree.query(position[:, z].reshape(3, -1).T, k=NEIGHBOURS)
        towards = points[index[:, 1:]] - points[index[:, :1]]
        between = np.linalg.norm(towards, axis=-1)
        to_wall = (distance[:, 1:] ** 2 - distance[:, :1] ** 2) / (2 * between)
        cells = cell_of_point[index]
        to_wall[cells[:, 1:] == cells[:, :1]] = FAR_NM
        closest = to_wall.argmin(axis=1)[:, None]
        normal = np.take_along_axis(towards, closest[..., None], axis=1)[:, 0]
        normal /= np.take_along_axis(between, closest, axis=1)
        stretch = _stretch(position, z, normal, voxel_size)
        cell[z] = cells[:, 0].reshape(shape[1:])
        wall_nm[z] = (np.take_along_axis(to_wall, closest, axis=1)[:, 0] / stretch).reshape(
            shape[1:]
        )
    return cell, wall_nm


def _stretch(
    position: Floats, z: int, normal: NDArray[np.float64], voxel_size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Warped nm per nm of tissue along normals (n, 3) of one section; keeps walls equally thick."""
    first = min(max(z - 1, 0), max(position.shape[1] - 3, 0))
    slab = position[:, first : first + 3]
    gradient = np.zeros(normal.shape)
    for axis in range(3):
        if slab.shape[axis + 1] > 1:
            slope = np.gradient(slab, voxel_size[axis], axis=axis + 1)[:, z - first]
            gradient[:, axis] = (slope.reshape(3, -1).T * normal).sum(axis=1)
    return np.clip(np.linalg.norm(gradient, axis=1), 0.3, 3.0)


def _cytoplasm(
    cell: NDArray[np.intp], voxel_size: NDArray[np.float64], rng: np.random.Generator
) -> Floats:
    """Grey values inside cells: each cell its own tone, with fine and coarse texture."""
    tone = rng.normal(CYTOPLASM, 9.0, cell.max() + 1).astype(np.float32)
    grey = tone[cell]
    for scale_nm, amplitude in ((26.0, 9.0), (70.0, 5.0)):
        grey += np.float32(amplitude) * smooth_noise(cell.shape, voxel_size, scale_nm, rng)
    return grey


def _add_organelles_(
    grey: Floats,
    position: Floats,
    room_nm: Floats,
    points: NDArray[np.float64],
    voxel_size: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Draw mitochondria and vesicles where there is room, in place; never across a membrane."""
    for centre in points:
        if rng.uniform() < 0.75:
            radii = rng.uniform((70, 70, 110), (120, 130, 260))
            where = centre + rng.normal(0, 70, 3)
            _draw_(
                grey, position, room_nm, where, _rotation(rng), radii, voxel_size, "mitochondrion"
            )
        for _ in range(rng.integers(0, 7)):
            radii = np.full(3, rng.uniform(30, 60))
            where = centre + rng.normal(0, 120, 3)
            _draw_(grey, position, room_nm, where, np.eye(3), radii, voxel_size, "vesicle")


def _draw_(
    grey: Floats,
    position: Floats,
    room_nm: Floats,
    centre: NDArray[np.float64],
    rotation: NDArray[np.float64],
    radii_nm: NDArray[np.float64],
    voxel_size: NDArray[np.float64],
    kind: str,
) -> None:
    """One ellipsoid with a dark rim, cut back where the cell has no room for it."""
    box = _box_around(centre, float(radii_nm.max()) + 350.0, grey.shape, voxel_size)
    if any(side.start >= side.stop for side in box):
        return
    offset = np.tensordot(rotation, position[(slice(None), *box)] - centre[:, None, None, None], 1)
    radius = np.sqrt(((offset / radii_nm[:, None, None, None]) ** 2).sum(axis=0))
    inside_nm = np.minimum((1 - radius) * radii_nm.min(), room_nm[box] - 14.0)
    inside = inside_nm > 0
    if kind == "mitochondrion":
        cristae = 11.0 * np.sin(offset[2] / 9.0 + 1.5 * np.sin(offset[1] / 30.0))
        tone = MITOCHONDRION + cristae - 26.0 * np.exp(-((inside_nm / 14.0) ** 2))
    else:
        tone = VESICLE - 105.0 * np.exp(-((inside_nm / 12.0) ** 2))
    grey[box][inside] = tone[inside]


def _box_around(
    centre: NDArray[np.float64],
    radius_nm: float,
    shape: Sequence[int],
    voxel_size: NDArray[np.float64],
) -> tuple[slice, ...]:
    """Voxels that may lie within ``radius_nm`` of a point."""
    low = np.floor((centre - radius_nm) / voxel_size).astype(int)
    high = np.ceil((centre + radius_nm) / voxel_size).astype(int)
    return tuple(
        slice(max(int(a), 0), min(int(b), n)) for a, b, n in zip(low, high, shape, strict=True)
    )


def _rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """A random orthogonal matrix."""
    return np.linalg.qr(rng.standard_normal((3, 3)))[0]


def _imaged(
    grey: Floats, voxel_size: NDArray[np.float64], noise: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """What a microscope makes of it: slight blur, uneven contrast, noise, 8 bits."""
    grey = gaussian_filter(grey, 6.0 / voxel_size)
    shape = grey.shape
    contrast = 1 + 0.10 * smooth_noise(shape, voxel_size, 900.0, rng)
    contrast *= rng.normal(1, 0.02, (shape[0], 1, 1))
    brightness = 9 * smooth_noise(shape, voxel_size, 700.0, rng) + rng.normal(
        0, 2, (shape[0], 1, 1)
    )
    grey = 135 + (grey - 135) * contrast + brightness
    grey += gaussian_filter(rng.normal(0, noise * 1.6, shape), 0.45)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def triple(value: Number | Sequence[Number]) -> tuple[Number, ...]:
    """One number for all axes, or several as they are."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * 3


@strict
def main(
    out: str,
    size: int | tuple[int, int, int] = 128,
    seed: int = 0,
    voxel_size: float | tuple[float, float, float] = 16.0,
) -> None:
    """Write a synthetic volume with its labels and datalist.

    Args:
        out: folder, created if missing.
        size: voxels along every axis, or z,y,x.
        seed: another seed, another volume.
        voxel_size: nm along every axis, or z,y,x, such as 40,10,10.
    """
    print(write_demo_data(out, triple(size), seed, triple(voxel_size)))


if __name__ == "__main__":
    fire.Fire(main)
