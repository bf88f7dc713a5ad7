"""Resizing and smoothing of batches as OpenCV does it, in torch.

Each is linear and separable: out = R image Cᵀ with small matrices that are made once for each size, so that one pair
of matrix products does for every kind and gives the same numbers on every device.
"""

import functools

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float32]


def area_matrix(source: int, target: int) -> Matrix:
    """(target, source): the mean over each target pixel's part of the source, cv2.INTER_AREA; target <= source."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.maximum(shared, 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def linear_matrix(source: int, target: int) -> Matrix:
    """(target, source): linear interpolation by the half-pixel rule with the border repeated, cv2.INTER_LINEAR."""
    places = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    return np.asarray(np.maximum(1 - np.abs(places[:, None] - np.arange(source)), 0), dtype=np.float32)


@functools.lru_cache(maxsize=256)
def _on_device(kind: str, source: int, target: int, device: torch.device) -> Tensor:
    matrix = (area_matrix if kind == "area" else linear_matrix)(source, target)
    return torch.from_numpy(matrix).to(device)


def _resized(images: Tensor, size: tuple[int, int], kind: str) -> Tensor:
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    rows = _on_device(kind, height, size[0], images.device)
    columns = _on_device(kind, width, size[1], images.device)
    return torch.matmul(rows, torch.matmul(images, columns.T))


def half(images: Tensor) -> Tensor:
    """Images (..., H, W) at half the size, rounded up, by area."""
    height, width = images.shape[-2:]
    return _resized(images, ((height + 1) // 2, (width + 1) // 2), "area")


def resize_flow(flow: Tensor, size: tuple[int, int], kind: str) -> Tensor:
    """Flow (B, 2, H, W), x and y in px, at another size and in its pixels; kind: `area` (smaller) or `linear`."""
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    resized = _resized(flow, size, kind)
    return torch.stack([resized[:, 0] * (size[1] / width), resized[:, 1] * (size[0] / height)], 1)


def gaussian(images: Tensor, sigma: float) -> Tensor:
    """Images (B, H, W) smoothed as cv2.GaussianBlur does floating-point ones: 8 sigma wide, the border reflected."""
    side = round(8 * sigma + 1) | 1
    kernel = torch.from_numpy(cv2.getGaussianKernel(side, sigma, cv2.CV_32F)).to(images.device)
    padded = _reflected(images, side // 2)
    return F.conv2d(F.conv2d(padded, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))[:, 0]


def box_mean(images: Tensor, side: int) -> Tensor:
    """The mean over side x side pixels, an odd number, of images (B, H, W); the border is reflected, as cv2.blur's."""
    return F.avg_pool2d(_reflected(images, side // 2), side, stride=1)[:, 0]


def _reflected(images: Tensor, margin: int) -> Tensor:
    """(B, 1, H + 2 margin, W + 2 margin): reflected about the outermost pixels, cv2.BORDER_REFLECT_101."""
    return F.pad(images[:, None], (margin, margin, margin, margin), mode="reflect")
