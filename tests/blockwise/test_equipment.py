import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry import Roi

from custom.blockwise import clients
from custom.blockwise.clients import WorkerError, tell_failure
from custom.blockwise.equipment import Equipment, write_config
from custom.blockwise.features import Forget
from custom.blockwise.raw_source import Region
from custom.blockwise.records import EndOfRunError
from custom.blockwise.sources import CachedSource
from custom.checkpoints import state_bytes
from custom.datalist import entries_in, place_entry
from custom.errors import InputError
from custom.model_folder import file_digest

WINDOW = (0.0, 255.0)
NETWORK = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}


@pytest.fixture
def equipment(tmp_path: Path) -> Equipment:
    """What a worker has of a run on raw, whose files tests change."""
    np.save(tmp_path / "raw.npy", np.zeros((4, 5, 6), np.uint8))
    write_datalist(tmp_path)
    write_weights(tmp_path, 1)
    config = {
        "bundle_root": ".",
        "device": "cpu",
        "network": NETWORK,
        "model_dir": str(tmp_path),
        "datalist": str(tmp_path / "datalist.json"),
        "section": "test",
        "region": "roi",
    }
    write_config(tmp_path / "config.json", config)
    return Equipment(tmp_path / "config.json")


def write_datalist(folder: Path, first: int = 1, name: str = "a") -> None:
    roi = {"offset": [0, first, 0], "shape": [4, 3, 6]}
    size = {"raw": [8, 4, 5]}
    entry = {"id": name, "raw": "raw.npy", "roi": roi, "voxel_size_nm": size}
    (folder / "datalist.json").write_text(json.dumps({"name": "x", "test": [entry]}))


def write_weights(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    (folder / "model.pt").write_bytes(state_bytes(torch.nn.Conv3d(1, 2, 1).state_dict()))


def task(folder: Path, identity: dict[str, Any], window: Any = WINDOW) -> Forget:
    """Any task on the volume."""
    return Forget(
        state_dir=folder / "state",
        name="any",
        volume="a",
        shape=(4, 3, 6),
        block=(4, 3, 6),
        intensity_window=window,
        store=folder / "features.zarr",
        config=folder / "config.json",
        identity=json.loads(json.dumps(identity)),
    )


def test_workers_refuse_an_entry_that_was_changed_since_the_run_began(
    equipment: Equipment, tmp_path: Path
) -> None:
    opened = place_entry(entries_in(tmp_path / "datalist.json", "test")[0])
    made = task(tmp_path, Region(opened, opened.roi, WINDOW).describe())
    assert made.region(equipment).roi == Roi((0, 1, 0), (4, 3, 6))
    write_datalist(tmp_path, first=2)
    with pytest.raises(EndOfRunError, match=r"'a' was changed since the run began, in offset \("):
        made.source(equipment)
    write_datalist(tmp_path, name="b")
    with pytest.raises(EndOfRunError, match=r"'a' is not in '.*datalist.json' any more"):
        made.source(equipment)


def test_workers_refuse_a_cached_volume_that_was_changed_since_the_run_began(
    equipment: Equipment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume: Any = SimpleNamespace(path=tmp_path / "0.zarr", shape=(4, 3, 6), spec=None)
    monkeypatch.setattr(equipment, "cached", lambda name: volume)
    (tmp_path / "0_metadata.json").write_text("1")
    made = task(tmp_path, {**CachedSource(volume, False).describe(), "features": None}, None)
    made.source(equipment)
    (tmp_path / "0_metadata.json").write_text("2")
    with pytest.raises(EndOfRunError, match=r"'a' was changed since the run began, in metadata \("):
        made.source(equipment)


def test_workers_refuse_another_model_than_the_run_began_with(
    equipment: Equipment, tmp_path: Path
) -> None:
    digest = file_digest(tmp_path / "model.pt")
    network = equipment.network(digest)
    torch.manual_seed(1)
    assert torch.equal(network.weight, torch.nn.Conv3d(1, 2, 1).weight)  # type: ignore[arg-type]
    write_weights(tmp_path, 2)
    for _ in range(2):
        with pytest.raises(EndOfRunError, match=r"model\.pt' was exchanged or removed since the"):
            equipment.network(digest)
        (tmp_path / "model.pt").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("error", "kind"), [(EndOfRunError("no"), EndOfRunError), (InputError("no"), WorkerError)]
)
def test_a_server_is_told_what_ends_the_run(
    error: InputError, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    connection = SimpleNamespace(send_message=sent.append, disconnect=lambda: None)
    client = SimpleNamespace(tcp_client=connection, context=None)
    monkeypatch.setattr(clients.daisy, "Client", lambda: client)
    tell_failure(error)
    assert type(sent[0].exception) is kind and str(sent[0].exception) == "no"
