"""Activation checkpointing that computes exactly what the network would without it."""

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpointed(block: nn.Module, *inputs: Tensor) -> Tensor:
    """``block(*inputs)`` whose inner activations are not kept, but computed again for the gradient.

    Dropout draws the same masks again, and autocast is as it was. Norms see their running
    statistics as they stood before the forward pass, and what the second computation does to them
    is dropped: gradients are those without checkpointing, and statistics move once a step. Plain
    ``torch.utils.checkpoint``, and MONAI's wrapper of it, move them twice, and give wrong gradients
    where the output depends on them, as with Batch Renormalisation.

    Args:
        block: one output; its buffers are all that a forward pass may change in it.
        inputs: of the block.
    """
    before = _BuffersAsTheyStood(block)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), before

    output: Tensor = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return output


class _BuffersAsTheyStood(AbstractContextManager[None]):
    """While it is entered, a module has copies of the buffers that it had when this was made."""

    def __init__(self, module: nn.Module) -> None:
        self.places = [
            (part, name, buffer.detach().clone())
            for part in module.modules()
            for name, buffer in part.named_buffers(recurse=False)
        ]
        self.originals: list[Tensor] = []

    def __enter__(self) -> None:
        self.originals = [getattr(part, name) for part, name, _ in self.places]
        for part, name, stood in self.places:
            setattr(part, name, stood.clone())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for (part, name, _), original in zip(self.places, self.originals, strict=True):
            setattr(part, name, original)
        self.originals = []
