"""Histograms of oriented gradients of whole frames, on the batch's device: the target of MaskFeat.

Wei et al., CVPR 2022, section 3.2: nine unsigned orientations of each colour, in cells of 8 x 8 pixels. The histograms
are those of the track store (MME eq. 5): bins over [0, pi) centred at k * 20 degrees, so that a horizontal flip maps
bin k to (9 - k) mod 9, and a pixel's gradient magnitude is shared between the two nearest bins and none of it is lost.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from data_specs.schema import HOG_BINS

_LEAST_LENGTH = 1e-6  # the weakest gradient of 8-bit frames gives a cell of 8 x 8 a length of 1e-2
_PIXELS_AT_ONCE = 1 << 22  # keeps what is between to a few maps of 16 MB, whatever the batch


def middle_frames(frames: Tensor, tubelet: int) -> Tensor:
    """The frames (B, T // tubelet, H, W, 3) whose HOG a tubelet's tokens predict: number tubelet // 2 of each."""
    return frames[:, tubelet // 2 :: tubelet]


@torch.no_grad()
def image_hog(frames: Tensor, cell: int = 8, bins: int = HOG_BINS, unit_length: bool = False) -> Tensor:
    """Mean gradient magnitude per pixel and orientation: float32 (B, T, H // cell, W // cell, 3, bins).

    frames: RGB (B, T, H, W, 3), uint8 or float; the unit of their values is that of the result. Gradients are Sobel's
    (3 x 3, no bias, not divided by 8), borders mirrored without the edge pixel. What is left of a frame right and below
    of the last whole cell is in no histogram. unit_length: divide each colour's histogram by its L2 length, as MaskFeat
    does; a cell without any gradient stays zero. The same on every run of one device.
    """
    clips, times, height, width, colours = frames.shape
    if min(height, width) < max(cell, 2):
        raise ValueError(f"frames of {height} x {width} pixels have no whole cell of {cell} pixels, or no gradient")
    planes = frames.permute(0, 1, 4, 2, 3).reshape(-1, height, width)
    at_once = max(1, _PIXELS_AT_ONCE // (height * width))
    histograms = torch.cat([_histograms(part, cell, bins) for part in torch.split(planes, at_once)])
    if unit_length:
        histograms = functional.normalize(histograms, dim=-1, eps=_LEAST_LENGTH)
    return histograms.reshape(clips, times, colours, *histograms.shape[1:]).permute(0, 1, 3, 4, 2, 5)


def _histograms(planes: Tensor, cell: int, bins: int) -> Tensor:
    """(N, H, W) to (N, H // cell, W // cell, bins). A map over pixels for one bin at a time; no atomic sums."""
    gx, gy = _sobel(planes.float())
    magnitude = torch.hypot(gx, gy)
    angle = torch.atan2(gy, gx)
    position = torch.where(angle < 0, angle + math.pi, angle).mul_(bins / math.pi)  # 0 ... bins, and bins is 0 again
    del gx, gy, angle
    cells = []
    for k in range(bins):
        share = (1 - (position - k).abs_()).clamp_(min=0)
        if k == 0:
            share += (position - (bins - 1)).clamp_(min=0)
        cells.append(functional.avg_pool2d(share.mul_(magnitude)[:, None], cell)[:, 0])
    return torch.stack(cells, dim=-1)


def _sobel(planes: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient's x and y of planes (N, H, W): differences across, weights 1, 2, 1 along."""
    padded = functional.pad(planes, (1, 1, 1, 1), mode="reflect")
    across = padded[:, :, 2:] - padded[:, :, :-2]
    down = padded[:, 2:] - padded[:, :-2]
    gx = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    gy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return gx, gy
