"""Optical-flow ground truth in files: Middlebury's and Sintel's .flo, KITTI's 16-bit PNG, and lists of such pairs."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_specs.video import Frame

_UNKNOWN = 1e9  # Middlebury marks unknown flow by larger values


class FlowFileError(ValueError):
    """A file that is missing, unreadable or of the wrong size; the message names it."""


@dataclasses.dataclass(frozen=True)
class FlowPair:
    """Two images and the true flow from the first to the second.

    `frames`: two of RGB uint8 (H, W, 3). `flow`: float32 (H, W, 2), x and y in px, 0 where unknown. `known`: bool
    (H, W).
    """

    frames: tuple[Frame, Frame]
    flow: NDArray[np.float32]
    known: NDArray[np.bool_]


def read_flow(path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """True flow, float32 (H, W, 2) as x, y in px, and where it is known, bool (H, W); by the file's ending.

    .flo (Middlebury, Sintel): float32 x, y; unknown where either is beyond 1e9 or NaN. .png (KITTI): 16 bits in
    channels red, green and blue, x = (red - 2^15) / 64, y = (green - 2^15) / 64, known where blue is not 0.
    Raises FlowFileError.
    """
    path = Path(path)
    if path.suffix.lower() not in {".flo", ".png"}:
        raise FlowFileError(f"{path}: flow is read from .flo (Middlebury, Sintel) or .png (KITTI)")
    _check_is_file(path)
    if path.suffix.lower() == ".flo":
        flow = cv2.readOpticalFlow(str(path))
        if flow is None or flow.size == 0:
            raise FlowFileError(f"{path}: not a .flo file, or cut off")
        known = (np.abs(flow) <= _UNKNOWN).all(axis=-1)
    else:
        coded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)  # BGR
        if coded is None or coded.dtype != np.uint16 or coded.ndim != 3 or coded.shape[2] != 3:
            raise FlowFileError(f"{path}: not KITTI's flow, a PNG of three 16-bit channels")
        flow = (coded[..., :0:-1].astype(np.float32) - 2**15) / 64
        known = coded[..., 0] != 0
    return np.where(known[..., None], flow, 0).astype(np.float32), known


def list_pairs(path: str | Path) -> list[tuple[Path, Path, Path]]:
    """Image a, image b and flow of each line of a list; relative to its folder.

    Three names on a line, separated by blanks; lines that are empty or begin with # are left out. Raises
    FlowFileError, with all of the problems at once: missing list or files, lines of another number of names.
    """
    path = Path(path)
    _check_is_file(path)
    pairs, problems = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        names = line.split()
        if not names or names[0].startswith("#"):
            continue
        if len(names) != 3:
            problems.append(f"{path}, line {number}: {len(names)} name(s) in place of image_a image_b flow")
            continue
        a, b, flow = (path.parent / name for name in names)
        problems += [f"{path}, line {number}: {file}: no such file" for file in (a, b, flow) if not file.is_file()]
        pairs.append((a, b, flow))
    if not pairs and not problems:
        problems = [f"{path}: names no pair"]
    if problems:
        raise FlowFileError("\n".join(problems))
    return pairs


def read_pair(image_a: Path, image_b: Path, flow_file: Path) -> FlowPair:
    """Read one pair; raises FlowFileError, also where sizes differ."""
    a, b = _read_image(image_a), _read_image(image_b)
    flow, known = read_flow(flow_file)
    for other, size in [(image_b, b.shape[:2]), (flow_file, known.shape)]:
        if size != a.shape[:2]:
            raise FlowFileError(f"{other}: {size[0]}x{size[1]} (height x width), {image_a} {a.shape[0]}x{a.shape[1]}")
    return FlowPair((a, b), flow, known)


def _read_image(path: Path) -> Frame:
    _check_is_file(path)
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FlowFileError(f"{path}: not an image")
    return np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise FlowFileError(f"{path}: no such file")
