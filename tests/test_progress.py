import pytest
import torch
from ignite.engine import Engine, Events

from custom.progress import TrainingProgress
from custom.scores import VOI


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
