import json
from pathlib import Path

import numpy as np
import pytest

from custom.outputs.images import SEGMENTATION, image_names, is_complete
from custom.outputs.objects import read_table, table_path
from custom.volumes import open_array
from tests.bundle import tiny

STORE = Path("output") / "synthetic.zarr"


@pytest.mark.slow
def test_a_run_in_the_newer_format_has_the_same_voxels_table_and_scores(project: Path) -> None:
    store = project / STORE
    before = {name: open_array(store / name / "s0").read().result() for name in image_names(store)}
    table, scores = read_table(store), (project / "eval" / "scores.json").read_text()
    tiny.run("inference", project, ome_zarr_version=0.5, shards=64, object_table="csv")
    assert is_complete(store)
    assert not table_path(store, "parquet").exists()
    assert image_names(store) == list(before)
    assert not list(store.rglob(".z*"))
    for name, values in before.items():
        assert (store / name / "s0" / "zarr.json").exists()
        np.testing.assert_array_equal(open_array(store / name / "s0").read().result(), values)
    again = read_table(store)
    assert table is not None
    assert again is not None
    assert again.equals(table)
    ids, counts = np.unique(before[SEGMENTATION], return_counts=True)
    assert dict(table.select("id", "voxels").iter_rows()) == {
        int(i): int(n) for i, n in zip(ids, counts, strict=True) if i
    }
    tiny.run("evaluating", project)
    entries = (json.loads(text)["entries"] for text in (
        scores, (project / "eval" / "scores.json").read_text()
    ))  # fmt: skip
    assert next(entries) == next(entries)


def test_formats_that_do_not_exist_end_the_run_in_a_sentence(project: Path) -> None:
    def run(**changes: object) -> str:
        return tiny.mistake(lambda: tiny.run("inference", project, **changes))

    assert run(ome_zarr_version=0.6) == "ome_zarr_version must be 0.4 or 0.5, got 0.6"
    assert 'shards need ome_zarr_version "0.5"' in run(shards=64)
    assert "object_table must be" in run(object_table="xlsx")
