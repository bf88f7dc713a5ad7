"""Features of whole videos by a frozen encoder, and linear classifiers fitted to them once they are all there.

A linear probe that reads every video once: deterministic, and done in seconds where SVT's protocol takes epochs. It has
no augmentation, so its accuracies are not those of that protocol.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from data_specs.durable import replacing
from training.distributed import Group
from training.finetuning.testing import TestResult
from training.finetuning.video_outputs import MOST_VIEWS, video_outputs
from training.task import Precision

logger = logging.getLogger(__name__)

L2_GRID = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Strengths that are tried where no others are given, strongest first."""
_MOST_STEPS = 1000
_TOLERANCE = 1e-7
"""Largest value of the gradient, per example and standardised feature, at which a fit is done."""
_CONSTANT = 1e-6
"""A feature whose spread is less than this part of its mean is constant: float32 resolves no more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Features of V videos, in the order of their list."""

    features: NDArray[np.float32]
    """(V, D)"""
    labels: NDArray[np.int64]
    """(V,)"""
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    """Id and reason of each video that could not be read; they are in none of the above."""
    views: int = 1
    """Views of each video: clips times crops."""


def encode(
    encoder: nn.Module,
    views: Iterable[Mapping[str, Any]],
    group: Group,
    precision: Precision = "fp32",
    *,
    most_views: int = MOST_VIEWS,
) -> Features:
    """The features of whole videos: the mean over a video's views of the mean over the encoder's (normed) tokens.

    Every rank must call it, and gets all of them. encoder: from frames as `normalise_frames` gives them, float32
    (N, 3, T, H, W), to tokens (N, tokens, D), as `VideoEncoder` does. views: as for `video_outputs`.
    most_views: of one forward pass. Raises TestingError as `video_outputs` does.
    """
    found = video_outputs(encoder, _mean_token, views, group, precision, most_views)
    return Features(features=found.values, labels=found.labels, ids=found.ids, skipped=found.skipped, views=found.views)


def _mean_token(tokens: Tensor) -> Tensor:
    return tokens.float().mean(dim=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """Multinomial logistic regression on standardised features: logits = ((x - mean) / std) · weightᵀ + bias."""

    weight: NDArray[np.float64]
    """(C, D)"""
    bias: NDArray[np.float64]
    """(C,)"""
    mean: NDArray[np.float64]
    """(D,), of the training features."""
    std: NDArray[np.float64]
    """(D,), of the training features; 1 where they are constant."""
    l2: float
    """Strength that was chosen on the validation videos."""
    validation_top1: dict[float, float]
    """Share of the validation videos that is right, 0…1, by strength."""

    def logits(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """(V, C), of features (V, D)."""
        return ((features - self.mean) / self.std) @ self.weight.T + self.bias

    def save(self, file: Path) -> None:
        """Write `weight`, `bias`, `mean` and `std` to an .npz file, which `numpy.load` reads."""
        with replacing(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, weight=self.weight, bias=self.bias, mean=self.mean, std=self.std)

    def test(self, features: Features) -> TestResult:
        """What a test of it finds; `write_test` writes it."""
        probabilities = torch.from_numpy(self.logits(features.features)).softmax(dim=1).numpy()
        return TestResult(
            ids=features.ids,
            labels=features.labels,
            probabilities=probabilities.astype(np.float32),
            skipped=features.skipped,
            views=features.views,
        )


def fit_linear(
    train: Features, validation: Features, classes: int, l2_grid: Sequence[float] = L2_GRID
) -> LinearClassifier:
    """Fit multinomial logistic regression to `train`, with the strength of L2 of which `validation` gets most right.

    Minimises mean cross-entropy + l2/2 · Σ weight², the bias not counted, over features that are standardised by the
    mean and (biased) standard deviation of the training features, by L-BFGS in float64 on the CPU: from zeros at the
    strongest of the grid, then from each solution to the next weaker. Of strengths with as many right, the one with the
    least validation cross-entropy is taken. `train` alone gives the weights; the videos that an accuracy is reported of
    must be in neither.

    Raises ValueError for features that do not belong together, labels that are no class, or a grid that has a strength
    that is not above 0 (separable features have no solution without).
    """
    _check(train, validation, classes, l2_grid)
    x = torch.from_numpy(train.features).double()
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    std = torch.where(std > _CONSTANT * mean.abs(), std, torch.ones_like(std))
    x, y = (x - mean) / std, torch.from_numpy(train.labels)
    held_x, held_y = (torch.from_numpy(validation.features).double() - mean) / std, torch.from_numpy(validation.labels)
    weights = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64)
    top1: dict[float, float] = {}
    best: tuple[tuple[float, float], float, Tensor] | None = None
    for l2 in sorted(set(l2_grid), reverse=True):
        weights = _minimise(x, y, weights, l2)
        logits = functional.linear(held_x, weights[:, :-1], weights[:, -1])
        top1[l2] = float((logits.argmax(dim=1) == held_y).double().mean())
        score = top1[l2], -float(functional.cross_entropy(logits, held_y))
        if best is None or score > best[0]:
            best = score, l2, weights
    assert best is not None
    _, l2, weights = best
    return LinearClassifier(
        weight=weights[:, :-1].numpy(),
        bias=weights[:, -1].numpy(),
        mean=mean.numpy(),
        std=std.numpy(),
        l2=l2,
        validation_top1=top1,
    )


def _minimise(x: Tensor, y: Tensor, start: Tensor, l2: float) -> Tensor:
    """Weights and bias (C, D + 1) at the minimum, from `start`."""
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=_MOST_STEPS, max_eval=2 * _MOST_STEPS, tolerance_grad=_TOLERANCE, tolerance_change=0.0,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        value = functional.cross_entropy(functional.linear(x, weight, bias), y) + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    loss()
    assert parameters.grad is not None
    left = float(parameters.grad.abs().max())
    if not left <= 100 * _TOLERANCE:
        logger.warning("logistic regression with L2 %g is not at its minimum: a gradient of %.1e is left", l2, left)
    return parameters.detach()


def _check(train: Features, validation: Features, classes: int, l2_grid: Sequence[float]) -> None:
    if not l2_grid or not all(0 < l2 < float("inf") for l2 in l2_grid):
        raise ValueError(f"the strengths of L2 are {', '.join(map(str, l2_grid)) or 'none'}; all must be above 0")
    for name, part in (("training", train), ("validation", validation)):
        if part.features.ndim != 2 or len(part.features) != len(part.labels) or not len(part.labels):
            raise ValueError(f"{name} features {part.features.shape} with {len(part.labels)} labels")
        if part.features.shape[1] != train.features.shape[1]:
            raise ValueError(
                f"{name} features have {part.features.shape[1]} values, training features {train.features.shape[1]}"
            )
        if part.labels.min() < 0 or part.labels.max() >= classes:
            raise ValueError(
                f"{name} labels run from {part.labels.min()} to {part.labels.max()}, there are {classes} classes"
            )
        if not np.isfinite(part.features).all():
            raise ValueError(f"{name} features are not all finite")
