"""A confusion matrix as a picture: rows are true classes, columns predicted ones, light is a large share of the row."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_specs.durable import replacing
from data_specs.video import Frame

_SIDE = 960
"""Pixels that the cells take where names are written; without them each cell has at least one."""
_LARGEST_CELL = 48
_MOST_NAMES, _MOST_COUNTS = 64, 24
_LONGEST_NAME = 32
_MARGIN = 24
_SCALE, _FONT = 0.4, cv2.FONT_HERSHEY_SIMPLEX
_EMPTY, _INK, _PAPER = (210, 210, 210), (0, 0, 0), 255


def draw_confusion(path: Path, confusion: NDArray[np.int64], classes: Sequence[str]) -> Frame:
    """Draw a confusion matrix (C, C), [true, predicted], to a PNG that is there whole or not at all.

    Returns the picture, RGB. A row without a video is grey. Names stand at the axes up to 64 classes, with what is not
    ASCII as `?`; counts in the cells up to 24. Raises OSError where the file cannot be written.
    """
    number = len(confusion)
    cell = int(np.clip(_SIDE // number, 1, _LARGEST_CELL))
    cells = _cells(confusion, cell)
    if number <= _MOST_COUNTS:
        _write_counts(cells, confusion, cell)
    names = [_name(name) for name in classes] if number <= _MOST_NAMES else []
    left = max([_width(name) for name in names], default=0) + 2 * _MARGIN
    picture = np.full((_MARGIN + len(cells) + left, left + len(cells) + _MARGIN, 3), _PAPER, dtype=np.uint8)
    picture[_MARGIN : _MARGIN + len(cells), left : left + len(cells)] = cells
    for row, name in enumerate(names):
        _write(picture, name, (left - 6 - _width(name), _MARGIN + row * cell + cell // 2 + 4))
    _write(picture, f"columns: predicted, rows: true; {confusion.sum()} videos", (6, 15))
    # the names of columns are those of the picture turned by a quarter
    turned = cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE)
    for column, name in enumerate(names):
        _write(turned, name, (left - 6 - _width(name), left + column * cell + cell // 2 + 4))
    picture = np.asarray(cv2.rotate(turned, cv2.ROTATE_90_COUNTERCLOCKWISE), dtype=np.uint8)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path}: cannot be encoded")
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
    return picture


def _cells(confusion: NDArray[np.int64], cell: int) -> Frame:
    of_class = confusion.sum(axis=1, keepdims=True)
    share = confusion / np.maximum(of_class, 1)
    colours = cv2.applyColorMap((share * 255).round().astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1].copy()
    colours[of_class[:, 0] == 0] = _EMPTY
    return np.asarray(colours.repeat(cell, axis=0).repeat(cell, axis=1), dtype=np.uint8)


def _write_counts(cells: Frame, confusion: NDArray[np.int64], cell: int) -> None:
    of_class = np.maximum(confusion.sum(axis=1), 1)
    for row, column in np.argwhere(confusion):
        text = str(confusion[row, column])
        light = confusion[row, column] / of_class[row] > 0.6
        corner = (column * cell + (cell - _width(text)) // 2, row * cell + cell // 2 + 4)
        _write(cells, text, corner, _INK if light else (255, 255, 255))


def _name(name: str) -> str:
    text = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 2] + ".."
    return text.encode("ascii", "replace").decode()


def _width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0])


def _write(picture: Frame, text: str, corner: tuple[int, int], colour: tuple[int, int, int] = _INK) -> None:
    """Write text; `corner` is its lower left, x and y."""
    cv2.putText(picture, text, (int(corner[0]), int(corner[1])), _FONT, _SCALE, colour, 1, cv2.LINE_AA)
