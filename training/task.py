"""What the training loop is given: a model, its clips, its targets, and how long to train. No store, no transformer."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.step_batches import Batch

Precision = Literal["bf16", "fp32", "fp16"]


class Target(Protocol):
    """What a head should predict."""

    @property
    def values(self) -> torch.Tensor:
        """float32 (B, Np, ...)."""

    @property
    def weights(self) -> torch.Tensor:
        """0 where a value leaves the loss, else 1; broadcasts to the values."""


Targets = Mapping[str, Target]
Predictions = dict[str, torch.Tensor]
SumsAndCounts = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


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
    clip_grad: float | None
    """Largest norm of the gradient, or None."""
    compute_targets: Callable[[Batch], Any]
    """Targets by head, of a batch on the device."""
    sums_and_counts: Callable[[Predictions, Any], SumsAndCounts]
    """For each head the sum of weighted squared errors and the sum of weights, scalars; the former is 0, with a graph,
    where all weights are."""
    trivial_sums_and_counts: Callable[[Any], SumsAndCounts]
    """The same, of targets alone, for a predictor that has learnt nothing but their mean: what a loss is to be held
    against."""
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
