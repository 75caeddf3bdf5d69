import io
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from custom.errors import InputError
from custom.pictures import png_bytes
from custom.tensorboard import TensorBoard
from tests.events import points, read


def picture(grey: int) -> bytes:
    return png_bytes(np.full((4, 7, 3), grey, np.uint8))


def seen(folder: Path) -> list[tuple[int, int]]:
    """Step and grey value of every picture."""
    found = []
    for event in read(folder / "pictures").Images("panel"):
        with Image.open(io.BytesIO(event.encoded_image_string)) as image:
            assert image.size == (event.width, event.height) == (7, 4)
            found.append((event.step, int(np.asarray(image)[0, 0, 0])))
    return sorted(found)  # files of the same second are read in any order


def test_nothing_is_written_before_there_is_something(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path / "board"))
    assert not (tmp_path / "board").exists()
    board.add_scalars({"voi": 1.0}, 1)
    assert (tmp_path / "board").exists()


def test_a_training_that_is_taken_up_draws_its_later_points_anew(tmp_path: Path) -> None:
    first = TensorBoard(str(tmp_path))
    for step in (10, 20, 30):
        first.add_scalars({"loss": float(step)}, step)
        first.add_images({"panel": picture(step)}, step)
    time.sleep(1.1)  # files of one second have no order
    again = TensorBoard(str(tmp_path))
    again.purge_from(20)
    for step in (30, 40):
        again.add_scalars({"loss": -float(step)}, step)
        again.add_images({"panel": picture(100 + step)}, step)
    assert points(tmp_path, "loss") == [(10, 10.0), (20, 20.0), (30, -30.0), (40, -40.0)]
    assert seen(tmp_path) == [(10, 10), (20, 20), (30, 130), (40, 140)]


def test_a_board_that_has_written_already_can_be_purged(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path))
    for step in (1, 2, 3):
        board.add_scalars({"loss": float(step)}, step)
    board.purge_from(1)
    board.add_scalars({"loss": 7.0}, 2)
    assert points(tmp_path, "loss") == [(1, 1.0), (2, 7.0)]


def test_pictures_of_the_latest_steps_are_kept(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path), pictures_kept=2)
    for step in (9, 100, 1000):
        board.add_images({"panel": picture(step % 256), "other": picture(0)}, step)
    assert seen(tmp_path) == [(100, 100), (1000, 1000 % 256)]
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_one_process_of_several_writes(tmp_path: Path) -> None:
    with patch("custom.tensorboard.is_writer", return_value=False):
        board = TensorBoard(str(tmp_path / "board"))
        board.purge_from(3)
        board.add_scalars({"loss": 1.0}, 1)
        board.add_images({"panel": picture(1)}, 1)
        board.add_settings({"learning_rate": 0.1}, {"voi": 1.0})
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize("kept", [0, -1, 1.5, "3", True])
def test_a_number_of_pictures_that_is_none_is_refused(kept: int) -> None:
    with pytest.raises(InputError, match="pictures_kept"):
        TensorBoard("board", kept)
