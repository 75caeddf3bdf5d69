import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from custom.handlers import (
    GradientClipping,
    History,
    TensorBoard,
    TrainingProgress,
    Validation,
)
from custom.metrics import SCORES
from custom.scores import VOI

# --- gradient clipping ---


def trained(max_norm: float | None, gradient: tuple[float, float]) -> torch.Tensor:
    """Weights after one step of rate 1 from 0 with a given gradient."""
    network = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(network.weight)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=DataLoader([{"image": torch.tensor(gradient), "label": torch.zeros(1)}]),  # type: ignore[arg-type]
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda prediction, label: prediction.sum(),
        decollate=False,
        train_handlers=[] if max_norm is None else [GradientClipping(network, max_norm)],
    )
    trainer.run()
    return network.weight.detach()[0]


def test_a_long_gradient_is_shortened_and_keeps_its_direction() -> None:
    np.testing.assert_allclose(trained(None, (30.0, 40.0)), (-30, -40))
    np.testing.assert_allclose(trained(1.0, (30.0, 40.0)), (-0.6, -0.8), rtol=1e-4)


def test_a_short_gradient_stays_as_it_is() -> None:
    np.testing.assert_allclose(trained(1.0, (0.3, 0.4)), (-0.3, -0.4))


# --- history ---


class Loss(nn.Module):
    """Has components, as our losses do."""

    components: dict[str, torch.Tensor]


def history(folder: Path, losses: list[float], valid: dict[int, float]) -> History:
    """Two steps per epoch with these losses, and validations with these scores."""
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

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.25)
    board = TensorBoard(str(folder / "board"))
    found = History(str(folder / "history.json"), loss, optimizer, board, validation)
    found.attach(trainer)
    trainer.run(losses, max_epochs=len(losses) // 2, epoch_length=2)
    return found


def test_every_epoch_has_its_means_and_its_scores(tmp_path: Path) -> None:
    history(tmp_path, [1.0, 2.0, 5.0, 7.0], {2: 0.5})
    first, second = json.loads((tmp_path / "history.json").read_text())
    assert first == {"epoch": 1, "train_loss": 1.5, "loss_lsd": pytest.approx(0.15), "lr": 0.25}
    assert (second["epoch"], second["train_loss"]) == (2, 6.0)
    assert {name: second[name] for name in SCORES} == dict.fromkeys(SCORES, 0.5)


def test_scores_of_an_earlier_epoch_are_not_repeated(tmp_path: Path) -> None:
    first, second = history(tmp_path, [1.0] * 4, {1: 0.5}).entries
    assert ("voi" in first, "voi" in second) == (True, False)


def test_tensorboard_shows_the_curves(tmp_path: Path) -> None:
    history(tmp_path, [1.0, 2.0, 5.0, 7.0], {2: 0.5})
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [(1, 1.5), (2, 6.0)]
    assert [(e.step, e.value) for e in events.Scalars("voi")] == [(2, 0.5)]


def test_a_history_that_is_taken_up_goes_on(tmp_path: Path) -> None:
    before = history(tmp_path, [1.0, 1.0], {}).state_dict()
    after = history(tmp_path / "again", [2.0, 2.0], {})
    after.load_state_dict(before)
    assert after.entries == before["entries"]
    assert after.entries is not before["entries"]


def test_tensorboard_writes_nothing_before_there_is_something(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path / "board"))
    assert not (tmp_path / "board").exists()
    board.add_scalars({"voi": 1.0}, 1)
    assert (tmp_path / "board").exists()


# --- progress ---


def progressing(*, fail: bool = False, start: int = 0) -> tuple[TrainingProgress, Engine]:
    def step(engine: Engine, batch: int) -> dict[str, torch.Tensor]:
        if fail:
            raise ZeroDivisionError("step")
        return {"loss": torch.tensor(0.5, requires_grad=True)}

    validation = Engine(lambda engine, batch: None)
    progress, trainer = TrainingProgress(validation, VOI), Engine(step)
    progress.attach(trainer)
    if start:  # as a training that is taken up
        trainer.state.max_epochs, trainer.state.epoch_length = 3, 2
        trainer.state.epoch, trainer.state.iteration = start, 2 * start
    return progress, trainer


@pytest.mark.parametrize("start", [0, 1])
def test_the_bar_counts_all_steps_of_all_epochs(
    capsys: pytest.CaptureFixture[str], start: int
) -> None:
    progress, trainer = progressing(start=start)
    progress.evaluator.state.metrics = {"voi": 1.25}
    trainer.run([0, 1], max_epochs=3)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "loss=0.500, voi=1.250" in shown
    assert f" {2 * start}/6 " in shown
    assert progress.bar is None


def test_the_bar_ends_with_the_last_validation(capsys: pytest.CaptureFixture[str]) -> None:
    progress, trainer = progressing()

    def validate() -> None:
        progress.evaluator.state.metrics = {"voi": 2.0 - 0.5 * trainer.state.epoch}

    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    trainer.run([0, 1], max_epochs=3)
    assert "voi=0.500" in capsys.readouterr().err


def test_an_error_of_a_step_closes_the_bar_and_goes_on_its_way() -> None:
    progress, trainer = progressing(fail=True)
    with pytest.raises(ZeroDivisionError, match="step"):
        trainer.run([0, 1], max_epochs=3)
    assert progress.bar is None


# --- when to validate ---


@pytest.mark.parametrize(
    ("interval", "epochs"), [(2, [2, 4, 5]), (5, [5]), (9, [5]), (1, [1, 2, 3, 4, 5])]
)
def test_the_last_epoch_is_validated_whatever_the_interval(
    interval: int, epochs: list[int]
) -> None:
    data = DataLoader([{"image": torch.zeros(1), "label": torch.zeros(1)}])  # type: ignore[arg-type]
    evaluator = SupervisedEvaluator("cpu", data, nn.Identity(), decollate=False)
    seen: list[int] = []
    evaluator.add_event_handler(Events.COMPLETED, lambda engine: seen.append(engine.state.epoch))
    trainer = Engine(lambda engine, batch: None)
    Validation(interval, evaluator).attach(trainer)
    trainer.run([0], max_epochs=5)
    assert seen == epochs
