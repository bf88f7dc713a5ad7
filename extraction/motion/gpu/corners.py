"""Corners of a batch of frames (Shi & Tomasi 1994): a fixed number of slots for each, filled in order of strength."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from extraction.camera import CORNER_QUALITY, MAX_CORNERS, corner_distance
from extraction.motion.gpu.resampling import box_mean


def corner_strength(gray: Tensor) -> Tensor:
    """The smaller eigenvalue of the gradient's 3 x 3 mean second moments, (B, H, W), of grey float32 (B, H, W).

    Sobel gradients over 8, so that a ramp of one grey level per px has 1; the border is reflected.
    """
    padded = F.pad(gray[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    dx, dy = padded[..., 2:] - padded[..., :-2], padded[:, 2:] - padded[:, :-2]
    gx = (dx[:, :-2] + 2 * dx[:, 1:-1] + dx[:, 2:]) / 8
    gy = (dy[..., :-2] + 2 * dy[..., 1:-1] + dy[..., 2:]) / 8
    xx, xy, yy = (box_mean(product, 3) for product in (gx * gx, gx * gy, gy * gy))
    return 0.5 * (xx + yy - torch.sqrt((xx - yy) ** 2 + 4 * xy * xy))


def find_corners(gray: Tensor) -> tuple[Tensor, Tensor]:
    """The strongest corners of grey float32 (B, H, W): x and y int64 (B, K, 2), and how many are real, int64 (B,).

    A corner is the strongest pixel among those less than `corner_distance` away along both axes, no weaker than 0.001
    of the frame's strongest, and not at the border, as cv2.goodFeaturesToTrack has it; K is at most 1000. Equals are
    taken row by row.
    """
    batch, height, width = gray.shape
    strength = corner_strength(gray)
    reach = math.ceil(corner_distance(height, width)) - 1
    strongest_near = F.max_pool2d(strength[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0]
    least = CORNER_QUALITY * strength.amax((1, 2), keepdim=True)
    is_corner = (strength == strongest_near) & (strength > least)
    is_corner[:, [0, -1]] = False
    is_corner[:, :, [0, -1]] = False
    ranked = torch.where(is_corner, strength, 0).reshape(batch, -1)
    slots = min(MAX_CORNERS, height * width)
    order = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :slots]
    corners = torch.stack([order % width, order // width], -1)
    return corners, is_corner.sum((1, 2)).clamp(max=slots)
