import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from custom.history import History
from custom.metrics import SCORES
from custom.tensorboard import TensorBoard


class Loss(nn.Module):
    """Has components, as our losses do."""

    components: dict[str, torch.Tensor]


def history(folder: Path, losses: list[float], valid: dict[int, float], **state: Any) -> History:
    """Two steps per epoch with these losses, and validations with these scores and this state."""
    loss, validation = Loss(), Engine(lambda engine, batch: None)

    def step(engine: Engine, batch: float) -> dict[str, torch.Tensor]:
        loss.components = {"lsd": torch.tensor(batch / 10)}
        return {"loss": torch.tensor(batch, requires_grad=True)}

    trainer = Engine(step)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        if engine.state.epoch in valid:
            validation.state.epoch = engine.state.epoch
            validation.state.metrics = dict.fromkeys(SCORES, valid[engine.state.epoch])
            validation.state.volume_scores = {"cube": {"voi": 0.25}}  # type: ignore[attr-defined]
            for name, value in state.items():
                setattr(validation.state, name, value)

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.25)
    board = TensorBoard(str(folder / "board"))
    found = History(str(folder / "history.json"), loss, optimizer, board, validation)
    found.attach(trainer)
    if losses:
        trainer.run(losses, max_epochs=len(losses) // 2, epoch_length=2)
    return found


def test_every_epoch_has_its_means_and_its_scores(tmp_path: Path) -> None:
    history(tmp_path, [1.0, 2.0, 5.0, 7.0], {2: 0.5})
    first, second = json.loads((tmp_path / "history.json").read_text())
    assert first == {"epoch": 1, "train_loss": 1.5, "loss_lsd": pytest.approx(0.15), "lr": 0.25}
    assert (second["epoch"], second["train_loss"]) == (2, 6.0)
    assert {name: second[name] for name in SCORES} == dict.fromkeys(SCORES, 0.5)
    assert second["volume_scores"] == {"cube": {"voi": 0.25}}


def test_scores_of_an_earlier_epoch_are_not_repeated(tmp_path: Path) -> None:
    first, second = history(tmp_path, [1.0] * 4, {1: 0.5}).entries
    assert ("voi" in first, "voi" in second) == (True, False)


def test_tensorboard_shows_the_curves(tmp_path: Path) -> None:
    history(tmp_path, [1.0, 2.0, 5.0, 7.0], {2: 0.5})
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [(2, 1.5), (4, 6.0)]
    assert [(e.step, e.value) for e in events.Scalars("voi")] == [(4, 0.5)]


def test_a_history_that_is_taken_up_goes_on(tmp_path: Path) -> None:
    before = history(tmp_path, [1.0, 1.0], {}).state_dict()
    after = history(tmp_path / "again", [2.0, 2.0], {})
    after.load_state_dict(before)
    assert after.entries == before["entries"]
    assert after.entries is not before["entries"]


def test_an_epoch_that_was_taken_up_in_its_middle_has_the_mean_of_all_its_steps(
    tmp_path: Path,
) -> None:
    before = history(tmp_path, [], {})
    before.means.add({"train_loss": 4.0})
    after = history(tmp_path, [], {})
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    after.means.add({"train_loss": 1.0})
    assert after.means.take() == {"train_loss": 2.5}


def test_the_chosen_settings_are_kept(tmp_path: Path) -> None:
    first, second = history(tmp_path, [1.0] * 4, {1: 0.5}, segmentation={"bias": -0.5}).entries
    assert first["segmentation"] == {"bias": -0.5}
    assert "segmentation" not in second
