"""Fine-tuning's objective: the cross-entropy of soft labels."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from training.finetuning.erasing import ClipErasing
from training.finetuning.mixing import ClipMixing
from training.frames import normalise_frames
from training.step_batches import Batch
from training.task import Call, Predictions

CROSS_ENTROPY = "cross_entropy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """A `training.task.Objective`. The model is called with video float32 (B, 3, T, H, W) and gives scores (B, C). The
    loss is the mean over the step's clips; the targets are labels (B, C) before they are mixed, which has no part in
    the best constant: a batch is mixed with itself."""

    erasing: ClipErasing
    mixing: ClipMixing
    classes: int
    """C."""
    clip_size: tuple[int, int, int]
    """(T, H, W) of a clip's frames."""

    @property
    def weights(self) -> Mapping[str, float]:
        """See `Objective`."""
        return {CROSS_ENTROPY: 1.0}

    def targets(self, batch: Batch) -> Tensor:
        """See `Objective`."""
        return self.mixing.labels(batch["label"])

    def moments(self, targets: Sequence[Tensor], device: torch.device) -> Tensor:
        """See `Objective`: the number of clips, then the sum of their labels, class by class."""
        own = torch.zeros(1 + self.classes, dtype=torch.float64, device=device)
        for labels in targets:
            own[0] += len(labels)
            own[1:] += labels.sum(dim=0, dtype=torch.float64)
        return own

    def judge(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`. The best constant is the mean label, whose cross-entropy is its own entropy."""
        count, labels = moments[:1], moments[1:]
        entropy = torch.special.entr(labels / count.clamp(min=1)).sum()
        return count, count * entropy

    def errors(self, call: Call, batch: Batch, targets: Tensor) -> tuple[Tensor, Predictions]:
        """See `Objective`."""
        video, labels = self.mixing(self.erasing(normalise_frames(batch["frames"])), batch["label"])
        scores = call(video).float()
        return functional.cross_entropy(scores, labels, reduction="sum")[None], {"scores": scores}

    def idle(self, call: Call, device: torch.device) -> Tensor:
        """See `Objective`."""
        frames = torch.zeros((1, *self.clip_size, 3), dtype=torch.uint8, device=device)
        scores: Tensor = call(normalise_frames(frames))
        return scores.float().sum() * 0
