"""Look into a feature cache: list, check, prune and show its volumes, and renew their targets.

From inside ``bundle/``: ``python -m scripts.cache <list|check|prune|show|update-targets>
<cache_dir> ...``
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser

from custom import cached_targets
from custom.cache_pictures import volume_sheet
from custom.cached_targets import remove_targets
from custom.datalist import parse_datalist
from custom.errors import InputError
from custom.features.cache import CachedVolume
from custom.features.cache_check import check_cache
from custom.features.cache_files import (
    VolumeFiles,
    copy_of,
    entry_of,
    volumes_in,
)
from custom.features.cache_lock import exclusive
from custom.features.cache_prune import removable
from custom.files import write_atomically
from custom.json_fields import flag, read_object, whole_number
from custom.pictures import png_bytes
from custom.targets.settings import KEYS, parse_target_settings
from scripts.cache_table import table_of
from scripts.strict import strict


@strict
def list_volumes(cache: str) -> None:
    """Print a table of a cache's volumes.

    Args:
        cache: folder of the cache.
    """
    for line in table_of(_volumes(cache)):
        print(line)


@strict
def check(cache: str) -> None:
    """Read every chunk of a cache; print one line per defect, status 1 if there is any.

    Args:
        cache: folder of the cache.
    """
    found = check_cache(Path(str(cache)))
    for defect in found.defects:
        print(defect)
    megabytes = found.bytes_read / 1e6
    print(
        f"{found.volumes} volumes, {len(found.defects)} defects; read {megabytes:.1f} MB in "
        f"{found.seconds:.1f} s, {megabytes / max(found.seconds, 1e-9):.0f} MB/s"
    )
    if found.defects:
        raise SystemExit(1)


@strict
def prune(
    cache: str, datalist: str | None = None, dry_run: bool = False, *, copies: int | None = None
) -> None:
    """Remove unfinished volumes and what killed runs left, and say what and how much.

    Args:
        cache: folder of the cache.
        datalist: also remove volumes that no entry of this datalist names.
        dry_run: only say what would be removed.
        copies: also remove copies with changed raw of a higher number; 0 for all of them.
    """
    if copies is not None:
        whole_number(copies, 0, "--copies")
    folder = Path(str(cache))
    _volumes(cache)
    wanted = None
    if datalist is not None:
        wanted = {entry.id for entry in parse_datalist(Path(str(datalist))).entries()}
    total = 0
    with nullcontext() if dry_run else exclusive(folder):
        for item in removable(folder, wanted, copies):
            size, what = item.size, item.files.title
            verb = "would remove" if dry_run else "removed"
            if not dry_run:
                item.remove()
            total += size
            print(f"{verb} {what}: {item.reason}, {size / 1e6:.1f} MB")
    print(f"{total / 1e6:.1f} MB in all{' would be freed' if dry_run else ' freed'}")


@strict
def show(cache: str, volume: str, png: str | None = None) -> None:
    """Write a PNG of a volume: raw, features and labels of the middle slices of its planes.

    Features are coloured by their first three principal components, one basis for all planes.

    Args:
        cache: folder of the cache.
        volume: id of the datalist's entry, or name such as volume_000000.
        png: file to write; <id>.png in the current folder if it is not given.
    """
    volumes = _volumes(cache)
    known = {entry_of(files)["id"]: files for files in volumes if not copy_of(entry_of(files))}
    found = known.get(str(volume)) or {f.name: f for f in volumes}.get(str(volume))
    if found is None:
        raise InputError(f"cache '{cache}' has no volume '{volume}', only {', '.join(known)}")
    content = png_bytes(volume_sheet(CachedVolume(found.arrays)))
    path = Path(f"{entry_of(found)['id']}.png" if png is None else str(png)).absolute()
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error.strerror}; give --png") from error
    print(path)


@strict
def update_targets(
    cache: str,
    config_file: str | list[str] | None = None,
    remove: bool = False,
    affinity_offsets: list[list[int]] | None = None,
    lsd_sigma_nm: float | None = None,
    lsd_downsample: int | list[int] | None = None,
    boundary_power: float | None = None,
    output_type: str | None = None,
    dimensions: int | None = None,
    affinity_background: str | None = None,
    boundary_form: str | None = None,
    boundary_between: str | None = None,
    boundary_length_nm: float | None = None,
    boundary_peak: float | None = None,
    boundary_sigma_nm: float | None = None,
    boundary_reach_nm: float | None = None,
) -> None:
    """Compute the targets of every labelled volume from its cached labels, or remove them all.

    Volumes that have these targets already are kept. Neither source nor backbone is needed, and
    features are left alone. Interrupted, the same command goes on.

    Args:
        cache: folder of the cache.
        config_file: the training run's, a path or a list of them; its settings are taken.
        remove: remove targets instead.
        affinity_offsets: this and the rest as in the config, instead of it or beside it.
        lsd_sigma_nm: 0 for affinities alone.
    """
    folder = Path(str(cache))
    _volumes(cache)
    given = {
        "affinity_offsets": affinity_offsets,
        "lsd_sigma_nm": lsd_sigma_nm,
        "lsd_downsample": lsd_downsample,
        "boundary_power": boundary_power,
        "output_type": "affinities" if lsd_sigma_nm == 0 and not output_type else output_type,
        "dimensions": dimensions,
        "affinity_background": affinity_background,
        "boundary_form": boundary_form,
        "boundary_between": boundary_between,
        "boundary_length_nm": boundary_length_nm,
        "boundary_peak": boundary_peak,
        "boundary_sigma_nm": boundary_sigma_nm,
        "boundary_reach_nm": boundary_reach_nm,
    }
    options = {key: value for key, value in given.items() if value is not None}
    if flag(remove, "--remove"):
        if config_file is not None or options:
            raise InputError("--remove removes all targets; it takes no other option")
        with exclusive(folder):
            removed = remove_targets(folder)
        print(f"removed the targets of {len(removed)} volumes")
        return
    settings = parse_target_settings({**_config_values(config_file), **options})
    with exclusive(folder):
        made = cached_targets.update_targets(folder, settings)
    for files in made:
        print(f"{files.title}: targets written")
    unfinished = sum(not files.finished for files in _volumes(cache))
    print(f"{len(made)} volumes updated, {unfinished} unfinished ones left alone")


def _config_values(config_file: str | list[str] | None) -> dict[str, Any]:
    """Settings of the targets in a configuration."""
    if config_file is None:
        return {}
    parser = ConfigParser()
    paths = config_file if isinstance(config_file, (list, tuple)) else [config_file]
    for path in paths:
        read_object(Path(str(path)), f"config_file '{path}'")
    parser.read_config([str(path) for path in paths])
    return {key: parser.get_parsed_content(key) for key in KEYS if key in parser.config}


def _volumes(cache: str) -> list[VolumeFiles]:
    found = volumes_in(Path(str(cache)))
    if not found:
        raise InputError(f"'{cache}' holds no volume of a feature cache; give a cache_dir")
    return found


COMMANDS = {
    "list": list_volumes,
    "check": check,
    "prune": prune,
    "show": show,
    "update-targets": update_targets,
}

if __name__ == "__main__":
    fire.Fire(COMMANDS)
