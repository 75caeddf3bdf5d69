import numpy as np
import torch
from monai.engines import IterationEvents, SupervisedTrainer
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

from custom.training_step import TrainingStep


def trainer(max_norm: float, gradient: tuple[float, float], steps: int = 1) -> SupervisedTrainer:
    """Steps of rate 1, then 0.1, from 0 with a given gradient."""
    network = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    item = {"image": torch.tensor(gradient), "label": torch.zeros(1)}
    return SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=DataLoader([item] * steps),  # type: ignore[arg-type]
        network=network,
        optimizer=optimizer,
        loss_function=lambda prediction, label: prediction.sum(),
        decollate=False,
        iteration_update=TrainingStep(max_norm, ExponentialLR(optimizer, 0.1)),
    )


def weights(max_norm: float, gradient: tuple[float, float], steps: int = 1) -> torch.Tensor:
    trained = trainer(max_norm, gradient, steps)
    trained.run()
    return trained.network.weight.detach()[0]


def test_a_long_gradient_is_shortened_and_keeps_its_direction() -> None:
    np.testing.assert_allclose(weights(1e6, (30.0, 40.0)), (-30, -40))
    np.testing.assert_allclose(weights(1.0, (30.0, 40.0)), (-0.6, -0.8), rtol=1e-4)


def test_a_short_gradient_stays_as_it_is() -> None:
    np.testing.assert_allclose(weights(1.0, (0.3, 0.4)), (-0.3, -0.4))


def test_every_step_moves_the_schedule_and_starts_from_no_gradient() -> None:
    np.testing.assert_allclose(weights(10.0, (3.0, 4.0), steps=2), (-3.3, -4.4), rtol=1e-6)


def test_a_step_says_what_it_did_and_fires_monais_events() -> None:
    steps, seen = trainer(1.0, (3.0, 4.0), steps=2), []
    events = list(IterationEvents)[:4]
    assert [e.name for e in events] == [
        *("FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED")
    ]
    for event in events:
        steps.add_event_handler(event, lambda engine, event=event: seen.append(event))
    steps.run()
    assert seen == events * 2
    assert steps.state.step_info == {"gradient_norm": 5.0, "lr": 0.1}
