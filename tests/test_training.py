from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ignite.engine import Engine, Events
from torch import nn

from custom.checkpoints import TrainingCheckpoint, save_atomically
from custom.errors import InputError
from custom.training import TrainingSession, training_volumes


class Counter:
    """A part that counts epochs."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Trainer(Engine):
    """Two steps per epoch; counts its epochs, and may stop before one."""

    def __init__(self, epochs: int, stop_before: int = 0) -> None:
        super().__init__(lambda engine, batch: None)
        self.counter = Counter()
        self.network = nn.Identity()
        self.state.max_epochs = epochs
        self.stop_before = stop_before
        self.seen: list[int] = []
        self.add_event_handler(Events.EPOCH_STARTED, self._stop)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._count)

    def _stop(self, engine: Engine) -> None:
        if engine.state.epoch == self.stop_before:
            raise KeyboardInterrupt

    def _count(self, engine: Engine) -> None:
        self.counter.count += 1
        self.seen.append(engine.state.epoch)

    def run(self) -> Any:  # type: ignore[override]  # as MONAI's
        return super().run([0, 1], max_epochs=self.state.max_epochs)


class NoHistory:
    """Attaches nothing."""

    def attach(self, engine: Engine) -> None:
        pass


def session(folder: Path, trainer: Trainer) -> TrainingSession:
    checkpoint = TrainingCheckpoint(str(folder / "last.pt"), {"counter": trainer.counter})
    return TrainingSession(trainer, NoHistory(), checkpoint, 2, (4, 4, 4), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("stop_before", [1, 2, 3])
def test_an_interrupted_training_goes_on_where_it_stood(tmp_path: Path, stop_before: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path, Trainer(3, stop_before)).run()
    trainer = Trainer(3)
    session(tmp_path, trainer).run()
    assert trainer.seen == list(range(stop_before, 4))
    assert (trainer.counter.count, trainer.state.iteration) == (3, 6)


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    session(tmp_path, Trainer(3)).run()
    before = (tmp_path / "last.pt").stat().st_mtime_ns
    trainer = Trainer(3)
    session(tmp_path, trainer).run()
    assert trainer.seen == []
    assert (tmp_path / "last.pt").stat().st_mtime_ns == before


def test_more_epochs_are_run_after_those_that_were(tmp_path: Path) -> None:
    session(tmp_path, Trainer(3)).run()
    trainer = Trainer(5)
    session(tmp_path, trainer).run()
    assert trainer.seen == [4, 5]


def test_another_trainings_model_is_refused_and_our_own_is_not(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"years")
    with pytest.raises(InputError, match=r"holds model\.pt, but no last\.pt"):
        session(tmp_path, Trainer(3)).run()
    (tmp_path / "model.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path, Trainer(3, stop_before=1)).run()
    (tmp_path / "model.pt").write_bytes(b"ours, and then the process was killed")
    session(tmp_path, Trainer(3)).run()


def test_a_checkpoint_without_a_part_is_refused(tmp_path: Path) -> None:
    save_atomically({"epoch": 1, "other": {}}, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"last\.pt' does not fit this configuration \(counter: "):
        session(tmp_path, Trainer(3)).run()


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
