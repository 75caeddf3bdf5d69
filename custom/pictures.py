"""Slices of volumes as colour images: arrays in, arrays out."""

import io
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from custom.planes import NORMAL_AXIS

Colours = NDArray[np.uint8]
Value = TypeVar("Value", bound=np.generic)

GOLDEN_RATIO = 0.6180339887498949
MARGIN = 16
UNKNOWN_GREY = 96
GIF_COLOURS = 128  # fewer make smaller files
BASIS_ROWS = 4000  # vectors that a basis is computed from; more change no colour that one could see


def plane_slice(volume: NDArray[Value], plane: str, voxel_size: Sequence[float]) -> NDArray[Value]:
    """The middle slice of a volume, rows and columns repeated until pixels are about square.

    Args:
        volume: (D, H, W) or (D, H, W, 3).
        plane: "xy" (rows y), "xz" (rows z) or "yz" (rows z, columns y).
        voxel_size: zyx, any unit.

    Returns:
        (rows, columns) or (rows, columns, 3), dtype of ``volume``.
    """
    normal = NORMAL_AXIS[plane]
    image: NDArray[Value] = np.take(volume, volume.shape[normal] // 2, axis=normal)
    sides = [size for axis, size in enumerate(voxel_size) if axis != normal]
    for axis, side in enumerate(sides):
        image = np.repeat(image, max(1, round(side / min(sides))), axis=axis)
    return image


def grey_image(raw: NDArray[np.number], low: float, high: float) -> Colours:
    """Grey values between ``low`` and ``high`` as RGB, (..., 3)."""
    scaled = (raw.astype(np.float32) - low) / max(high - low, 1e-6)
    grey = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def label_colours(ids: NDArray[np.integer]) -> Colours:
    """A vivid colour for every id, always the same for the same id; 0 is black, less is grey.

    Args:
        ids: (N,) ids; negative ones are unknown.

    Returns:
        (N, 3) RGB.
    """
    numbers = (ids.astype(np.uint64) % np.uint64(2**31 - 1)).astype(np.float64)  # exact
    hue = (numbers * GOLDEN_RATIO) % 1
    value = 0.72 + 0.28 * ((numbers * GOLDEN_RATIO * 7) % 1)
    phase = (hue[:, None] * 6 + np.array([5, 3, 1])) % 6
    chroma = 0.62 * np.clip(np.minimum(phase, 4 - phase), 0, 1)
    colours: Colours = (value[:, None] * (1 - chroma) * 255).astype(np.uint8)
    colours[ids == 0] = 0
    colours[ids < 0] = UNKNOWN_GREY
    return colours


def paint(labels: NDArray[np.integer]) -> Colours:
    """Labels in the colours of their ids, (..., 3)."""
    ids, index = np.unique(labels, return_inverse=True)
    painted: Colours = label_colours(ids)[index.reshape(labels.shape)]
    return painted


def matched_to_truth(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer]
) -> NDArray[np.uint64]:
    """Segmentation renamed so that agreement with the truth shows as equal ids.

    Pairs of a true object and a segment are taken by falling overlap; the first pair in which both
    are still free gets the object's id. Segments without a partner get the smallest free ids, so a
    split shows as a new colour and a merge as one colour over several objects.

    Args:
        truth: labels; 0 is unknown and never matched.
        segmentation: labels of the same shape; 0 stays 0.

    Returns:
        Renamed segmentation, same shape.
    """
    segments, index = np.unique(segmentation, return_inverse=True)
    objects, owner = np.unique(truth, return_inverse=True)
    pairs, counts = np.unique(owner.ravel() * segments.size + index.ravel(), return_counts=True)
    names = np.zeros(segments.size, dtype=np.uint64)
    taken: set[int] = set()
    for pair in pairs[np.argsort(-counts, kind="stable")]:
        own, segment = divmod(int(pair), segments.size)
        if int(objects[own]) not in taken and names[segment] == 0 and segments[segment] != 0:
            names[segment] = objects[own]
            taken.add(int(objects[own]))
    alone = (names == 0) & (segments != 0)
    wanted = np.count_nonzero(alone)
    free = np.arange(1, objects.size + wanted + 1, dtype=np.uint64)
    names[alone] = np.setdiff1d(free, objects.astype(np.uint64))[:wanted]
    return names[index].reshape(segmentation.shape)


def matched_by_section(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer]
) -> NDArray[np.uint64]:
    """``matched_to_truth`` of every section (of the first axis) on its own."""
    sections = zip(truth, segmentation, strict=True)
    return np.stack([matched_to_truth(*section) for section in sections])


def channels_as_colours(values: NDArray[np.uint8]) -> Colours:
    """The first three channels of (K, ...) as red, green and blue, (..., 3).

    A second or third channel that is not there is 0; a channel alone is grey.
    """
    if len(values) == 1:
        return np.repeat(values[0][..., None], 3, axis=-1)
    colours = np.zeros((*values.shape[1:], 3), np.uint8)
    for k, channel in enumerate(values[:3]):
        colours[..., k] = channel
    return colours


def principal_colours(features: Sequence[NDArray[np.floating]]) -> list[Colours]:
    """The first three principal components as red, green and blue, from one basis for all.

    Each component's percentiles 1 and 99 become 0 and 255. Its sign is such that its largest weight
    is positive. Components that the features do not have are 0.

    Args:
        features: arrays (..., C) of one C.

    Returns:
        (..., 3) for each.
    """
    vectors = np.concatenate([values.reshape(-1, values.shape[-1]) for values in features])
    mean = vectors.mean(0)
    sample = vectors[:: -(-len(vectors) // BASIS_ROWS)] - mean
    basis = np.linalg.svd(sample, full_matrices=False)[2][:3]
    basis = basis * np.sign(np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1))
    parts = (vectors - mean) @ basis.T
    low, high = np.percentile(parts, (1, 99), axis=0)
    grey = np.clip((parts - low) / np.maximum(high - low, 1e-6), 0, 1) * 255
    colours = np.zeros((len(vectors), 3), np.uint8)
    colours[:, : grey.shape[1]] = grey
    ends = np.cumsum([values[..., 0].size for values in features])[:-1]
    return [
        part.reshape(*values.shape[:-1], 3)
        for part, values in zip(np.split(colours, ends), features, strict=True)
    ]


def overlay(colours: Colours, grey: Colours) -> Colours:
    """Colours over grey values, so that membranes stay visible."""
    mixed = 0.55 * colours.astype(np.float32) + 0.45 * grey.astype(np.float32)
    return mixed.astype(np.uint8)


def contact_sheet(columns: Mapping[str, Sequence[Colours]], rows: Sequence[str]) -> Colours:
    """Images side by side under the names of their columns, with the names of the rows.

    Args:
        columns: name to one RGB image per row; images of one row have one shape.
        rows: names of the rows.

    Returns:
        One RGB image, enlarged by a whole factor when the images are small.
    """
    widest = max(image.shape[1] for images in columns.values() for image in images)
    factor = max(1, 320 // widest)
    names = list(columns)
    heights = [columns[names[0]][row].shape[0] * factor + MARGIN for row in range(len(rows))]
    sheet = Image.new("RGB", ((widest * factor + 4) * len(names), sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        left = column * (widest * factor + 4)
        for row, plane in enumerate(rows):
            top = sum(heights[:row])
            draw.text((left + 2, top + 2), f"{name}, {plane}", fill="black")
            sheet.paste(Image.fromarray(enlarged(columns[name][row], factor)), (left, top + MARGIN))
    return np.asarray(sheet)


def enlarged(image: Colours, factor: int) -> Colours:
    """Every pixel repeated ``factor`` times along rows and columns."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def png_bytes(image: Colours) -> bytes:
    """An RGB image as a PNG file's content."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def beside_each_other(images: Sequence[Colours], gap: int = 4) -> Colours:
    """RGB images of one height in a row, white between them."""
    white = np.full((images[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for image in images for part in (image, white)]
    return np.concatenate(parts[:-1], axis=1)


def with_legend(image: Colours, colours: Mapping[str, tuple[int, int, int]]) -> Colours:
    """An image above a line that names colours; what the image is too narrow for is cut off."""
    line = Image.new("RGB", (image.shape[1], MARGIN), "white")
    draw, left = ImageDraw.Draw(line), 2
    for name, colour in colours.items():
        draw.rectangle((left, 3, left + 10, 13), fill=colour)
        draw.text((left + 14, 2), name, fill="black")
        left += 24 + int(draw.textlength(name))
    return np.concatenate([image, np.asarray(line)])


def gif_bytes(frames: Sequence[Colours], names: Sequence[str], milliseconds: int = 120) -> bytes:
    """RGB images of one size as an endless animation, each below its name.

    The names differ, so that no frame is left out because it looks like the one before.
    """
    images = []
    for frame, name in zip(frames, names, strict=True):
        image = Image.new("RGB", (frame.shape[1], frame.shape[0] + MARGIN), "white")
        ImageDraw.Draw(image).text((2, 2), name, fill="black")
        image.paste(Image.fromarray(frame), (0, MARGIN))
        images.append(image.quantize(GIF_COLOURS, dither=Image.Dither.NONE))
    buffer, settings = io.BytesIO(), {"duration": milliseconds, "loop": 0}
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], **settings)
    return buffer.getvalue()
