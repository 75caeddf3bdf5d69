"""How much memory a training step takes, found by taking it without values."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from custom.channels import ChannelLayout
from custom.crop_check import NO_VALUES, explained
from custom.errors import InputError


@dataclass(frozen=True)
class StepMemory:
    """What a training step holds, in bytes.

    Args:
        weights: parameters and buffers of the network.
        optimizer: state of the optimizer after a step.
        peak: the most that is there at once: weights, gradients, batch, activations, optimizer.
    """

    weights: int
    optimizer: int
    peak: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, as below
    """Counts the bytes of all tensors that are alive, made while it is entered.

    Attributes:
        now: bytes that are alive.
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute, and count what is new."""
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def forget(_: object) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True)
class Step:
    """What a training step is made of.

    Args:
        network: takes ``image`` and the rest of a batch by name.
        loss: of logits and target.
        optimizer: of the network's parameters.
    """

    network: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer


Shapes = Mapping[str, tuple[Sequence[int], torch.dtype]]


def step_memory(
    make: Callable[[], Step | None],
    batch: Shapes,
    layout: ChannelLayout,
    amp: torch.dtype | None = None,
) -> StepMemory | None:
    """Take a training step with tensors that have shapes and no values, and count their bytes.

    What a backend needs beside the tensors (workspaces of convolutions, fragments) is not in it.

    Args:
        make: called where tensors have no values; returns None for a step it cannot make.
        batch: shape and dtype of what the network takes, by name; ``image`` is (B, 1, D, H, W).
        layout: of the network's channels and of the target's.
        amp: that the network computes in under autocast; None for float32.

    Returns:
        None for a step that cannot be made, or not be taken without values. Of a loss alone that
        asks for values, a common one stands in its place.

    Raises:
        InputError: the network cannot take such a batch, or its result has another shape than the
            target.
    """
    for loss in (None, _entropy):
        live = LiveBytes()
        with suppress(*NO_VALUES), FakeTensorMode(), live:
            step = make()
            if step is None:
                return None
            weights = live.now
            logits, target = _forward(step.network, batch, layout, amp)
            (loss or step.loss)(logits, target).backward()  # type: ignore[no-untyped-call]
            del logits
            before = live.now
            step.optimizer.step()
            return StepMemory(weights, live.now - before, live.peak)
    return None


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    """A loss that holds about as much as others do."""
    share = logits.softmax(dim=1)
    return -(share * (share + target[:, -1:]).log()).mean()


def _forward(
    network: nn.Module, batch: Shapes, layout: ChannelLayout, amp: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Logits of a batch, and a target of their size."""
    inputs = {
        name: torch.zeros(tuple(shape), dtype=dtype) for name, (shape, dtype) in batch.items()
    }
    image = inputs.pop("image")
    number, crop_size = image.shape[0], list(image.shape[2:])
    with (
        torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None),
        explained(network, crop_size, number),
    ):
        logits: Tensor = network.train()(image, **inputs).float()
    if list(logits.shape) != [number, layout.num_outputs, *crop_size]:
        raise InputError(
            f"the network makes {list(logits.shape[1:])} of crops of {crop_size}, but "
            f"output_type {layout.output_type!r} needs {layout.num_outputs} channels of the crop's "
            f"size: set its out_channels to $@channels.num_outputs"
        )
    return logits, torch.zeros(number, layout.num_targets, *crop_size)
