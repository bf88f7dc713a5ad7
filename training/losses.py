"""Mean squared errors over what was measured (MME eq. 7), exact over any number of ranks and micro-batches.

What is summed here is divided only when everything that makes up one optimisation step has been summed.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class WeightedValues(Protocol):
    """What a head should predict."""

    @property
    def values(self) -> Tensor:
        """float32 (B, Np, ...)."""

    @property
    def weights(self) -> Tensor:
        """0 where a value leaves the loss, else 1; broadcasts to the values."""


def squared_errors(predictions: Mapping[str, Tensor], targets: Mapping[str, WeightedValues]) -> dict[str, Tensor]:
    """For each head the sum of its squared errors over the values that count, a scalar.

    predictions: (B, Np, D) for each head.
    """
    found = {}
    for name, target in targets.items():
        errors = predictions[name].float().reshape(target.values.shape) - target.values
        found[name] = (target.weights * errors.square()).sum()
    return found


@torch.no_grad()
def moments(target: WeightedValues) -> Tensor:
    """float64 (3, D): of each of a token's D values the sums of weights, of weight * value and of weight * value²."""
    weighted = target.weights * target.values
    sums = target.weights.expand(target.values.shape), weighted, weighted * target.values
    return torch.stack([each.flatten(2).sum((0, 1), dtype=torch.float64) for each in sums])


def constant_error(summed: Tensor) -> Tensor:
    """The squared error of the best constant, a scalar, from the `moments` (3, D) of all targets together.

    That is a predictor which has learnt nothing but the mean of each value: what a loss is to be held against.
    """
    counts, first, second = summed
    errors: Tensor = second - first.square() / counts.clamp(min=1)
    return errors.clamp(min=0).sum()
