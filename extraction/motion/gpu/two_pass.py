"""Flow `tvl1-pyramid` with the camera taken out, for a batch of frame pairs: `FlowTracker.pair_motion` in torch.

What MME's appendix A and the CPU do, in the same order; only the camera is estimated by other means, `corners` and
`homographies`.
"""

import dataclasses
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_specs.recipe import Recipe
from extraction.camera import CameraMotion
from extraction.motion.dense_flow import COMPARED_WINDOW, MISMATCH
from extraction.motion.flow_tracker import PairMotion, TrackedFrame
from extraction.motion.gpu import eager
from extraction.motion.gpu.batched_tvl1 import HalfResolution, check_scale, finest_scales, loops_for
from extraction.motion.gpu.corners import find_corners
from extraction.motion.gpu.device import MOST_PIXELS, device_errors
from extraction.motion.gpu.homographies import adjugate, apply_homographies, estimate_homographies
from extraction.motion.gpu.resampling import box_mean
from extraction.motion.occlusion import ABSOLUTE, RELATIVE
from extraction.motion.rectification import EDGE_PX


@dataclasses.dataclass(frozen=True)
class BatchMotion:
    """The motion of B pairs, as `PairMotion` has it: flows (B, 2, H, W), measured and visible bool (B, H, W),
    homographies float64 (B, 3, 3), estimated bool (B,).
    """

    flow: Tensor
    measured: Tensor
    visible: Tensor
    homographies: Tensor
    estimated: Tensor
    first_flow: Tensor


class TwoPass:
    """Measures batches of pairs on one device. `loops` has TV-L1's inner loops, by default those for the device."""

    def __init__(self, recipe: Recipe, device: torch.device, loops: ModuleType | None = None) -> None:
        self._recipe, self._device = recipe, device
        self._loops = loops or loops_for(device)
        self._first, self._second = HalfResolution(self._loops), finest_scales(self._loops)
        self._check = check_scale(self._loops)

    def pair_motions(self, pairs: Sequence[tuple[TrackedFrame, TrackedFrame]]) -> list[PairMotion]:
        """The motion from the first to the second frame of each pair; all frames are of one size.

        Large frames are measured fewer at a time. Raises DeviceError where the device runs out of memory or breaks
        down.
        """
        if not pairs:
            return []
        most = max(1, MOST_PIXELS // pairs[0][0].gray.size)
        chunks = (pairs[first : first + most] for first in range(0, len(pairs), most))
        return [motion for chunk in chunks for motion in self._measure_at_once(chunk)]

    def _measure_at_once(self, pairs: Sequence[tuple[TrackedFrame, TrackedFrame]]) -> list[PairMotion]:
        frames = {id(frame): frame for pair in pairs for frame in pair}
        place = {key: number for number, key in enumerate(frames)}
        height, width = pairs[0][0].gray.shape
        with device_errors(self._device, f"{len(pairs)} pairs of {height}x{width}"):
            grays = torch.from_numpy(np.stack([frame.gray for frame in frames.values()])).to(self._device)
            first, second = (torch.tensor([place[id(p[side])] for p in pairs], device=self._device) for side in (0, 1))
            motion = self.measure(grays[first].float(), grays[second].float())
            flow, first_flow = (_on_host(f.permute(0, 2, 3, 1)) for f in (motion.flow, motion.first_flow))
            measured, visible = _on_host(motion.measured), _on_host(motion.visible)
            homographies, estimated = _on_host(motion.homographies), _on_host(motion.estimated)
        return [
            PairMotion(
                flow[i], measured[i], visible[i], CameraMotion(homographies[i], bool(estimated[i])), first_flow[i]
            )
            for i in range(len(pairs))
        ]

    def measure(self, a: Tensor, b: Tensor) -> BatchMotion:
        """The motion from a to b, grey float32 (B, H, W) within 0 ... 255 on the device."""
        size = a.shape[1], a.shape[2]
        first_flow = self._first(a, b)
        homographies, estimated = self._cameras(a, first_flow)
        if self._recipe.remove_camera:
            b, measured = rectify(b, homographies)
            expected = expected_residual(first_flow, homographies)
        else:
            measured = torch.ones((len(a), *size), dtype=torch.bool, device=a.device)
            expected = first_flow
        flow = self._loops.median(self._second(a, b, still_where_it_explains(a, b, expected)), 3)
        visible = torch.ones_like(measured)
        if self._recipe.forward_backward:
            backward = self._check(b, a, still_where_it_explains(b, a, turned_back(flow)))
            visible = returns(flow, self._loops.median(backward, 3))
        return BatchMotion(flow, measured, visible, homographies, estimated, first_flow)

    def _cameras(self, a: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        if not self._recipe.remove_camera:
            identity = torch.eye(3, dtype=torch.float64, device=a.device).repeat(len(a), 1, 1)
            return identity, torch.zeros(len(a), dtype=torch.bool, device=a.device)
        corners, count = find_corners(a)
        pair = torch.arange(len(a), device=a.device)[:, None]
        carried = corners + flow[pair, :, corners[..., 1], corners[..., 0]].double()
        return estimate_homographies(corners.double(), carried, count, (a.shape[1], a.shape[2]), self._recipe)


def _on_host(tensor: Tensor) -> NDArray[np.generic]:
    tensor = tensor.contiguous()
    if tensor.device.type != "cpu":
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)  # copied several times as fast
        tensor = pinned.copy_(tensor)
    return np.asarray(tensor.numpy())


def _exact_pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """float64 x (1, 1, W) and y (1, H, 1) of the pixels."""
    x, y = eager.pixels((images.shape[-2], images.shape[-1]), images.new_empty(0, dtype=torch.float64))
    return x[None], y[None]


def rectify(b: Tensor, homographies: Tensor) -> tuple[Tensor, Tensor]:
    """b~(x) = b(G x), (B, H, W), and where it is measured, bool (B, H, W): see `extraction.motion.rectification`."""
    height, width = b.shape[1:]
    x, y = apply_homographies(homographies, *_exact_pixels(b))
    outside = (x < -EDGE_PX) | (x > width - 1 + EDGE_PX) | (y < -EDGE_PX) | (y > height - 1 + EDGE_PX)
    near = F.max_pool2d(outside[:, None].float(), 3, stride=1, padding=1)[:, 0]
    return eager.sample(b, x.float(), y.float()), near == 0


def expected_residual(flow: Tensor, homographies: Tensor) -> Tensor:
    """The residual r that a full flow f and the camera G leave, G (x + r) = x + f: float32 (B, 2, H, W), px."""
    x, y = _exact_pixels(flow)
    u, v = x + flow[:, 0], y + flow[:, 1]
    inverses = adjugate(homographies)
    inverses = inverses / inverses[:, 2:, 2:]  # positive, where the camera is plausible
    w = inverses[:, 2, 0, None, None] * u + inverses[:, 2, 1, None, None] * v + 1
    moved_x, moved_y = apply_homographies(inverses, u, v)
    residual = torch.stack([moved_x - x, moved_y - y], 1)
    return torch.where((w > 1e-6)[:, None], residual, 0).float()


def _at_end(field: Tensor, flow: Tensor) -> Tensor:
    """A field (B, 2, H, W) where the flow leads, bilinear, the border repeated."""
    return torch.stack([eager.warp(field[:, c], flow) for c in (0, 1)], 1)


def turned_back(flow: Tensor) -> Tensor:
    """A first guess of the backward flow: see `extraction.motion.occlusion`."""
    return -_at_end(flow, -flow)


def returns(flow: Tensor, backward: Tensor) -> Tensor:
    """Where the backward flow leads back to where the forward flow came from, bool (B, H, W): see there."""
    there = _at_end(backward, flow)
    gap, length = ((flow + there) ** 2).sum(1), (flow**2 + there**2).sum(1)
    return gap < RELATIVE * length + ABSOLUTE


def still_where_it_explains(a: Tensor, b: Tensor, flow: Tensor) -> Tensor:
    """The flow, and 0 wherever no motion explains b at least as well: see `extraction.motion.dense_flow`."""
    still, moving = (
        box_mean((a - other).abs().clamp(max=MISMATCH), COMPARED_WINDOW) for other in (b, eager.warp(b, flow))
    )
    return torch.where((still <= moving)[:, None], 0, flow)
