"""Resizing and smoothing of batches as OpenCV does it, in torch.

Each is linear and separable: out = R image Cᵀ with small matrices that are made once for each size. The products must
be in full single precision, which is torch's default (`torch.set_float32_matmul_precision`).
"""

import functools
from collections.abc import Callable

import cv2
import numpy as np
import torch
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


def gaussian_matrix(size: int, sigma: float) -> Matrix:
    """(size, size): what cv2.GaussianBlur does to floating-point images, 8 sigma wide, the border reflected."""
    side = round(8 * sigma + 1) | 1
    return _filter_matrix(size, cv2.getGaussianKernel(side, sigma, cv2.CV_32F)[:, 0])


def box_matrix(size: int, side: int) -> Matrix:
    """(size, size): the mean over `side` pixels, an odd number, the border reflected, as cv2.blur does it."""
    return _filter_matrix(size, np.full(side, 1 / side, np.float32))


def _filter_matrix(size: int, kernel: NDArray[np.float32]) -> Matrix:
    reach = len(kernel) // 2
    sources = np.pad(np.arange(size), reach, mode="reflect")
    matrix = np.zeros((size, size), np.float32)
    for place, weight in enumerate(kernel):
        np.add.at(matrix, (np.arange(size), sources[place : place + size]), weight)
    return matrix


@functools.lru_cache(maxsize=256)
def _on_device(make: Callable[..., Matrix], size: int, parameter: float, device: torch.device) -> Tensor:
    return torch.from_numpy(make(size, parameter)).to(device)


def _filtered(images: Tensor, make: Callable[..., Matrix], parameter: float) -> Tensor:
    rows, columns = (_on_device(make, size, parameter, images.device) for size in images.shape[-2:])
    return torch.matmul(rows, torch.matmul(images, columns.T))


def resized(images: Tensor, size: tuple[int, int], make: Callable[[int, int], Matrix]) -> Tensor:
    """Images (..., H, W) at another size; make: `area_matrix` or `linear_matrix`."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    rows = _on_device(make, height, size[0], images.device)
    columns = _on_device(make, width, size[1], images.device)
    return torch.matmul(rows, torch.matmul(images, columns.T))


def half(images: Tensor) -> Tensor:
    """Images (..., H, W) at half the size, rounded up, by area."""
    height, width = images.shape[-2:]
    return resized(images, ((height + 1) // 2, (width + 1) // 2), area_matrix)


def resize_flow(flow: Tensor, size: tuple[int, int], make: Callable[[int, int], Matrix]) -> Tensor:
    """Flow (B, 2, H, W), x and y in px, at another size and in its pixels; make: as for `resized`."""
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    smaller = resized(flow, size, make)
    return torch.stack([smaller[:, 0] * (size[1] / width), smaller[:, 1] * (size[0] / height)], 1)


def gaussian(images: Tensor, sigma: float) -> Tensor:
    """Images (..., H, W) smoothed, see `gaussian_matrix`."""
    return _filtered(images, gaussian_matrix, sigma)


def box_mean(images: Tensor, side: int) -> Tensor:
    """The mean over side x side pixels of images (..., H, W), see `box_matrix`."""
    return _filtered(images, box_matrix, side)
