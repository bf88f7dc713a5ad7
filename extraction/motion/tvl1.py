"""TV-L1 optical flow on the CPU (Zach, Pock & Bischof 2007; Wedel et al. 2009).

Minimises over the flow u the sum of lambda |b(x + u) - a(x)| and the total variation of each component, coarse to
fine: at each scale b is warped by the flow so far, the difference is linearised, and alternating thresholding and dual
steps follow. With OpenCV's parameters (`OPENCV`) it gives OpenCV's `DualTVL1OpticalFlow`, in a small part of its time;
`FAST` and `QUALITY` begin near the solution and are better and faster; `HALF` begins with nothing, on half-size
images, where breaking at edges would let flat regions drift; `CHECK` tells where a flow leads back.
"""

import dataclasses
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from extraction.motion.fields import FlowField, Gray
from extraction.motion.tvl1_kernels import (
    Plane,
    edge_weight,
    image_of,
    iterate,
    linearise,
    linearise_given_gradient,
    new_plane,
)

SMALLEST_SCALE = 16  # px; the least side of a pyramid's image
MOST_EDGE_WEIGHT = 10.0  # smoothness counts a tenth at the strongest edges


@dataclasses.dataclass(frozen=True, kw_only=True)
class TVL1Options:
    """Parameters, by default OpenCV's."""

    scales: int = 5
    """Images of the pyramid, at most: none has a side below 16 px."""
    scale_step: float = 0.8
    """Size of one scale's image relative to the next finer one's."""
    warps: int = 5
    """Linearisations at each scale."""
    rounds: int = 10
    """Rounds of iterations after each warp, each begun by a median filter."""
    iterations: int = 30
    """Iterations of a round."""
    tolerance: float = 0.01
    """A warp ends once an iteration changes the flow by less than this (root mean square, px); 0: never early."""
    median: int = 5
    """Side of the median filter, 3 or 5; 1 for none."""
    reach: float = 0.0
    """How far one scale may move the flow of a pixel (px of that scale, each component): without a bound, what matches
    nothing walks on along a strong edge. 0: any distance."""
    data_weight: float = 0.15
    """lambda, per grey level (0 ... 255)."""
    coupling: float = 0.3
    """theta: how far the two halves of an iteration may differ."""
    time_step: float = 0.25
    """tau of the dual step."""
    smoothing: float = 0.0
    """Standard deviation of a Gaussian over both images before anything else (px)."""
    edge: float = 0.0
    """Gradient (grey levels per px) at which smoothness counts 1 / e; 0: equally everywhere."""
    gradient: Literal["mean", "target"] = "target"
    """Linearise by the gradient of the mean of a and warped b, bilinear, or by b's own, warped by cubic sampling, with
    nothing but black around b, as OpenCV does."""


OPENCV = TVL1Options()
FAST = TVL1Options(
    scales=2, scale_step=0.5, warps=3, rounds=1, iterations=20, tolerance=0, median=3, reach=3, smoothing=0.8, edge=20,
    gradient="mean",
)  # fmt: skip
QUALITY = dataclasses.replace(FAST, warps=4, iterations=40)
CHECK = dataclasses.replace(FAST, scales=1, warps=1, iterations=10)
HALF = dataclasses.replace(FAST, scales=5, warps=5, iterations=30, median=5, reach=0, edge=0)


class _Scale:
    """Room for the planes of one image size."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.flow = (new_plane(*size), new_plane(*size))
        self.dual = (new_plane(*size), new_plane(*size), new_plane(*size), new_plane(*size))
        self.linear = (new_plane(*size), new_plane(*size), new_plane(*size), new_plane(*size))
        self.a, self.warped, self.mean, self.weight = (new_plane(*size) for _ in range(4))
        y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
        self.x, self.y = x, y
        self.map_x, self.map_y = np.empty_like(x), np.empty_like(y)

    def image(self, plane: Plane) -> NDArray[np.float32]:
        """A view of its pixels."""
        return image_of(plane, *self.size)


class TVL1:
    """TV-L1 flow with the given options. Keeps its buffers: one object for each thread."""

    def __init__(self, options: TVL1Options) -> None:
        self.options = options
        self._scales: dict[tuple[int, int], _Scale] = {}
        self._steps = tuple(
            np.float32(step)
            for step in (
                options.data_weight * options.coupling,
                options.coupling,
                options.time_step / options.coupling,
            )
        )

    def __call__(self, a: Gray, b: Gray, initial: FlowField | None = None) -> FlowField:
        """The flow float32 (H, W, 2), x and y in px, from a to b, grey float32 (H, W) within 0 ... 255.

        initial: a flow (H, W, 2) to begin with at the coarsest scale; without one it begins with none.
        """
        if a.shape != b.shape or a.ndim != 2:
            raise ValueError(f"the images are {a.shape} and {b.shape}, must be two grey images of one size")
        if self.options.smoothing:
            a, b = (cv2.GaussianBlur(image, (0, 0), self.options.smoothing) for image in (a, b))
        pyramid = list(zip(self._pyramid(a), self._pyramid(b), strict=True))
        coarsest = _size(pyramid[-1][0])
        if initial is None:
            flow = np.zeros((*coarsest, 2), np.float32)
        else:
            flow = resize_flow(initial, coarsest, cv2.INTER_AREA)
        for image_a, image_b in reversed(pyramid):
            if flow.shape[:2] != image_a.shape:
                flow = self._refined(flow, _size(image_a))
            flow = self._solve_scale(image_a, image_b, flow)
        return flow

    def _pyramid(self, image: Gray) -> list[Gray]:
        images, step = [image], self.options.scale_step
        while len(images) < self.options.scales:
            if step == 0.5:
                height, width = images[-1].shape
                smaller = cv2.resize(images[-1], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
            else:
                smaller = cv2.resize(images[-1], None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
            if min(smaller.shape) < SMALLEST_SCALE:
                break
            images.append(np.asarray(smaller, dtype=np.float32))
        return images

    def _refined(self, flow: FlowField, size: tuple[int, int]) -> FlowField:
        if self.options.scale_step == 0.5:
            return resize_flow(flow, size, cv2.INTER_LINEAR)
        finer = cv2.resize(flow, size[::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray(finer * np.float32(1 / self.options.scale_step))

    def _solve_scale(self, a: Gray, b: Gray, initial: FlowField) -> FlowField:
        options, size = self.options, _size(a)
        if size not in self._scales:
            self._scales[size] = _Scale(size)
        scale = self._scales[size]
        for plane in scale.dual:
            plane[:] = 0
        scale.image(scale.a)[:] = a
        u1, u2 = (scale.image(plane) for plane in scale.flow)
        u1[:], u2[:] = initial[..., 0], initial[..., 1]
        if options.edge:
            edge_weight(scale.a, scale.weight, size, options.edge, MOST_EDGE_WEIGHT)
        else:
            scale.weight[:] = 1
        gradient = _central_differences(b) if options.gradient == "target" else None
        tolerance = options.tolerance**2 if options.tolerance else -1.0
        bounds = [(u, u - options.reach, u + options.reach) for u in (u1, u2)] if options.reach else []
        for _ in range(options.warps):
            np.add(scale.x, u1, out=scale.map_x)
            np.add(scale.y, u2, out=scale.map_y)
            self._linearise(scale, b, gradient)
            for _ in range(options.rounds):
                if options.median > 1:
                    u1[:] = cv2.medianBlur(np.ascontiguousarray(u1), options.median)
                    u2[:] = cv2.medianBlur(np.ascontiguousarray(u2), options.median)
                _, converged = iterate(
                    scale.flow, scale.dual, scale.linear, scale.weight, size, options.iterations, self._steps, tolerance
                )
                if converged:
                    break
            for u, least, most in bounds:
                np.clip(u, least, most, out=u)
        return np.stack([u1, u2], axis=-1)

    def _linearise(self, scale: _Scale, b: Gray, gradient: tuple[Gray, Gray] | None) -> None:
        """Around the flow whose maps the scale holds; by b's own gradient where that is given."""
        if gradient is None:
            self._sample(b, scale, scale.warped, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
            linearise(scale.a, scale.warped, scale.flow, scale.linear, scale.mean, scale.size)
            return
        for source, plane in zip((b, *gradient), (scale.warped, *scale.linear[:2]), strict=True):
            self._sample(source, scale, plane, cv2.INTER_CUBIC, cv2.BORDER_CONSTANT)
        linearise_given_gradient(scale.a, scale.warped, scale.flow, scale.linear, scale.size)

    @staticmethod
    def _sample(image: Gray, scale: _Scale, plane: Plane, interpolation: int, border: int) -> None:
        scale.image(plane)[:] = cv2.remap(image, scale.map_x, scale.map_y, interpolation, borderMode=border)


def _size(image: Gray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def resize_flow(flow: FlowField, size: tuple[int, int], interpolation: int) -> FlowField:
    """The flow at another size, in pixels of that size."""
    height, width = flow.shape[:2]
    resized = cv2.resize(flow, size[::-1], interpolation=interpolation)
    return np.asarray(resized * np.array([size[1] / width, size[0] / height], np.float32))


def _central_differences(image: Gray) -> tuple[Gray, Gray]:
    kernel, one = np.array([[-0.5, 0, 0.5]], np.float32), np.ones((1, 1), np.float32)
    dx = cv2.sepFilter2D(image, -1, kernel, one, borderType=cv2.BORDER_REPLICATE)
    dy = cv2.sepFilter2D(image, -1, one, kernel, borderType=cv2.BORDER_REPLICATE)
    return dx, dy
