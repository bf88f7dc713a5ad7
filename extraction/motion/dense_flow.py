"""Dense optical flow between two frames, in two passes: from a to b, and from a to b without the camera.

Images are grey, float32 (height, width) within 0 ... 255; a flow is float32 (height, width, 2): what is at x, y in the
first is at x + flow[y, x, 0], y + flow[y, x, 1] in the second. Nothing is rounded or clipped.
"""

import functools
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from data_specs.recipe import Flow
from extraction.motion.fields import FlowField, Gray
from extraction.motion.occlusion import turned_back
from extraction.motion.tvl1 import CHECK, FAST, HALF, QUALITY, TVL1, TVL1Options, resize_flow

# Grey levels beyond which a difference says no more than that two pixels do not match.
MISMATCH = 40.0
COMPARED_WINDOW = 7


class TwoPassFlow(Protocol):
    """A source of dense flow. Keeps its buffers, and DIS what it found of the frame size: one object for each video."""

    def first(self, a: Gray, b: Gray) -> FlowField:
        """The flow a -> b, good enough to find the camera by."""

    def second(self, a: Gray, b: Gray, expected: FlowField, *, rectified: bool) -> FlowField:
        """The flow a -> b where `expected` is known to be near it. rectified: b is without the camera's motion;
        otherwise b and `expected` are what `first` was given and gave.
        """

    def backward(self, a: Gray, b: Gray, flow: FlowField) -> FlowField:
        """The flow b -> a, where `flow` is that from a to b: good enough to tell where it does not lead back."""


def make_flow(method: Flow) -> TwoPassFlow:
    """The flow of that name."""
    match method:
        case "tvl1":
            return _RefinedFlow(_Dis(), QUALITY)
        case "tvl1-fast":
            return _RefinedFlow(_Dis(), FAST)
        case "tvl1-pyramid":
            return _RefinedFlow(_HalfResolution(), FAST)
        case "tvl1-opencv":
            return _RepeatedFlow(_OpenCVTVL1())
        case "dis":
            return _RepeatedFlow(_Dis())


class _Dis:
    """Dense inverse search (Kroeger et al. 2016), OpenCV's with preset medium. It only takes 8-bit images."""

    def __init__(self) -> None:
        self._solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def first(self, a: Gray, b: Gray) -> FlowField:
        return np.asarray(self._solver.calc(_bytes(a), _bytes(b), None), dtype=np.float32)


def _bytes(gray: Gray) -> NDArray[np.uint8]:
    return np.clip(np.rint(gray), 0, 255).astype(np.uint8)


class _OpenCVTVL1:
    """OpenCV's dual TV-L1 with its defaults: slow, and lost beyond about 8 px. The reference."""

    def __init__(self) -> None:
        self._solver = cv2.optflow.DualTVL1OpticalFlow_create()

    def first(self, a: Gray, b: Gray) -> FlowField:
        scaled = a / np.float32(255), b / np.float32(255)  # it takes floating point within 0 ... 1
        return np.asarray(self._solver.calc(*scaled, None), dtype=np.float32)


class _HalfResolution:
    """Coarse-to-fine TV-L1 that stops at half the resolution."""

    def __init__(self) -> None:
        self._solver = TVL1(HALF)

    def first(self, a: Gray, b: Gray) -> FlowField:
        size = (a.shape[0] + 1) // 2, (a.shape[1] + 1) // 2
        halves = [cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA) for image in (a, b)]
        return resize_flow(self._solver(*halves), (a.shape[0], a.shape[1]), cv2.INTER_LINEAR)


class _FirstPass(Protocol):
    def first(self, a: Gray, b: Gray) -> FlowField: ...


class _RepeatedFlow:
    """The same flow in every pass."""

    def __init__(self, every_pass: _FirstPass) -> None:
        self._every_pass = every_pass

    def first(self, a: Gray, b: Gray) -> FlowField:
        return self._every_pass.first(a, b)

    def second(self, a: Gray, b: Gray, expected: FlowField, *, rectified: bool) -> FlowField:
        return self.first(a, b) if rectified else expected

    def backward(self, a: Gray, b: Gray, flow: FlowField) -> FlowField:
        return self.first(b, a)


class _RefinedFlow:
    """Some first pass, and TV-L1 at the finest scales from what it leaves to be found."""

    def __init__(self, first_pass: _FirstPass, options: TVL1Options) -> None:
        self._first_pass, self._solver, self._check = first_pass, TVL1(options), TVL1(CHECK)

    def first(self, a: Gray, b: Gray) -> FlowField:
        return self._first_pass.first(a, b)

    def second(self, a: Gray, b: Gray, expected: FlowField, *, rectified: bool) -> FlowField:
        return self._solver(a, b, still_where_it_explains(a, b, expected))

    def backward(self, a: Gray, b: Gray, flow: FlowField) -> FlowField:
        return self._check(b, a, still_where_it_explains(b, a, turned_back(flow)))


def still_where_it_explains(a: Gray, b: Gray, flow: FlowField) -> FlowField:
    """The flow, and 0 wherever no motion explains b at least as well.

    Compared are the mean differences of grey levels, each cut at 40, over 7 x 7 pixels. A coarse flow spills over the
    rim of what moves; what it spills onto is, once the camera is removed, mostly still.
    """
    x, y = _pixels((a.shape[0], a.shape[1]))
    moved = cv2.remap(b, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    still, moving = (
        cv2.blur(np.minimum(cv2.absdiff(a, other), MISMATCH), (COMPARED_WINDOW, COMPARED_WINDOW))
        for other in (b, moved)
    )
    return np.where((still <= moving)[..., None], np.float32(0), flow)


@functools.lru_cache(maxsize=4)
def _pixels(size: tuple[int, int]) -> tuple[Gray, Gray]:
    """Each pixel's x and y, (height, width)."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    return x, y


def median_filter(flow: FlowField) -> FlowField:
    """The 3 x 3 median of each component (MME eq. 6's M), in float32; the border is replicated."""
    return np.stack([cv2.medianBlur(np.ascontiguousarray(flow[..., c]), 3) for c in (0, 1)], axis=-1)
