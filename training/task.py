"""What the training loop is given: a model, its clips, what is minimised, how long to train. No store, no network."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.step_batches import Batch

Kind = Literal["pretraining", "fine-tuning"]
Precision = Literal["bf16", "fp32", "fp16"]
AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Predictions = dict[str, Tensor]
Call = Callable[..., Any]
"""The model as a step calls it: distributed, and in the precision asked for."""


class Objective(Protocol):
    """How a model is called on a micro-batch, and what its losses are.

    A loss is a sum of errors divided by a count; both are summed over all ranks and micro-batches of a step first, so
    that how these divide the batch changes nothing. J is the number of losses. What is random here comes from this
    process's global generators (PyTorch's, NumPy's), which checkpoints keep.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """The losses' names, and their factors in what is minimised."""

    def targets(self, batch: Batch) -> Any:
        """What the model should give for a batch that is on the device; called for all of a step's before `errors`."""

    def moments(self, targets: Sequence[Any], device: torch.device) -> Tensor:
        """Sums over this rank's targets, float64 and of one dimension, from whose totals `judge` takes what it says.

        The sequence is empty on a rank that has no clip.
        """

    def judge(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Of the moments of all ranks, (J,) each: the losses' counts, and the sums of errors of the best constants."""

    def errors(self, call: Call, batch: Batch, targets: Any) -> tuple[Tensor, Predictions]:
        """The losses' sums of errors (J,), which gradients flow from, and the predictions; calls the model once."""

    def idle(self, call: Call, device: torch.device) -> Tensor:
        """A scalar 0 whose gradients are 0 too: what a rank without a clip gives, so that the others need not wait."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on what."""

    kind: Kind = "pretraining"
    """Whose checkpoints these are."""
    model: nn.Module
    objective: Objective
    model_config: dict[str, Any]
    """What the model is built from, in plain values, for the checkpoint."""
    recipe: dict[str, Any]
    """The resolved recipe, for the checkpoint."""
    clip_grad: float | None
    """Largest norm of the gradient, or None."""
    loader: Callable[[int], Iterable[Batch]]
    """This rank's endless micro-batches from a position (clips consumed by all ranks before). With w ranks and b clips
    in a micro-batch, micro-batch m of rank r has the clips from position + (m w + r) b on."""
    clips_per_epoch: int
    data: dict[str, Any]
    """What the order of the clips follows from, in plain values; it must be the same when a run goes on."""
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What its weights began from, in plain values, for the checkpoint; empty where they began fresh."""
    draw: Callable[[int, Batch, Predictions, Any], NDArray[np.uint8] | None] | None = None
    """Draws a picture of a step's first micro-batch, on rank 0; one that it returns, RGB, goes to TensorBoard too."""
    validate: Callable[[], dict[str, Any]] | None = None
    """What validation finds of the model as it is, for a line of validation.jsonl; every rank calls it, and the model
    is in evaluation mode."""


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
    validate_every: int = 0
    """Steps from one validation to the next; 0 for none."""
