from pathlib import Path

import numpy as np
import pytest

from custom.cache_pictures import volume_sheet
from custom.feature_colours import nearest
from custom.features.cache import CachedVolume
from custom.features.cache_files import VolumeFiles
from tests.features.cached import request, write


def test_every_voxel_has_the_entry_that_it_lies_in() -> None:
    entries = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    start, step, shape = (-1.5, 0.0, -2.0), (4.0, 2.5, 3.0), (9, 7, 10)
    found = nearest(entries, start, step, shape)
    assert found.shape == shape
    for voxel in np.ndindex(shape):
        index = [
            min(int((v + 0.5 - a) // s), n - 1)
            for v, a, s, n in zip(voxel, start, step, entries.shape, strict=True)
        ]
        assert found[voxel] == entries[tuple(index)]


@pytest.mark.parametrize(("labels", "columns"), [(True, 3), (False, 2)])
def test_a_sheet_has_a_column_for_raw_features_and_labels(
    tmp_path: Path, labels: bool, columns: int
) -> None:
    write(VolumeFiles(tmp_path, 0), request(), labels)
    sheet = volume_sheet(CachedVolume(tmp_path / "volume_000000.zarr"))
    width = sheet.shape[1] // columns
    coloured = [
        (np.ptp(sheet[:, at * width : (at + 1) * width].astype(int), axis=2) > 30).mean()
        for at in range(columns)
    ]
    assert coloured[0] == 0, "raw is grey"
    assert all(share > 0.2 for share in coloured[1:])


def test_a_plane_that_was_not_cached_is_black(tmp_path: Path) -> None:
    write(VolumeFiles(tmp_path, 0), request(planes=["xy", "yz"]), labels=False)
    sheet = volume_sheet(CachedVolume(tmp_path / "volume_000000.zarr"))
    whole = tmp_path / "whole"
    write(VolumeFiles(whole, 0), request(), labels=False)
    other = volume_sheet(CachedVolume(whole / "volume_000000.zarr"))
    black = [(image == 0).all(2).mean() for image in (sheet, other)]
    assert black[0] > black[1] + 0.1
