"""TV-L1 flow of many pairs at once: `extraction.motion.tvl1`, batched in torch.

On a CUDA device the loops are `kernels`, elsewhere `eager`. Images are float32 (B, H, W) within 0 ... 255, flows
float32 (B, 2, H, W), x and y in px.
"""

from types import ModuleType

import torch
from torch import Tensor

from extraction.motion.gpu import eager
from extraction.motion.gpu.resampling import area_matrix, gaussian, half, linear_matrix, resize_flow
from extraction.motion.tvl1 import CHECK, FAST, HALF, MOST_EDGE_WEIGHT, SMALLEST_SCALE, TVL1Options
from extraction.motion.tvl1_kernels import FLAT


def loops_for(device: torch.device) -> ModuleType:
    """The module that has the loops for tensors on that device."""
    if device.type != "cuda":
        return eager
    from extraction.motion.gpu import kernels  # noqa: PLC0415 (there is no Triton where there is no CUDA)

    return kernels


class BatchedTVL1:
    """TV-L1 flow with options such as `FAST` and `HALF`: halving scales, the mean's gradient, no tolerance.

    `loops` has the inner loops, by default those for the images' device.
    """

    def __init__(self, options: TVL1Options, loops: ModuleType | None = None) -> None:
        if options.scale_step != 0.5 or options.gradient != "mean" or options.tolerance:
            raise ValueError("batched TV-L1 takes scale_step 0.5, gradient mean and tolerance 0")
        self.options = options
        self._loops = loops

    def __call__(self, a: Tensor, b: Tensor, initial: Tensor | None = None) -> Tensor:
        """The flow (B, 2, H, W) from a to b, (B, H, W); initial: a flow of that shape to begin with."""
        loops = self._loops or loops_for(a.device)
        if self.options.smoothing:
            a, b = gaussian(a, self.options.smoothing), gaussian(b, self.options.smoothing)
        pyramid = [(a, b)]
        while len(pyramid) < self.options.scales:
            smaller = half(pyramid[-1][0]), half(pyramid[-1][1])
            if min(smaller[0].shape[-2:]) < SMALLEST_SCALE:
                break
            pyramid.append(smaller)
        coarsest = _size(pyramid[-1][0])
        none = a.new_zeros((len(a), 2, *coarsest))
        flow = none if initial is None else resize_flow(initial, coarsest, area_matrix)
        for image_a, image_b in reversed(pyramid):
            flow = resize_flow(flow, _size(image_a), linear_matrix)
            flow = self._solve_scale(image_a.contiguous(), image_b.contiguous(), flow.contiguous(), loops)
        return flow

    def _solve_scale(self, a: Tensor, b: Tensor, flow: Tensor, loops: ModuleType) -> Tensor:
        options = self.options
        weight = loops.edge_weight(a, options.edge, MOST_EDGE_WEIGHT) if options.edge else torch.ones_like(a)
        dual = a.new_zeros((len(a), 4, *a.shape[1:]))
        steps = options.data_weight * options.coupling, options.coupling, options.time_step / options.coupling
        begun = flow
        for _ in range(options.warps):
            linear = loops.linearise(a, b, flow, float(FLAT))
            for _ in range(options.rounds):
                if options.median > 1:
                    flow = loops.median(flow, options.median)
                flow, dual = loops.iterate(flow, dual, linear, weight, options.iterations, steps)
            if options.reach:
                flow = torch.clamp(flow, begun - options.reach, begun + options.reach)
        return flow


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


class HalfResolution:
    """Coarse-to-fine TV-L1 that stops at half the resolution: `tvl1-pyramid`'s first pass."""

    def __init__(self, loops: ModuleType | None = None) -> None:
        self._solver = BatchedTVL1(HALF, loops)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """The flow (B, 2, H, W) from a to b, (B, H, W)."""
        return resize_flow(self._solver(half(a), half(b)), _size(a), linear_matrix)


def finest_scales(loops: ModuleType | None = None) -> BatchedTVL1:
    """`tvl1-pyramid`'s second pass."""
    return BatchedTVL1(FAST, loops)


def check_scale(loops: ModuleType | None = None) -> BatchedTVL1:
    """The flow backward, for the forward-backward check."""
    return BatchedTVL1(CHECK, loops)
