"""Training cubes from large sources: a datalist of volumes in, a datalist of cubes out.

From inside ``bundle/``: ``python -m scripts.cubes <datalist.json> <out.json> --count 60``
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire

from custom.datalist import (
    SECTIONS,
    OpenEntry,
    datalist_from,
    open_entry,
    parse_datalist,
    place_entry,
)
from custom.errors import InputError
from custom.files import write_atomically
from custom.json_fields import per_axis, whole_number
from custom.locations import moved, resolve
from custom.sampling import Cube, CubeRules, CubeSampler, matching, stated
from scripts.strict import strict

PATHS = ("raw", "labels", "mask")


@strict
def cubes(
    datalist: str,
    out: str,
    size: int | Sequence[int] = 128,
    count: int = 60,
    section: str = "training",
    weights: str = "uniform",
    min_label_fraction: float = 0.05,
    min_ground_truth_fraction: float = 0.05,
    min_unique_ids: int = 1,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    beyond_labels: bool = False,
) -> None:
    """Replace the entries of a section by random cubes inside their ROIs.

    What is drawn follows from datalist, options and seed alone. The other sections are copied.
    Sources without labels give cubes that no rule applies to.

    Args:
        datalist: of the large sources.
        out: the new datalist; an existing one must be the same.
        size: voxels along every axis, or z,y,x.
        count: cubes in all.
        section: whose entries are sampled; training, validation or test.
        weights: of the sources: uniform, or size (in proportion to the places in them).
        min_label_fraction: of the voxels where labels count, those with a label.
        min_ground_truth_fraction: of a cube's voxels, those where labels count.
        min_unique_ids: different labels (of several classes: classes) in a cube, background not
            counted.
        include: patterns of entry ids to sample, such as "jrc_*"; several as a list.
        exclude: patterns of entry ids to leave out.
        seed: another seed, other cubes.
        beyond_labels: a cube's centre lies in the labels, the rest may lie where they have ended
            (inside raw, and outside validation); nothing is annotated there.
    """
    try:
        rules = CubeRules(min_ground_truth_fraction, min_label_fraction, min_unique_ids)
        chosen = [_patterns(given) for given in (include, exclude)]
        cube = per_axis(size, "size")
        total = whole_number(count, 1, "count")
        whole_number(seed, 0, "seed")
        source, target = (Path(os.path.abspath(str(path))) for path in (datalist, out))
        entries = _entries(source, section, *chosen)
        opened = [open_entry(entry) for _, entry in entries]
        if not isinstance(beyond_labels, bool):
            raise InputError(f"beyond_labels must be True or False, got {beyond_labels!r}")
        apart = _opposite(source, section) if beyond_labels else []
        sampler = CubeSampler(
            opened, (cube[0], cube[1], cube[2]), rules, weights, seed, beyond_labels, apart
        )
        found = sampler.draw(total, progress=True)
        sampled = _described([given for given, _ in entries], opened, found)
        _write(source, target, section, sampled)
    except OSError as error:
        raise SystemExit(f"a file cannot be read or written: {error}") from None
    for id_ in sampler.too_small:
        print(f"left out: '{id_}', which is smaller than a cube")
    rejected = ", ".join(f"{n} by {name}" for name, n in sampler.rejected.most_common())
    print(f"{len(found)} cubes in {target} (rejected: {rejected or 'none'})")


def _patterns(given: object) -> list[str]:
    """One pattern or several; fire takes an id such as 7 for a number."""
    return [str(p) for p in (given if isinstance(given, (list, tuple)) else [given])]


def _entries(
    source: Path, section: str, include: Sequence[str], exclude: Sequence[str]
) -> list[tuple[Mapping[str, Any], Any]]:
    """Entries of the section that the patterns choose, as written and as parsed."""
    parsed = parse_datalist(source).section(section)
    written = json.loads(source.read_text())[section]
    pairs = zip(written, parsed, strict=True)
    chosen = [(one, other) for one, other in pairs if matching(other.id, include, exclude)]
    if not chosen:
        ids = ", ".join(entry.id for entry in parsed) or "none"
        raise InputError(
            f"no entry of section '{section}' of '{source}' matches include {list(include)} and "
            f"exclude {list(exclude)}; its ids are: {ids}"
        )
    return chosen


def _opposite(source: Path, section: str) -> list[OpenEntry]:
    """Validation seen from training, and training seen from validation."""
    other = {"training": "validation", "validation": "training"}.get(section)
    return [place_entry(e) for e in parse_datalist(source).section(other)] if other else []


def _described(
    written: Sequence[Mapping[str, Any]], opened: Sequence[OpenEntry], cubes: Sequence[Cube]
) -> list[dict[str, Any]]:
    """Entries of the cubes."""
    result = []
    for number, cube in enumerate(cubes):
        entry = written[cube.source]
        roi = stated(opened[cube.source], cube.roi)
        result.append({**entry, "id": f"{entry['id']}-{number:04d}", "roi": roi})
    return result


def _write(source: Path, target: Path, section: str, sampled: Sequence[dict[str, Any]]) -> None:
    """The new datalist, its paths relative to its own folder as those of the source's were."""
    given = json.loads(source.read_text())
    given[section] = list(sampled)
    datalist_from(given, source)
    for entry in (entry for name in SECTIONS for entry in given.get(name, [])):
        for field in (field for field in PATHS if entry.get(field)):
            entry[field] = _moved(entry[field], source.parent, target.parent)
        if entry.get("classes"):
            entry["classes"] = {
                name: path and _moved(path, source.parent, target.parent)
                for name, path in entry["classes"].items()
            }
    content = json.dumps(given, indent=2) + "\n"
    if target.exists() and target.read_text() != content:
        raise InputError(f"'{target}' exists and holds something else; choose another file")
    write_atomically(target, content.encode())


def _moved(path: str, before: Path, after: Path) -> str:
    """A path of a datalist, seen from another folder; absolute ones and URLs stay."""
    absolute = resolve(path, before)
    return path if absolute == path else moved(absolute, after)


if __name__ == "__main__":
    fire.Fire(cubes)
