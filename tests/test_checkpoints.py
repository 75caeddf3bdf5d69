from pathlib import Path
from typing import Any

import pytest
import torch
from monai.optimizers import WarmupCosineSchedule
from torch import nn

from custom.checkpoints import SchedulePosition, first_mismatch, load_checkpoint, save_atomically
from custom.errors import InputError

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
