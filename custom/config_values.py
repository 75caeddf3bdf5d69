"""Values of a run's configuration, looked up beside the run: what they build is not the run's."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from monai.bundle import ConfigParser

from custom.distributed import world_size
from custom.processes import Joined


def parser_of(config: Mapping[str, Any]) -> ConfigParser:
    """A parser of a copy of a configuration; it joins no other processes.

    Args:
        config: merged, references and expressions not resolved.
    """
    parser = ConfigParser(deepcopy(dict(config)))
    if parser.get("dist_init"):
        parser["dist_init"] = Joined(world_size(), _device())
    return parser


def _device() -> torch.device:
    """The GPU that this process uses, or the CPU where there are none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
