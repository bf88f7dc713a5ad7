"""The inner loops of TV-L1 flow in plain torch, on any device: what `kernels` computes, one operation at a time.

All arrays are float32 and row-major, (batch, ..., height, width). `extraction.motion.tvl1_kernels` has the same for one
pair on the CPU, and says where the equations are from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _divergence(px: Tensor, py: Tensor) -> Tensor:
    """Backward differences, with p = 0 beyond the first column and row."""
    return px - F.pad(px, (1, 0))[..., :-1] + py - F.pad(py, (0, 0, 1, 0))[..., :-1, :]


def _dual_step(u: Tensor, px: Tensor, py: Tensor, weight: Tensor, step: float) -> tuple[Tensor, Tensor]:
    gx = F.pad(u[..., 1:] - u[..., :-1], (0, 1))
    gy = F.pad(u[..., 1:, :] - u[..., :-1, :], (0, 0, 0, 1))
    scale = 1 / (1 + step * weight * torch.sqrt(gx * gx + gy * gy))
    return (px + step * gx) * scale, (py + step * gy) * scale


def iterate(
    flow: Tensor, dual: Tensor, linear: Tensor, weight: Tensor, count: int, steps: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """`count` iterations on flow (B, 2, H, W), x and y in px, and dual variables (B, 4, H, W), p11, p12, p21, p22.

    linear: (B, 4, H, W), see `linearise`. weight: (B, H, W), see `edge_weight`; 1 for plain total variation.
    steps: bound lambda theta of a thresholding step, theta, dual step tau / theta. Returns the new flow and dual.
    """
    bound, theta, dual_step = steps
    (u1, u2), (p11, p12, p21, p22), (ix, iy, inverse, rho) = flow.unbind(1), dual.unbind(1), linear.unbind(1)
    for _ in range(count):
        change = (-(rho + ix * u1 + iy * u2) * inverse).clamp(-bound, bound)
        u1 = u1 + change * ix + theta * _divergence(p11, p12)
        u2 = u2 + change * iy + theta * _divergence(p21, p22)
        p11, p12 = _dual_step(u1, p11, p12, weight, dual_step)
        p21, p22 = _dual_step(u2, p21, p22, weight, dual_step)
    return torch.stack([u1, u2], 1), torch.stack([p11, p12, p21, p22], 1)


def _replicated(images: Tensor, margin: int) -> Tensor:
    """Images (B, H, W) with a margin that repeats their border."""
    return F.pad(images[:, None], (margin, margin, margin, margin), mode="replicate")[:, 0]


def sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Images (B, H, W) at x and y (B, H', W') in px, bilinear; the border is replicated."""
    height, width = images.shape[1:]
    grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], -1)
    return F.grid_sample(images[:, None], grid, mode="bilinear", padding_mode="border", align_corners=True)[:, 0]


def pixels(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """x (1, W) and y (H, 1) of the pixels of images of that size, of the type and on the device of `like`."""
    height, width = size
    x = torch.arange(width, dtype=like.dtype, device=like.device)
    return x[None], torch.arange(height, dtype=like.dtype, device=like.device)[:, None]


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Images (B, H, W) at every pixel plus the flow (B, 2, H, W)."""
    x, y = pixels((images.shape[1], images.shape[2]), images)
    return sample(images, x + flow[:, 0], y + flow[:, 1])


def linearise(a: Tensor, b: Tensor, flow: Tensor, flat: float) -> Tensor:
    """Warp b by the flow and linearise rho + ix u1 + iy u2: (B, 4, H, W), ix, iy, 1 / |(ix, iy)|², rho.

    a, b: (B, H, W), grey levels. flow: (B, 2, H, W). The gradient is that of the mean of a and warped b, by central
    differences with the border repeated. flat: squared gradient up to which the third is 0.
    """
    warped = warp(b, flow)
    mean = _replicated(0.5 * (a + warped), 1)
    gx = 0.5 * (mean[:, 1:-1, 2:] - mean[:, 1:-1, :-2])
    gy = 0.5 * (mean[:, 2:, 1:-1] - mean[:, :-2, 1:-1])
    square = gx * gx + gy * gy
    inverse = torch.where(square > flat, 1 / square.clamp(min=flat), 0)
    return torch.stack([gx, gy, inverse, warped - gx * flow[:, 0] - gy * flow[:, 1] - a], 1)


def edge_weight(image: Tensor, edge: float, most: float) -> Tensor:
    """min((1 + |grad image| / (4 edge))⁴, most), (B, H, W); central differences, with 0 beyond the border."""
    padded = F.pad(image, (1, 1, 1, 1))
    gx = 0.5 * (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2])
    gy = 0.5 * (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1])
    factor = (1 + torch.sqrt(gx * gx + gy * gy) * (0.25 / edge)) ** 2
    return (factor * factor).clamp(max=most)


def median(images: Tensor, side: int) -> Tensor:
    """The median over side x side pixels, an odd number, of images (..., H, W); the border is replicated."""
    shape = images.shape
    padded = _replicated(images.reshape(-1, *shape[-2:]), side // 2)
    windows = padded.unfold(1, side, 1).unfold(2, side, 1).flatten(3)
    return windows.median(dim=3).values.reshape(shape)
