"""From a batch to what the heads of a model must predict for each masked token, and which values count.

Axis legend: B clips, T frames, t tubelets, (h, w) tokens of a tubelet, N = t * h * w tokens in row-major order,
Np tokens to predict, (Gh, Gw) points of the view's grid, K points of a patch in row-major order, L steps,
C colour channels, D values of a token.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from data_specs.schema import FLOW_BINS, HOG_BINS
from training.image_hog import image_hog, middle_frames
from training.recipe import (
    CLIP_TOWERS,
    IMAGE_HOG_CELL,
    TRAJECTORY_HEADS,
    Normalisation,
    PretrainRecipe,
    RecipeError,
)

FrameFeatures = Callable[[Tensor], Tensor]
"""From frames, uint8 (N, H, W, 3), to features of each one's tokens, float32 (N, h * w, D): `clip_tower.ClipTower`."""

_EPSILON = 1e-6  # beside a standard deviation, as in VideoMAE's and MME's released codes


@dataclasses.dataclass(frozen=True)
class Target:
    """What one head must predict, with the axes that the values of a token have: see `compute_targets`.

    `values`: float32 (B, Np, *axes), normalised as the recipe says; a prediction (B, Np, D) has them flattened.
    `weights`: 1 where a value counts in the loss, 0 where nothing was measured; broadcasts to `values`, as do `mean`
    and `scale`, what the normalisation took out.
    """

    values: Tensor
    weights: Tensor
    mean: Tensor
    scale: Tensor

    def denormalised(self, values: Tensor) -> Tensor:
        """The target's values or a prediction, in the unit that the normalisation `none` leaves them in."""
        return values.reshape(self.values.shape) * self.scale + self.mean


def head_sizes(recipe: PretrainRecipe, length: int, hog_channels: int) -> dict[str, int]:
    """D of each of the recipe's heads.

    length: steps that a token predicts; hog_channels: colour channels of the store's HOG.
    """
    points = recipe.points_per_side**2
    sizes = {
        "displacement": recipe.trajectories * length * 2,
        "trajectory_hog": recipe.trajectories * length * HOG_BINS * hog_channels,
        "pixels": recipe.tubelet * recipe.patch**2 * 3,
        "hog": (recipe.patch // IMAGE_HOG_CELL) ** 2 * 3 * HOG_BINS,
        "clip": CLIP_TOWERS[recipe.clip_model][1],
        "flow": points * 2,
        "hof": points * (FLOW_BINS + 1),
        "mbh": points * 2 * FLOW_BINS,
    }
    return {name: sizes[name] for name in recipe.heads}


@torch.no_grad()
def compute_targets(
    batch: dict[str, Any], recipe: PretrainRecipe, frame_features: FrameFeatures | None = None
) -> dict[str, Target]:
    """The target of each of the recipe's heads, on the device that the batch is on.

    batch: as `clips.ClipDataset` makes it: `frames` uint8 (B, T, H, W, 3), `predict` int64 (B, Np), and what the stored
    heads need. frame_features: of the head clip, which needs it. Axes of a token's values: (K, L, 2) for displacement,
    in pixels of the view; (K, L, 9 C) for trajectory_hog, per pixel of its window; (tubelet * row * column, colour) for
    pixels, of 0 to 1; (cell, colour, 9) for hog, per pixel; (channel,) for clip; (K, 2), (K, 9), (K, 2, 8) for flow,
    hof and mbh.
    """
    return {name: _target(name, batch, recipe, frame_features) for name in recipe.heads}


def _target(name: str, batch: dict[str, Any], recipe: PretrainRecipe, features: FrameFeatures | None) -> Target:
    options = recipe.heads[name]  # type: ignore[index]  # a dict of literals
    if name == "clip":
        values = _clip_features(batch, recipe, features)
        weights = values.new_ones((*values.shape[:2], 1))
    else:
        values, weights = _whole_clip(name, batch, recipe)
    if name in ("displacement", "trajectory_hog") and recipe.merge != "none":
        values, weights = _merged(values, weights, batch, recipe)
    over = _statistics_axes(name, values.shape[2:], options.normalise)
    if options.normalise == "clip":  # over all of the clip's tokens, the visible ones too
        mean, scale, weights = _moments(values, weights, over=(1, *over), floor=options.floor)
    values, weights = (_of_tokens(x, batch["predict"]) for x in (values, weights))
    if options.normalise == "none":
        mean, scale = values.new_zeros(()), values.new_ones(())
    elif options.normalise != "clip":
        mean, scale, weights = _moments(values, weights, over=over, floor=options.floor)
    return Target(torch.where(weights > 0, (values - mean) / scale, values.new_zeros(())), weights, mean, scale)


def _whole_clip(name: str, batch: dict[str, Any], recipe: PretrainRecipe) -> tuple[Tensor, Tensor]:
    """Values (B, N, ...) of all tokens, and weights of as many axes that broadcast to them."""
    if name == "pixels":
        patches = patches_of(batch["frames"].float() / 255, recipe)
        return patches, patches.new_ones((*patches.shape[:2], 1, 1))
    if name == "hog":
        cells = image_hog(
            middle_frames(batch["frames"], recipe.tubelet), cell=IMAGE_HOG_CELL, unit_length=recipe.hog_l2
        )  # (B, t, H / 8, W / 8, 3, 9)
        grouped = _grouped(cells, recipe.patch // IMAGE_HOG_CELL)
        return grouped, grouped.new_ones((*grouped.shape[:2], 1, 1, 1))
    values = _grouped(batch[name], recipe.points_per_side)
    valid = _grouped(batch["cell_valid" if name in ("flow", "hof", "mbh") else f"{name}_valid"], recipe.points_per_side)
    weights = valid.to(values.dtype).reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
    if name in TRAJECTORY_HEADS and not recipe.validity:
        return torch.where(weights > 0, values, values.new_zeros(())), torch.ones_like(weights)
    return values, weights


def _clip_features(batch: dict[str, Any], recipe: PretrainRecipe, features: FrameFeatures | None) -> Tensor:
    """Features (B, N, D) of the first frame of each tubelet (TrackMAE)."""
    assert features is not None, "the head clip without a tower"
    first = batch["frames"][:, :: recipe.tubelet]
    return features(first.flatten(0, 1)).reshape(len(first), math.prod(recipe.token_grid), -1)


def patches_of(frames: Tensor, recipe: PretrainRecipe) -> Tensor:
    """Frames (B, T, H, W, 3) to the pixels of each token, (B, N, tubelet * row * column, 3)."""
    b = frames.shape[0]
    t, h, w = recipe.token_grid
    split = frames.reshape(b, t, recipe.tubelet, h, recipe.patch, w, recipe.patch, 3)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t * h * w, -1, 3)


def _grouped(field: Tensor, per_side: int) -> Tensor:
    """A field (B, t, h * per_side, w * per_side, ...) to (B, N, per_side ** 2, ...)."""
    b, t, rows, columns, *rest = field.shape
    h, w = rows // per_side, columns // per_side
    split = field.reshape(b, t, h, per_side, w, per_side, *rest).transpose(3, 4)
    return split.reshape(b, t * h * w, per_side**2, *rest)


def _of_tokens(values: Tensor, tokens: Tensor) -> Tensor:
    """The tokens (B, Np) of values (B, N, ...)."""
    return values[torch.arange(len(tokens), device=tokens.device)[:, None], tokens]


def _statistics_axes(name: str, shape: torch.Size, normalise: Normalisation) -> tuple[int, ...]:
    """Axes of (B, tokens, *shape) over which a patch's mean and variance are taken.

    displacement and flow: over the patch's points, for each step and component (MME's PatchStd); over the steps where
    there is one trajectory only; `clip`: over points and steps. Histograms: over everything (per bin, the mean
    histogram would be lost). Pixels: over all but the colour (VideoMAE). CLIP's features: over the channels, or, with
    `clip`, over none of a token's axes.
    """
    if name == "clip" and normalise == "clip":
        return ()
    if name in ("trajectory_hog", "hog", "hof", "mbh"):
        return tuple(range(2, 2 + len(shape)))
    if name == "displacement" and (normalise == "clip" or shape[0] == 1):
        return 2, 3
    return (2,)


def _moments(values: Tensor, weights: Tensor, over: tuple[int, ...], floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation (unbiased) of the values that count, and the weights of those that have one.

    Fewer than two values have no deviation: they leave the loss. The weights that are returned are no larger than those
    given but along `over`: where one stands for all of a token's values, it still does.
    """
    of_each = math.prod(values.shape[axis] // weights.shape[axis] for axis in over)
    count = of_each * weights.sum(over, keepdim=True)
    mean = (weights * values).sum(over, keepdim=True) / count.clamp(min=1)
    squares = (weights * (values - mean).square()).sum(over, keepdim=True)
    deviation = (squares / (count - 1).clamp(min=1) + floor**2).sqrt() + _EPSILON
    return mean, deviation, weights * (count >= 2)


def _merged(values: Tensor, weights: Tensor, batch: dict[str, Any], recipe: PretrainRecipe) -> tuple[Tensor, Tensor]:
    """One trajectory for each patch (MME table 9): values and weights (B, N, K, L, D) to (B, N, 1, L, D).

    `mean`: over those of the K that are valid, step by step. `longest`: the one with the most valid steps, of equals
    the one with the longest path.
    """
    if recipe.merge == "mean":
        count = weights.sum(2, keepdim=True)
        return (weights * values).sum(2, keepdim=True) / count.clamp(min=1), (count > 0).to(values.dtype)
    steps = _grouped(batch["displacement"], recipe.points_per_side)
    valid = _grouped(batch["displacement_valid"], recipe.points_per_side).to(steps.dtype)
    path = (steps.norm(dim=-1) * valid).sum(-1)  # (B, N, K)
    whole = valid.sum(-1)
    longest = torch.where(whole == whole.amax(-1, keepdim=True), path, path.new_tensor(-1)).argmax(-1)
    index = longest[:, :, None, None, None].expand(-1, -1, 1, *values.shape[3:])
    return values.gather(2, index), weights.gather(2, index[..., :1])


def check_normalisation(recipe: PretrainRecipe, length: int) -> None:
    """Raise RecipeError where a patch has a single value per component to be standardised over."""
    for name, values in [("displacement", recipe.trajectories * length), ("flow", recipe.points_per_side**2)]:
        options = recipe.heads.get(name)  # type: ignore[call-overload]  # a dict of literals
        if options and options.normalise in ("patch", "patch-floor") and values < 2:
            raise RecipeError(
                f"recipe {recipe.name}: {name} is normalised by {options.normalise}, but a token has a single value of "
                "each component; take more points_per_side, or normalise by clip or none"
            )
