import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.utils.data import DataLoader

from custom.validation import Validation, trained_iterations, validations_left


@pytest.mark.parametrize(
    ("interval", "epochs"), [(2, [2, 4, 5]), (5, [5]), (9, [5]), (1, [1, 2, 3, 4, 5])]
)
def test_the_last_epoch_is_validated_whatever_the_interval(
    interval: int, epochs: list[int]
) -> None:
    data = DataLoader([{"image": torch.zeros(1), "label": torch.zeros(1)}])  # type: ignore[arg-type]
    evaluator = SupervisedEvaluator("cpu", data, nn.Identity(), decollate=False)
    seen: list[tuple[int, int]] = []
    assert trained_iterations(evaluator) == 0

    def see(engine: Engine) -> None:
        seen.append((engine.state.epoch, trained_iterations(engine)))

    evaluator.add_event_handler(Events.COMPLETED, see)
    trainer = Engine(lambda engine, batch: None)
    Validation(interval, evaluator).attach(trainer)
    trainer.run([0, 1], max_epochs=5)
    assert seen == [(epoch, 2 * epoch) for epoch in epochs]
    left = [validations_left(epoch, 5, interval) for epoch in range(1, 7)]
    assert left == [sum(each >= epoch for each in epochs) for epoch in range(1, 7)]
