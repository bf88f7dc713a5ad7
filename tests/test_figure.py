"""The figure: exact pixels, and lines that lie where the motion says, to a fraction of a pixel."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from training.figure import DROPPED, GAP, MASKED, Motion, draw_figure, grid_points, row_panels, token_states
from training.recipe import HeadOptions, PretrainRecipe

HEIGHT, WIDTH = 48, 128
GRID = (3, 4)  # patches of 16 x 32 px
LENGTH = 3


def picture(seed=0, size=(HEIGHT, WIDTH)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def one_token(row, column):
    states = np.zeros(GRID, np.uint8)
    states[row, column] = 1
    return states


def lines(panel):
    """How strongly a line covers each pixel of a panel with a black ground."""
    return panel.sum(axis=2).astype(float)


def centroid(weights):
    y, x = np.indices(weights.shape)
    return (x * weights).sum() / weights.sum(), (y * weights).sum() / weights.sum()


def drawn(displacement, valid, states, scale=3):
    """The `true` panel over black; displacement (N, K, L, 2)."""
    displacement = np.asarray(displacement, dtype=np.float32)
    motion = Motion(true=displacement, predicted=np.zeros_like(displacement), valid=np.asarray(valid))
    panels = row_panels(np.zeros((HEIGHT, WIDTH, 3), np.uint8), states, motion=motion, scale=scale)
    assert not np.any(panels["predicted"].sum(axis=(0, 1)) > panels["true"].sum(axis=(0, 1)))
    return lines(panels["true"])


def test_token_states():
    states = token_states((2, 2, 3), np.array([0, 5, 8]), np.array([1, 6, 11]))
    assert states.tolist() == [[[0, 1, 2], [2, 2, 0]], [[1, 2, 0], [2, 2, 1]]]


def test_patches_are_grey_where_they_are_predicted():
    states = one_token(1, 2)
    states[2, 0] = 2
    frame = picture()
    panels = row_panels(frame, states, scale=2)
    assert list(panels) == ["masked", "original"]
    assert panels["masked"].shape == (2 * HEIGHT, 2 * WIDTH, 3)
    changed = np.zeros((2 * HEIGHT, 2 * WIDTH), bool)
    for (top, left), colour in {(32, 128): MASKED, (64, 0): DROPPED}.items():
        place = slice(top, top + 32), slice(left, left + 64)
        assert (panels["masked"][place] == colour).all()
        changed[place] = True
    np.testing.assert_array_equal(panels["masked"][~changed], panels["original"][~changed])
    # a whole-number enlargement by the half-pixel rule: blocks have about their pixel's colour, nothing is shifted
    means = panels["original"].astype(float).reshape(HEIGHT, 2, WIDTH, 2, 3).mean(axis=(1, 3))
    assert np.corrcoef(means.ravel(), frame.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("points", [1, 4, 16])
def test_grid_points_are_the_centres_of_the_views_cells(points):
    """All tokens' points together are the track store's grid, g * j + (g - 1) / 2, on a grid of cells g."""
    side = int(points**0.5)
    ours = grid_points(np.ones(GRID, np.uint8), (16, 16), points)
    g = 16 // side
    assert ours.shape == (12, points, 2)
    expected = {(g * j + (g - 1) / 2, g * i + (g - 1) / 2) for i in range(3 * side) for j in range(4 * side)}
    assert {tuple(p) for p in ours.reshape(-1, 2)} == expected
    token = ours[1 * 4 + 2]  # in row 1, column 2
    assert (token // 16 == [2, 1]).all()
    assert token.tolist() == sorted(token.tolist(), key=lambda p: (p[1], p[0]))  # row-major


def test_points_of_a_patch_that_is_not_square():
    assert grid_points(one_token(1, 2), (16, 32), 4)[0].tolist() == [
        [64 + 7.5, 16 + 3.5],
        [64 + 23.5, 16 + 3.5],
        [64 + 7.5, 16 + 11.5],
        [64 + 23.5, 16 + 11.5],
    ]


@pytest.mark.parametrize("step", [(4.0, 0.0), (-3.0, 0.0), (0.0, 2.0), (0.0, -1.5), (1.0, 0.75)])
def test_a_line_ends_where_its_displacements_add_up_to(step):
    """A token of 16 x 32 px at (1, 2): its centre is x = 64 + 15.5, y = 16 + 7.5."""
    weights = drawn([[[step] * LENGTH]], [[[True] * LENGTH]], one_token(1, 2))
    start = (np.array([79.5, 23.5]) + 0.5) * 3 - 0.5
    end = start + 3 * LENGTH * np.array(step)
    y, x = np.nonzero(weights)
    for places, axis in ((x, 0), (y, 1)):  # a line is about 3 px broad, 1 px of the view
        assert places.min() == pytest.approx(min(start[axis], end[axis]), abs=2)
        assert places.max() == pytest.approx(max(start[axis], end[axis]), abs=2)


@pytest.mark.parametrize("lift", [-0.4, -0.25, 0.0, 0.125, 0.3, 1.6])
def test_lines_lie_at_fractions_of_a_pixel(lift):
    """The first step lifts the point and is not valid, so not drawn; the second, a level one, is."""
    weights = drawn([[[(2.0, lift), (8.0, 0.0), (5.0, 5.0)]]], [[[False, True, False]]], one_token(1, 1))
    x, y = centroid(weights)
    assert y == pytest.approx((16 + 7.5 + lift + 0.5) * 3 - 0.5, abs=0.12)
    assert x == pytest.approx((32 + 15.5 + 2 + 4 + 0.5) * 3 - 0.5, abs=0.5)


def test_steps_that_are_not_valid_are_not_drawn():
    states = np.ones(GRID, np.uint8)
    displacement = np.random.default_rng(0).normal(size=(12, 4, LENGTH, 2)) * 3
    motion = Motion(true=displacement, predicted=-displacement, valid=np.zeros((12, 4, LENGTH), bool))
    frame = picture()
    panels = row_panels(frame, states, motion=motion)
    for title in ("true", "predicted"):
        assert (np.ptp(panels[title], axis=2) == 0).all()  # the grey ground and no coloured line


def test_each_token_and_point_has_its_own_line():
    states = np.zeros(GRID, np.uint8)
    states[0, 1] = states[1, 3] = states[2, 0] = 1  # tokens 0, 1, 2 of the motion
    valid = np.zeros((3, 4, LENGTH), bool)
    valid[1, 2] = True  # the lower left point of the token at (1, 3)
    weights = drawn(np.full((3, 4, LENGTH, 2), 0.5), valid, states)
    x, y = centroid(weights)
    assert x == pytest.approx((96 + 7.5 + 0.75 + 0.5) * 3 - 0.5, abs=0.5)
    assert y == pytest.approx((16 + 11.5 + 0.75 + 0.5) * 3 - 0.5, abs=0.5)


def test_time_runs_from_dark_to_light():
    weights = drawn([[[(6.0, 0.0)] * LENGTH]], [[[True] * LENGTH]], one_token(1, 2))
    start = (79.5 + 0.5) * 3 - 0.5
    brightness = [weights[:, int(start + 18 * k + 5) : int(start + 18 * k + 13)].max(axis=0).mean() for k in range(3)]
    assert brightness[0] < brightness[1] < brightness[2]


def test_predictions_gone_wild_are_drawn_as_far_as_they_can_be():
    states = one_token(1, 1)
    true = np.ones((1, 4, LENGTH, 2))
    valid = np.ones((1, 4, LENGTH), bool)
    predicted = true.copy()
    predicted[0, 0, 1] = np.nan
    predicted[0, 1] = 1e30
    predicted[0, 2, 0] = -np.inf
    panels = row_panels(picture(), states, motion=Motion(true=true, predicted=predicted, valid=valid))
    assert np.ptp(panels["predicted"], axis=2).any()


@pytest.mark.parametrize("shape", [(2, 4, LENGTH, 2), (1, 4, LENGTH + 1, 2), (1, 1, LENGTH, 2)])
def test_shapes_that_do_not_fit_are_refused(shape):
    motion = Motion(true=np.zeros(shape), predicted=np.zeros(shape), valid=np.ones((1, 4, LENGTH), bool))
    with pytest.raises(ValueError, match="the tubelet has 1 predicted tokens"):
        row_panels(picture(), one_token(1, 1), motion=motion)
    with pytest.raises(ValueError, match="3 points in a patch are not a grid"):
        grid_points(one_token(1, 1), (16, 32), 3)


RECIPE = PretrainRecipe(name="test", heads={"displacement": HeadOptions()}, frames=6, tubelet=2, input_size=64)


def batch():
    """Two clips of 3 x 4 x 4 tokens; in each tubelet tokens 3 and 9 are predicted, and 4 is dropped."""
    frames = np.stack([np.stack([picture(10 * b + t, (64, 64)) for t in range(6)]) for b in range(2)])
    predict = np.array([16 * t + n for t in range(3) for n in (3, 9)])
    visible = np.array([n for n in range(48) if n not in predict and n % 16 != 4])
    tokens = {"visible": visible, "predict": predict}
    return {"frames": torch.from_numpy(frames)} | {k: torch.from_numpy(np.stack([v] * 2)) for k, v in tokens.items()}


def motion(shown):
    """Motion (2, 6, 4, 3, 2) that is valid in the tokens `shown` of clip 1 alone."""
    displacement = torch.full((2, 6, 4, LENGTH, 2), 1.0)
    valid = torch.zeros(2, 6, 4, LENGTH, dtype=torch.bool)
    valid[1, shown] = True
    return Motion(true=displacement, predicted=displacement.clone().requires_grad_(), valid=valid)


def panels_of(path, columns, rows, scale):
    image = cv2.imread(str(path))[..., ::-1]
    side = 64 * scale
    assert image.shape == (rows * (side + GAP) - GAP, columns * (side + GAP) - GAP, 3)
    step = side + GAP
    return [
        [image[r * step : r * step + side, c * step : c * step + side] for c in range(columns)] for r in range(rows)
    ]


def test_a_row_for_each_clip_and_tubelet(tmp_path):
    """Tokens 2 and 3 of the predicted are those of the second tubelet: the fifth row of two clips with three each."""
    path = tmp_path / "new folder" / "figure.png"
    draw_figure(path, batch(), RECIPE, motion=motion([2, 3]), tubelets=9, scale=3, labels=["first", "second"])
    rows = panels_of(path, 4, 6, 3)
    coloured = [[bool(np.ptp(panel.astype(int), axis=2).any()) for panel in row[1:3]] for row in rows]
    assert coloured == [[False, False]] * 4 + [[True, True]] + [[False, False]]
    assert (rows[4][0][0:48, 3 * 48 :] == MASKED).all()
    assert (rows[4][0][48:96, 0:48] == DROPPED).all()
    shown = cv2.resize(batch()["frames"][1, 2].numpy(), None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(rows[4][3], shown)  # the tubelet's first frame
    assert [f.name for f in path.parent.iterdir()] == ["figure.png"]


def test_pixel_predictions_stand_in_the_predicted_patches(tmp_path):
    pasted = batch()["frames"].clone()
    pasted[1, 4, 0:16, 48:64] = torch.tensor([10, 200, 90], dtype=torch.uint8)  # token 3 of the last tubelet
    for with_motion, columns in ((None, 3), (motion([4]), 5)):
        path = tmp_path / f"{columns}.png"
        draw_figure(path, batch(), RECIPE, motion=with_motion, pasted_pixels=pasted, clips=5, tubelets=3, scale=2)
        panel = panels_of(path, columns, 6, 2)[5][columns - 2]
        assert (panel[4:28, 100:124] == [10, 200, 90]).all()
        assert (panel[32:64, 0:32] == DROPPED).all()


@pytest.mark.parametrize("anchoring", ["tubelet", "clip"])
def test_motion_is_drawn_over_the_frame_in_which_it_begins(tmp_path, anchoring):
    """Anchored at the clip, a later tubelet's steps are those of points of the clip's first frame."""
    path, whole = tmp_path / "a.png", motion([2])
    one_step = Motion(true=whole.true[..., :1, :], predicted=whole.predicted[..., :1, :], valid=whole.valid[..., :1])
    draw_figure(path, batch(), dataclasses.replace(RECIPE, anchoring=anchoring), motion=one_step, tubelets=3, scale=3)
    rows = panels_of(path, 4, 6, 3)
    frames = batch()["frames"].numpy()
    for row, (b, t) in zip(rows, np.ndindex(2, 3), strict=True):
        begin = frames[b, 0 if anchoring == "clip" else 2 * t]
        for panel in row[1:3]:
            found, grey = panel[24:160].mean(2), cv2.resize(begin, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
            assert np.corrcoef(found.ravel(), cv2.cvtColor(grey, cv2.COLOR_RGB2GRAY)[24:160].ravel())[0, 1] > 0.95
            labelled = (panel[172:, :150].max(1) == 255).any() and (panel[172:, :4] == 0).all()
            assert labelled == (anchoring == "clip")
        shown = cv2.resize(frames[b, 2 * t], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
        np.testing.assert_array_equal(row[3][24:], shown[24:])


def test_one_batch_one_file(tmp_path):
    for name in ("a.png", "b.png"):
        draw_figure(tmp_path / name, batch(), RECIPE, motion=motion([0, 5]))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    panels_of(tmp_path / "a.png", 4, 4, 2)


def test_motion_of_other_tokens_is_refused(tmp_path):
    whole = motion([0])
    short = Motion(true=whole.true[:, :5], predicted=whole.predicted[:, :5], valid=whole.valid[:, :5])
    with pytest.raises(ValueError, match="motion of 5 tokens, 6 are predicted"):
        draw_figure(tmp_path / "a.png", batch(), RECIPE, motion=short)
    assert not list(tmp_path.iterdir())
