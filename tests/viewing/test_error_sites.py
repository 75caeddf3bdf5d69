import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from funlib.geometry import Roi

from custom.error_map import BOTH, object_errors
from custom.evaluation import SegmentationEvaluator
from custom.viewing import error_sites
from custom.viewing.error_sites import ErrorMap, Overlaps
from custom.viewing.finished_output import find_outputs
from custom.volumes import open_array
from tests.viewing import planted_output

SHAPE = planted_output.SHAPE


def noisy(seed: int) -> np.ndarray:
    """Segments that know nothing of the truth."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 5, [n // 4 for n in SHAPE])
    return coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64)


def evaluate(folder: Path) -> None:
    SegmentationEvaluator(
        folder / "datalist.json", "test", folder / "output", folder / "eval"
    ).run()


@pytest.fixture
def errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ErrorMap:
    """Of many small segments; looked through in pieces of two sections."""
    monkeypatch.setattr(error_sites, "PIECE", 2 * 14 * 20)
    output = planted_output.write(tmp_path, segments=noisy(1))
    (found,) = find_outputs([str(output)], "", str(tmp_path / "datalist.json"))
    assert found.entry is not None
    return ErrorMap(found.entry, output.parent)


def test_codes_of_any_box_are_those_of_the_whole(errors: ErrorMap) -> None:
    truth, known = errors.opened.read_labels(errors.roi)
    segments = errors.segmentation.read(errors.roi - errors.shift)
    whole = object_errors(np.where(known, truth, 0), segments)
    assert len(np.unique(whole)) > 2
    assert tuple(errors.roi.shape) == planted_output.LABELS_SHAPE
    for box in (Roi((0, 0, 0), errors.roi.shape), Roi((2, 4, 5), (3, 5, 9))):
        np.testing.assert_array_equal(errors.codes(box), whole[box.to_slices()])


def test_sites_are_the_pairs_that_are_wrong_and_lie_in_them(errors: ErrorMap) -> None:
    sites = errors.sites()
    truth, _ = errors.opened.read_labels(errors.roi)
    segments = errors.segmentation.read(errors.roi - errors.shift)
    codes = errors.codes(Roi((0, 0, 0), errors.roi.shape))
    assert [s.voxels for s in sites] == sorted((s.voxels for s in sites), reverse=True)
    assert {s.kind for s in sites} == {"split"}  # one object: no segment can join two
    assert sum(s.voxels for s in sites) == np.count_nonzero(codes == 1)
    for site in sites:
        voxel = tuple(np.subtract(site.voxel, errors.roi.begin))
        assert (truth[voxel], segments[voxel]) == (site.object, site.segment)


def test_pieces_count_as_the_whole_does() -> None:
    truth, segments = noisy(2), noisy(3)
    whole, pieces = Overlaps(), Overlaps()
    whole.add(truth, segments, (0, 0, 0))
    for z in range(0, SHAPE[0], 3):
        pieces.add(truth[z : z + 3], segments[z : z + 3], (z, 0, 0))
    assert whole.voxels == pieces.voxels
    for own, segment in whole.voxels:
        shared = np.count_nonzero((truth == own) & (segments == segment))
        assert whole.voxels[own, segment] == shared
        for place in (whole.place[own, segment], pieces.place[own, segment]):
            assert (truth[place], segments[place]) == (own, segment)
    kinds = {site.kind for site in whole.sites()}
    assert kinds == {"split", "merge"}


def test_a_merge_is_at_the_smaller_object_and_ties_go_to_the_lowest_id() -> None:
    truth = np.array([[[1, 1, 1, 2, 2, 3]]])
    found = Overlaps()
    found.add(truth, np.full_like(truth, 9), (5, 6, 7))
    assert [(s.kind, s.object, s.segment, s.voxels) for s in found.sites()] == [
        ("merge", 2, 9, 2),
        ("merge", 3, 9, 1),
    ]
    assert found.sites()[1].voxel == (5, 6, 12)
    tied = Overlaps()
    tied.add(np.array([[[1, 1]]]), np.array([[[8, 4]]]), (0, 0, 0))
    assert [(s.kind, s.segment) for s in tied.sites()] == [("split", 8)]


def test_nothing_in_common_is_no_error() -> None:
    found = Overlaps()
    found.add(np.zeros((2, 2, 2), int), np.ones((2, 2, 2), int), (0, 0, 0))
    assert found.sites() == []


def test_the_lists_of_an_evaluation_say_the_same(
    errors: ErrorMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not errors.evaluated
    looked = errors.codes(Roi((0, 0, 0), errors.roi.shape))
    output_dir, eval_dir = tmp_path / "output", tmp_path / "eval"
    evaluate(tmp_path)
    monkeypatch.setattr(error_sites, "MOST_VOXELS", 10)
    by_lists = ErrorMap(errors.opened, output_dir)
    assert by_lists.evaluated
    assert by_lists.affordable
    monkeypatch.setattr(Overlaps, "add", None)  # nothing is looked through
    np.testing.assert_array_equal(by_lists.codes(Roi((0, 0, 0), errors.roi.shape)), looked)
    assert len(by_lists.sites()) == len(errors.sites())
    for listed, counted in zip(by_lists.sites(), errors.sites(), strict=True):
        assert replace(listed, voxel=counted.voxel) == counted
        truth, segment = (a.item() for a in by_lists._read(Roi(listed.voxel, (1, 1, 1))))
        assert (truth, segment) == (listed.object, listed.segment)
    os.utime(tmp_path / "output" / "planted.zarr" / "labels" / "segmentation" / "s0")
    os.utime(eval_dir / "planted_splits.csv", (0, 0))  # of an older output
    assert not ErrorMap(errors.opened, output_dir).evaluated


def test_lists_of_another_truth_do_not_count(errors: ErrorMap, tmp_path: Path) -> None:
    evaluate(tmp_path)
    output_dir, opened = tmp_path / "output", errors.opened
    named = replace(opened, entry=replace(opened.entry, labels=f"{opened.entry.labels}/s0"))
    assert ErrorMap(opened, output_dir).evaluated
    assert not ErrorMap(named, output_dir).evaluated
    array = open_array(tmp_path / "data.zarr" / "labels" / "cells" / "s0")
    array.write(array.read().result() * 3).result()
    corrected = ErrorMap(opened, output_dir)
    assert not corrected.evaluated
    assert {site.object for site in corrected.sites()} == {21}


def test_lists_of_an_evaluation_that_was_stopped_do_not_count(
    errors: ErrorMap, tmp_path: Path
) -> None:
    evaluate(tmp_path)
    os.utime(tmp_path / "eval" / "scores.json", (1, 1))  # of the evaluation before
    assert not ErrorMap(errors.opened, tmp_path / "output").evaluated


def test_labels_that_change_under_a_viewer_are_errors(errors: ErrorMap, tmp_path: Path) -> None:
    assert errors.sites()
    array = open_array(tmp_path / "data.zarr" / "labels" / "cells" / "s0")
    array.write(array.read().result() * 3).result()
    codes = errors.codes(Roi((0, 0, 0), errors.roi.shape))
    truth, segments = errors._read(errors.roi)
    np.testing.assert_array_equal(codes == BOTH, (truth != 0) & (segments != 0))


def test_lists_count_from_the_segmentations_first_voxel(tmp_path: Path) -> None:
    splits, merges = tmp_path / "splits.csv", tmp_path / "merges.csv"
    splits.write_text("truth_id,segment_id,voxels,z,y,x\n3,8,50,1,2,3\n3,9,20,4,5,6\n3,0,7,0,0,0\n")
    merges.write_text(
        "segment_id,truth_id,voxels,z,y,x\n8,3,50,1,2,3\n9,3,20,7,8,9\n9,4,30,1,1,1\n"
    )
    found = error_sites.listed(splits, merges, (10, 20, 30))
    assert found.voxels == {(3, 8): 50, (3, 9): 20, (4, 9): 30}
    assert found.place[3, 9] == (14, 25, 36)
    assert found.joint[3, 9] == (17, 28, 39)


def test_volumes_that_are_too_large_are_not_looked_through(
    errors: ErrorMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert errors.affordable
    monkeypatch.setattr(error_sites, "MOST_VOXELS", 10)
    assert not errors.affordable
