"""Frames as the model takes them."""

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def normalise_frames(frames: torch.Tensor) -> torch.Tensor:
    """uint8 (B, T, H, W, 3) RGB to float32 (B, 3, T, H, W): 0...1, less ImageNet's mean, by its standard deviation.

    Done on the frames' own device, so that a quarter of the bytes goes there.
    """
    mean, std = (frames.new_tensor(c, dtype=torch.float32) for c in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    normalised = (frames.float() / 255 - mean) / std
    return normalised.permute(0, 4, 1, 2, 3).contiguous()
