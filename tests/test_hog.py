"""HOG against a slow implementation written from the definition, and against closed forms."""

import numpy as np
import pytest
from scipy import ndimage

from extraction.hog import gradient_map, window_histograms

HEIGHT, WIDTH = 40, 58


def picture(seed=0):
    noise = np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH, 3))
    smooth = ndimage.gaussian_filter(noise, (1.5, 1.5, 0))
    return np.clip(128 + 250 * smooth, 0, 255).astype(np.uint8)


def ramp(degrees):
    """A grey ramp whose gradient points at `degrees`, as steep as 8 bits allow without clipping."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    values = 128 + 1.5 * (
        (x - WIDTH / 2) * np.cos(np.radians(degrees)) + (y - HEIGHT / 2) * np.sin(np.radians(degrees))
    )
    return np.repeat(values[..., None], 3, axis=2)


def reference(frame, points, window, channels):
    """The definition, pixel by pixel: scipy's Sobel, an area of overlap, two bins that share the magnitude."""
    grey = frame.astype(np.float64)
    gx, gy = (np.stack([ndimage.sobel(grey[..., c], axis=a, mode="mirror") for c in range(3)], -1) for a in (1, 0))
    magnitude, angle = np.hypot(gx, gy), np.arctan2(gy, gx) % np.pi
    if channels == 1:
        best = magnitude.argmax(axis=2)[..., None]
        magnitude, angle = np.take_along_axis(magnitude, best, 2), np.take_along_axis(angle, best, 2)
    out = np.zeros((len(points), channels, 9))
    for n, (px, py) in enumerate(points):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                overlap_x = min(x + 0.5, px + window / 2) - max(x - 0.5, px - window / 2)
                overlap_y = min(y + 0.5, py + window / 2) - max(y - 0.5, py - window / 2)
                if overlap_x <= 0 or overlap_y <= 0:
                    continue
                for c in range(channels):
                    place = angle[y, x, c] / np.radians(20)
                    low = int(place)
                    weight = magnitude[y, x, c] * overlap_x * overlap_y
                    out[n, c, low % 9] += weight * (1 - (place - low))
                    out[n, c, (low + 1) % 9] += weight * (place - low)
    return out.reshape(len(points), -1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("window", [8, 5])
def test_histograms_are_those_of_the_definition(channels, window):
    """At sub-pixel points, at borders, and at points that are outside when x and y are swapped."""
    frame = picture()
    points = np.array([[3.5, 3.5], [50.25, 10.75], [0.0, 0.0], [57.0, 39.0], [20.123, 38.9], [55.0, 7.0]])
    ours = window_histograms(gradient_map(frame, channels), points, np.ones(len(points), bool), window)
    assert ours.shape == (6, 9 * channels)
    np.testing.assert_allclose(ours, reference(frame, points, window, channels), rtol=2e-4, atol=0.5)


@pytest.mark.parametrize("k", range(9))
def test_no_magnitude_is_lost_at_the_bins_own_angles(k):
    """At k * 20 degrees the released code's two bins are one, and it writes only one share into it."""
    frame = ramp(20 * k).astype(np.float32)
    gradients = gradient_map(frame, 1)
    inner = (slice(2, -2), slice(2, -2))
    magnitude = (gradients.lower + gradients.upper)[inner]
    np.testing.assert_allclose(magnitude, 12.0, rtol=1e-3)  # slope 1.5 times Sobel's gain of 8
    histogram = window_histograms(gradients, np.array([[30.5, 20.5]]), np.ones(1, bool), 8)[0]
    assert histogram[k] == pytest.approx(64 * 12, rel=1e-3)
    assert histogram.sum() == pytest.approx(64 * 12, rel=1e-3)


@pytest.mark.parametrize("degrees", [10, 27, 95.5, 171])
def test_magnitude_is_shared_in_proportion_to_the_angle(degrees):
    gradients = gradient_map(ramp(degrees).astype(np.float32), 1)
    histogram = window_histograms(gradients, np.array([[30.5, 20.5]]), np.ones(1, bool), 8)[0]
    low, share = int(degrees // 20), degrees % 20 / 20
    assert histogram[low % 9] == pytest.approx(64 * 12 * (1 - share), rel=0.01, abs=2)
    assert histogram[(low + 1) % 9] == pytest.approx(64 * 12 * share, rel=0.01, abs=2)


def test_a_flip_maps_bin_k_to_bin_nine_minus_k():
    frame = picture()
    points = np.array([[10.25, 12.5], [40.0, 30.75]])
    flipped_points = np.array([WIDTH - 1, 0]) + points * [-1, 1]
    ours = window_histograms(gradient_map(frame, 1), points, np.ones(2, bool), 8)
    flipped = window_histograms(
        gradient_map(np.ascontiguousarray(frame[:, ::-1]), 1), flipped_points, np.ones(2, bool), 8
    )
    np.testing.assert_allclose(flipped, ours[:, [(9 - k) % 9 for k in range(9)]], rtol=1e-3, atol=0.5)


def test_a_flat_picture_has_no_gradient_and_no_bias():
    """The released code's Sobel convolution has a random bias."""
    gradients = gradient_map(np.full((HEIGHT, WIDTH, 3), 77, np.uint8), 3)
    assert not gradients.lower.any()
    assert not gradients.upper.any()


def test_the_window_of_a_grid_point_is_its_cell():
    frame = picture(1)
    gradients = gradient_map(frame, 1)
    cell = (gradients.lower + gradients.upper)[8:16, 24:32].sum()
    histogram = window_histograms(gradients, np.array([[27.5, 11.5]]), np.ones(1, bool), 8)
    assert histogram.sum() == pytest.approx(cell, rel=1e-5)


def test_invalid_points_get_zeros():
    histograms = window_histograms(
        gradient_map(picture(), 1), np.array([[9.0, 9.0], [np.nan, 3.0]]), np.array([True, False]), 8
    )
    assert histograms[0].any()
    assert not histograms[1].any()
