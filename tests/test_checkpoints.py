import resource
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from custom.checkpoints import (
    SchedulePosition,
    TrainingCheckpoint,
    first_mismatch,
    load_checkpoint,
    save_atomically,
)
from custom.errors import InputError
from custom.preflight import user_mistake

# --- checkpoints ---


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "damaged"), (b"PK\x03\x04 and no more", "damaged"), (None, "not a checkpoint:")],
)
def test_what_is_no_checkpoint_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "last.pt"
    torch.save([1], path) if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=rf"last\.pt' is {message}"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def test_a_checkpoint_is_never_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"network": Evil()}, tmp_path / "last.pt")
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(tmp_path / "last.pt")
    assert "executed" not in capsys.readouterr().out


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_atomically({"epoch": 1}, path)
    with pytest.raises(AttributeError):
        save_atomically({"epoch": lambda: 2}, path)
    assert load_checkpoint(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_networks_first_mismatch_is_short_and_says_which_weight() -> None:
    with pytest.raises(RuntimeError) as caught:
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)).load_state_dict(
            nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 4)).state_dict()
        )
    assert first_mismatch(caught.value).startswith("size mismatch for 0.weight")
    assert "\n" not in first_mismatch(caught.value)
    assert first_mismatch(ValueError("")) == "ValueError"


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    save_atomically({"network": nn.Linear(40, 50).state_dict()}, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"last\.pt' is damaged or not a checkpoint"):
        load_checkpoint(path)


def test_a_disk_that_fills_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """A real limit, as the system sets it: no file of this process may be longer."""
    path = tmp_path / "last.pt"
    save_atomically({"weights": torch.ones(1000)}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            save_atomically({"weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    mistake = user_mistake(caught.value)
    assert str(path) in str(mistake) and "make room" in str(mistake)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def network(*widths: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(n, m) for n, m in pairwise(widths)))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((2, 3, 4, 5), r"4 are not in the network \(1\.weight, 1\.bias, 2\.weight, \.\.\.\)"),
        ((2, 4), r"2 have another shape \(0\.weight \[4, 2\], not \[3, 2\], 0\.bias \[4\], not"),
    ],
)
def test_weights_of_another_network_are_named(
    tmp_path: Path, widths: tuple[int, ...], message: str
) -> None:
    save_atomically({"epoch": 1, "network": network(*widths).state_dict()}, tmp_path / "last.pt")
    checkpoint = TrainingCheckpoint(str(tmp_path / "last.pt"), {"network": network(2, 3)})
    with pytest.raises(InputError, match=rf"last\.pt' does not fit .*\(network: {message}"):
        checkpoint.resume(Engine(lambda engine, batch: None), 3)
    longer = TrainingCheckpoint(str(tmp_path / "last.pt"), {"network": network(*widths, 6)})
    with pytest.raises(InputError, match=rf"2 are missing \({len(widths) - 1}\.weight"):
        longer.resume(Engine(lambda engine, batch: None), 3)


@pytest.mark.parametrize("foreign", [{"weight": torch.ones(3)}, {"epoch": 3, "network": "none"}])
def test_a_foreign_file_is_no_checkpoint_of_this_training(
    tmp_path: Path, foreign: dict[str, Any]
) -> None:
    save_atomically(foreign, tmp_path / "last.pt")
    checkpoint = TrainingCheckpoint(str(tmp_path / "last.pt"), {"network": network(2, 3)})
    with pytest.raises(InputError, match=r"does not fit this configuration \((it has no|network)"):
        checkpoint.resume(Engine(lambda engine, batch: None), 3)


# --- the schedule ---


def schedule(total: int, rate: float = 0.1) -> tuple[torch.optim.Optimizer, WarmupCosineSchedule]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    return optimizer, WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=total)


def rates(optimizer: torch.optim.Optimizer, scheduler: WarmupCosineSchedule, n: int) -> list[float]:
    found = []
    for _ in range(n):
        optimizer.step()
        scheduler.step()
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


@pytest.mark.parametrize(("total", "rate"), [(10, 0.1), (20, 0.1), (10, 0.03)])
def test_a_schedule_that_is_taken_up_is_that_of_the_config(
    tmp_path: Path, total: int, rate: float
) -> None:
    optimizer, scheduler = schedule(10)
    rates(optimizer, scheduler, 6)
    save_atomically({"position": SchedulePosition(scheduler).state_dict()}, tmp_path / "last.pt")
    saved = optimizer.state_dict()

    optimizer, scheduler = schedule(total, rate)
    optimizer.load_state_dict(saved)
    position = SchedulePosition(scheduler)
    position.load_state_dict(load_checkpoint(tmp_path / "last.pt")["position"])
    assert rates(optimizer, scheduler, 4) == pytest.approx(rates(*schedule(total, rate), 10)[6:])


@pytest.mark.parametrize(("per_epoch", "left"), [(2, 4), (10, 20)])
def test_a_schedule_goes_on_in_its_middle_when_epochs_have_another_length(
    per_epoch: int, left: int
) -> None:
    before, now = schedule(4 * 4), schedule(4 * per_epoch)
    rates(*before, 8)
    state = SchedulePosition(before[1], steps_per_epoch=4).state_dict()
    SchedulePosition(now[1], steps_per_epoch=per_epoch).load_state_dict(state)
    assert rates(*now, left) == pytest.approx(rates(*schedule(4 * per_epoch), 2 * left)[left:])


def test_a_schedule_of_a_length_of_its_own_does_not_care_for_epochs() -> None:
    before, now = schedule(10), schedule(10)
    rates(*before, 6)
    state = SchedulePosition(before[1], steps_per_epoch=4).state_dict()
    SchedulePosition(now[1], steps_per_epoch=2).load_state_dict(state)
    assert rates(*now, 4) == pytest.approx(rates(*schedule(10), 10)[6:])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_schedule_that_counts_steps_does_not_go_on_as_one_that_follows_a_score(
    reverse: bool,
) -> None:
    optimizer, cosine = schedule(10)
    schedules: list[LRScheduler] = [cosine, ReduceLROnPlateau(optimizer)]
    before, now = reversed(schedules) if reverse else schedules
    with pytest.raises(ValueError, match="one follows the score of validation, the other counts"):
        SchedulePosition(now).load_state_dict(SchedulePosition(before).state_dict())
