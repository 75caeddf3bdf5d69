import json
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import daisy
import pytest

from custom.blockwise import clients, workers
from custom.blockwise.block_progress import BlockProgress
from custom.blockwise.clients import WorkerError
from custom.blockwise.outcomes import Outcome, refuse_failures
from custom.blockwise.presence import present, wait_until_alone
from custom.blockwise.records import EndOfRunError, failures, recorded
from custom.blockwise.serving import LOSSES, BlockServer
from custom.errors import InputError
from tests.blockwise.counting import Counting


@pytest.fixture
def task(tmp_path: Path) -> Counting:
    made = Counting(state_dir=tmp_path / "s", name="a", folder=tmp_path / "a", num_workers=2)
    made.prepare()
    return made


@pytest.fixture
def server(task: Counting) -> BlockServer:
    made = BlockServer(task, threading.Event())
    made.worker_pools = SimpleNamespace(worker_pools={"a": SimpleNamespace(workers={})})
    made.scheduler = SimpleNamespace(acquire_block=lambda name: None, task_states={})
    return made


def with_workers(server: BlockServer, *numbers: int) -> None:
    """What daisy has started in the place of those that have ended."""
    server.worker_pools.worker_pools["a"].workers = dict.fromkeys(numbers)
    server._count_deaths()


def error(exception: Exception) -> Any:
    return SimpleNamespace(exception=exception)


def test_workers_that_ask_for_no_block_are_not_started_for_ever(server: BlockServer) -> None:
    with_workers(server, 0, 1)
    with_workers(server, 2, 3)
    server._handle_client_exception(error(WorkerError("there is no project")))
    with_workers(server, 2, 4)
    with pytest.raises(
        EndOfRunError, match=r"4 workers of 'a'.*there is no project; see .*_2\.log"
    ):
        with_workers(server, 4, 5)


def test_a_worker_that_asks_for_a_block_begins_the_count_anew(server: BlockServer) -> None:
    server.scheduler.task_states["a"] = SimpleNamespace(ready_count=0, pending_count=1)
    server.pending_requests = {"a": SimpleNamespace(put=lambda message: None)}
    with_workers(server, 0, 1)
    with_workers(server, 2, 3)
    server._handle_acquire_block(SimpleNamespace(task_id="a"))
    with_workers(server, 4, 5)
    with_workers(server, 4, 6)
    with pytest.raises(EndOfRunError):
        with_workers(server, 7, 6)


def test_a_block_that_no_block_can_get_around_ends_the_run(server: BlockServer) -> None:
    with pytest.raises(EndOfRunError, match="full"):
        server._handle_client_exception(error(EndOfRunError("the disk is full")))


def lose(server: BlockServer) -> str:
    """A worker ends amid a block; returns what became of the block."""
    block = server.scheduler.acquire_block("a")
    server.block_bookkeeper = SimpleNamespace(get_lost_blocks=lambda: [block])
    server._check_for_lost_blocks()
    state = server.scheduler.task_states["a"]
    return "failed" if state.failed_count else "ready" if state.ready_count else "lost"


def test_a_lost_block_leaves_a_record_and_is_given_to_another_worker_though_not_for_ever(
    server: BlockServer, tmp_path: Path
) -> None:
    task = Counting(
        state_dir=tmp_path / "s", name="a", folder=tmp_path / "a", shape=(10, 20, 20), retries=1
    )
    with task.task() as blocks:
        server.scheduler = daisy.Scheduler([blocks])
    server._release_block = server.scheduler.release_block
    assert [lose(server) for _ in range(LOSSES + 2)] == ["ready"] * (LOSSES + 1) + ["failed"]
    (record,) = failures(task.meta_dir)
    assert "its worker ended" in record["error"]
    assert record["tries"] == LOSSES + 2


def next_block(task: Counting) -> daisy.Block:
    with task.task() as blocks:
        return daisy.Scheduler([blocks]).acquire_block(task.name)


def test_a_full_database_ends_the_run_too(task: Counting) -> None:
    def fill(block: daisy.Block) -> None:
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorname = "SQLITE_FULL"
        raise full

    with pytest.raises(EndOfRunError, match="make room; the same command goes on"):
        recorded(fill, task.meta_dir)(next_block(task))
    assert failures(task.meta_dir) == []
    assert list((task.meta_dir / "running").iterdir()) == []


def test_blocks_that_are_left_without_a_failure_are_not_taken_for_done(task: Counting) -> None:
    refuse_failures([Outcome("a", 8, 8, 0, 0)], [task])
    with pytest.raises(InputError, match=r"3 blocks of .* were left; the same command goes on"):
        refuse_failures([Outcome("a", 8, 5, 0, 3)], [task])


@pytest.mark.parametrize(("at_a_block", "connected"), [(True, False), (True, True), (False, False)])
def test_a_worker_whose_server_is_gone_ends_amid_a_block(
    at_a_block: bool, connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server may have given the block to another worker; between blocks all is well."""
    ended = threading.Event()
    monkeypatch.setattr(clients.os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(clients, "POLL_S", 0.01)
    client, busy = SimpleNamespace(tcp_client=SimpleNamespace()), threading.Event()
    client.tcp_client.connected = lambda: connected
    if at_a_block:
        busy.set()
    with clients.ending_with_server(client, busy):
        assert ended.wait(5 if at_a_block and not connected else 0.2) == (
            at_a_block and not connected
        )


def test_local_workers_share_the_cores_unless_told_otherwise(
    task: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: 7)
    for name in workers.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "5")
    for number, share in ((1, "7"), (2, "3"), (20, "1")):
        path = task.meta_dir / "task.json"
        path.write_text(json.dumps({"settings": {"num_workers": number}}))
        given = workers.shares(path)
        assert given.pop("OMP_NUM_THREADS") == share
        assert set(given.values()) == {share}
        assert "NUMBA_NUM_THREADS" not in given


def test_a_run_waits_for_the_processes_of_an_earlier_one(tmp_path: Path) -> None:
    with present(tmp_path):
        with pytest.raises(InputError, match="workers of an earlier run still work"):
            wait_until_alone(tmp_path, patience_s=0.2)
        with present(tmp_path):  # workers work side by side
            pass
    wait_until_alone(tmp_path, patience_s=0)


def state(completed: int, skipped: int = 0, failed: int = 0) -> Any:
    return SimpleNamespace(completed_count=completed, skipped_count=skipped, failed_count=failed)


def test_progress_counts_what_this_run_has_done() -> None:
    now = [100.0]
    progress = BlockProgress("cube, predict", 100, 40, lambda: now[0])
    now[0] += 50  # workers begin
    progress.show(state(completed=40, skipped=40))
    assert progress.figures() == ""
    now[0] += 10
    progress.show(state(completed=60, skipped=40))
    assert progress.figures() == "2.0 blocks/s, 0:00:20 left"
    now[0] += 30
    progress.show(state(completed=64, skipped=40, failed=1))
    assert progress.figures() == "1.7 s/block, 0:00:56 left, 1 failed"


def test_progress_is_a_line_a_minute_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    now = [0.0]
    progress = BlockProgress("cube, predict", 100, 0, lambda: now[0])
    for minute in range(1, 5):
        now[0] = 30.0 * minute
        progress.show(state(completed=minute))
    progress.close()
    assert [r.getMessage().split(" blocks")[0] for r in caplog.records] == [
        "cube, predict: 2 of 100",
        "cube, predict: 4 of 100",
        "cube, predict: 4 of 100",
    ]
