"""Pretraining's objective: each head's mean squared error over the masked tokens' valid targets."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from training.frames import normalise_frames
from training.losses import WeightedValues, constant_error, moments, squared_errors
from training.step_batches import Batch
from training.task import Call, Predictions

Targets = Mapping[str, WeightedValues]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedPrediction:
    """An `Objective`. The model is called with video float32 (B, 3, T, H, W), visible (B, Nv), predict (B, Np), and
    gives each head's (B, Np, D). A loss is a head's, its count the sum of its targets' weights."""

    weights: Mapping[str, float]
    """The heads, and their factors in the loss."""
    head_sizes: Mapping[str, int]
    """D, values that a head predicts for each token."""
    compute_targets: Callable[[Batch], Any]
    """Targets by head, of a batch on the device."""
    clip_size: tuple[int, int, int]
    """(T, H, W) of a clip's frames."""

    def targets(self, batch: Batch) -> Any:
        """See `Objective`."""
        return self.compute_targets(batch)

    def moments(self, targets: Sequence[Targets], device: torch.device) -> Tensor:
        """See `Objective`: of each head in turn the three rows of `losses.moments`."""
        own = {h: torch.zeros(3, self.head_sizes[h], dtype=torch.float64, device=device) for h in self.weights}
        for target in targets:
            for head in own:
                own[head] += moments(target[head])
        return torch.cat([summed.flatten() for summed in own.values()])

    def judge(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`. The best constant is the mean of the step's targets, value by value."""
        parts = torch.split(moments, [3 * self.head_sizes[head] for head in self.weights])
        counts = torch.stack([of_head.view(3, -1)[0].sum() for of_head in parts])
        return counts, torch.stack([constant_error(of_head.view(3, -1)) for of_head in parts])

    def errors(self, call: Call, batch: Batch, targets: Targets) -> tuple[Tensor, Predictions]:
        """See `Objective`."""
        predictions = call(normalise_frames(batch["frames"]), batch["visible"], batch["predict"])
        predictions = {head: value.float() for head, value in predictions.items()}
        found = squared_errors(predictions, targets)
        return torch.stack([found[head] for head in self.weights]), predictions

    def idle(self, call: Call, device: torch.device) -> Tensor:
        """See `Objective`."""
        frames = torch.zeros((1, *self.clip_size, 3), dtype=torch.uint8, device=device)
        first, second = (torch.tensor([[token]], device=device) for token in (0, 1))
        predictions = call(normalise_frames(frames), first, second)
        return torch.stack([prediction.float().sum() for prediction in predictions.values()]).sum() * 0
