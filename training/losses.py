"""Mean squared errors over what was measured, exact over any number of ranks and micro-batches."""

from collections.abc import Mapping

import torch
from torch import Tensor

from training.targets import Target


def sums_and_counts(
    predictions: Mapping[str, Tensor], targets: Mapping[str, Target]
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each head the sum of its squared errors over the values that count, and how many count (MME eq. 7).

    predictions: (B, Np, D) for each head. The loss of a head is the first divided by the second, where both have been
    summed over everything that makes up one step.
    """
    found = {}
    for name, target in targets.items():
        errors = predictions[name].float().reshape(target.values.shape) - target.values
        found[name] = (target.weights * errors.square()).sum(), _each(target).sum()
    return found


@torch.no_grad()
def trivial_sums_and_counts(targets: Mapping[str, Target]) -> dict[str, tuple[Tensor, Tensor]]:
    """The same for the best constant: a predictor that gives every token the batch's mean target, value by value.

    The mean is that of what is given, so with a few clips in a batch the constant is a little better than one that
    knows no more than the whole data set's mean.
    """
    found = {}
    for name, target in targets.items():
        count = _each(target).sum((0, 1))
        mean = (target.weights * target.values).sum((0, 1)) / count.clamp(min=1)
        found[name] = (target.weights * (target.values - mean).square()).sum(), count.sum()
    return found


def _each(target: Target) -> Tensor:
    """The weight of each value."""
    return target.weights.expand(target.values.shape)
