"""The four bundle runs as steps: printed, timed, and skipped when nothing changed since."""

import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from custom.files import write_atomically

BUNDLE = Path(__file__).resolve().parents[1]
COLUMNS = {
    "VOI": "voi",
    "split": "voi_split",
    "merge": "voi_merge",
    "adapted Rand": "adapted_rand",
    "mean Dice": "dice",
    "mean IoU": "iou",
}


@dataclass(frozen=True)
class Step:
    """One command of a recipe.

    Args:
        name: what it does, one word.
        arguments: of the Python interpreter, run from inside ``bundle/``.
        inputs: files whose content the result depends on.
        outputs: paths that exist after the step.
    """

    name: str
    arguments: tuple[str, ...]
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]

    @property
    def command(self) -> str:
        """What a user would type."""
        return " ".join(["python", *map(_quoted, self.arguments)])


@dataclass(frozen=True)
class Record:
    """What a finished step took.

    Args:
        step: its name.
        command: as a user would type it, from inside ``bundle/``.
        seconds: wall time.
        peak_mib: largest resident memory of one of its processes.
        key: hash of the command, its input files and the steps before it.
    """

    step: str
    command: str
    seconds: float
    peak_mib: float
    key: str


class StepError(Exception):
    """A step ended with a status other than 0; the message is one sentence for the user."""


def bundle_steps(
    out: Path, datalist: Path, overlay: Path, backbone: str | None = None, epochs: int | None = None
) -> list[Step]:
    """Preprocessing, training, inference and evaluating of one datalist.

    Args:
        out: folder that gets ``cache``, ``models``, ``output`` and ``eval``.
        datalist: absolute path.
        overlay: configuration laid over those of the first three runs.
        backbone: replaces the overlay's.
        epochs: replaces the overlay's.
    """
    cache, models, output, scores = (out / name for name in ("cache", "models", "output", "eval"))
    features = {"backbone": backbone}
    return [
        _run(
            "preprocessing", "preprocess", overlay, datalist, {"cache_dir": cache} | features, cache
        ),
        _run(
            "training",
            "train",
            overlay,
            datalist,
            {"cache_dir": cache, "model_dir": models, "eval_dir": scores, "epochs": epochs}
            | features,
            models / "model.pt",
        ),
        _run(
            "inference",
            "inference",
            overlay,
            datalist,
            {"model_dir": models, "output_dir": output} | features,
            output,
        ),
        _run(
            "evaluating",
            "evaluate",
            None,
            datalist,
            {"output_dir": output, "eval_dir": scores},
            scores / "scores.json",
        ),
    ]


def _run(
    name: str,
    config: str,
    overlay: Path | None,
    datalist: Path,
    overrides: Mapping[str, Path | str | int | None],
    output: Path,
) -> Step:
    """One bundle run; an override of None is left out."""
    configs = [BUNDLE / "configs" / f"{config}.json", *([overlay] if overlay else [])]
    shown = [str(path.relative_to(BUNDLE)) for path in configs]
    given = {"datalist": datalist, **overrides}
    options = [
        part
        for key, value in given.items()
        if value is not None
        for part in (f"--{key}", str(value))
    ]
    config_file = shown[0] if len(shown) == 1 else str(shown).replace(" ", "")
    arguments = ("-m", "monai.bundle", "run", name, "--config_file", config_file, *options)
    return Step(name, arguments, (*configs, datalist), (output,))


def run_steps(steps: Sequence[Step], log: Path) -> list[Record]:
    """Run what is not finished, and keep a record of every step in ``log``.

    A step is finished when the log holds its key and its outputs exist. Its key covers the steps
    before it, so that a change makes everything after it run again.

    Args:
        steps: in order.
        log: JSON file, a list of records; written after every step.

    Returns:
        One record per step.

    Raises:
        StepError: a command failed; the steps before it stay recorded.
    """
    known = {record.step: record for record in read_records(log)}
    records: list[Record] = []
    for number, step in enumerate(steps, start=1):
        key = _key(step, records[-1].key if records else "")
        title = f"[{number}/{len(steps)}] {step.name}"
        before = known.get(step.name)
        if before and before.key == key and all(path.exists() for path in step.outputs):
            print(f"\n{title}: finished before, reused ({before.seconds:.0f} s then)", flush=True)
            records.append(before)
        else:
            print(f"\n{title}\ncd {BUNDLE}\n{step.command}\n", flush=True)
            seconds, peak_mib = _timed(step)
            records.append(Record(step.name, step.command, seconds, peak_mib, key))
            print(f"\n{title}: {seconds:.0f} s, {peak_mib:.0f} MiB", flush=True)
            write_atomically(log, json.dumps([asdict(r) for r in records], indent=2).encode())
    return records


def read_records(log: Path) -> list[Record]:
    """Records of an earlier run, none if there was none."""
    if not log.exists():
        return []
    return [Record(**record) for record in json.loads(log.read_text())]


def step_table(records: Sequence[Record]) -> str:
    """Minutes and peak memory of every step, as text."""
    lines = [f"{'step':<16}{'minutes':>9}{'peak MiB':>10}"]
    lines += [f"{r.step:<16}{r.seconds / 60:>9.1f}{r.peak_mib:>10.0f}" for r in records]
    lines.append(f"{'all':<16}{sum(r.seconds for r in records) / 60:>9.1f}")
    return "\n".join(lines)


def score_table(scores_json: Path) -> str:
    """Scores of every entry, as text, under the names of those there are."""
    entries = json.loads(scores_json.read_text())["entries"]
    shown = {title: key for title, key in COLUMNS.items() if any(key in e for e in entries)}
    lines = [f"{'entry':<24}" + "".join(f"{title:>{len(title) + 3}}" for title in shown)]
    for entry in entries:
        cells = [
            f"{entry[key]:>{len(title) + 3}.3f}" if key in entry else " " * (len(title) + 3)
            for title, key in shown.items()
        ]
        lines.append(f"{entry['id']:<24}" + "".join(cells))
    return "\n".join(lines)


def _quoted(part: str) -> str:
    """A part of a command for the shell; double quotes around single ones are easier to read."""
    return f'"{part}"' if "'" in part and not set(part) & set('"$`\\!') else shlex.quote(part)


def _key(step: Step, before: str) -> str:
    """Hash of all that a step's result depends on."""
    digest = hashlib.sha256(f"{before}\n{step.command}\n".encode())
    for path in step.inputs:
        if not path.exists():
            raise StepError(f"{step.name} needs {path}, which is not there")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _timed(step: Step) -> tuple[float, float]:
    """Run a step; its seconds, and the peak resident memory of its largest process in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = ["-m", "scripts.timed", str(result), sys.executable, *step.arguments]
        process = subprocess.Popen([sys.executable, *command], cwd=BUNDLE)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise StepError(
                f"{step.name} was interrupted; the same command goes on from here"
            ) from None
        if status:
            raise StepError(f"{step.name} failed with status {status}; the lines above say why")
        measured = json.loads(result.read_text())
    return measured["seconds"], measured["peak_mib"]
