"""The batched two-pass flow in torch, on the CPU, against the CPU's own and against OpenCV and rendered truth."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from device_parity import whereto

from data_specs.geometry import apply_homography, grid_points
from data_specs.recipe import load_recipe
from data_specs.scene import random_scene
from extraction.camera import carry_corners, estimate_camera, is_plausible
from extraction.motion import dense_flow, occlusion, rectification
from extraction.motion.flow_tracker import FlowTracker, TrackedFrame
from extraction.motion.gpu import eager, two_pass
from extraction.motion.gpu.batched_tvl1 import BatchedTVL1, HalfResolution, check_scale
from extraction.motion.gpu.corners import corner_strength, find_corners
from extraction.motion.gpu.homographies import are_plausible, estimate_homographies
from extraction.motion.gpu.resampling import area_matrix, box_mean, gaussian, half, linear_matrix, resize_flow, resized
from extraction.motion.tvl1 import FAST, HALF, OPENCV, TVL1
from extraction.stages import untimed

RECIPE = load_recipe("mme-object-gpu").resolved(4)
CPU = torch.device("cpu")
G = np.array([[1.01, 0.02, 1.3], [-0.01, 0.99, -0.7], [1e-4, 2e-5, 1.0]])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gray_pair(seed, speed, size):
    frames = random_scene(seed, speed, size).frames(2)
    return [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]


def batch(images):
    return torch.from_numpy(np.stack(images).astype(np.float32))


def as_opencv(flow):
    return flow.permute(0, 2, 3, 1).numpy()


def noise(*shape):
    return np.random.default_rng(0).random(shape).astype(np.float32) * 255


# --- resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(36, 54), (37, 54), (36, 53), (35, 51)])
def test_resampling_is_opencv_s(size):
    images = noise(2, *size)
    tensor = torch.from_numpy(images)
    smaller = ((size[1] + 1) // 2, (size[0] + 1) // 2)
    for ours, theirs in [
        (half(tensor), lambda i: cv2.resize(i, smaller, interpolation=cv2.INTER_AREA)),
        (resized(tensor, (11, 20), area_matrix), lambda i: cv2.resize(i, (20, 11), interpolation=cv2.INTER_AREA)),
        (resized(tensor, (71, 107), linear_matrix), lambda i: cv2.resize(i, (107, 71), interpolation=cv2.INTER_LINEAR)),
        (gaussian(tensor, 0.8), lambda i: cv2.GaussianBlur(i, (0, 0), 0.8)),
        (box_mean(tensor, 7), lambda i: cv2.blur(i, (7, 7))),
    ]:
        np.testing.assert_allclose(ours.numpy(), np.stack([theirs(image) for image in images]), atol=1e-3)


def test_a_resized_flow_is_in_pixels_of_its_size():
    flow = torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1).expand(1, 2, 30, 50)
    finer = resize_flow(flow, (45, 100), linear_matrix)
    np.testing.assert_allclose(as_opencv(finer), np.broadcast_to([6.0, -3.0], (1, 45, 100, 2)), rtol=1e-6)


# --- TV-L1 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "speed"), [((72, 105), 2.0), ((101, 136), 6.0), ((256, 340), 2.0)])
def test_both_passes_give_the_cpu_s_numbers(size, speed):
    """Mean difference 0.02 px at most (0.0003 here); where motion is faint, rounding decides which way a pixel goes."""
    pairs = [gray_pair(seed, speed, size) for seed in (1, 2)]
    a, b = (batch([pair[side] for pair in pairs]) for side in (0, 1))
    first = as_opencv(HalfResolution()(a, b))
    cpu = dense_flow.make_flow("tvl1-pyramid")
    floats = [[image.astype(np.float32) for image in pair] for pair in pairs]
    expected = np.stack([cpu.first(*pair) for pair in floats])
    assert np.abs(first - expected).mean() < 0.02
    initial = torch.from_numpy(expected).permute(0, 3, 1, 2)
    second = as_opencv(BatchedTVL1(FAST)(a, b, two_pass.still_where_it_explains(a, b, initial)))
    expected = np.stack([cpu.second(*p, e, rectified=True) for p, e in zip(floats, expected, strict=True)])
    assert np.abs(second - expected).mean() < 0.02
    assert np.abs(expected).mean() > 0.5


def test_images_too_small_for_a_pyramid():
    a, b = gray_pair(0, 1.0, (18, 29))
    for options in (FAST, HALF):
        ours = as_opencv(BatchedTVL1(options)(batch([a]), batch([b])))[0]
        assert np.abs(ours - TVL1(options)(a.astype(np.float32), b.astype(np.float32))).mean() < 0.02


def test_options_that_only_the_cpu_has_are_refused():
    with pytest.raises(ValueError, match="takes scale_step"):
        BatchedTVL1(OPENCV)


# --- the camera -------------------------------------------------------------------------------------------------------


def test_corner_strength_is_opencv_s():
    image = noise(1, 41, 57)
    theirs = cv2.cornerMinEigenVal(image[0], 3, ksize=3)
    ours = corner_strength(torch.from_numpy(image))[0].numpy()
    np.testing.assert_allclose(ours / ours.max(), theirs / theirs.max(), atol=1e-4)


def test_corners_are_x_y_strongest_first_and_apart():
    image = np.full((2, 60, 90), 50, np.float32)
    image[0, 20:40, 30:70] = 200  # its corners are far above the threshold, its edges far below
    image[1] = cv2.GaussianBlur(noise(60, 90), (0, 0), 1.0)
    corners, count = find_corners(torch.from_numpy(image))
    found = corners[0, : count[0]].numpy()
    for x, y in [(30, 20), (69, 20), (30, 39), (69, 39)]:
        assert np.abs(found - [x, y]).max(axis=1).min() <= 1
    assert (
        np.abs(found[:, None] - np.array([[29.5, 19.5], [69.5, 19.5], [29.5, 39.5], [69.5, 39.5]]))
        .max(axis=2)
        .min(axis=1)
        .max()
        < 3
    ), "and nowhere else"
    textured = corners[1, : count[1]].numpy()
    strength = corner_strength(torch.from_numpy(image))[1].numpy()[textured[:, 1], textured[:, 0]]
    assert len(textured) > 100
    assert (np.diff(strength) <= 0).all()
    apart = np.abs(textured[:, None] - textured).max(axis=2) + 99 * np.eye(len(textured))
    assert apart.min() >= 3
    assert textured.min() >= 1
    assert (textured.max(axis=0) < [89, 59]).all()


def test_flat_frames_have_no_corners():
    assert find_corners(torch.full((2, 30, 50), 90.0))[1].tolist() == [0, 0]


def point_pairs(wrong, count=300, spread=0.0):
    rng = np.random.default_rng(wrong)
    a = rng.random((count, 2)) * [183, 135]
    b = apply_homography(G, a) + rng.normal(0, spread, a.shape) if spread else apply_homography(G, a)
    b[:wrong] = rng.random((wrong, 2)) * [183, 135]
    order = rng.permutation(count)
    return torch.from_numpy(a[order]), torch.from_numpy(b[order])


def test_homographies_are_exact_whatever_the_outliers():
    """Each pair of a batch has its own count of points: what lies beyond it is not looked at."""
    pairs = [point_pairs(0), point_pairs(100), point_pairs(180)]
    a, b = (torch.stack([pair[side] for pair in pairs]) for side in (0, 1))
    padding = torch.zeros(3, 40, 2, dtype=torch.float64)
    count = torch.tensor([300, 300, 300])
    found, estimated = estimate_homographies(
        torch.cat([a, padding], 1), torch.cat([b, padding], 1), count, (136, 184), RECIPE
    )
    assert estimated.all()
    np.testing.assert_allclose(found.numpy(), np.tile(G, (3, 1, 1)), rtol=1e-6, atol=1e-8)


def test_homographies_are_refined_over_all_inliers():
    """Four of these points alone would be 0.15 px off; three hundred with 0.08 px of noise agree to 0.015."""
    a, b = point_pairs(60, spread=0.08)
    found, _ = estimate_homographies(a[None], b[None], torch.tensor([300]), (136, 184), RECIPE)
    points = grid_points((136, 184), 8)
    off = np.linalg.norm(apply_homography(found[0].numpy(), points) - apply_homography(G, points), axis=1)
    assert off.mean() < 0.03


def test_weak_support_gives_the_identity_and_says_so():
    a, b = point_pairs(300)
    good, well = point_pairs(0)
    mirrored = good * torch.tensor([-1.0, 1.0]) + torch.tensor([183.0, 0])
    in_a, in_b = torch.stack([a, good, good, good, good]), torch.stack([b, well, well, mirrored, well])
    count = torch.tensor([300, 24, 0, 300, 25])
    found, estimated = estimate_homographies(in_a, in_b, count, (136, 184), RECIPE)
    assert estimated.tolist() == [False, False, False, False, True]
    np.testing.assert_array_equal(found[:4].numpy(), np.tile(np.eye(3), (4, 1, 1)))


def test_wild_homographies_are_refused_as_on_the_cpu():
    rng = np.random.default_rng(3)
    some = [np.eye(3), np.diag([-1.0, 1, 1]), np.full((3, 3), np.nan), np.zeros((3, 3)), G]
    for scale in (0.3, 1.0, 3.0):
        for _ in range(30):
            wild = np.eye(3) + rng.normal(0, scale, (3, 3)) * [[0.3, 0.3, 60], [0.3, 0.3, 60], [2e-3, 2e-3, 0]]
            some.append(wild)
    with np.errstate(all="ignore"):
        expected = [is_plausible(h, (136, 184)) for h in some]
    assert are_plausible(torch.from_numpy(np.stack(some)), (136, 184)).tolist() == expected
    assert 20 < sum(expected) < 80


@pytest.mark.parametrize("speed", [0.7, 2.0, 6.0])
def test_the_camera_is_as_exact_as_the_cpu_s_from_corners(speed):
    size, ours, theirs = (136, 184), [], []
    points = grid_points(size, 8)
    for seed in range(6):
        a, b = gray_pair(seed, speed, size)
        truth = apply_homography(random_scene(seed, speed, size).homography(0, 1), points)
        motion = two_pass.TwoPass(RECIPE, CPU).measure(batch([a]), batch([b]))
        flow = as_opencv(motion.first_flow)[0]
        cpu = estimate_camera([carry_corners(a, flow)], size, RECIPE)
        assert motion.estimated.all()
        for homography, errors in [(motion.homographies[0].numpy(), ours), (cpu.homography, theirs)]:
            errors.append(np.linalg.norm(apply_homography(homography, points) - truth, axis=1).mean())
    assert np.mean(ours) < 0.1
    assert np.mean(ours) < 1.15 * np.mean(theirs) + 0.002, "no worse, but for the chance in either's RANSAC"


# --- the whole pair ---------------------------------------------------------------------------------------------------


def test_rectification_is_the_cpu_s():
    image = noise(1, 61, 83)
    other = np.linalg.inv(G)
    homographies = torch.from_numpy(np.stack([G, other, np.eye(3)]))
    rectified, measured = two_pass.rectify(torch.from_numpy(image).expand(3, 61, 83), homographies)
    for number, homography in enumerate([G, other, np.eye(3)]):
        expected, expected_measured = rectification.rectify(image[0], homography)
        np.testing.assert_allclose(rectified[number].numpy(), expected, atol=0.02)
        np.testing.assert_array_equal(measured[number].numpy(), expected_measured)
    assert 0.5 < measured[0].float().mean() < 0.99
    assert measured[2].all()


def test_the_expected_residual_is_the_cpu_s():
    flow = noise(1, 41, 57, 2) / 50
    found = two_pass.expected_residual(torch.from_numpy(flow).permute(0, 3, 1, 2), torch.from_numpy(G[None]))
    np.testing.assert_allclose(as_opencv(found)[0], rectification.expected_residual(flow[0], G), atol=1e-5)


def test_what_no_motion_explains_stays_as_on_the_cpu():
    a, b = gray_pair(3, 2.0, (72, 105))
    flow = np.broadcast_to(np.float32([2.0, -1.0]), (72, 105, 2))
    found = two_pass.still_where_it_explains(
        batch([a]), batch([b]), torch.from_numpy(flow.copy()).permute(2, 0, 1)[None]
    )
    expected = dense_flow.still_where_it_explains(a.astype(np.float32), b.astype(np.float32), flow)
    same = (as_opencv(found)[0] == expected).all(axis=-1)
    assert same.mean() > 0.999, "all but where rounding decides"
    assert 0.05 < (expected == 0).mean() < 0.95


def cpu_motion(recipe, pair):
    return FlowTracker(recipe, untimed).pair_motion(*pair)


def tracked_pair(seed, speed, size):
    return tuple(TrackedFrame(frame) for frame in random_scene(seed, speed, size).frames(2))


@pytest.mark.parametrize(("size", "speed"), [((121, 167), 0.7), ((136, 184), 6.0), ((256, 340), 2.0)])
def test_a_pair_s_motion_is_the_cpu_s(size, speed):
    """The cameras differ by what RANSAC leaves to chance (to 0.1 px), which moves the second pass a little; where
    things go, camera and residual together, is as near the truth."""
    pairs = [tracked_pair(seed, speed, size) for seed in (0, 1)]
    for seed, (ours, pair) in enumerate(zip(two_pass.TwoPass(RECIPE, CPU).pair_motions(pairs), pairs, strict=True)):
        cpu = cpu_motion(RECIPE, pair)
        measured = ours.measured & cpu.measured
        assert (ours.measured != cpu.measured).mean() < 0.005
        assert (ours.visible != cpu.visible).mean() < 0.01
        assert np.abs(ours.first_flow - cpu.first_flow).mean() < 0.02
        assert np.linalg.norm(whereto(ours) - whereto(cpu), axis=-1)[measured].mean() < 0.05
        assert np.abs(ours.flow - cpu.flow).mean() < 0.1
        y, x = np.mgrid[: size[0], : size[1]]
        truth = np.stack([x, y], axis=-1) + random_scene(seed, speed, size).flow(0, 1)
        error, cpu_error = (np.linalg.norm(whereto(m) - truth, axis=-1)[measured].mean() for m in (ours, cpu))
        assert error < 1.02 * cpu_error + 0.01
        assert ours.camera.estimated
        for array in (ours.flow, ours.first_flow):
            assert (array.dtype, array.shape, array.flags.c_contiguous) == (np.float32, (*size, 2), True)


def test_what_is_covered_is_found_as_on_the_cpu():
    """The check backward, from the CPU's own flow: turned back, refined and compared in the same way."""
    floats = [np.float32(image) for image in gray_pair(4, 6.0, (120, 166))]
    cpu = dense_flow.make_flow("tvl1-pyramid")
    forward = dense_flow.median_filter(cpu.second(*floats, cpu.first(*floats), rectified=False))
    backward = dense_flow.median_filter(cpu.backward(*floats, forward))
    expected = occlusion.returns(forward, backward)
    a, b = (batch([image]) for image in floats)
    flow = torch.from_numpy(forward).permute(2, 0, 1)[None]
    turned = two_pass.turned_back(flow)
    np.testing.assert_allclose(as_opencv(turned)[0], occlusion.turned_back(forward), atol=2e-3)
    found = check_scale()(b, a, two_pass.still_where_it_explains(b, a, turned))
    visible = two_pass.returns(flow, eager.median(found, 3))[0].numpy()
    assert 0.01 < (~expected).mean() < 0.3
    assert (visible != expected).mean() < 0.002


def test_a_batch_gives_what_its_pairs_give_alone():
    pairs = [tracked_pair(seed, 2.0, (72, 105)) for seed in range(3)]
    solver = two_pass.TwoPass(RECIPE, CPU)
    for together, pair in zip(solver.pair_motions(pairs), pairs, strict=True):
        (alone,) = solver.pair_motions([pair])
        np.testing.assert_allclose(together.flow, alone.flow, atol=1e-3)
        np.testing.assert_allclose(together.camera.homography, alone.camera.homography, atol=1e-4)


def test_frames_that_pairs_share_are_told_apart():
    """Consecutive pairs share a frame, which goes to the device once."""
    a, b, c = (TrackedFrame(frame) for frame in random_scene(2, 2.0, (72, 105)).frames(3))
    solver = two_pass.TwoPass(RECIPE, CPU)
    motions = solver.pair_motions([(a, b), (b, c), (a, c)])
    for motion, pair in zip(motions, [(a, b), (b, c), (a, c)], strict=True):
        np.testing.assert_allclose(motion.flow, solver.pair_motions([pair])[0].flow, atol=1e-3)
    assert np.abs(motions[2].first_flow).mean() > 1.5 * np.abs(motions[0].first_flow).mean()


def test_without_camera_removal():
    recipe = replace(RECIPE, remove_camera=False)
    pair = tracked_pair(0, 2.0, (72, 105))
    (ours,), cpu = two_pass.TwoPass(recipe, CPU).pair_motions([pair]), cpu_motion(recipe, pair)
    assert not ours.camera.estimated
    assert ours.measured.all()
    assert np.abs(ours.flow - cpu.flow).mean() < 0.02
    assert np.abs(ours.flow).mean() > 0.5


def test_a_flat_scene_has_no_camera():
    frame = TrackedFrame(np.full((72, 105, 3), 90, np.uint8))
    (motion,) = two_pass.TwoPass(RECIPE, CPU).pair_motions([(frame, frame)])
    assert not motion.camera.estimated
    np.testing.assert_array_equal(motion.camera.homography, np.eye(3))
    np.testing.assert_array_equal(motion.flow, np.zeros((72, 105, 2)))
    assert motion.measured.all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_card_gives_the_cpu_s_motion():
    pairs = [tracked_pair(seed, 2.0, (256, 340)) for seed in range(3)]
    on_card = two_pass.TwoPass(RECIPE, torch.device("cuda")).pair_motions(pairs)
    again = two_pass.TwoPass(RECIPE, torch.device("cuda")).pair_motions(pairs)
    for ours, same, pair in zip(on_card, again, pairs, strict=True):
        cpu = cpu_motion(RECIPE, pair)
        measured = ours.measured & cpu.measured
        assert np.linalg.norm(whereto(ours) - whereto(cpu), axis=-1)[measured].mean() < 0.02
        assert np.abs(ours.first_flow - cpu.first_flow).mean() < 0.02
        assert ours.camera.estimated
        np.testing.assert_array_equal(ours.flow, same.flow)
