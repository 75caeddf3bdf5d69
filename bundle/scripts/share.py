"""The commands that hand a trained model over: share, inspect and push."""

import sys
from pathlib import Path

import custom
from custom.errors import InputError
from custom.inspection.bundle import inspect_bundle
from custom.inspection.findings import Report
from custom.inspection.own_project import OwnProject
from custom.json_fields import flag
from scripts.strict import strict

BUNDLE = Path(__file__).resolve().parents[1]
UNREADABLE = 2  # status of inspect


def own_project() -> OwnProject:
    """The project that this command belongs to."""
    return OwnProject(Path(custom.__file__).resolve().parent, BUNDLE)


@strict
def share(
    name: str,
    model_dir: str = str(BUNDLE / "models"),
    eval_dir: str = str(BUNDLE / "eval"),
    out: str = "out",
    overwrite: bool = False,
) -> None:
    """Write <out>/<name>.zip: a trained model with all that others need to check and run it.

    Args:
        name: of the bundle; letters, digits, ".", "_" and "-".
        model_dir: folder of the model.
        eval_dir: folder of its scores and pictures.
        out: folder for the zip.
        overwrite: replace a zip of that name.
    """
    from custom.sharing.bundle import share_bundle  # torch and MONAI, which inspect does without

    replace = flag(overwrite, "--overwrite")
    print(share_bundle(str(name), str(model_dir), str(eval_dir), str(out), own_project(), replace))


@strict
def inspect(path: str, json: bool = False) -> None:
    """Look through a bundle that somebody gave you; nothing of it is imported, loaded or run.

    Status 0: nothing dangerous was found. 1: it is not safe. 2: it cannot be read.

    Args:
        path: of a zip, or of a folder.
        json: print everything that was found and everything that would run, as JSON.
    """
    as_json = flag(json, "--json")
    try:
        report = inspect_bundle(str(path), own_project())
    except InputError as mistake:
        print(mistake, file=sys.stderr)
        raise SystemExit(UNREADABLE) from None
    _print(report, as_json)
    if not report.safe:
        raise SystemExit(1)


@strict
def push(name: str, repo: str, out: str = "out", public: bool = False) -> None:
    """Upload a shared zip to a repository of the Hugging Face hub, a private one by default.

    Args:
        name: that share was called with.
        repo: <owner>/<name>; made if there is none.
        out: folder of the zip.
        public: make a repository that anybody may read.
    """
    from custom.sharing.bundle import checked_name
    from custom.sharing.hub import push_bundle

    path = Path(str(out)) / f"{checked_name(str(name))}.zip"
    private = not flag(public, "--public")
    print(push_bundle(path, str(repo), own_project(), private))


def _print(report: Report, as_json: bool) -> None:
    if as_json:
        print(report.to_json())
        return
    for line in report.lines():
        print(line)
