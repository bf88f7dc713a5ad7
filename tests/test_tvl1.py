"""TV-L1 flow against OpenCV's, against a plain implementation of its equations, and against rendered truth."""

import dataclasses

import cv2
import numpy as np
import pytest

from data_specs.scene import Scene, Texture, moving, random_scene, still
from extraction.motion.dense_flow import still_where_it_explains
from extraction.motion.tvl1 import CHECK, FAST, HALF, OPENCV, QUALITY, TVL1
from extraction.motion.tvl1_kernels import (
    edge_weight,
    image_of,
    iterate,
    linearise,
    linearise_given_gradient,
    new_plane,
    row_length,
)


def gray_pair(scene, step=1):
    return [cv2.cvtColor(scene.render(t), cv2.COLOR_RGB2GRAY).astype(np.float32) for t in (0, step)]


@pytest.mark.parametrize(("seed", "speed", "size"), [(3, 0.7, (96, 130)), (4, 2.0, (120, 88)), (5, 5.0, (101, 167))])
def test_with_opencvs_parameters_it_is_opencvs_flow(seed, speed, size):
    a, b = gray_pair(random_scene(seed, speed, size))
    reference = cv2.optflow.DualTVL1OpticalFlow_create().calc(a / 255, b / 255, None)
    difference = np.linalg.norm(TVL1(OPENCV)(a, b) - reference, axis=-1)
    assert np.linalg.norm(reference, axis=-1).mean() > 0.5 * speed
    assert difference.mean() < 0.05
    assert np.median(difference) < 0.01


def shifted(image, y, x):
    """image[y + ., x + .], zero beyond its edges."""
    out = np.zeros_like(image)
    height, width = image.shape
    out[max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)] = image[
        max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)
    ]
    return out


def forward(u):
    return (
        np.concatenate([np.diff(u, axis=1), np.zeros((len(u), 1))], axis=1),
        np.concatenate([np.diff(u, axis=0), np.zeros((1, u.shape[1]))], axis=0),
    )


def plain_iterations(u, p, linear, weight, count, bound, theta, step):
    """Alternating full sweeps in float64 and whole arrays (IPOL algorithm 1, lines 7 to 9)."""
    u, p = [c.astype(np.float64) for c in u], [c.astype(np.float64) for c in p]
    ix, iy, inverse, rho = (c.astype(np.float64) for c in linear)
    for _ in range(count):
        move = np.clip(-(rho + ix * u[0] + iy * u[1]) * inverse, -bound, bound)
        for c, gradient in enumerate((ix, iy)):
            px, py = p[2 * c], p[2 * c + 1]
            divergence = px - shifted(px, 0, -1) + py - shifted(py, -1, 0)
            u[c] = u[c] + move * gradient + theta * divergence
        for c in range(2):
            gx, gy = forward(u[c])
            scale = 1 + step * weight * np.hypot(gx, gy)
            p[2 * c], p[2 * c + 1] = (p[2 * c] + step * gx) / scale, (p[2 * c + 1] + step * gy) / scale
    return u, p


@pytest.mark.parametrize("size", [(37, 53), (16, 31), (33, 30), (50, 16)])
def test_one_sweep_over_rows_is_alternating_full_sweeps(size):
    """Also across the chunks of 16 rows, at widths just below, at and above a multiple of 16."""
    rng = np.random.default_rng(0)
    planes = [new_plane(*size) for _ in range(11)]
    values = [rng.normal(0, 0.4, size).astype(np.float32) for _ in planes]
    values[2:6] = [np.zeros(size, np.float32)] * 4
    values[8], values[10] = np.abs(values[8]) * 4, 1 + np.abs(values[10])
    for plane, value in zip(planes, values, strict=True):
        image_of(plane, *size)[:] = value
    steps = np.float32(0.045), np.float32(0.3), np.float32(0.25 / 0.3)
    done, converged = iterate(
        tuple(planes[:2]), tuple(planes[2:6]), tuple(planes[6:10]), planes[10], size, 12, steps, -1.0
    )
    assert (done, converged) == (12, False)
    u, p = plain_iterations(values[:2], values[2:6], values[6:10], values[10], 12, *map(float, steps))
    for plane, truth in zip(planes, u + p, strict=False):
        np.testing.assert_allclose(image_of(plane, *size), truth, atol=2e-5)


def test_iterations_stop_when_the_flow_does():
    """The change is that of the pixels alone: padding would keep it from ever falling."""
    size = 40, 57
    planes = [new_plane(*size) for _ in range(11)]
    rng = np.random.default_rng(1)
    for plane in planes[6:8]:
        image_of(plane, *size)[:] = rng.normal(0, 5, size)
    squared = sum(image_of(plane, *size) ** 2 for plane in planes[6:8])
    image_of(planes[8], *size)[:] = 1 / squared
    image_of(planes[9], *size)[:] = rng.normal(0, 0.1, size)
    planes[10][:] = 1
    steps = np.float32(0.045), np.float32(0.3), np.float32(0.25 / 0.3)
    call = tuple(planes[:2]), tuple(planes[2:6]), tuple(planes[6:10]), planes[10], size
    before = None
    done = 0
    while done < 500:
        done += 1
        iterate(*call, 1, steps, -1.0)
        now = np.stack([image_of(plane, *size).copy() for plane in planes[:2]])
        if before is not None and ((now - before) ** 2).sum(axis=0).mean() <= 1e-6:
            break
        before = now
    assert 5 < done < 400
    for plane in planes[:6]:
        plane[:] = 0
    assert iterate(*call, 500, steps, 1e-6) == (done, True)


def test_linearisation_is_by_the_gradient_of_the_mean_image():
    size = 19, 31
    rng = np.random.default_rng(2)
    a, warped, u1, u2 = (rng.normal(0, 3, size).astype(np.float32) for _ in range(4))
    planes = [new_plane(*size) for _ in range(9)]
    for plane, value in zip(planes, (a, warped, u1, u2), strict=False):
        image_of(plane, *size)[:] = value
    linear = tuple(planes[4:8])
    linearise(planes[0], planes[1], (planes[2], planes[3]), linear, planes[8], size)
    mean = np.pad((a + warped) / 2, 1, mode="edge")
    gx, gy = (mean[1:-1, 2:] - mean[1:-1, :-2]) / 2, (mean[2:, 1:-1] - mean[:-2, 1:-1]) / 2
    expected = gx, gy, 1 / (gx**2 + gy**2), warped - gx * u1 - gy * u2 - a
    for plane, truth in zip(linear, expected, strict=True):
        np.testing.assert_allclose(image_of(plane, *size), truth, rtol=2e-4, atol=1e-4)
    rest = linear[2].reshape(size[0] + 2, row_length(size[1]))
    assert not rest[1:-1, size[1] :].any(), "no data term in the padding"
    linearise_given_gradient(planes[0], planes[1], (planes[2], planes[3]), linear, size)
    np.testing.assert_allclose(image_of(linear[3], *size), expected[3], rtol=2e-4, atol=1e-4)


def test_smoothness_counts_less_at_edges():
    size = 24, 37
    image, weight = new_plane(*size), new_plane(*size)
    image_of(image, *size)[:, 20:] = 60  # a gradient of 30 at columns 19 and 20
    image_of(image, *size)[10:, :] += 8  # and of 4 at rows 9 and 10
    edge_weight(image, weight, size, 20.0, 10.0)
    inner = image_of(weight, *size)[1:-1, 1:-1]
    assert inner[3, 3] == 1
    np.testing.assert_allclose(inner[3, 18:20], (1 + 30 / 80) ** 4, rtol=1e-5)
    np.testing.assert_allclose(inner[8:10, 5], (1 + 4 / 80) ** 4, rtol=1e-5)
    assert image_of(weight, *size).max() <= 10


@pytest.mark.parametrize("options", [OPENCV, dataclasses.replace(FAST, scales=5), dataclasses.replace(HALF, scales=4)])
def test_a_pan_is_found_in_its_direction(options):
    """x is the first component; 3.3 px right and 1.2 px up, on a frame with odd sides."""
    scene = Scene(size=(95, 141), background=Texture(5), camera=moving((3.3, -1.2)))
    flow = TVL1(options)(*gray_pair(scene))
    inner = flow[12:-12, 12:-12].reshape(-1, 2)
    np.testing.assert_allclose(np.median(inner, axis=0), (3.3, -1.2), atol=0.05)
    assert np.linalg.norm(inner - (3.3, -1.2), axis=1).mean() < 0.25


@pytest.mark.parametrize("options", [FAST, QUALITY, CHECK])
def test_a_start_near_the_solution_is_refined(options):
    """A pan of 9 px is beyond what two scales can find by themselves."""
    scene = Scene(size=(97, 135), background=Texture(6), camera=moving((9.0, -2.0)), noise=1.0)
    a, b = gray_pair(scene)
    rough = np.broadcast_to(np.float32([9.6, -2.5]), (97, 135, 2))
    refined, lost = TVL1(options)(a, b, rough), TVL1(options)(a, b)
    inner = slice(12, -12), slice(12, -12)
    assert np.linalg.norm(refined - (9.0, -2.0), axis=-1)[inner].mean() < 0.15
    assert np.linalg.norm(lost - (9.0, -2.0), axis=-1)[inner].mean() > 1.0


def test_buffers_leave_nothing_behind():
    first, second = gray_pair(random_scene(1, 2.0)), gray_pair(random_scene(2, 6.0))
    solver = TVL1(FAST)
    fresh = solver(*first)
    solver(*second)
    solver(*gray_pair(random_scene(3, 1.0, size=(64, 90))))
    np.testing.assert_array_equal(solver(*first), fresh)


def test_small_frames_have_fewer_scales():
    a, b = gray_pair(Scene(size=(17, 40), background=Texture(2), camera=moving((0.4, 0.2))))
    for options in (OPENCV, FAST, HALF):
        flow = TVL1(options)(a, b)
        assert flow.shape == (17, 40, 2)
        assert np.isfinite(flow).all()


def test_flat_and_identical_images_have_no_flow():
    flat = np.full((48, 70), 90, np.float32)
    a, _ = gray_pair(Scene(size=(48, 70), background=Texture(2), camera=still))
    for options in (OPENCV, FAST, QUALITY, HALF):
        assert not TVL1(options)(flat, flat).any()
        assert np.abs(TVL1(options)(a, a)).max() < 1e-4


def test_images_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(20, 30\) and \(20, 31\)"):
        TVL1(FAST)(np.zeros((20, 30), np.float32), np.zeros((20, 31), np.float32))


def test_what_is_still_does_not_take_a_neighbours_flow():
    """A flow that spills over a disc's rim is taken back where standing still explains the second frame."""
    scene = random_scene(4, 5.0, size=(120, 160), noise=1.0)
    scene = dataclasses.replace(scene, camera=still)
    a, b = gray_pair(scene)
    truth = scene.flow(0, 1).astype(np.float32)
    moves = (np.abs(truth).max(axis=-1) > 0).astype(np.uint8)
    assert 0.05 < moves.mean() < 0.5
    spilt = np.stack([cv2.dilate(truth[..., c], np.ones((11, 11))) for c in (0, 1)], axis=-1)
    begun = still_where_it_explains(a, b, spilt)
    wrong_before = ((np.abs(spilt).max(axis=-1) > 0) & (moves == 0)).mean()
    wrong_after = ((np.abs(begun).max(axis=-1) > 0) & (moves == 0)).mean()
    assert wrong_after < 0.5 * wrong_before


def test_what_matches_nothing_does_not_walk_along_an_edge():
    """A bright bar that is gone in the second frame pulls with all its gradient; one scale may move it by 3 px."""
    a = np.full((64, 96), 40, np.float32)
    a[:, 40:48] = 220
    b = np.full((64, 96), 40, np.float32)
    b[20:44, 60:66] = 220
    bound = dataclasses.replace(QUALITY, scales=1)
    free = dataclasses.replace(bound, reach=0)
    start = np.full((64, 96, 2), 0.25, np.float32)
    assert np.abs(TVL1(free)(a, b, start) - start).max() > 4
    assert np.abs(TVL1(bound)(a, b, start) - start).max() <= 3 + 1e-6
