"""Shot cuts: the frames of a video at which a shot begins, found while the frames stream by.

Motion, however fast, carries a picture's parts to places near by; a cut does not. So frames are made small, freed of
brightness and contrast, and every 8 x 8 block of one is looked for in the other within 8 px. What is left over, as a
share of the block's own contrast, is the pair's *residual*: 0 where all is found again, about 0.5 or more across a cut.

A frame begins a shot where the residual to the frame before

1. is `_LEAST` or more,
2. stands out against both neighbourhoods: `_STANDS_OUT` times the residual inside either (of two pairs there the lower
   one counts, so that a blended frame or a second cut next door hides nothing). Passing vehicles, storms of motion, and
   static that never resembles itself are high throughout. At the video's ends there may be one pair on a side: one
   that would be a cut itself is passed over, and then both pairs of the other side count;
3. and no picture from before comes back: neither does the frame before return within two frames (a flash, a broken
   frame), nor this frame resume what was there up to three frames ago (the end of that flash).

Hence the answer for a frame is known two frames later. Gradual transitions are not found: no pair of frames stands out.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from data_specs.video import Frame
from extraction.stages import Stage

LOOKAHEAD = 2
"""Frames after a frame that are looked at before it is decided on."""

_LOOKBACK = 3
_LEAST, _STANDS_OUT = 0.46, 1.3
# The small frame's short side in px, about: a block is a sixth of it, and the search reaches as far.
_SHORT_SIDE, _BLOCK, _REACH = 48, 8, 8
# Local contrast is measured over this Gaussian and made `_CONTRAST` grey levels; `_FLOOR` levels are noise.
_SURROUND_PX, _CONTRAST, _FLOOR = 6.0, 50.0, 5.0
# Against aliasing: without it, half a small pixel of motion costs a fine texture half its contrast.
_BLUR_PX = 0.8
# Contrast of a block, in levels of the small frame, at which half of it is noise.
_BLOCK_FLOOR = 8

Small = NDArray[np.uint8]


class ShotFrames:
    """The frames of a video, each with whether a shot begins with it; iterate over it once.

    frames: all of them in order, RGB uint8 (height, width, 3). detect: where false, no frame begins a shot, and none is
    held back; else they come `LOOKAHEAD` frames late. stage: times the reading and the detection.
    `cuts`: the indices of the frames at which a shot begins, among those that have been handed out. Frame 0 is never
    one of them.
    """

    def __init__(self, frames: Iterable[Frame], detect: bool, stage: Stage) -> None:
        self.cuts: list[int] = []
        self._frames, self._detect, self._stage = frames, detect, stage

    def __iter__(self) -> Iterator[tuple[Frame, bool]]:
        detector, held, count = CutDetector(), deque[Frame](), 0
        for frame in self._read():
            held.append(frame)
            answers = [False]
            if self._detect:
                with self._stage("cuts"):
                    answers = detector.push(frame)
            for begins_shot in answers:
                yield self._hand_out(held.popleft(), count, begins_shot)
                count += 1
        for begins_shot in detector.finish():
            yield self._hand_out(held.popleft(), count, begins_shot)
            count += 1

    def _hand_out(self, frame: Frame, index: int, begins_shot: bool) -> tuple[Frame, bool]:
        if begins_shot:
            self.cuts.append(index)
        return frame, begins_shot

    def _read(self) -> Iterator[Frame]:
        source = iter(self._frames)
        while True:
            with self._stage("decode"):
                frame = next(source, None)
            if frame is None:
                return
            yield frame


class CutDetector:
    """Finds the cuts of one video. Every frame is pushed once, in order; the answers come in order, later."""

    def __init__(self) -> None:
        self._frames: deque[Small] = deque(maxlen=_LOOKBACK + 1 + LOOKAHEAD)
        self._first = 0  # index of the oldest frame that is kept
        self._count = 0
        self._decided = 0

    def push(self, frame: Frame) -> list[bool]:
        """Take the next frame, RGB uint8 (height, width, 3).

        Returns, for each frame whose turn has come, whether a shot begins with it: one answer for a push, about the
        frame pushed `LOOKAHEAD` before; none at first. The video's first frame is not called a cut.
        """
        if len(self._frames) == self._frames.maxlen:
            self._first += 1
        self._frames.append(small_frame(frame))
        self._count += 1
        return self._decide(self._count - LOOKAHEAD)

    def finish(self) -> list[bool]:
        """The answers for the last frames, which nothing follows."""
        return self._decide(self._count)

    def _decide(self, stop: int) -> list[bool]:
        answers = [self._begins_shot(t) for t in range(self._decided, stop)]
        self._decided = max(self._decided, stop)
        return answers

    def _begins_shot(self, t: int) -> bool:
        if t == 0:
            return False
        score = self._residual(t - 1, t)
        if score < _LEAST:
            return False
        sides = [
            [self._residual(u - 1, u) for u in neighbours if self._has(u - 1) and self._has(u)]
            for neighbours in ((t - 2, t - 1), (t + 1, t + 2))
        ]
        # a single pair, at the video's end, that would be a cut itself says nothing of how much goes on here; then all
        # of the other side has to
        telling = [side for side in sides if not (len(side) == 1 and side[0] >= _LEAST)]
        usual = min if len(telling) == len(sides) else max
        if any(side and score < _STANDS_OUT * usual(side) for side in telling):
            return False
        returns = [(t - 1, u) for u in (t + 1, t + 2)] + [(u, t) for u in (t - 2, t - 3)]
        return all(self._residual(a, b) >= _LEAST for a, b in returns if self._has(a) and self._has(b))

    def _has(self, t: int) -> bool:
        return self._first <= t < self._count

    def _residual(self, a: int, b: int) -> float:
        return pair_residual(self._frames[a - self._first], self._frames[b - self._first])


def small_frame(frame: Frame) -> Small:
    """The frame at about 48 px on its short side, grey, locally normalised: 128 + 50 · (deviation / its local size)."""
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    factor = max(1, round(min(gray.shape) / _SHORT_SIDE))  # a whole number: areas are averaged without weights
    height, width = gray.shape[0] // factor, gray.shape[1] // factor
    top, left = (gray.shape[0] - height * factor) // 2, (gray.shape[1] - width * factor) // 2
    inner = gray[top : top + height * factor, left : left + width * factor]
    pixels = cv2.resize(inner, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    deviation = pixels - cv2.GaussianBlur(pixels, (0, 0), _SURROUND_PX)
    size = np.sqrt(cv2.GaussianBlur(deviation * deviation, (0, 0), _SURROUND_PX))
    deviation = cv2.GaussianBlur(deviation, (0, 0), _BLUR_PX)
    return np.asarray(np.clip(np.rint(128 + _CONTRAST * deviation / (size + _FLOOR)), 0, 255), dtype=np.uint8)


def pair_residual(a: Small, b: Small) -> float:
    """What of one small frame cannot be found in the other, 0 ... 1; the smaller of the two directions.

    What comes into view is missing in one direction, what goes out of it in the other: a zoom is explained in one.
    """
    # A search finds nothing worse than the block in its own place. Where that is good enough to decide, it is spared.
    score = min(_residual(a, b, 0), _residual(b, a, 0))
    if score * _STANDS_OUT >= _LEAST:
        score = min(_residual(a, b, _REACH), _residual(b, a, _REACH))
    return float(score)


@numba.njit(cache=True)
def _residual(a: Small, b: Small, reach: int) -> float:
    """Mean over a's blocks of min(1, least mean absolute difference in b / (mean absolute deviation + floor)).

    The search goes up to `reach` px each way in x and y, and stays inside b.
    """
    height, width = a.shape
    block = min(_BLOCK, height, width)
    rows, columns = height // block, width // block
    top, left = (height - rows * block) // 2, (width - columns * block) // 2
    reach_x = min(reach, width - 1)
    sums = np.empty(width, dtype=np.uint16)
    total = 0.0
    for i in range(rows):
        y0 = top + i * block
        best = np.full(columns, 255 * block * block, dtype=np.int32)
        for dy in range(max(-reach, -y0), min(reach, height - block - y0) + 1):
            for dx in range(-reach_x, reach_x + 1):
                low, high = max(0, -dx), min(width, width - dx)
                _column_differences(a[y0 : y0 + block, low:high], b[y0 + dy :, low + dx : high + dx], sums[low:high])
                for j in range(columns):
                    x0 = left + j * block
                    if x0 >= low and x0 + block <= high:
                        best[j] = min(best[j], sums[x0 : x0 + block].sum())
        for j in range(columns):
            x0 = left + j * block
            contrast = _absolute_deviation(a[y0 : y0 + block, x0 : x0 + block])
            total += min(1.0, best[j] / (contrast + _BLOCK_FLOOR * block * block))
    return float(total / (rows * columns))


@numba.njit(cache=True, inline="always")
def _column_differences(a: Small, b: Small, sums: NDArray[np.uint16]) -> None:
    """Sums over the rows of a of |a - b|. At most 257 rows fit into 16 bits; plain loops that become vector code."""
    sums[:] = 0
    for y in range(a.shape[0]):
        from_a, from_b = a[y], b[y]
        for x in range(len(sums)):
            u, v = from_a[x], from_b[x]
            sums[x] += np.uint16(np.uint8(max(u, v) - min(u, v)))


@numba.njit(cache=True)
def _absolute_deviation(block: Small) -> int:
    """Sum of |value - mean|, the mean rounded to a whole level."""
    mean = (block.sum() + block.size // 2) // block.size
    total = 0
    for value in block.flat:
        total += abs(int(value) - int(mean))
    return total
