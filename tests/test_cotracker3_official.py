"""CoTracker3's windows against the official package: the same network with random weights, called as its users do.

The package is on no package index. To run these: pip install -e '.[cotracker]', or put a checkout of
facebookresearch/co-tracker on PYTHONPATH.
"""

import dataclasses

import numpy as np
import pytest
import torch

from data_specs.recipe import load_recipe
from data_specs.scene import random_scene
from extraction.motion.cotracker3.network import CoTracker3
from extraction.motion.cotracker3.package import load_model
from extraction.motion.cotracker3.window_tracker import WindowTracker, support_points
from extraction.stages import untimed

predictor_module = pytest.importorskip(
    "cotracker.predictor", reason="the cotracker package is not installed (pip install -e '.[cotracker]')"
)

SIZE = (60, 100)
LENGTH, STEP = 3, 2


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """The package's own predictor, whose random network moves points by tens of pixels."""
    file = tmp_path_factory.mktemp("weights") / "weights.pth"
    with torch.random.fork_rng():
        from cotracker.models.build_cotracker import build_cotracker

        torch.manual_seed(2)
        model = build_cotracker(None, offline=True, window_len=60)
        model.updateformer.flow_head.weight.data *= 10
        model.updateformer.vis_conf_head.weight.data *= 4
    torch.save(model.state_dict(), file)
    return predictor_module.CoTrackerPredictor(checkpoint=str(file), offline=True, window_len=60)


@pytest.fixture(scope="module")
def frames():
    return random_scene(4, 2.0, SIZE).frames(LENGTH * STEP + 3)


def recipe(**changes):
    options = {"start_stride": 2, "frame_step": STEP, "length": LENGTH, **changes}
    return dataclasses.replace(load_recipe("trackmae"), **options)


def network(predictor):
    return CoTracker3(predictor.model, torch.device("cpu"))


def rows_of(predictor, frames, options, windows=2):
    tracker = WindowTracker(options, network(predictor), untimed, windows)
    return [row for frame in frames for row in tracker.push(frame)] + tracker.finish()


def as_video(frames):
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()[None]


def test_tracks_are_those_of_the_predictor_with_its_support_points(predictor, frames):
    """`CoTrackerPredictor(video, queries=…)` resizes, adds a grid of 6 x 6 points, and puts the queries in again."""
    rows = rows_of(predictor, frames, recipe(support_grid=6))
    assert [row.start for row in rows] == [0, 2]
    for row in rows:
        window = frames[row.start : row.start + LENGTH * STEP + 1 : STEP]
        grid = torch.from_numpy(row.positions[:, 0]).float()
        queries = torch.cat([torch.zeros(len(grid), 1), grid], dim=1)[None]
        tracks, _ = predictor(as_video(window), queries=queries)
        found = tracks[0].permute(1, 0, 2).numpy()
        assert np.abs(np.diff(found, axis=1)).max() > 2, "the points must go somewhere for this to mean anything"
        np.testing.assert_allclose(row.positions, found, atol=0.01, rtol=0)


@pytest.mark.parametrize("support", [0, 6])
def test_visibility_and_confidence_are_those_of_the_model(predictor, frames, support):
    """The predictor only says whether visibility is above 0.9; the model says what it is."""
    (row, *_) = rows_of(predictor, frames, recipe(support_grid=support))
    video = torch.nn.functional.interpolate(
        as_video(frames[: LENGTH * STEP + 1 : STEP])[0], predictor.interp_shape, mode="bilinear", align_corners=True
    )[None]
    height, width = SIZE
    points = torch.from_numpy(row.positions[:, 0]).float() * torch.tensor([511 / (width - 1), 383 / (height - 1)])
    points = torch.cat([points, torch.from_numpy(support_points(support, (384, 512))).float()])
    queries = torch.cat([torch.zeros(len(points), 1), points], dim=1)[None]
    with torch.no_grad():
        tracks, visibility, confidence, _ = predictor.model(video, queries, iters=6)
    count = len(row.positions)
    tracks = tracks[0, :, :count].permute(1, 0, 2).numpy() / np.array([511 / (width - 1), 383 / (height - 1)])
    np.testing.assert_allclose(row.positions[:, 1:], tracks[:, 1:], atol=0.01, rtol=0)
    assert visibility.std() > 0.003, "they must differ for this to mean anything"
    np.testing.assert_allclose(row.visibility, visibility[0, :, :count].T, atol=1e-4, rtol=0)
    np.testing.assert_allclose(row.confidence, confidence[0, :, :count].T, atol=1e-4, rtol=0)


def test_points_may_be_given_in_any_frame(predictor, frames):
    """As `evaluate-tracks` gives them; some lie at and beyond the border."""
    video = torch.nn.functional.interpolate(as_video(frames[:5])[0], (384, 512))[None]
    queries = torch.tensor([[0, 100.5, 50.25], [3, 511.0, 383.0], [4, 0.0, 0.0], [2, 509.9, 3.3], [1, -6.0, 390.0]])
    with torch.no_grad():
        tracks, visibility, confidence, _ = predictor.model(video, queries[None], iters=6)
    net = network(predictor)
    features = net.new_features(5)
    features.put(range(5), net.pyramid(video[0].permute(0, 2, 3, 1).to(torch.uint8)))
    found = net.track(features, torch.tensor([features.places(range(5))]), queries[None])
    np.testing.assert_allclose(found.points[0].permute(1, 0, 2), tracks[0], atol=0.01, rtol=0)
    np.testing.assert_allclose(found.visibility[0].T, visibility[0], atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.confidence[0].T, confidence[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("offline", "window"), [(True, 60), (False, 16)])
def test_a_file_of_weights_is_loaded_into_the_package_s_model(tmp_path, offline, window):
    """And has what we use of it: the stand-in of other tests may not drift away from the package."""
    from cotracker.models.build_cotracker import build_cotracker

    with torch.random.fork_rng():
        torch.manual_seed(5)
        weights = build_cotracker(None, offline=offline, window_len=window).state_dict()
    torch.save({"model": weights}, tmp_path / "weights.pth")
    model = load_model(tmp_path / "weights.pth")
    assert all(torch.equal(values, weights[name]) for name, values in model.state_dict().items())
    assert model.time_emb.shape == (1, window, model.updateformer.input_transform.in_features)
    net = CoTracker3(model, torch.device("cpu"))
    assert (net.resolution, net.stride, net.radius, net.channels) == ((384, 512), 4, 3, 128)
    assert net.sizes == [(96, 128), (48, 64), (24, 32), (12, 16)]


def test_support_points_are_the_package_s():
    from cotracker.models.core.model_utils import get_points_on_a_grid

    for side in (1, 2, 6):
        expected = get_points_on_a_grid(side, (384, 512))[0].reshape(-1, 2)
        np.testing.assert_allclose(support_points(side, (384, 512)), expected, rtol=1e-6)


def test_the_built_in_grid_is_not_centred_on_patches():
    """Why points are given one by one: the package's own grid is up to 4.4 px off at 224."""
    from cotracker.models.core.model_utils import get_points_on_a_grid

    built_in = get_points_on_a_grid(14, (384, 512))[0].reshape(14, 14, 2).numpy() * [223 / 511, 223 / 383]
    y, x = np.mgrid[0:14, 0:14] * 16 + 7.5
    off = np.abs(built_in - np.stack([x, y], axis=-1)).max()
    assert 3.5 < off < 5


def test_points_of_a_video_are_those_of_the_evaluation(predictor):
    """`EvaluationPredictor`, one query at a time with its own surroundings: visibility * confidence above 0.6."""
    from cotracker.models.evaluation_predictor import EvaluationPredictor

    from extraction.evaluation.cotracker_points import CoTrackerPoints

    frames = random_scene(6, 1.0, SIZE).frames(4)
    queries = np.array([[0, 30.0, 20.5], [2, 71.25, 44.0]])
    official = EvaluationPredictor(predictor.model, grid_size=5, local_grid_size=8, single_point=True, n_iters=6)
    with torch.no_grad():
        tracks, certain = official(as_video(frames), torch.from_numpy(queries).float()[None])
    positions, visible = CoTrackerPoints(network(predictor)).track(frames, queries)
    given = np.zeros((2, 4), bool)
    given[[0, 1], [0, 2]] = True
    expected = tracks[0].permute(1, 0, 2).numpy()
    np.testing.assert_allclose(positions[~given], expected[~given], atol=0.01, rtol=0)
    np.testing.assert_array_equal(positions[given], queries[:, 1:])
    np.testing.assert_array_equal(visible, (certain[0].T.numpy() > 0.6) | given)
