import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from custom.errors import InputError
from custom.handlers import (
    GradientClipping,
    History,
    SegmentationScore,
    SlicePanel,
    TensorBoard,
    TrainingProgress,
    Validation,
)
from custom.metrics import SCORES, instance_scores
from custom.segmentation.segmenter import MutexWatershedSegmenter

OFFSETS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 3))
SHAPE = (6, 8, 12)
SEGMENTER = MutexWatershedSegmenter(OFFSETS, bias=-0.5, long_range_stride=1)


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


# --- scores ---


def truth(cut: int = 5) -> NDArray[np.int64]:
    """Two objects, cut along x."""
    labels = np.ones(SHAPE, dtype=np.int64)
    labels[:, :, cut:] = 2
    return labels


def predicted(labels: NDArray[np.int64], cut: float = 0.0) -> torch.Tensor:
    """Affinities: 1 inside objects, ``cut`` across their border."""
    channels = []
    for offset in OFFSETS:
        moved = np.roll(labels, [-o for o in offset], axis=(0, 1, 2))
        channels.append(np.where(labels == moved, 1.0, cut))
    return torch.tensor(np.stack(channels), dtype=torch.float32)


def item(labels: NDArray[np.int64], prediction: torch.Tensor) -> dict[str, Any]:
    return {
        "image": torch.linspace(-1, 1, labels.size).reshape(1, *labels.shape),
        "label": torch.from_numpy(labels)[None],
        "pred": prediction,
        "voxel_size_nm": torch.tensor([16.0, 8.0, 8.0]),
    }


def evaluator(*handlers: Any, score: SegmentationScore | None = None) -> Engine:
    """An engine whose data are its outputs."""
    engine = Engine(lambda engine, batch: batch)
    if score is not None:
        score.attach(engine, "voi")
    for handler in handlers:
        handler.attach(engine)
    return engine


def evaluated(score: SegmentationScore, *items: dict[str, Any]) -> Any:
    engine = evaluator(score=score)
    engine.run([[one] for one in items])
    return engine.state


def test_a_perfect_prediction_scores_nothing() -> None:
    state = evaluated(SegmentationScore(SEGMENTER, [{}]), item(truth(), predicted(truth())))
    assert {name: state.metrics[name] for name in SCORES} == dict.fromkeys(SCORES, 0.0)


def test_scores_are_those_of_the_metrics_and_means_over_volumes() -> None:
    segments = truth(9)
    state = evaluated(
        SegmentationScore(SEGMENTER, [{}]),
        item(truth(), predicted(segments)),
        item(truth(), predicted(truth())),
    )
    expected = instance_scores(truth(), segments)
    assert expected["voi"] > 0.1
    for name in SCORES:
        assert state.metrics[name] == pytest.approx(expected[name] / 2)


def test_the_best_setting_of_the_grid_counts() -> None:
    grid = [{"bias": 0.5, "threshold": 0.1}, {"bias": -0.5}, {"bias": -0.5, "threshold": 0.01}]
    prediction = predicted(truth(), cut=0.3)
    state = evaluated(SegmentationScore(SEGMENTER, grid), item(truth(), prediction))
    assert state.metrics["voi"] == 0
    assert state.segmentation == {"bias": -0.5}


def test_the_choice_is_by_voi_times_rand_and_a_new_run_forgets() -> None:
    score = SegmentationScore(SEGMENTER, [{"bias": -0.4}, {"bias": -0.5}, {"bias": -0.6}])
    voi, rand = SCORES.index("voi"), SCORES.index("adapted_rand")
    table = np.zeros((2, 3, len(SCORES)))
    table[:, :, voi] = [[1.0, 1.2, 3.0], [1.0, 1.2, 3.0]]
    table[:, :, rand] = [[0.6, 0.1, 0.05], [0.4, 0.1, 0.05]]  # products 0.5, 0.12, 0.15
    score.rows = table.tolist()
    index, scores = score.best()
    assert (index, score.compute()) == (1, 1.2)
    assert scores["adapted_rand"] == pytest.approx(0.1)
    score.reset()
    assert score.rows == []


def test_an_empty_grid_and_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one setting"):
        SegmentationScore(SEGMENTER, [])
    with pytest.raises(InputError, match="treshold"):
        SegmentationScore(SEGMENTER, [{"treshold": 0.5}])


def test_shared_fragments_give_the_same_scores_as_fragments_of_their_own() -> None:
    prediction = predicted(truth(), cut=0.6)
    grid: list[dict[str, Any]] = [
        {"threshold": t, "quantile": q} for t, q in ((0.2, 0.5), (0.9, 0.9))
    ]
    together = SegmentationScore(SEGMENTER, grid)
    evaluated(together, item(truth(), prediction))
    for number, settings in enumerate(grid):
        alone = SegmentationScore(SEGMENTER, [settings])
        evaluated(alone, item(truth(), prediction))
        assert together.rows[0][number] == alone.rows[0][0]


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


# --- pictures ---


def panel(folder: Path) -> NDArray[np.uint8]:
    with Image.open(folder / "panel_0001.png") as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def test_a_panel_shows_the_first_volume_in_three_planes(tmp_path: Path) -> None:
    score = SegmentationScore(SEGMENTER, [{}])
    board = TensorBoard(str(tmp_path / "board"))
    engine = evaluator(SlicePanel(str(tmp_path), board, score), score=score)
    first, second = item(truth(), predicted(truth())), item(truth(9), predicted(truth(9)))
    engine.run([[first], [second]])
    both = panel(tmp_path)
    assert min(both.shape[:2]) > 3 * min(SHAPE)
    assert len(np.unique(both.reshape(-1, 3), axis=0)) > 20
    engine.run([[first]])
    np.testing.assert_array_equal(both, panel(tmp_path))
    engine.run([[second]])
    assert (both != panel(tmp_path)).any()
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [e.step for e in events.Images("validation")] == [1, 1, 1]


# --- progress ---


def progressing(*, fail: bool = False, start: int = 0) -> tuple[TrainingProgress, Engine]:
    def step(engine: Engine, batch: int) -> dict[str, torch.Tensor]:
        if fail:
            raise ZeroDivisionError("step")
        return {"loss": torch.tensor(0.5, requires_grad=True)}

    validation = Engine(lambda engine, batch: None)
    progress, trainer = TrainingProgress(validation), Engine(step)
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
