"""A run as one of several processes that torchrun has started."""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not mark it
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from custom.distributed import is_writer, total, world_size
from custom.errors import InputError
from custom.json_fields import flag, whole_number

OVERLAY = "configs/multi_gpu_train.json"
COMMAND = (
    "torchrun --standalone --nproc_per_node=2 -m monai.bundle run training --config_file "
    f"\"['configs/train.json','{OVERLAY}']\""
)
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says of a process that has ended."""


@dataclass(frozen=True)
class Joined:
    """The processes of a run, as one of them sees it.

    Args:
        size: number of processes.
        device: of this one: a GPU of its own, or the CPU.
    """

    size: int
    device: torch.device


def join(timeout_minutes: int) -> Joined:
    """Meet the other processes of the run.

    Tensors on GPUs are exchanged by nccl, others by gloo. From here on the first process speaks for
    all: the others log errors alone.

    Args:
        timeout_minutes: that one process waits for another before it gives up; longer than what
            one does alone, such as the validation of a large volume.

    Raises:
        InputError: torchrun has not started this process, or more processes than there are GPUs;
            no such timeout.
    """
    minutes = whole_number(timeout_minutes, 1, "dist_init#timeout_minutes")
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise InputError(
            f"{OVERLAY} is for processes that torchrun starts (there is no {missing[0]}): begin "
            f"the command with torchrun --standalone --nproc_per_node=2 in the place of python, or "
            f"leave the file out to train in one process"
        )
    device = _device(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(minutes=minutes))
    if not is_writer():
        logging.disable(logging.WARNING)
    return Joined(distributed.get_world_size(), device)


def _device(number: int, count: int) -> torch.device:
    """The GPU of a machine's process, or the CPU where there are none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if count > gpus:
        raise InputError(
            f"torchrun starts {count} processes on a machine with {gpus} GPUs: set "
            f"--nproc_per_node to {gpus}"
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def data_parallel(
    network: nn.Module, find_unused_parameters: bool = False
) -> DistributedDataParallel:
    """The network as one of several equal ones, whose gradients are the mean of all.

    What it is made of stays the same object, so that what is saved does not know of it.

    Args:
        network: on this process's device.
        find_unused_parameters: it has parameters that a step's loss may not depend on, which torch
            waits for in vain otherwise; no network here has.
    """
    unused = flag(find_unused_parameters, "find_unused_parameters")
    return DistributedDataParallel(network, find_unused_parameters=unused)


class SharedStatistics:
    """Running statistics of norms are the mean over all processes after every batch.

    Each process normalises by its own crops. So the networks stay equal, at validation and in what
    is saved, and none of the crops is left out. A handler of MONAI's trainer.

    Args:
        network: whose floating buffers are meant.
    """

    def __init__(self, network: nn.Module) -> None:
        self.buffers = [b for b in network.buffers() if b.is_floating_point()]

    def attach(self, engine: Engine) -> None:
        """Run before the optimizer's step, and so before an average of weights takes them in."""
        if self.buffers:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self) -> None:
        """Take the mean."""
        mean = total(parameters_to_vector(self.buffers)) / world_size()
        vector_to_parameters(mean, self.buffers)


def first_to_say(sentence: str) -> bool:
    """Whether no other process of the run has said the same; of one that is alone, always."""
    if not distributed.is_torchelastic_launched():
        return True
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=5))
        said: int = store.add(f"said/{hashlib.sha256(sentence.encode()).hexdigest()}", 1)
    except (KeyError, ValueError, RuntimeError):  # nobody knows
        return True
    return said == 1


def left_alone(error: BaseException | None) -> bool:
    """Whether an exception comes from the end of another process, which says why itself."""
    while error is not None:
        text = str(error)
        if isinstance(error, distributed.DistError) or (
            isinstance(error, RuntimeError) and any(word in text for word in LOST)
        ):
            return world_size() > 1
        error = error.__cause__ or error.__context__
    return False


def leave() -> None:
    """Part from the other processes at the end of a run."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def check_processes(config: Mapping[str, Any]) -> None:
    """Refuse a run in several processes that do not know of each other.

    Raises:
        InputError: torchrun has started several, and the configuration is that of one.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1" or config.get("dist_init"):
        return
    raise InputError(
        f"WORLD_SIZE says that this is one of {size} processes, but the configuration is that of "
        f"one: for training, give {OVERLAY} as another config file; without torchrun, start "
        f"any run without it"
    )
