import pytest
import torch
from torch.distributed import TCPStore

from custom import processes
from custom.errors import InputError
from custom.processes import OVERLAY, check_processes, first_to_say, join, left_alone

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def begun_by_torchrun(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in {**TORCHRUN, **changes}.items():
        monkeypatch.setenv(name, value)


def test_processes_that_torchrun_has_not_started_are_told_how() -> None:
    with pytest.raises(InputError, match=r"there is no RANK.*torchrun --standalone"):
        join(120)


def test_torchrun_without_the_overlay_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check_processes({"dist_init": None})
    begun_by_torchrun(monkeypatch, WORLD_SIZE="1", RANK="0")
    check_processes({"dist_init": None})
    begun_by_torchrun(monkeypatch)
    check_processes({"dist_init": {"_target_": "custom.processes.join"}})
    for config in ({"dist_init": None}, {}):
        with pytest.raises(InputError, match=f"one of 4 processes, .*{OVERLAY}"):
            check_processes(config)


@pytest.mark.parametrize("wrong", [0, -5, 1.5, "long", None])
def test_a_timeout_is_a_number_of_minutes(wrong: object) -> None:
    with pytest.raises(InputError, match="dist_init#timeout_minutes must be a whole number"):
        join(wrong)  # type: ignore[arg-type]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    begun_by_torchrun(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"2 processes on a machine with 1 GPU.*_node to 1"):
        join(120)


def test_every_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    begun_by_torchrun(monkeypatch)
    chosen: list[torch.device] = []
    begun: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(processes.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(
        processes.distributed, "init_process_group", lambda backend, timeout: begun.append(backend)
    )
    monkeypatch.setattr(processes.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(processes, "is_writer", lambda: True)
    found = join(120)
    assert chosen == [found.device] == [torch.device("cuda", 1)]
    assert begun == ["cpu:gloo,cuda:nccl"]
    assert found.size == 4


def test_only_the_end_of_another_process_is_not_a_processs_own_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    wrapped = RuntimeError("Failed to evaluate")
    wrapped.__cause__ = lost
    assert not left_alone(wrapped)  # there is no other process
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    assert left_alone(wrapped)
    assert not left_alone(RuntimeError("a bug"))
    assert not left_alone(ConnectionError("Connection closed by peer"))


def test_a_sentence_is_said_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [first_to_say("alone") for _ in range(2)] == [True, True]
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    begun_by_torchrun(monkeypatch, MASTER_PORT=str(server.port))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    assert [first_to_say(said) for said in ("one", "one", "other")] == [True, False, True]
    monkeypatch.setenv("MASTER_PORT", "none")
    assert first_to_say("one")  # rather twice than never
