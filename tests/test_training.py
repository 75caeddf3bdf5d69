import os
import signal
import threading
from pathlib import Path
from signal import SIGINT, SIGTERM
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from custom.checkpoints import TrainingCheckpoint, load_checkpoint, save_atomically
from custom.distributed import rank
from custom.errors import InputError
from custom.interruption import STOPPED
from custom.training import TrainingSession, training_volumes
from tests.processes import in_two

LENGTH = 3  # batches of an epoch


class Log:
    """A part that writes down every batch with what it draws, and every end of an epoch."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def state_dict(self) -> dict[str, list[str]]:
        return {"lines": list(self.lines)}

    def load_state_dict(self, state: dict[str, list[str]]) -> None:
        self.lines = list(state["lines"])


class Trainer(Engine):
    """Draws a number per batch; may be stopped, ``stop`` calls of its handlers after the start."""

    def __init__(self, epochs: int, stop: int = 1000) -> None:
        super().__init__(self._batch)
        self.log = Log()
        self.network = nn.Identity()
        self.state.max_epochs = epochs
        self.calls, self.stop = 0, stop
        self.begun_at: int | None = None
        self.add_event_handler(Events.EPOCH_STARTED, self._tick)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._tick)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def stops_after(self) -> None:
        """Count what comes after the handlers that are there already, too."""
        self.add_event_handler(Events.ITERATION_COMPLETED, self._tick)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._tick)

    def _batch(self, engine: Engine, batch: int) -> None:
        if self.begun_at is None:
            self.begun_at = engine.state.iteration
        self.log.lines.append(f"{engine.state.iteration}: {torch.rand(()).item()}")

    def _end(self, engine: Engine) -> None:
        self._tick(engine)
        self.log.lines.append(f"end of {engine.state.epoch}")

    def _tick(self, engine: Engine) -> None:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt

    def run(self) -> Any:  # type: ignore[override]  # as MONAI's
        return super().run(list(range(LENGTH)), max_epochs=self.state.max_epochs)


class NoHistory:
    """Attaches nothing."""

    def attach(self, engine: Engine) -> None:
        pass


def session(folder: Path, trainer: Trainer, **settings: Any) -> TrainingSession:
    given = {name: settings.pop(name, None) for name in ("evaluator", "writer")}
    given["reports"] = settings.pop("reports", ())
    checkpoint = TrainingCheckpoint(str(folder / "last.pt"), {"log": trainer.log}, **settings)
    network_of = (LENGTH, (4, 4, 4), 1)
    made = TrainingSession(trainer, NoHistory(), checkpoint, *network_of, **given)  # type: ignore[arg-type]
    trainer.stops_after()
    return made


def trained(folder: Path, epochs: int = 3, stop: int = 1000, **settings: Any) -> Trainer:
    trainer = Trainer(epochs, stop)
    session(folder, trainer, **settings).run()
    return trainer


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"interval": 1},
        {"interval": 2, "val_interval": 2},
        {"interval": 1, "accumulation_steps": 2},
    ],
    ids=["ends", "every batch", "every second", "two batches a step"],
)
def test_a_training_stopped_at_any_moment_ends_like_one_that_was_not(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    whole = trained(tmp_path / "whole", **settings)
    assert len(whole.log.lines) == 3 * (LENGTH + 1)
    assert len({line.split()[-1] for line in whole.log.lines if ":" in line}) == 3 * LENGTH
    for stop in range(1, whole.calls + 1):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / str(stop), stop=stop, **settings)
        assert trained(tmp_path / str(stop), **settings).log.lines == whole.log.lines, stop


@pytest.mark.parametrize(
    ("settings", "begins"),
    [
        ({}, [1, 1, 1, 4]),
        ({"interval": 1}, [1, 2, 3, 4]),
        ({"interval": 2}, [1, 1, 3, 4]),
        ({"interval": 1, "accumulation_steps": 2}, [1, 1, 3, 4]),
    ],
    ids=["ends", "every batch", "every second", "two batches a step"],
)
def test_no_more_is_lost_than_the_batches_since_the_last_save(
    tmp_path: Path, settings: dict[str, Any], begins: list[int]
) -> None:
    for lost, begin in enumerate(begins):  # stopped after the batches 0, 1, 2, 3
        folder = tmp_path / str(lost)
        with pytest.raises(KeyboardInterrupt):
            trained(folder, stop=1 + 2 * lost, **settings)
        assert trained(folder, **settings).begun_at == begin


def test_what_is_left_of_the_last_epoch_is_its_end_alone(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", epochs=1)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", epochs=1, stop=1 + 2 * LENGTH + 1)
    assert load_checkpoint(tmp_path / "cut" / "last.pt")["epoch"] == 0
    again = trained(tmp_path / "cut", epochs=1)
    assert (again.begun_at, again.log.lines) == (None, whole.log.lines)
    assert load_checkpoint(tmp_path / "cut" / "last.pt")["epoch"] == 1


class Report:
    """Reads how many epochs the checkpoint counts as done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[int] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self) -> None:
        self.found.append(load_checkpoint(self.path)["epoch"])


def test_an_epoch_is_done_when_its_report_is_written(tmp_path: Path) -> None:
    report = Report(tmp_path / "last.pt")
    trained(tmp_path, reports=[report])
    assert report.found == [0, 1, 2]  # a kill between the two would leave the report behind


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    trained(tmp_path)
    before = (tmp_path / "last.pt").stat().st_mtime_ns
    assert trained(tmp_path).begun_at is None
    assert (tmp_path / "last.pt").stat().st_mtime_ns == before


def test_more_epochs_are_run_after_those_that_were(tmp_path: Path) -> None:
    trained(tmp_path)
    assert trained(tmp_path, epochs=5).begun_at == 3 * LENGTH + 1


def test_fewer_epochs_than_were_trained_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=1 + 2 * LENGTH + 2 + 1 + 2, interval=1)  # one batch of the second
    with pytest.raises(InputError, match=r"epochs is 1, but .* for 1 and 1 batches of the next: "):
        trained(tmp_path, epochs=1)
    trained(tmp_path)
    with pytest.raises(InputError, match=r"epochs is 2, but '.*last\.pt' has been trained for 3: "):
        trained(tmp_path, epochs=2)


def refusal_in_folders_apart(folder: str) -> str:
    """What a training says in each of two processes whose model_dir is not the same folder."""
    try:
        trained(Path(folder) / str(rank()))
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_processes_that_read_different_checkpoints_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "0", epochs=1)
    for said in in_two(refusal_in_folders_apart, str(tmp_path)):
        assert "processes would go on after different batches (3, 0)" in said


def test_epochs_of_another_length_begin_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=1 + 2 * LENGTH + 2 + 1 + 2, interval=1)
    monkeypatch.setattr("tests.test_training.LENGTH", LENGTH + 1)
    assert trained(tmp_path).begun_at == LENGTH + 1
    assert "4 batches now, not 3: the one under way begins anew" in caplog.text


def test_a_step_of_more_batches_begins_with_its_first(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=1 + 2 * LENGTH + 2 + 1 + 2, interval=1)  # one batch of the second
    assert trained(tmp_path, interval=1, accumulation_steps=2).begun_at == LENGTH + 1


class Curves:
    """Stands in for TensorBoard: points that are drawn, and those that vanish."""

    def __init__(self) -> None:
        self.points: list[int] = []

    def purge_from(self, iteration: int) -> None:
        self.points = [point for point in self.points if point <= iteration]


@pytest.mark.parametrize("settings", [{}, {"interval": 1}, {"interval": 2}], ids=str)
def test_no_point_of_a_curve_is_drawn_twice(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Every epoch draws a point at its end, as a validation does."""

    def drawn(folder: Path, curves: Curves, stop: int = 1000) -> None:
        trainer = Trainer(3, stop)
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda engine: curves.points.append(engine.state.iteration)
        )
        session(folder, trainer, writer=curves, **settings).run()

    for stop in range(1, 3 * (2 * LENGTH + 3)):
        curves = Curves()
        with pytest.raises(KeyboardInterrupt):
            drawn(tmp_path / str(stop), curves, stop)
        drawn(tmp_path / str(stop), curves)
        assert curves.points == [LENGTH, 2 * LENGTH, 3 * LENGTH], stop


# --- signals ---


class Signalled(Trainer):
    """Gets a signal in a batch, once or twice."""

    def __init__(self, epochs: int, batch: int, *numbers: int) -> None:
        super().__init__(epochs)
        self.at, self.numbers = batch, numbers

    def _batch(self, engine: Engine, batch: int) -> None:
        if engine.state.iteration == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)
        super()._batch(engine, batch)


@pytest.mark.parametrize("numbers", [(SIGTERM,), (SIGINT,), (SIGTERM, SIGTERM), (SIGINT, SIGTERM)])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_signal_ends_a_training_when_its_step_is_done_and_saved(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], numbers: tuple[int, ...], steps: int
) -> None:
    whole = trained(tmp_path / "whole", accumulation_steps=steps)
    for batch in range(1, 3 * LENGTH + 1):
        folder, handlers = tmp_path / str(batch), [signal.getsignal(n) for n in (SIGINT, SIGTERM)]
        with pytest.raises(SystemExit) as caught:
            session(folder, Signalled(3, batch, *numbers), accumulation_steps=steps).run()
        assert caught.value.code == STOPPED == 75
        assert [signal.getsignal(n) for n in (SIGINT, SIGTERM)] == handlers
        begin = (batch - 1) // LENGTH * LENGTH  # of the epoch
        end = begin + min(-(-(batch - begin) // steps) * steps, LENGTH)  # of the step
        assert load_checkpoint(folder / "last.pt")["iteration"] == end
        said = capfd.readouterr().err
        assert f"stopped, and saved after batch {end}; the same command" in said
        assert said.count("training stops when") == 1
        again = trained(folder, accumulation_steps=steps)
        assert again.log.lines == whole.log.lines
        assert again.begun_at == (end + 1 if end < 3 * LENGTH else None)


def test_a_second_ctrl_c_ends_a_training_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path, Signalled(3, 2, SIGTERM, SIGINT, SIGINT)).run()
    assert load_checkpoint(tmp_path / "last.pt")["iteration"] == 0


def test_a_signal_before_the_first_batch_ends_a_training_without_one(tmp_path: Path) -> None:
    trainer = Trainer(3)
    made = session(tmp_path, trainer)
    trainer.add_event_handler(Events.STARTED, lambda: os.kill(os.getpid(), SIGTERM))
    with pytest.raises(SystemExit):
        made.run()
    assert (trainer.begun_at, load_checkpoint(tmp_path / "last.pt")["iteration"]) == (None, 0)


def test_a_signal_in_a_validation_ends_it_and_it_is_done_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    whole = trained(tmp_path / "whole")

    def validated(stop: bool) -> Trainer:
        trainer, volumes = Trainer(3), []

        def predict(engine: Engine, volume: int) -> None:
            volumes.append(volume)
            if stop and len(volumes) == 5:  # the second of the second validation
                os.kill(os.getpid(), SIGINT)

        evaluator = Engine(predict)
        trainer.volumes = volumes  # type: ignore[attr-defined]
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([7, 8, 9]) and None)
        session(tmp_path / "cut", trainer, evaluator=evaluator).run()
        return trainer

    with pytest.raises(SystemExit):
        validated(stop=True)
    said = capfd.readouterr().err
    assert f"after batch {2 * LENGTH}; the validation that was under way will be done again" in said
    assert "exception" not in caplog.text
    again = validated(stop=False)
    assert (again.begun_at, again.volumes) == (2 * LENGTH + 1, [7, 8, 9] * 2)  # type: ignore[attr-defined]
    assert again.log.lines == whole.log.lines


def test_a_training_in_another_thread_listens_to_nobody(tmp_path: Path) -> None:
    trainer = Trainer(1)
    thread = threading.Thread(target=session(tmp_path, trainer).run)
    thread.start()
    thread.join()
    assert len(trainer.log.lines) == LENGTH + 1


# --- what is there ---


def test_another_trainings_model_is_refused_and_our_own_is_not(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"years")
    with pytest.raises(InputError, match=r"holds model\.pt, but no last\.pt"):
        trained(tmp_path)
    (tmp_path / "model.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=1)
    (tmp_path / "model.pt").write_bytes(b"ours, and then the process was killed")
    trained(tmp_path)


def test_a_checkpoint_without_a_part_is_refused(tmp_path: Path) -> None:
    save_atomically({"epoch": 1, "other": {}}, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"last\.pt' does not fit .*\(it has no 'log'\)"):
        trained(tmp_path)


# --- volumes ---


def volume() -> Any:
    spec = SimpleNamespace(backbone="a/b", channels=8)
    metadata = {"settings": {"window": 64}}
    return SimpleNamespace(id="cube", spec=spec, metadata=metadata, path=Path("cache/volume"))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A cache of one volume, and a hub out of reach."""

    def unreachable(*_: Any) -> None:
        raise InputError("the hub is out of reach")

    found = [volume()]
    monkeypatch.setattr("custom.training.open_cache", lambda *_, **__: found)
    monkeypatch.setattr("custom.training.complete_settings", dict)
    monkeypatch.setattr("custom.training.load_backbone_and_spec", unreachable)
    return found


@pytest.mark.parametrize("channels", [0, 8])
def test_a_cache_of_the_same_name_and_settings_needs_no_backbone(
    cache: list[Any], channels: int
) -> None:
    assert training_volumes("cache", "training", "a/b", {"window": 64}, channels) == cache


@pytest.mark.parametrize(("backbone", "window"), [("a/c", 64), ("a/b", 128), ({"seed": 1}, 64)])
def test_any_other_cache_is_compared_by_the_weights(
    cache: list[Any], backbone: Any, window: int
) -> None:
    with pytest.raises(InputError, match="out of reach"):
        training_volumes("cache", "training", backbone, {"window": window}, 8)


def test_other_token_channels_are_refused(cache: list[Any]) -> None:
    with pytest.raises(InputError, match=r"token_channels is 384, .* have 8 channels"):
        training_volumes("cache", "training", "a/b", {"window": 64}, 384)
