import csv

from custom.tuning_rows import COLUMNS, ScoreTable, Tried

SCORES = {"voi_split": 0.1, "voi_merge": 1 / 3, "voi": 0.1 + 1 / 3, "adapted_rand": 2e-17}
ONE = Tried("a cube, the first", "1f", "custom.X", {"bias": -0.5, "offsets": [[1, 0, 0]]})
OTHER = Tried("cube", "1f", "custom.X", {"bias": -0.6})


def test_a_score_is_found_again_to_the_last_bit(tmp_path):
    path = tmp_path / "new" / "scores.csv"
    ScoreTable(path).add(ONE, SCORES)
    table = ScoreTable(path)
    assert table.find(ONE) == SCORES
    assert table.find(OTHER) is None
    table.add(OTHER, SCORES)
    assert len(ScoreTable(path).rows) == 2
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["volume"] for row in rows] == ["a cube, the first", "cube"]


def test_each_part_of_the_key_counts(tmp_path):
    table = ScoreTable(tmp_path / "scores.csv")
    table.add(ONE, SCORES)
    for change in ({"volume": "b"}, {"prediction": "2"}, {"method": "Y"}, {"settings": {}}):
        assert table.find(Tried(**{**vars(ONE), **change})) is None


def test_a_row_that_was_cut_short_is_as_if_not_there_and_the_next_begins_anew(tmp_path):
    path = tmp_path / "scores.csv"
    table = ScoreTable(path)
    table.add(OTHER, SCORES)
    whole = path.read_bytes()
    table.add(ONE, SCORES)
    path.write_bytes(path.read_bytes()[:-3])
    cut = ScoreTable(path)
    assert cut.find(ONE) is None and cut.find(OTHER) == SCORES
    cut.add(ONE, SCORES)
    assert path.read_bytes().startswith(whole)
    again = ScoreTable(path)
    assert again.find(ONE) == again.find(OTHER) == SCORES
