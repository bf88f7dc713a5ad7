"""What a model predicts for a batch, as a picture.

Displacements that are standardised over their patch are drawn as they are, one pixel for each standard deviation: the
patch's mean and deviation are the truth's, a model is not asked for them, and with them put back any prediction would
look right. Other displacements are drawn in pixels of the view.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_specs.video import Frame
from training.figure import Motion, draw_figure
from training.recipe import PretrainRecipe
from training.targets import Target, patches_of


def draw_predictions(
    path: Path,
    batch: Mapping[str, Any],
    recipe: PretrainRecipe,
    predictions: Mapping[str, Tensor],
    targets: Mapping[str, Target],
) -> Frame | None:
    """Draw a batch's first clips to a PNG (see `figure`); returns the picture, RGB.

    predictions: (B, Np, D) for each head. A recipe with neither displacements nor pixels has nothing to show: None.
    """
    motion = pasted = None
    if "displacement" in targets:
        target, predicted = targets["displacement"], predictions["displacement"]
        by_patch = recipe.heads["displacement"].normalise in ("patch", "patch-floor")
        motion = Motion(
            true=target.values if by_patch else target.denormalised(target.values),
            predicted=predicted.reshape(target.values.shape) if by_patch else target.denormalised(predicted),
            valid=target.weights.amax(-1) > 0,
            unit="standardised" if by_patch else "px",
        )
    if "pixels" in targets:
        pasted = pasted_pixels(batch, recipe, targets["pixels"].denormalised(predictions["pixels"]))
    if motion is None and pasted is None:
        return None
    labels = [clip.id for clip in batch["clip"]]
    return draw_figure(path, batch, recipe, motion=motion, pasted_pixels=pasted, labels=labels)


def pasted_pixels(batch: Mapping[str, Any], recipe: PretrainRecipe, pixels: Tensor) -> Tensor:
    """The batch's frames, uint8 (B, T, H, W, 3), with `pixels` (B, Np, ...), of 0 to 1, in the predicted patches."""
    frames, predict = batch["frames"], batch["predict"]
    b = len(frames)
    t, h, w = recipe.token_grid
    patches = patches_of(frames, recipe).flatten(2).clone()
    values = (pixels.flatten(2) * 255).round().clamp(0, 255).to(torch.uint8)
    patches[torch.arange(b, device=predict.device)[:, None], predict] = values
    back = patches.reshape(b, t, h, w, recipe.tubelet, recipe.patch, recipe.patch, 3)
    pasted: Tensor = back.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(frames.shape)
    return pasted
