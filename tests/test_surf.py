"""SURF against plain filters, closed forms and rendered truth."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.signal import correlate2d
from scipy.spatial.distance import cdist
from scipy.special import erf

from data_specs.geometry import apply_homography, grid_points, inside_frame
from data_specs.recipe import load_recipe
from data_specs.scene import Scene, Texture, moving, random_scene
from extraction.camera import detect_features, estimate_camera, match_features
from extraction.matching import mutual_nearest
from extraction.surf import FILTER_SIZES, describe, hessian_responses, refined_maxima, surf


def gray(frame):
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def blobs(size, centres, sigmas, height=120.0, ground=60.0):
    """Gaussian blobs of that standard deviation on even ground; float64, not rounded."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    squared = [((x - cx) ** 2 + (y - cy) ** 2) / (2 * s**2) for (cx, cy), s in zip(centres, sigmas, strict=True)]
    return ground + height * np.exp(-np.array(squared)).sum(axis=0)


def as_bytes(image):
    return np.rint(image).astype(np.uint8)


def box_filters(side):
    """The paper's figure 1 for a filter of that side: Dxx, Dyy, Dxy."""
    lobe, centre = side // 3, side // 2
    xx, xy = np.zeros((side, side)), np.zeros((side, side))
    band = slice(centre - lobe + 1, centre + lobe)  # 5 of 9 rows
    for third, weight in enumerate((1, -2, 1)):
        xx[band, third * lobe : (third + 1) * lobe] = weight
    before, after = slice(centre - lobe, centre), slice(centre + 1, centre + lobe + 1)
    xy[before, before] = xy[after, after] = 1
    xy[before, after] = xy[after, before] = -1
    return xx, xx.T, xy


def test_responses_are_those_of_the_papers_box_filters():
    image = np.random.default_rng(0).integers(0, 256, (61, 74), dtype=np.uint8)
    padded = np.pad(image.astype(np.int64), ((1, 0), (1, 0)))
    integral = padded.cumsum(axis=0).cumsum(axis=1).astype(np.int32)
    np.testing.assert_array_equal(cv2.integral(image), integral)
    responses = hessian_responses(integral)
    assert responses.shape == (6, 61, 74)
    for side, response in zip(FILTER_SIZES, responses, strict=True):
        xx, yy, xy = (correlate2d(image.astype(float), f, mode="valid") / side**2 for f in box_filters(side))
        expected = np.pad(xx * yy - 0.81 * xy**2, side // 2)
        np.testing.assert_allclose(response, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_every_maximum_is_found_once_and_nothing_else():
    responses = np.random.default_rng(1).random((6, 58, 83)).astype(np.float32) * 100
    smooth = np.stack([gaussian_filter(level, 2) for level in responses]) * 20 - 950
    expected = set()
    for below, level, above in [(0, 1, 2), (1, 2, 3), (1, 3, 4), (3, 4, 5)]:
        border = FILTER_SIZES[above] // 2 + 1
        for y in range(border, 58 - border):
            for x in range(border, 83 - border):
                around = smooth[[below, level, above], y - 1 : y + 2, x - 1 : x + 2]
                if smooth[level, y, x] == around.max() and smooth[level, y, x] > 1:
                    expected.add((x, y))
    found = refined_maxima(smooth)
    near = {tuple(min(expected, key=lambda e: (e[0] - x) ** 2 + (e[1] - y) ** 2)) for x, y in found[:, :2]}
    assert len(expected) > 20
    assert len(near) == len(found) <= len(expected), "a refined one may be dropped"
    assert len(found) > 0.5 * len(expected)


@pytest.mark.parametrize("sigma", [2.2, 2.7, 3.6, 5.0])
@pytest.mark.parametrize("height", [140, -50])
def test_blobs_are_found_at_their_sub_pixel_centres(sigma, height):
    """Frames are 97 x 211, so that swapped axes fall outside."""
    rng = np.random.default_rng(3)
    for _ in range(6):
        centre = np.array([150.0, 45.0]) + rng.random(2)
        points, _, _ = surf(as_bytes(blobs((97, 211), [centre], [sigma], height)), 500)
        assert np.abs(points[0] - centre).max() < 0.04  # 0.03 by the quadratic's shape and 8 bits


def sigma_of_the_strongest_filter(blob_sigma):
    """The nominal sigma of the box filter that answers most to a Gaussian blob at its centre (integrals in erf)."""

    def box(width, height):
        return erf(width / np.sqrt(8) / blob_sigma) * erf(height / np.sqrt(8) / blob_sigma)

    sides = np.arange(9, 60, 0.01)
    lobes = sides / 3
    dxx = (box(sides, 2 * lobes - 1) - 3 * box(lobes, 2 * lobes - 1)) / sides**2  # dyy is the same, dxy is 0
    return 1.2 / 9 * sides[np.argmax(dxx**2)]


def test_sigma_is_proportional_to_the_blobs():
    """A filter of nominal sigma s answers most to a blob of 1.4 s; three sizes show its maximum to some percent."""
    sigmas = np.array([2.2, 2.6, 3.0, 3.7, 4.4, 5.2, 6.1, 7.0])
    found = [surf(as_bytes(blobs((120, 133), [(66.3, 58.8)], [s])), 1)[1][0] for s in sigmas]
    assert (np.diff(found) > 0).all()
    np.testing.assert_allclose(found, [sigma_of_the_strongest_filter(s) for s in sigmas], rtol=0.1)
    np.testing.assert_allclose(found / sigmas, np.mean(found / sigmas), rtol=0.06)


def test_a_frame_shifted_by_whole_pixels_gives_shifted_points():
    whole = gray(random_scene(2, 1.0, (150, 260)).render(0))
    (a, _, descriptors_a), (b, _, descriptors_b) = (surf(whole[y:, x : x + 230], 5000) for x, y in [(0, 0), (23, 11)])
    reach = 80  # what a point and its descriptor depend on
    middle = ((a > [23 + reach, 11 + reach // 2]) & (a < [230 - reach, 150 - reach // 2])).all(axis=1)
    assert middle.sum() > 20
    distances = cdist(a[middle] - [23, 11], b)
    assert distances.min(axis=1).max() < 1e-4
    shallow = (a[middle][:, 1] > 11 + reach) & (a[middle][:, 1] < 150 - 40)
    same = distances.argmin(axis=1)[shallow]
    np.testing.assert_allclose(descriptors_a[middle][shallow], descriptors_b[same], atol=1e-5)


@pytest.mark.parametrize(
    ("motion", "allowed"),
    [
        ({"velocity": (17.3, -9.6)}, 0.05),
        ({"velocity": (0.4, 0.2)}, 0.05),
        ({"turn": np.deg2rad(10)}, 0.1),
        ({"turn": np.deg2rad(-15)}, 0.2),
        ({"zoom": 1.2}, 0.5),
    ],
    ids=str,
)
def test_matches_recover_the_homography(motion, allowed):
    """Turns up to 15 degrees, though the descriptors are upright."""
    camera = moving(about=(140, 100), **motion)
    scene = Scene(size=(200, 280), background=Texture(5, shortest=6), camera=camera, noise=2)
    pairs = match_features(*(detect_features(gray(scene.render(t)), "surf") for t in (0, 1)))
    estimate = estimate_camera([pairs], scene.size, load_recipe("mme-object"))
    grid = grid_points(scene.size, 8)
    off = apply_homography(estimate.homography, grid) - apply_homography(scene.homography(0, 1), grid)
    assert estimate.estimated
    assert np.linalg.norm(off, axis=1).mean() < allowed


def test_a_ramp_s_descriptor_is_its_slope():
    """A ramp to the right has dx in every subregion but for weights, and no dy; turned, the other way round."""
    ramp = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8), (101, 120))
    for image, along, across, point in [(ramp, 0, 1, (58.3, 50.7)), (ramp.T, 1, 0, (50.7, 58.3))]:
        (descriptor,) = describe(cv2.integral(np.ascontiguousarray(image)), np.float32([point]), np.float32([1.9]))
        x_y_abs_x_abs_y = descriptor.reshape(4, 4, 4)
        assert (x_y_abs_x_abs_y[..., along] > 0).all()
        np.testing.assert_array_equal(x_y_abs_x_abs_y[..., along], x_y_abs_x_abs_y[..., 2 + along])
        np.testing.assert_array_equal(x_y_abs_x_abs_y[..., [across, 2 + across]], 0)
        assert np.linalg.norm(descriptor) == pytest.approx(1, abs=1e-5)
        weights = x_y_abs_x_abs_y[..., along]
        np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-5)  # centred on the point


def test_descriptors_do_not_depend_on_brightness_and_contrast():
    image = gray(random_scene(4, 1.0, (90, 132)).render(0)) // 2
    integrals = [cv2.integral(i) for i in (image, image * 2, image + 90)]
    points, sigma, _ = surf(image, 50)
    first, contrasted, brighter = (describe(integral, points, sigma) for integral in integrals)
    np.testing.assert_allclose(contrasted, first, atol=1e-5)
    np.testing.assert_allclose(brighter, first, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (8, 9), (16, 16), (16, 300), (300, 16), (22, 22), (9, 40)])
def test_frames_too_small_for_the_filters_have_no_points(size):
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    points, sigma, descriptors = surf(noise, 500)
    assert (points.shape, sigma.shape, descriptors.shape) == ((0, 2), (0,), (0, 64))
    assert (points.dtype, descriptors.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("size", [(24, 31), (27, 300), (53, 29), (400, 31)])
def test_narrow_frames_have_points_inside_them(size):
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    points, _, descriptors = surf(gaussian_filter(noise, 1.0), 500)
    assert inside_frame(points, size).all()
    assert np.isfinite(descriptors).all()
    assert len(points) > 0 or min(size) < 27


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_frames_and_even_slopes_have_no_points(level):
    flat = np.full((80, 110), level, np.uint8)
    assert len(surf(flat, 500)[0]) == 0
    ramp = np.broadcast_to(np.arange(110, dtype=np.uint8) + np.uint8(level // 2), (80, 110))
    assert len(surf(np.ascontiguousarray(ramp), 500)[0]) == 0


def test_the_strongest_come_first_and_always_the_same():
    image = gray(random_scene(1, 1.0).render(0))
    all_points, all_sigma, all_descriptors = surf(image, 500)
    strength = np.sort(refined_maxima(hessian_responses(cv2.integral(image)))[:, 3])[::-1]
    assert len(all_points) == min(len(strength), 500) > 60
    points, sigma, descriptors = surf(image.copy(), 60)
    assert points.tobytes() == all_points[:60].tobytes()
    assert sigma.tobytes() == all_sigma[:60].tobytes()
    assert descriptors.tobytes() == all_descriptors[:60].tobytes()


def test_a_strong_blob_comes_before_a_weak_one():
    image = blobs((100, 150), [(40.0, 50.0)], [3], height=40) + blobs((100, 150), [(110.0, 50.0)], [3], height=90) - 60
    points, _, _ = surf(as_bytes(image), 2)
    assert np.abs(points - [[110, 50], [40, 50]]).max() < 0.1


def test_faint_blobs_are_found():
    points, _, _ = surf(as_bytes(blobs((97, 131), [(60.0, 45.0)], [4.0], height=3)), 500)
    assert np.abs(points[0] - [60, 45]).max() < 0.3


@pytest.mark.parametrize(("n", "m", "dimension"), [(40, 57, 64), (57, 40, 7), (1, 3, 64), (33, 1, 128)])
def test_mutual_nearest_neighbours(n, m, dimension):
    rng = np.random.default_rng(n)
    a = rng.normal(3, 1, (n, dimension)).astype(np.float32)
    b = np.concatenate([a[: n // 2] + rng.normal(0, 0.3, (n // 2, dimension)), rng.normal(3, 1, (m, dimension))])[:m]
    b = b.astype(np.float32)
    distances = cdist(a.astype(float), b.astype(float))
    expected = [(i, j) for i, j in enumerate(distances.argmin(axis=1).tolist()) if distances[:, j].argmin() == i]
    in_a, in_b = mutual_nearest(a, b)
    assert list(zip(in_a.tolist(), in_b.tolist(), strict=True)) == expected


def test_of_equal_descriptors_the_first_is_matched():
    a, b = np.eye(3, 64, dtype=np.float32)[[0, 0, 1]], np.eye(3, 64, dtype=np.float32)[[2, 1, 1, 0, 0]]
    in_a, in_b = mutual_nearest(a, b)
    assert (in_a.tolist(), in_b.tolist()) == ([0, 2], [3, 1])
