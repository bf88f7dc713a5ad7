"""The ground truth's own test: closed forms."""

import numpy as np
from scipy.ndimage import map_coordinates

from data_specs.geometry import grid_points
from data_specs.scene import Disc, Scene, Texture, moving, still


def test_a_whole_pixel_pan_moves_the_picture_by_whole_pixels():
    scene = Scene(size=(40, 60), background=Texture(1), camera=moving((3.0, -2.0)))
    a, b = scene.render(0), scene.render(1)
    np.testing.assert_array_equal(b[:-2, 3:], a[2:, :-3])


def test_points_are_where_their_surface_is_drawn():
    """Colour follows a point: the picture at its position, interpolated by SciPy, is the colour it began with."""
    disc = Disc(
        texture=Texture(2, shortest=20),
        centre=(30.0, 20.0),
        radius=12.0,
        motion=moving((1.3, 0.6), about=(30, 20), turn=0.1),
    )
    camera = moving((-0.4, 0.7), about=(40, 25), zoom=1.01, turn=0.01, tilt=(1e-4, -1e-4))
    scene = Scene(size=(50, 80), background=Texture(1, shortest=20), camera=camera, discs=(disc,))
    points = grid_points(scene.size, 4)
    positions, visible = scene.track(points, start=2, length=5)
    layer = scene.layers(points, 2)
    rim = np.abs(np.linalg.norm(points - positions[layer == 1, 0].mean(axis=0), axis=1) - 12) < 3
    assert (layer == 1).sum() >= 12

    def colours(k: int) -> np.ndarray:
        frame = scene.render(2 + k).astype(float)
        x, y = positions[:, k].T
        return np.stack([map_coordinates(frame[..., c], [y, x], order=3, mode="nearest") for c in range(3)], axis=-1)

    moved_by = np.linalg.norm(positions[:, 5] - positions[:, 0], axis=1)
    assert moved_by[layer == 1].min() > 2
    for k in range(1, 6):
        seen = visible[:, k] & ~rim
        difference = np.abs(colours(k) - colours(0))[seen]
        assert np.median(difference) < 1
        assert np.percentile(difference, 95) < 4


def test_hidden_points_are_not_visible():
    disc = Disc(texture=Texture(2), centre=(10.0, 20.0), radius=8.0, motion=moving((5.0, 0.0)))
    scene = Scene(size=(40, 70), background=Texture(1), camera=still, discs=(disc,))
    _, visible = scene.track(np.array([[30.0, 20.0], [30.0, 35.0], [10.0, 20.0]]), start=0, length=6)
    assert visible.tolist() == [
        [True, True, True, False, False, False, True],  # covered while the disc passes
        [True] * 7,
        [True] * 7,  # on the disc
    ]


def test_the_flow_field_is_the_points_motion():
    scene = Scene(size=(30, 44), background=Texture(1), camera=moving((1.25, -0.5)))
    np.testing.assert_allclose(scene.flow(3, 5), np.broadcast_to([2.5, -1.0], (30, 44, 2)), atol=1e-9)
