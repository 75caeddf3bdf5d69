"""Public sample data, downloaded and made into what the recipes take.

From inside ``bundle/``: ``python -m scripts.samples fib25 <folder>``
"""

import gzip
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import fire
import h5py
import numpy as np
from fire.decorators import SetParseFn
from numpy.typing import NDArray
from tqdm import tqdm

from custom.downloads import fetch, read_checksums
from custom.errors import InputError
from custom.file_arrays import section_paths
from custom.volumes import create_ome_zarr_array, open_volume
from scripts.strict import strict

FIB25_URL = (
    "https://raw.githubusercontent.com/janelia-flyem/neuroproof_examples/ce839e17/training_sample2"
)
FIB25_CHECKSUMS = Path(__file__).with_name("fib25_sources.sha256")
VOXEL_SIZE_NM = (10.0, 10.0, 10.0)
CHUNKS = (64, 64, 64)
SECTIONS = "grayscale_maps"
TRUTH = "groundtruth.h5.gz"
CREDIT = {
    "source": "training_sample2 of https://github.com/janelia-flyem/neuroproof_examples; "
    "FlyEM, Janelia",
    "license": "Creative Commons Attribution, LICENSE.txt of that repository",
    "changes": "supervoxels mapped to bodies, ids made consecutive, stored as OME-Zarr",
}


@strict
@SetParseFn(str)
def fib25(folder: str, url: str = FIB25_URL, checksums: str = str(FIB25_CHECKSUMS)) -> None:
    """Download FIB-SEM of the Drosophila medulla, 250^3 voxels of 10 nm, and build fib25.zarr.

    An interrupted download is taken up by the same command.

    Args:
        folder: gets training_sample2/ as it is downloaded, and fib25.zarr with raw and
            labels/neurons.
        url: where training_sample2 lies, for a copy of it elsewhere.
        checksums: list of its files and their sha256, as sha256sum writes it.
    """
    try:
        target = _fib25(Path(os.path.abspath(folder)), url, Path(checksums))
    except OSError as error:
        raise SystemExit(f"{folder} cannot be written: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on from here") from None
    print(f"{target} is ready. From the repository's root:")
    print(f"make fib25 DATA={target} BACKBONE=facebook/dinov2-small OUT=out/fib25")


def _fib25(folder: Path, url: str, checksums: Path) -> Path:
    """Path of the OME-Zarr, made if it is not there."""
    target = folder / "fib25.zarr"
    if not target.exists():
        files, source = read_checksums(checksums), folder / "training_sample2"
        download(url, files, source)
        build_fib25(source, files, target)
    return target


def download(url: str, files: Mapping[str, str], folder: Path) -> None:
    """Fetch what is not there yet, one file after the other.

    Args:
        url: folder on the server.
        files: relative paths and their sha256.
        folder: gets the files; those that are there whole are kept.

    Raises:
        InputError: see ``custom.downloads.fetch``.
    """
    for path in tqdm(files, desc="downloading", unit="file"):
        fetch(f"{url.rstrip('/')}/{path}", folder / path, files[path])


def build_fib25(source: Path, files: Mapping[str, str], target: Path) -> None:
    """OME-Zarr with ``raw`` (uint8) and ``labels/neurons`` (uint32), whole or not at all.

    Args:
        source: folder of the downloaded files.
        files: the files it should hold; the keys count.
        target: the OME-Zarr; it must not be there.

    Raises:
        InputError: ``files`` has no sections or no truth, the folder has other sections, or the
            labels have another shape than raw.
    """
    _check_files(source, files)
    raw = open_volume(source / SECTIONS, VOXEL_SIZE_NM)
    labels = bodies(*_truth(source / TRUTH))
    if labels.shape != raw.metadata.shape:
        raise InputError(
            f"{source / TRUTH} has labels of shape {labels.shape}, but the sections make a volume "
            f"of {raw.metadata.shape}; it is not the truth of these sections"
        )
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    _write(part, "raw", raw.read(raw.metadata.roi))
    _write(part, "labels/neurons", labels)
    os.replace(part, target)


def bodies(supervoxels: NDArray[np.integer], pairs: NDArray[np.integer]) -> NDArray[np.uint32]:
    """Labels of whole neurons.

    Args:
        supervoxels: (D, H, W), ids from 0 on; 0 is unlabelled.
        pairs: (N, 2), supervoxel and the body it belongs to; a supervoxel that is not in it is a
            body of its own.

    Returns:
        (D, H, W), ids of bodies in their order, made consecutive from 1 on; 0 stays 0.
    """
    ids, place = np.unique(supervoxels, return_inverse=True)
    body_of = dict(pairs.tolist())
    found = np.array([0] + [body_of.get(i, i) for i in ids.tolist()])
    consecutive = np.unique(found, return_inverse=True)[1][1:]
    return consecutive.astype(np.uint32)[place].reshape(supervoxels.shape)


def _check_files(source: Path, files: Mapping[str, str]) -> None:
    """Every image in the folder becomes a section, so there must be those listed and no other."""
    listed = {source / path for path in files if path.startswith(f"{SECTIONS}/")}
    if not listed or TRUTH not in files:
        raise InputError(f"the list of checksums lacks {SECTIONS}/*.png or {TRUTH}")
    strange = [path.name for path in section_paths(source / SECTIONS) if path not in listed]
    if strange:
        raise InputError(
            f"{source / SECTIONS} holds {len(strange)} images too many: remove {', '.join(strange)}"
        )


def _truth(path: Path) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Supervoxels, and pairs of supervoxel and body."""
    with h5py.File(io.BytesIO(gzip.decompress(path.read_bytes()))) as file:
        if not {"stack", "transforms"} <= set(file):
            raise InputError(f"{path} holds {', '.join(file)} instead of stack and transforms")
        return file["stack"][...], file["transforms"][...]


def _write(group: Path, name: str, values: NDArray[np.integer]) -> None:
    """One image of the OME-Zarr."""
    store = create_ome_zarr_array(
        group,
        name,
        shape=values.shape,
        dtype=values.dtype,
        axes="zyx",
        voxel_size_nm=VOXEL_SIZE_NM,
        offset_nm=(0.0, 0.0, 0.0),
        chunks=CHUNKS,
        attributes=CREDIT,
    )
    store[...] = values


if __name__ == "__main__":
    fire.Fire({"fib25": fib25})
