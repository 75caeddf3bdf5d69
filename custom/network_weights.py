"""Weights that are given to a network, and in what they differ from its own."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

SHOWN = 3


def load_weights_into(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        ValueError: it does not; in one line, how many names or shapes differ, and the first few.
    """
    if difference := weights_difference(network.state_dict(), weights):
        raise ValueError(difference)
    network.load_state_dict(weights)


def weights_difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """How weights differ from a network's own in names and shapes; empty if they do not."""
    missing = [name for name in own if name not in given]
    unknown = [name for name in given if name not in own]
    shapes = {
        name: (list(getattr(given[name], "shape", ())), list(value.shape))
        for name, value in own.items()
        if name in given
    }
    other = [f"{n} {there}, not {here}" for n, (there, here) in shapes.items() if there != here]
    found = {
        "are missing": missing,
        "are not in the network": unknown,
        "have another shape": other,
    }
    return "; ".join(f"{len(n)} {what} ({_few(n)})" for what, n in found.items() if n)


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])
