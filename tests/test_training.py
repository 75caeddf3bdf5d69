import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.optimizers import WarmupCosineSchedule
from safetensors.torch import load_file
from torch import nn

from custom.errors import InputError
from custom.training import (
    BestModel,
    SchedulePosition,
    TrainingCheckpoint,
    TrainingSession,
    first_mismatch,
    load_checkpoint,
    model_description,
    read_description,
    save_atomically,
    training_volumes,
)


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
    return TrainingSession(trainer, NoHistory(), checkpoint, 2)  # type: ignore[arg-type]


# --- checkpoints ---


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


# --- the model ---


def validated(best: BestModel, *vois: float) -> None:
    """Validations with these scores, one per epoch; the weights are the epoch's number."""
    epochs = iter(range(1, len(vois) + 1))
    engine = Engine(lambda engine, batch: None)
    best.attach(engine)

    @engine.on(Events.ITERATION_COMPLETED)
    def score(engine: Engine) -> None:
        state: Any = engine.state
        state.epoch = next(epochs)
        nn.init.constant_(best.network.weight, state.epoch)  # type: ignore[arg-type]
        state.metrics = {"voi": vois[state.epoch - 1], "adapted_rand": 0.5}
        state.segmentation = {"bias": -state.epoch}

    for _ in vois:
        engine.run([0])


def test_the_model_is_that_of_the_lowest_voi(tmp_path: Path) -> None:
    best = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {"features": {"window": 3}})
    validated(best, 2.0, 1.0, 1.5, 1.0)
    described = json.loads((tmp_path / "model.json").read_text())
    assert described == {
        "features": {"window": 3},
        "epoch": 2,
        "segmentation": {"bias": -2},
        "validation": {"voi": 1.0, "adapted_rand": 0.5},
    }
    for weights in (
        torch.load(tmp_path / "model.pt", weights_only=True),
        load_file(tmp_path / "model.safetensors"),
    ):
        assert weights["weight"].item() == 2
    assert len(list(tmp_path.iterdir())) == 3
    files = [tmp_path / f"model.{kind}" for kind in ("pt", "safetensors", "json")]
    assert [oct(file.stat().st_mode & 0o777) for file in files] == ["0o644"] * 3


def test_a_worse_model_after_a_restart_does_not_replace_the_best(tmp_path: Path) -> None:
    first = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {})
    validated(first, 1.0)
    second = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {})
    second.load_state_dict(first.state_dict())
    validated(second, 1.5)
    assert json.loads((tmp_path / "model.json").read_text())["validation"]["voi"] == 1.0


def test_the_three_files_of_a_model_are_replaced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {})
    validated(best, 2.0)

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("custom.training.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        validated(best, 1.0)
    assert json.loads((tmp_path / "model.json").read_text())["validation"]["voi"] == 2.0
    assert len(list(tmp_path.iterdir())) == 3


# --- what a model is made from ---


def volume(channels: int = 8, name: str = "cube") -> Any:
    spec = SimpleNamespace(
        backbone="a/b", channels=channels, pca=None, to_json=lambda: {"window": 64}
    )
    metadata = {"settings": {"window": 64}, "roi": {"offset": [0, 1, 2], "shape": [3, 4, 5]}}
    return SimpleNamespace(
        id=name, spec=spec, metadata=metadata, path=Path("cache/volume"), voxel_size_nm=(8.0,) * 3
    )


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A cache of one volume, and a hub out of reach."""

    def unreachable(*_: Any) -> None:
        raise InputError("the hub is out of reach")

    found = [volume()]
    monkeypatch.setattr("custom.training.open_cache", lambda *_: found)
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


@pytest.mark.parametrize(("sigma", "lsds"), [(80.0, [2, 12]), (None, [2, 2])])
def test_a_description_is_plain_json_and_names_channels_and_split(
    sigma: float | None, lsds: list[int]
) -> None:
    offsets = ((1, 0, 0), (0, 9, 0))
    described = model_description([volume()], [volume(name="held")], offsets, sigma)
    assert json.loads(json.dumps(described)) == described
    assert described["channels"] == {"affinities": [0, 2], "lsds": lsds}
    assert described["affinity_offsets"] == [[1, 0, 0], [0, 9, 0]]
    split = described["split"]
    assert [v["id"] for v in (*split["training"], *split["validation"])] == ["cube", "held"]


def test_a_model_without_its_description_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(InputError, match="no trained model"):
        read_description(tmp_path)
    (tmp_path / "model.json").write_text('{"features": {}}')
    with pytest.raises(InputError, match="lacks 'affinity_offsets'"):
        read_description(tmp_path)
