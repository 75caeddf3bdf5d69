from pathlib import Path

import numpy as np
import pytest

from bench import blockwise
from custom.targets.affinities import affinities


@pytest.mark.slow
def test_every_method_and_volara_find_the_objects_of_perfect_affinities(tmp_path: Path) -> None:
    labels = np.ones((6, 16, 20), np.int64)
    labels[:, 8:] = 2
    labels[:, :, 11:] += 2
    values = (255 * affinities(labels, blockwise.OFFSETS)[0]).astype(np.uint8)
    settings = {"min_size": 20}
    figures = blockwise.segment_figures(values, labels, tmp_path, (6, 16, 10), settings)
    found = {figure.name.removeprefix("segment."): figure.value for figure in figures}
    for name in (*blockwise.METHODS, "volara"):
        assert found[f"{name}.voi_split"] == found[f"{name}.voi_merge"] == pytest.approx(0)
        assert found[f"{name}.mvox_per_s"] > 0
    for name in blockwise.METHODS:
        assert found[f"{name}.voi_to_whole"] == pytest.approx(0)
    assert found["volara.over_volara"] == found["volara.cpu_over_volara"] == 1
    method = blockwise.ours_with("mutex_watershed", settings)
    seams = blockwise.seam_figures(
        values, labels, tmp_path / "seams", (4, 10), (2,), method, slice(1, 6)
    )
    assert [figure.name.removeprefix("seams.") for figure in seams] == [
        "whole_voi",
        *(
            f"{part}_{name}"
            for part in ("without_2", "blocks_4", "blocks_10")
            for name in ("voi", "voi_to_whole")
        ),
    ]
    assert [figure.value for figure in seams] == pytest.approx([0] * 7)
