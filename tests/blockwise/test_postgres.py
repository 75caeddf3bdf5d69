from contextlib import closing
from pathlib import Path

import numpy as np
import psycopg2
import pytest

from custom.blockwise.graph_database import PostgresGraph, graph_of
from custom.errors import InputError
from custom.segmentation.segmenter import MutexWatershedSegmenter
from tests.blockwise.chains import OFFSETS, SETTINGS, blocks_done, noisy, segmented
from tests.blockwise.postgres import free_port, missing, server

PASSWORD = "a word, with 'quotes'"


@pytest.fixture(scope="module")
def database():
    """What the configuration says of a running server."""
    if reason := missing():
        pytest.skip(reason)
    with server(PASSWORD) as port, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMSEG_TEST_PASSWORD", PASSWORD)
        yield {
            "host": "127.0.0.1", "port": port, "name": "Segments", "user": "postgres",
            "password_env": "EMSEG_TEST_PASSWORD",
        }  # fmt: skip


def query(database, name: str, command: str) -> list[tuple]:
    """Rows that a command gives, if it gives any."""
    address = {key: database[key] for key in ("host", "port", "user")}
    with closing(psycopg2.connect(**address, dbname=name, password=PASSWORD)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(command)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.slow
def test_a_graph_in_postgresql_gives_what_one_in_a_file_gives(database, tmp_path: Path):
    values, method = noisy(), MutexWatershedSegmenter(OFFSETS, **SETTINGS)
    block = (4, 6, 9)
    in_file = segmented(tmp_path / "file", values, block, method)
    found = segmented(tmp_path / "server", values, block, method, workers=2, database=database)
    np.testing.assert_array_equal(found, in_file)
    assert not (tmp_path / "server/state/graph.db").exists()
    for path in (tmp_path / "server/state").rglob("*.json"):
        assert PASSWORD not in path.read_text()
    ((nodes,),) = query(database, "segments_volume", "SELECT count(*) FROM nodes")
    assert nodes > 8

    other = method.with_settings(bias=-0.7)  # begins anew, in the same database
    anew = segmented(tmp_path / "server", values, block, other, database=database)
    np.testing.assert_array_equal(anew, segmented(tmp_path / "file", values, block, other))
    assert blocks_done(tmp_path / "server/state")["fragments"] == 8

    with pytest.raises(InputError, match=r"'segments_volume' on .* holds the graph of anoth"):
        segmented(tmp_path / "another", values, block, method, database=database)
    ((same,),) = query(database, "segments_volume", "SELECT count(*) FROM nodes")
    assert same > nodes  # of bias -0.7: more fragments, and still there

    without = segmented(tmp_path / "server", values, block, other)  # anew, its graph in a file
    np.testing.assert_array_equal(without, anew)
    assert (tmp_path / "server/state/graph.db").exists()


@pytest.mark.slow
def test_a_database_of_something_else_is_refused_and_left_alone(database, tmp_path: Path):
    query(database, "postgres", "CREATE DATABASE lab_volume")
    query(database, "lab_volume", "CREATE TABLE nodes (id INTEGER)")
    with pytest.raises(InputError, match=r"'lab_volume' .* holds tables .* \(nodes\)"):
        graph_of({**database, "name": "lab"}, tmp_path, "volume")
    assert query(database, "lab_volume", "SELECT * FROM nodes") == []


@pytest.mark.slow
def test_a_wrong_password_ends_in_a_sentence(database, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("EMSEG_TEST_PASSWORD", "another")
    with pytest.raises(InputError, match=r"cannot be used: .*password authentication failed"):
        graph_of(database, tmp_path, "volume")


def test_a_server_that_cannot_be_reached_ends_in_a_sentence(tmp_path: Path):
    with pytest.raises(InputError, match=r"port \d+ cannot be used: .*refused.*check database.ho"):
        graph_of({"host": "127.0.0.1", "port": free_port()}, tmp_path, "volume")


def test_a_password_is_looked_for_where_the_configuration_says(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("EMSEG_TEST_PASSWORD", raising=False)
    with pytest.raises(InputError, match="variable EMSEG_TEST_PASSWORD, which is not set"):
        graph_of({"password_env": "EMSEG_TEST_PASSWORD"}, tmp_path, "volume")


def test_unknown_keys_and_impossible_names_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="did you mean 'port'"):
        graph_of({"prot": 5432}, tmp_path, "volume")
    with pytest.raises(InputError, match="the name '9_volume' of a database"):
        graph_of({"name": "9"}, tmp_path, "volume")


def test_the_mark_of_a_run_stays(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(PostgresGraph, "claim", lambda self: None)
    one, same = (graph_of({}, tmp_path / "a", "Vol 1") for _ in range(2))
    other = graph_of({}, tmp_path / "b", "Vol 1")
    assert one.owner == same.owner != other.owner


def test_every_volume_has_a_database_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(PostgresGraph, "claim", lambda self: None)
    ids = ("vol_1", "Vol_1", "vol.1", "vol 1", "vol__1")
    names = [graph_of({}, tmp_path, volume).name for volume in ids]
    assert names[0] == "emseg_vol_1" and names[-1] == "emseg_vol__1"
    assert all(name.startswith("emseg_vol_1_") for name in names[1:-1])
    assert len(set(names)) == len(ids)
