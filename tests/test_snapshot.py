"""The picture of a model's predictions: a perfect model's columns agree, in the units of the view."""

import dataclasses

import numpy as np
import pytest
import torch
from test_targets import Colours, make_batch, recipe

from training.recipe import HeadOptions
from training.snapshot import draw_predictions, pasted_pixels
from training.targets import compute_targets


class Named:
    id = "a.mp4"


def batch_of(**fields):
    return make_batch(**fields) | {"clip": [Named(), Named()], "visible": torch.arange(3).repeat(2, 1)}


def test_perfect_pixels_give_the_frames_back():
    batch = batch_of()
    target = compute_targets(batch, recipe("pixels"))["pixels"]
    pasted = pasted_pixels(batch, recipe("pixels"), target.denormalised(target.values.flatten(2)))
    np.testing.assert_array_equal(pasted, batch["frames"])


def test_pixels_are_pasted_into_the_predicted_patches_only():
    batch = batch_of()
    pasted = pasted_pixels(batch, recipe("pixels"), torch.full((2, 17, 512, 3), 2.0))
    for b in range(2):
        for token in range(27):
            t, h, w = np.unravel_index(token, (3, 3, 3))
            place = (b, slice(2 * t, 2 * t + 2), slice(16 * h, 16 * h + 16), slice(16 * w, 16 * w + 16))
            if token in batch["predict"][b]:
                assert (pasted[place] == 255).all()
            else:
                np.testing.assert_array_equal(pasted[place], batch["frames"][place])


@pytest.mark.parametrize("normalise", ["patch", "none"])
def test_a_perfect_models_trajectories_are_the_true_ones(tmp_path, normalise):
    batch = batch_of()
    options = recipe(normalise=normalise)
    targets = compute_targets(batch, options)
    perfect = {"displacement": targets["displacement"].values.flatten(2)}
    picture = draw_predictions(tmp_path / "a.png", batch, options, perfect, targets)
    assert picture is not None
    width = (picture.shape[1] - 3 * 4) // 4
    _, true, predicted, _ = (
        picture[24:, i * (width + 4) : i * (width + 4) + width] for i in range(4)
    )  # below the titles
    np.testing.assert_array_equal(true, predicted)
    wrong = {"displacement": perfect["displacement"] + 3}
    picture = draw_predictions(tmp_path / "b.png", batch, options, wrong, targets)
    assert not np.array_equal(picture[24:, width + 4 : 2 * width + 4], picture[24:, 2 * width + 8 : 3 * width + 8])


@pytest.mark.parametrize(("name", "normalise"), [("hof", "patch"), ("clip", "clip")])
def test_histograms_and_features_alone_have_no_picture(tmp_path, name, normalise):
    batch, options = batch_of(), recipe(name, normalise)
    targets = compute_targets(batch, options, Colours())
    perfect = {name: targets[name].values.flatten(2)}
    assert draw_predictions(tmp_path / "a.png", batch, options, perfect, targets) is None
    assert not list(tmp_path.iterdir())


def test_trackmae_s_picture_is_of_one_step_with_pixels_or_without(tmp_path):
    """Anchored at the clip, a token has one step; features have nothing to be pasted."""
    batch = batch_of()
    batch["displacement"] = batch["displacement"][..., :1, :]
    batch["displacement_valid"] = batch["displacement_valid"][..., :1].clone()
    batch["displacement_valid"][:, 2] = False  # past the last step nothing was measured
    for spatial, columns in ("pixels", 5), ("clip", 4):
        heads = {spatial: HeadOptions(normalise="none"), "displacement": HeadOptions()}
        options = dataclasses.replace(recipe(), heads=heads, anchoring="clip", remove_camera=False)
        targets = compute_targets(batch, options, Colours())
        perfect = {name: target.values.flatten(2) for name, target in targets.items()}
        picture = draw_predictions(tmp_path / "a.png", batch, options, perfect, targets)
        assert picture is not None
        width = (picture.shape[1] - (columns - 1) * 4) // columns
        assert picture.shape[1] == columns * width + (columns - 1) * 4 and width == 96
        true, predicted = (picture[24:, i * (width + 4) : i * (width + 4) + width] for i in (1, 2))
        np.testing.assert_array_equal(true, predicted)
        coloured = np.ptp(true.astype(int), axis=2).max(1)
        assert coloured[:72].any() and not coloured[76:172].any()  # tubelet 0, and tubelet 2 without a valid step
