import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.utils.data import DataLoader

from custom.validation import Validation


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
