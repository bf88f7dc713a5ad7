"""Mixup and cutmix of the clips of a batch, by timm, with labels that say so.

Mixup (Zhang et al. 2018) averages a clip with another, cutmix (Yun et al. 2019) puts a box of the other in its place:
the same factor, or the same box, for every frame. timm draws from NumPy's global generator, whose state checkpoints
keep.
"""

from timm.data.mixup import Mixup, mixup_target
from torch import Tensor


class ClipMixing:
    """timm's Mixup, by batch: clip i with clip B - 1 - i, one factor for the whole batch.

    Unlike timm's it takes batches of any size, for clips that cannot be read are left out of theirs; where the number
    is odd, the clip in the middle stays as it is.
    """

    def __init__(
        self, *, classes: int, mixup: float, cutmix: float, prob: float, switch_prob: float, label_smoothing: float
    ) -> None:
        """mixup, cutmix: alphas of the Beta distributions, 0 for none. prob: chance that a batch is mixed; switch_prob:
        that it is by cutmix, where both are on. label_smoothing: share of a label that goes evenly to all classes."""
        self._mixup = (
            _AnyMixup(  # type: ignore[no-untyped-call]
                mixup_alpha=mixup,
                cutmix_alpha=cutmix,
                prob=prob,
                switch_prob=switch_prob,
                label_smoothing=label_smoothing,
                num_classes=classes,
            )
            if mixup or cutmix
            else None
        )
        self._classes, self._smoothing = classes, label_smoothing

    def labels(self, labels: Tensor) -> Tensor:
        """Labels int64 (B,) as shares of the classes, float32 (B, C), smoothed: 1 - s + s / C, and s / C elsewhere.

        Mixing a batch with itself in reverse order leaves their sum over the batch as it is.
        """
        soft: Tensor = mixup_target(labels, self._classes, smoothing=self._smoothing)  # type: ignore[no-untyped-call]
        return soft

    def __call__(self, video: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A video float (B, 3, T, H, W), which is mixed in place, and its labels (B, C), lam * y + (1 - lam) * y'."""
        if self._mixup is None:
            return video, self.labels(labels)
        _, soft = self._mixup(video.flatten(1, 2), labels)  # a view: frames are channels
        return video, soft


class _AnyMixup(Mixup):
    """Mixup of batches of odd sizes too."""

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        lam = self._mix_batch(x)  # type: ignore[no-untyped-call]
        soft = mixup_target(target, self.num_classes, lam, self.label_smoothing)  # type: ignore[no-untyped-call]
        return x, soft
