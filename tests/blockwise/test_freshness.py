import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from custom.blockwise.freshness import IDENTITY, is_finished
from custom.blockwise.runs import run_tasks
from tests.blockwise.counting import Counting


class Kept(Counting):
    """Its output is the folder, which somebody may have removed."""

    def outputs_exist(self) -> bool:
        return self.folder.exists()


class Aside(Kept):
    """Read by nothing but others of its kind."""

    aside: ClassVar[bool] = True


def chain(folder: Path, **changes: Any) -> list[Counting]:
    """Three tasks; ``changes`` are of the second."""
    state = folder / "state"
    return [
        Kept(
            state_dir=state,
            name=name,
            folder=folder / name,
            **{"identity": {"bias": 1}, **(changes if name == "b" else {})},
        )
        for name in "abc"
    ]


def times(folder: Path) -> dict[str, set[int]]:
    """How often the blocks of each task were processed since they were dropped, or all at all."""
    return {
        name: {len(path.read_text().split()) for path in (folder / name).iterdir()}
        for name in "abc"
    }


def mark(folder: Path) -> None:
    """Leave a file that vanishes when the outputs of a task are dropped."""
    for name in "abc":
        (folder / name / "old").write_text("1\n")


def dropped(folder: Path) -> str:
    return "".join(name for name in "abc" if not (folder / name / "old").exists())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"identity": {"bias": 2}}, "changed since the last run: bias"),
        ({"block": (20, 10, 20)}, "changed since the last run: block size"),
        ({"shape": (20, 30, 60)}, "changed since the last run: shape"),
    ],
)
def test_what_changed_begins_anew_with_all_that_follows_and_nothing_before(
    changes: dict[str, Any], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_tasks(chain(tmp_path), tmp_path / "state")
    mark(tmp_path)
    run_tasks(chain(tmp_path, **changes), tmp_path / "state")
    assert f"b begins anew, and all after it; {said}" in caplog.text
    assert dropped(tmp_path) == "bc"
    assert times(tmp_path) == {name: {1} for name in "abc"}


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"settings": 1}', None])
def test_a_task_whose_record_is_damaged_begins_anew(content: str | None, tmp_path: Path) -> None:
    run_tasks(chain(tmp_path), tmp_path / "state")
    mark(tmp_path)
    record = tmp_path / "state" / "b" / IDENTITY
    record.unlink()
    if content is not None:
        record.write_text(content)
    run_tasks(chain(tmp_path), tmp_path / "state")
    assert dropped(tmp_path) == "bc"


def test_a_task_whose_output_is_gone_begins_anew(tmp_path: Path) -> None:
    run_tasks(chain(tmp_path), tmp_path / "state")
    mark(tmp_path)
    for path in (tmp_path / "b").iterdir():
        path.unlink()
    (tmp_path / "b").rmdir()
    run_tasks(chain(tmp_path), tmp_path / "state")
    assert dropped(tmp_path) == "bc"
    assert times(tmp_path) == {"a": {1}, "b": {1}, "c": {1}}


def test_a_task_that_ran_without_those_after_it_is_no_longer_what_they_were_made_from(
    tmp_path: Path,
) -> None:
    run_tasks(chain(tmp_path), tmp_path / "state")
    mark(tmp_path)
    changed = chain(tmp_path, identity={"bias": 2})
    run_tasks(changed[:2], tmp_path / "state")
    assert dropped(tmp_path) == "b"
    run_tasks(changed, tmp_path / "state")
    assert dropped(tmp_path) == "bc"


@pytest.mark.parametrize("bias", [1, 2])
@pytest.mark.parametrize("drops", [0, 1])
def test_a_run_that_is_killed_while_it_begins_anew_mixes_nothing(
    drops: int, bias: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the next one wants the new settings, or the old ones again."""
    run_tasks(chain(tmp_path), tmp_path / "state")
    mark(tmp_path)
    drop, left = Counting.drop_artifacts, [drops]

    def drop_or_die(task: Counting) -> None:
        if not left[0]:
            (task.folder / "0").unlink()
            raise SystemError("killed")
        left[0] -= 1
        drop(task)

    with monkeypatch.context() as patch:
        patch.setattr(Counting, "drop_artifacts", drop_or_die)
        with pytest.raises(SystemError, match="killed"):
            run_tasks(chain(tmp_path, identity={"bias": 2}), tmp_path / "state")
    run_tasks(chain(tmp_path, identity={"bias": bias}), tmp_path / "state")
    assert dropped(tmp_path) == ("c" if bias == 1 and not drops else "bc")
    assert all((tmp_path / name / "0").exists() for name in "abc")


def test_what_is_recorded_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    run_tasks(chain(tmp_path), tmp_path / "state")
    record = json.loads((tmp_path / "state" / "b" / IDENTITY).read_text())
    assert record["settings"] == {"bias": 1}
    assert record["blocks"]["block size"] == [10, 20, 20]


def with_aside(
    folder: Path, changed: str = "", kinds: Sequence[type[Counting]] = (Kept, Aside, Kept)
) -> list[Counting]:
    """Tasks "a" to "c", of which one has changed."""
    return [
        kind(
            state_dir=folder / "state",
            name=name,
            folder=folder / name,
            identity={"bias": 2 if name == changed else 1},
        )
        for name, kind in zip("abc", kinds, strict=True)
    ]


@pytest.mark.parametrize("changed", ["a", "b", "c"])
def test_nothing_is_made_from_a_task_aside_which_is_made_from_those_before_it(
    changed: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_tasks(with_aside(tmp_path), tmp_path / "state")
    mark(tmp_path)
    run_tasks(with_aside(tmp_path, changed), tmp_path / "state")
    assert dropped(tmp_path) == {"a": "abc", "b": "b", "c": "c"}[changed]
    assert ("b begins anew;" in caplog.text) is (changed == "b")


def test_a_task_aside_comes_and_goes_without_those_after_it(tmp_path: Path) -> None:
    made = with_aside(tmp_path)
    run_tasks(made, tmp_path / "state")
    mark(tmp_path)
    for tasks in (made[::2], made):
        run_tasks(tasks, tmp_path / "state")
        assert dropped(tmp_path) == ""


def test_tasks_aside_of_one_kind_are_made_from_each_other(tmp_path: Path) -> None:
    kinds = (Kept, Aside, Aside)
    run_tasks(with_aside(tmp_path, kinds=kinds), tmp_path / "state")
    mark(tmp_path)
    run_tasks(with_aside(tmp_path, "b", kinds), tmp_path / "state")
    assert dropped(tmp_path) == "bc"


def test_what_is_finished_is_done_and_does_not_begin_anew(tmp_path: Path) -> None:
    made = chain(tmp_path)
    run_tasks(made[:1], tmp_path / "state")
    assert not is_finished(made[:2])
    run_tasks(made[:2], tmp_path / "state")
    assert is_finished(made[:2]) and not is_finished(made)
    for changes in ({"identity": {"bias": 2}}, {"block": (20, 10, 20)}):
        assert not is_finished(chain(tmp_path, **changes)[:2])
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    assert not is_finished(made[:2])
