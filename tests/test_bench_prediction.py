from pathlib import Path

import pytest

from bench import prediction


@pytest.mark.slow
def test_memory_of_the_whole_chain_does_not_grow_with_the_volume(tmp_path: Path) -> None:
    window = {"features#window": 64}
    figures = prediction.memory_figures((64, 128), tmp_path, workers=None, block=32, **window)
    peaks = {figure.name: figure.value for figure in figures}
    small, large = (peaks[f"memory.chain_{edge}_other_peak"] for edge in (64, 128))
    assert 0 < large < 1.1 * small
