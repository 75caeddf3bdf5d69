"""What workers compute with, built in their own process from the configuration of the run."""

import json
import os
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import daisy
import torch
from monai.bundle import ConfigParser
from torch import nn

from custom.blockwise.raw_source import Region
from custom.blockwise.records import EndOfRunError
from custom.datalist import entries_in, place_entry
from custom.errors import InputError
from custom.features.backbone import Backbone
from custom.features.cache import CachedVolume, open_cache
from custom.features.intensity import IntensityWindow
from custom.features.reduced import load_reduced
from custom.features.spec import FeatureSpec
from custom.files import write_atomically
from custom.inferers import TokenSlidingWindowInferer
from custom.model_files import load_weights
from custom.model_folder import WEIGHTS, file_digest
from custom.volume_datasets import region_of

BASIS_ADVICE = "put back the one that training wrote there"


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Keep the merged configuration of a run for its workers.

    Args:
        path: of the file.
        config: references and expressions are not resolved.
    """
    content = {"folder": os.getcwd(), "config": dict(config)}
    write_atomically(path, json.dumps(content, indent=1, default=str).encode())


class Equipment:
    """The objects of a configuration that ``write_config`` has written; each is built when asked.

    Paths in it are relative to the folder that the run was started in.

    Args:
        path: of the file.

    Raises:
        InputError: the folder, or the file, cannot be seen here.
    """

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            self._folder = Path(content["folder"])
            os.listdir(self._folder)
        except OSError as error:
            raise InputError(
                f"a worker cannot see the files of the run ({error}): its machine must have the "
                f"same folders as the one that started it"
            ) from error
        self._parser = ConfigParser(content["config"])
        self._parser["bundle_root"] = str(self._folder / self._parser["bundle_root"])
        device = torch.device(self._value("device"))
        if device == torch.device("cuda"):  # none in particular: the workers share them
            number = own_number() % torch.cuda.device_count()
            self._parser["device"] = f"$torch.device('cuda:{number}')"
        self.device = torch.device(self._value("device"))

    def network(self, digest: str) -> nn.Module:
        """The network, trained, in evaluation mode.

        Args:
            digest: SHA-256 of the weights that the run began with.

        Raises:
            EndOfRunError: the model has others now.
        """
        network: nn.Module = self._value("network")
        with chdir(self._folder):
            model_dir = Path(self._value("model_dir"))
            refuse_other_weights(model_dir, digest)
            load_weights(model_dir, network)
            refuse_other_weights(model_dir, digest)  # those that were loaded are older, or the same
        return network.eval()

    def inferer(self) -> TokenSlidingWindowInferer:
        """The inferer."""
        inferer: TokenSlidingWindowInferer = self._value("inferer")
        return inferer

    def cached(self, volume: str) -> CachedVolume:
        """A volume of the cache, by its id."""
        with chdir(self._folder):
            (found,) = open_cache(self._value("cache_dir"), self._value("section"), [volume])
        return found

    def region(self, volume: str, window: IntensityWindow) -> Region:
        """What is segmented of an entry, by its id.

        Raises:
            EndOfRunError: the datalist has no such entry any more.
        """
        with chdir(self._folder):
            entries = entries_in(self._value("datalist"), self._value("section"))
            opened = next((place_entry(entry) for entry in entries if entry.id == volume), None)
        if opened is None:
            raise EndOfRunError(
                f"'{volume}' is not in '{self._value('datalist')}' any more, as it was when the "
                f"run began: put it back, or start a run of what is there"
            )
        return Region(opened, region_of(opened, self._value("region")), window)

    def backbone(self) -> tuple[Backbone, FeatureSpec]:
        """The backbone, with its basis, and the spec of its features."""
        value = self._value
        with chdir(self._folder):
            return load_reduced(
                value("backbone"), value("features"), self.device, value("model_dir"),
                BASIS_ADVICE, value("compile"),
            )  # fmt: skip

    @property
    def windows_at_once(self) -> int | None:
        """Batch size of the backbone."""
        found: int | None = self._value("windows_at_once")
        return found

    def _value(self, key: str) -> Any:
        with chdir(self._folder):
            return self._parser.get_parsed_content(key)


def refuse_other_weights(model_dir: Path, digest: str) -> None:
    """Refuse a model that was exchanged since a run began.

    Args:
        model_dir: its folder.
        digest: SHA-256 of the weights that the run began with.

    Raises:
        EndOfRunError: the file has others, or is gone.
    """
    path = model_dir / WEIGHTS
    if not path.exists() or file_digest(path) != digest:
        raise EndOfRunError(
            f"model '{path}' was exchanged or removed since the run began: start the same command "
            f"again, which predicts all of it with the one that is there then"
        )


def own_number() -> int:
    """The number of this worker among those of its task; 0 in another process."""
    if daisy.Context.ENV_VARIABLE not in os.environ:
        return 0
    return int(daisy.Context.from_env().get("worker_id", 0))
