"""What the training loop is given: a model, its clips, its targets, and how long to train. No store, no transformer."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.losses import WeightedValues
from training.step_batches import Batch

Precision = Literal["bf16", "fp32", "fp16"]
AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Targets = Mapping[str, WeightedValues]
Predictions = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on what."""

    model: nn.Module
    """Called with video float32 (B, 3, T, H, W), visible (B, Nv), predict (B, Np); gives each head's (B, Np, D)."""
    clip_size: tuple[int, int, int]
    """(T, H, W) of a clip's frames."""
    model_config: dict[str, Any]
    """What the model is built from, in plain values, for the checkpoint."""
    recipe: dict[str, Any]
    """The resolved recipe, for the checkpoint."""
    head_weights: dict[str, float]
    """The heads, and their factors in the loss."""
    head_sizes: dict[str, int]
    """D, values that a head predicts for each token."""
    clip_grad: float | None
    """Largest norm of the gradient, or None."""
    compute_targets: Callable[[Batch], Any]
    """Targets by head, of a batch on the device."""
    loader: Callable[[int], Iterable[Batch]]
    """This rank's endless micro-batches from a position (clips consumed by all ranks before). With w ranks and b clips
    in a micro-batch, micro-batch m of rank r has the clips from position + (m w + r) b on."""
    clips_per_epoch: int
    data: dict[str, Any]
    """What the order of the clips follows from, in plain values; it must be the same when a run goes on."""
    draw: Callable[[int, Batch, Predictions, Any], NDArray[np.uint8] | None] | None = None
    """Draws a picture of a step's first micro-batch, on rank 0; one that it returns, RGB, goes to TensorBoard too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How long, in what portions, how exactly, and what is kept."""

    steps: int
    batch_size: int
    """Clips of one optimisation step, over all ranks and micro-batches."""
    accumulate: int = 1
    """Micro-batches of one optimisation step on each rank."""
    precision: Precision = "fp32"
    seed: int = 0
    save_every: int = 500
    """Steps from one checkpoint to the next."""
    keep: int = 3
    """Checkpoints that stay."""
    figure_every: int = 0
    """Steps from one picture to the next; 0 for none."""
