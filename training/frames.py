"""Frames as a model takes them."""

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

Colour = tuple[float, float, float]


def normalise_frames(
    frames: torch.Tensor, mean: Colour = IMAGENET_DEFAULT_MEAN, std: Colour = IMAGENET_DEFAULT_STD
) -> torch.Tensor:
    """uint8 (B, ..., H, W, 3) RGB to float32 (B, 3, ..., H, W): 0...1, less `mean`, by `std`, by default ImageNet's.

    Done on the frames' own device, so that a quarter of the bytes goes there.
    """
    shift, scale = (frames.new_tensor(colour, dtype=torch.float32) for colour in (mean, std))
    normalised = (frames.float() / 255 - shift) / scale
    return normalised.movedim(-1, 1).contiguous()
