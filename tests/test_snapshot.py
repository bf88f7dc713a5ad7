"""The picture of a model's predictions: a perfect model's columns agree, in the units of the view."""

import numpy as np
import pytest
import torch
from test_targets import make_batch, recipe

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


def test_histograms_alone_have_no_picture(tmp_path):
    batch = batch_of()
    targets = compute_targets(batch, recipe("hof"))
    assert draw_predictions(tmp_path / "a.png", batch, recipe("hof"), {"hof": targets["hof"].values}, targets) is None
    assert not list(tmp_path.iterdir())
