"""The forward-backward check: what something covers is not measured, what stays in sight is."""

from dataclasses import replace

import numpy as np
import pytest

from data_specs.geometry import apply_homography, grid_points
from data_specs.recipe import load_recipe
from data_specs.scene import Disc, Scene, Texture, moving
from extraction.motion.flow_tracker import FlowTracker, TrackedFrame
from extraction.motion.occlusion import returns, turned_back
from extraction.motion.rectification import expected_residual
from extraction.stages import untimed


def covering_scene():
    """A disc that covers 6 px of a still, textured plane on its right in every frame, and uncovers it on its left."""
    disc = Disc(texture=Texture(11, shortest=4, longest=25), centre=(50, 60), radius=26, motion=moving((6.0, 1.0)))
    return Scene(size=(120, 160), background=Texture(12), camera=moving((0.8, -0.5)), discs=(disc,), noise=1.5)


def test_a_flow_leads_back_where_the_backward_flow_is_its_opposite():
    flow = np.zeros((30, 44, 2), np.float32)
    flow[..., 0], flow[..., 1] = 3.5, -1.25
    assert returns(flow, -flow).all()
    off = -flow
    off[:, 20:, 0] += 2.0  # |sum|² of 4 against a tolerance of 0.05 (13.8 + 3.8) + 2
    back = returns(flow, off)
    assert back[:, :16].all(), "x + 3.5 is left of column 20"
    assert not back[:, 17:].any()
    assert returns(flow, -flow + np.float32(0.9)).all(), "|sum|² of 1.62 is within the tolerance"


def test_turning_back_a_smooth_flow_gives_its_inverse():
    """A rotation and zoom G about the centre, whose inverse is known."""
    g = moving((1.0, 0.5), about=(30, 20), turn=0.02, zoom=1.01)(1)
    y, x = np.mgrid[0:41, 0:61].astype(np.float64)
    pixels = np.stack([x, y], -1)
    flow = (apply_homography(g, pixels) - pixels).astype(np.float32)
    backward = apply_homography(np.linalg.inv(g), pixels) - pixels
    np.testing.assert_allclose(turned_back(flow)[4:-4, 4:-4], backward[4:-4, 4:-4], atol=0.05)
    np.testing.assert_allclose(expected_residual(flow, g), 0, atol=1e-4)


@pytest.mark.parametrize("flow", ["tvl1", "tvl1-fast", "tvl1-pyramid", "dis"])
def test_covered_pixels_are_not_measured_and_others_are(flow):
    scene = covering_scene()
    a, b = (TrackedFrame(scene.render(t)) for t in (0, 1))
    pixels = np.stack(np.meshgrid(np.arange(160.0), np.arange(120.0)), -1)
    _, visible = scene.track(pixels.reshape(-1, 2), 0, 1)
    visible = visible[:, 1].reshape(120, 160)
    recipe = replace(load_recipe("mme-object").resolved(1), flow=flow)
    shares = {}
    for check in (False, True):
        motion = FlowTracker(replace(recipe, forward_backward=check), untimed).pair_motion(a, b)
        inner = np.zeros_like(visible)
        inner[6:-6, 6:-6] = True
        shares[check] = motion.visible[inner & ~visible].mean(), 1 - motion.visible[inner & visible].mean()
    assert (~visible)[6:-6, 6:-6].sum() > 150
    assert shares[False] == (1, 0)
    assert shares[True][0] < (0.9 if flow == "dis" else 0.4)
    assert shares[True][1] < (0.1 if flow == "dis" else 0.03)


def test_fewer_hidden_points_count_as_valid():
    scene = covering_scene()
    frames, points = scene.frames(7), grid_points(scene.size, 8)
    _, visible = scene.track(points, 0, 6)
    counted = {}
    for check in (False, True):
        recipe = replace(load_recipe("mme-object"), flow="tvl1-fast", forward_backward=check).resolved(7)
        tracker = FlowTracker(recipe, untimed)
        (row,) = [row for frame in frames for row in tracker.push(frame)]
        counted[check] = (row.valid & ~visible).sum(), (~row.valid & np.logical_and.accumulate(visible, axis=1)).sum()
    assert counted[False][0] > 80
    assert counted[True][0] < 0.4 * counted[False][0]
    assert counted[True][1] < counted[False][1] + 0.05 * visible.sum()
