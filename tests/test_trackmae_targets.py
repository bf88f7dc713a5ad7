"""TrackMAE's targets from a store, against what its formula gives by hand on rendered motion.

A token (t, h, w) predicts step t of the trajectories that begin in its patch in the clip's first frame. Each test of
something that released codes get wrong shows as well that it would find it.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional
from tracked_stores import TRACKMAE, Film, make_tracked_store

from data_specs.geometry import grid_points
from data_specs.scene import Disc, Scene, moving, still
from data_specs.view import View
from training.losses import squared_errors
from training.reading.clips import ClipDataset
from training.reading.multi_scale_crop import multi_scale_crop
from training.reading.track_reader import TrackReader
from training.recipe import HeadOptions, PretrainRecipe
from training.targets import compute_targets

FRAMES, STEP, STEPS, TUBELETS = 61, 8, 7, 8
TIMES = list(range(0, 64, 4))
SIZE = (144, 208)
UNIT = 1 / 64
RECIPE = PretrainRecipe(
    name="test",
    heads={"displacement": HeadOptions(normalise="none")},
    frames=16,
    clip_stride=4,
    input_size=128,
    flip=False,
    anchoring="clip",
    remove_camera=False,
)
POINTS = 16  # along either side of the view
CENTRES = 8 * np.arange(POINTS) + 3.5
WHOLE = View(top=8, left=80, height=128, width=128, size=(128, 128))  # the points lie on the grid of stride 8
VIEWS = {
    "as it is": dataclasses.replace(WHOLE, top=11, left=53),
    "larger": View(top=21, left=40, height=100, width=116, size=(128, 128)),
    "smaller and mirrored": View(top=4, left=29, height=139, width=133, size=(128, 128), flip=True),
}


def plain(points):
    """A surface of one grey, where only motion counts."""
    return np.full((*points.shape[:-1], 3), 128.0)


PAN = (0.75, -0.5)
CENTRE, RADIUS, VELOCITY, TURN = (80.0, 72.0), 58, (0.5, 0.25), 0.01
ZOOM_CENTRE = (103.5, 71.5)
ZOOM = 7 / 8  # per step; no point leaves the frame, and the first two steps are whole units of the store
SCENES = {
    "pan.avi": Scene(size=SIZE, background=plain, camera=moving(PAN)),
    "still.avi": Scene(size=SIZE, background=plain, camera=still),
    "object.avi": Scene(
        size=SIZE,
        background=plain,
        camera=still,
        discs=(Disc(texture=plain, centre=CENTRE, radius=RADIUS, motion=moving(VELOCITY, about=CENTRE, turn=TURN)),),
    ),
    "zoom.avi": Scene(size=SIZE, background=plain, camera=moving(about=ZOOM_CENTRE, zoom=ZOOM ** (1 / STEP))),
}
COVERED = Scene(
    size=SIZE,
    background=plain,
    camera=moving((0.25, 0)),
    discs=(Disc(texture=plain, centre=(60, 70), radius=22, motion=moving((2.0, 0))),),
)


def extract(folder, scenes, alter=None, **fields):
    """A store of the true tracks of `scenes`, by names of videos, in a new folder."""
    films = {name: Film((scene, FRAMES)) for name, scene in scenes.items()}
    return make_tracked_store(folder, films, dataclasses.replace(TRACKMAE, **fields), alter=alter)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return {stride: extract(tmp_path_factory.mktemp("s"), SCENES, grid_stride=stride) for stride in (16, 8)}


def motion_of(store, name, view, recipe=RECIPE, times=TIMES):
    """Displacements (t, Gh, Gw, 2) of a clip, and where they are valid (t, Gh, Gw)."""
    dataset = ClipDataset(store, store.parent / "videos", recipe)
    video = next(v for v in dataset.reader.videos if v.path == name)
    arrays = {key: values[0] for key, values in dataset.motion.empty(1).items()}
    dataset.motion.fill(arrays, video, times, view)
    assert arrays["displacement"].shape[3] == 1
    return arrays["displacement"][:, :, :, 0], arrays["displacement_valid"][:, :, :, 0]


def target_of(steps, valid, normalise="none"):
    """The target of every token, values (N, K, 2) and weights (N, K)."""
    recipe = dataclasses.replace(RECIPE, heads={"displacement": HeadOptions(normalise=normalise)})
    batch = {
        "displacement": torch.from_numpy(steps)[None, :, :, :, None],
        "displacement_valid": torch.from_numpy(valid)[None, :, :, :, None],
        "predict": torch.arange(TUBELETS * 64)[None],
    }
    return compute_targets(batch, recipe)["displacement"]


def patches(field):
    """(t, Gh, Gw, ...) to (t, h, w, K, ...), the points of a patch row-major, written out."""
    return np.stack([field[:, i::2, j::2] for i in range(2) for j in range(2)], axis=3)


def in_frame(view):
    """Where the centres of the view's 8 x 8 cells are in the frame, (Gh, Gw, 2), by the half-pixel rule."""
    x = 127 - CENTRES if view.flip else CENTRES
    x = (x + 0.5) * view.width / 128 - 0.5 + view.left
    y = (CENTRES + 0.5) * view.height / 128 - 0.5 + view.top
    return np.stack(np.meshgrid(x, y), axis=-1)


def in_view(steps, view):
    """Displacements of the frame as the view has them."""
    return np.asarray(steps) * [(-1 if view.flip else 1) * 128 / view.width, 128 / view.height]


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("stride", [16, 8])
def test_a_pan_and_a_still_scene(stores, stride, view):
    """Every token has the pan's step, in pixels of the view, until its trajectories leave the frame."""
    nearest = np.rint((in_frame(view) - (stride - 1) / 2) / stride) * stride + (stride - 1) / 2
    for name, velocity in ("pan.avi", PAN), ("still.avi", (0.0, 0.0)):
        steps, valid = motion_of(stores[stride], name, view)
        expected = in_view(np.array(velocity) * STEP, view)
        for t in range(TUBELETS):
            end = nearest + np.array(velocity) * STEP * (t + 1)
            inside = (end >= 0).all(-1) & (end <= [SIZE[1] - 1, SIZE[0] - 1]).all(-1)
            np.testing.assert_array_equal(valid[t], inside & (t < STEPS))
        np.testing.assert_allclose(steps[valid], np.broadcast_to(expected, (valid.sum(), 2)), atol=1e-5)
        assert 0.6 < valid.mean() < 0.88
        assert (steps[~valid] == 0).all()


@pytest.mark.parametrize("stride", [16, 8])
def test_patch_norm_makes_a_pan_a_still_scene_and_leaves_it_in_the_loss(stores, stride):
    for name in ("pan.avi", "still.avi"):
        steps, valid = motion_of(stores[stride], name, WHOLE)
        target = target_of(steps, valid, "patch")
        np.testing.assert_array_equal(target.values.numpy(), 0)
        weights = np.broadcast_to(target.weights.numpy()[0, :, :, 0], (TUBELETS * 64, 4, 2))
        alone = patches(valid).sum(3, keepdims=True) < 2  # one value has no deviation
        np.testing.assert_array_equal(weights[..., 0] == 1, (patches(valid) & ~alone).reshape(-1, 4))


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("view", [WHOLE, *(dataclasses.replace(VIEWS[name], left=74) for name in list(VIEWS)[1:])])
def test_a_moving_object(stores, stride, view):
    """On the disc, translation and rotation by the formula; beside it, nothing; both standardised as the paper does."""
    where = in_frame(view)
    offset, distance = where - CENTRE, np.linalg.norm(where - CENTRE, axis=-1)
    angles = TURN * STEP * np.arange(TUBELETS + 1)
    cosine, sine = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    turned = np.stack(
        [cosine * offset[..., 0] - sine * offset[..., 1], sine * offset[..., 0] + cosine * offset[..., 1]], axis=-1
    )
    truth = in_view(np.array(VELOCITY) * STEP + np.diff(turned, axis=0), view)
    truth[:, distance > RADIUS] = 0
    steps, valid = motion_of(stores[stride], "object.avi", view)
    known = valid & (np.abs(distance - RADIUS) > stride * 1.5)  # all four neighbours are of one surface
    tolerance = UNIT * max(view.scale)
    assert np.abs(steps - truth)[known].max() < tolerance
    unscaled, mirrored = steps / view.scale, steps * [-1, 1]
    if view is not WHOLE:  # each of the released code's ways is outside of the tolerance
        assert np.abs(unscaled - truth)[known].max() > 10 * tolerance
        assert not view.flip or np.abs(mirrored - truth)[known].max() > 5
    whole = patches(known).all(3)
    moves = whole & (patches(np.abs(truth)).max((3, 4)) > 0)
    assert moves.sum() > 7 * 4 and (whole & ~moves).sum() > 7 * 4
    x = patches(truth)
    expected = (x - x.mean(3, keepdims=True)) / (x.std(3, ddof=1, keepdims=True) + 1e-6)
    target = target_of(steps, valid, "patch")
    values = target.values.numpy()[0, :, :, 0].reshape(TUBELETS, 8, 8, 4, 2)
    # four points 8 px apart on a turning disc differ by 0.6 px; the store's unit is 0.016
    np.testing.assert_allclose(values[moves], expected[moves], atol=0.1)
    np.testing.assert_array_equal(values[whole & ~moves], 0)
    assert (np.abs(expected[moves]).max((1, 2)) > 0.8).all()


def positions_by(steps, view, step):
    """Where a zoom by ZOOM per step about ZOOM_CENTRE has such displacements (Gh, Gw, 2), in pixels of the frame."""
    of_frame = steps / in_view(np.ones(2), view)
    return of_frame / (ZOOM ** (step + 1) - ZOOM**step) + ZOOM_CENTRE


def assert_patch_centred(positions, where, seen):
    """Positions (Gh, Gw, 2) are `where` they should be, to 0.01 px, as far as they are seen."""
    assert np.abs(positions - where)[seen].max() < 0.01


@pytest.mark.parametrize("stride", [16, 8])
def test_positions_are_patch_centred_at_any_crop(stores, stride):
    """A zoom's displacement tells where it was measured: in the centre of each 8 x 8 cell, to 0.01 px."""
    rng = np.random.default_rng(0)
    views = [multi_scale_crop(SIZE, (128, 128), (1.0, 0.875, 0.75, 0.66), True, rng) for _ in range(24)]
    assert len({(v.top, v.left, v.height, v.width, v.flip) for v in views}) > 20
    compared = 0
    for view in views:
        steps, valid = motion_of(stores[stride], "zoom.avi", view)
        where = in_frame(view)
        for t in range(2):
            seen = on_grid(where, stride)
            assert valid[t].all()
            compared += seen.sum()
            assert_patch_centred(positions_by(steps[t], view, t), where, seen)
    assert compared > 2 * 24 * 200


def on_grid(where, stride):
    """Whether points (..., 2) of the frame lie among those of its grid: beyond the outermost ones, theirs is taken."""
    last = np.array(SIZE[::-1]) - (stride + 1) / 2
    return (where >= (stride - 1) / 2).all(-1) & (where <= last).all(-1)


def test_the_papers_up_sampling_is_ours_but_for_its_aligned_corners(stores):
    """Twice as dense by PyTorch: with the half-pixel rule what we have; with corners aligned, somewhere else."""
    reader = TrackReader(stores[16])
    video = next(v for v in reader.videos if v.path == "zoom.avi")
    field = reader.rows(video, [0], hog=False, remove_camera=False)[0]
    assert field.displacement.shape[:2] == (9, 13)
    whole = torch.from_numpy(field.displacement[:, :, 0]).permute(2, 0, 1)[None]

    def doubled(align_corners):
        twice = functional.interpolate(whole, scale_factor=2, mode="bilinear", align_corners=align_corners)
        return twice[0].permute(1, 2, 0).numpy()[1:17, 10:26]

    ours, _ = motion_of(stores[16], "zoom.avi", WHOLE)
    seen = on_grid(in_frame(WHOLE), 16)
    np.testing.assert_allclose(ours[0], doubled(False), atol=1e-5)
    assert_patch_centred(positions_by(ours[0], WHOLE, 0), in_frame(WHOLE), seen)
    with pytest.raises(AssertionError):
        assert_patch_centred(positions_by(doubled(True), WHOLE, 0), in_frame(WHOLE), seen)
    centres = 16 * torch.arange(14.0) + 7.5  # of a view of 224 pixels
    aligned = functional.interpolate(centres[None, None], size=28, mode="linear", align_corners=True)[0, 0]
    assert (aligned - (8 * torch.arange(28.0) + 3.5)).abs().max() == 4


def built_in_grid(size, rows, columns):
    """CoTracker's own grid in a frame of `size`: from margin to margin of its input of 384 x 512, corners aligned."""
    y, x = (
        np.linspace(512 / 64, side - 512 / 64, n) * (length - 1) / (side - 1)
        for side, n, length in ((384, rows, size[0]), (512, columns, size[1]))
    )
    return np.stack(np.meshgrid(x, y), axis=-1)


def test_cotrackers_built_in_grid_would_be_found(tmp_path):
    """It is 4.4 px off at 224 pixels, and as much here."""
    centres = 16 * np.arange(14) + 7.5
    assert np.abs(built_in_grid((224, 224), 14, 14)[0, :, 0] - centres).max() == pytest.approx(4.4, abs=0.05)
    queries, points = built_in_grid(SIZE, 9, 13).reshape(-1, 2), grid_points(SIZE, 16)
    assert (np.abs(queries - points).max(0) > 4.4).all()

    def of_other_points(row):
        positions, _ = SCENES["zoom.avi"].track(queries, row.start, STEPS, STEP)
        return dataclasses.replace(row, positions=points[:, None] + (positions - positions[:, :1]))

    store = extract(tmp_path, {"zoom.avi": SCENES["zoom.avi"]}, of_other_points)
    steps, valid = motion_of(store, "zoom.avi", WHOLE)
    positions, seen = positions_by(steps[0], WHOLE, 0), valid[0] & on_grid(in_frame(WHOLE), 16)
    with pytest.raises(AssertionError):
        assert_patch_centred(positions, in_frame(WHOLE), seen)
    assert np.abs(positions - in_frame(WHOLE))[seen].max() > 2


@pytest.mark.parametrize("normalise", ["none", "patch", "clip"])
def test_the_last_tubelet_has_no_step_and_none_is_invented(stores, normalise):
    """Eight tubelets have seven steps between them: what the eighth predicts is in no loss."""
    steps, valid = motion_of(stores[8], "zoom.avi", WHOLE)
    target = target_of(steps, valid, normalise)
    last = torch.arange(TUBELETS * 64)[:, None, None, None] >= 7 * 64
    assert target.weights[0, 7 * 64 :].max() == 0
    assert target.weights[0, : 7 * 64].min() == 1
    assert loss(target, last) == 0
    # the released code repeats the seventh step: in a zoom it is not what comes next
    repeated, as_valid = steps.copy(), valid.copy()
    repeated[7], as_valid[7] = repeated[6], as_valid[6]
    assert loss(target_of(repeated, as_valid, normalise), last) > 0
    start = in_frame(WHOLE).reshape(-1, 2)
    positions, _ = SCENES["zoom.avi"].track(start, 0, 8, STEP)
    next_step = (positions[:, 8] - positions[:, 7]).reshape(POINTS, POINTS, 2)
    assert np.linalg.norm(repeated[7] - next_step, axis=-1).max() > 0.4


def loss(target, values):
    """By how much the sum of squared errors changes with what is predicted for some `values`, bool (N, K, L, 2)."""
    predicted = torch.zeros(target.values.shape)
    other = torch.where(values, 3.0, predicted)
    a, b = (
        squared_errors({"displacement": x.flatten(2)}, {"displacement": target})["displacement"]
        for x in (predicted, other)
    )
    return abs(float(a - b))


def carried_off(row):
    """What a tracker may say of points that it does not see."""
    return dataclasses.replace(row, positions=row.positions + ~row.valid[..., None] * [40, -25])


def assert_as_seen(steps, valid, where):
    """Displacements (t, Gh, Gw, 2) of points (Gh, Gw, 2) of COVERED are the truth where both ends of a step are seen,
    and count nowhere else."""
    positions, visible = COVERED.track(where.reshape(-1, 2), 0, STEPS, STEP)
    both = (visible[:, :-1] & visible[:, 1:]).T.reshape(STEPS, *where.shape[:2])
    np.testing.assert_array_equal(valid, np.append(both, np.zeros_like(both[:1]), axis=0))
    truth = np.diff(positions, axis=1).swapaxes(0, 1).reshape(STEPS, *where.shape)
    np.testing.assert_allclose(steps[:STEPS][both], truth[both], atol=UNIT)


def test_what_a_tracker_says_of_hidden_points_never_counts_and_they_come_back(tmp_path):
    """A disc passes in front: steps to and from where a point is hidden leave the loss; later ones are in it again."""

    def ignoring_that(row):  # as the released code does
        return dataclasses.replace(carried_off(row), valid=np.ones_like(row.valid))

    store, ignoring = (
        extract(tmp_path / alter.__name__, {"covered.avi": COVERED}, alter, grid_stride=8)
        for alter in (carried_off, ignoring_that)
    )
    steps, valid = motion_of(store, "covered.avi", WHOLE)
    assert_as_seen(steps, valid, in_frame(WHOLE))
    again = np.append(valid[:1] & False, ~valid[:-1] & valid[1:], axis=0)
    assert again.any(0).sum() > 12
    never, returned = (torch.from_numpy(patches(flags).reshape(1, -1, 4, 1, 1)) for flags in (~valid, again))
    for normalise in ("none", "patch"):
        target = target_of(steps, valid, normalise)
        assert loss(target, never) == 0
        assert loss(target, returned) > 0
    steps, valid = motion_of(ignoring, "covered.avi", WHOLE)
    with pytest.raises(AssertionError):
        assert_as_seen(steps, valid, in_frame(WHOLE))
    assert np.linalg.norm(steps, axis=-1)[valid].max() > 40


def test_hidden_points_take_no_part_in_those_between_them(tmp_path):
    """From a grid of stride 16: nothing of what is said of hidden points is in what is interpolated."""
    store = extract(tmp_path, {"covered.avi": COVERED}, carried_off)
    for view in (WHOLE, *VIEWS.values()):
        steps, valid = motion_of(store, "covered.avi", view)
        assert 0.6 < valid.mean() < 0.875
        of_frame = steps[valid] / in_view(np.ones(2), view)
        # between the camera's 2 px and the disc's 18 px
        assert of_frame[:, 0].min() > 2 - UNIT and of_frame[:, 0].max() < 18 + UNIT
        assert np.abs(of_frame[:, 1]).max() < UNIT


def test_the_cameras_part_is_taken_out_of_tracks(tmp_path):
    """A pan of 6 px per step over which a disc moves by 4: in the store 10 px, to a recipe without the camera 4."""
    disc = Disc(texture=plain, centre=(60, 70), radius=40, motion=moving((0.5, 0)))
    scene = Scene(size=SIZE, background=plain, camera=moving((0.75, 0)), discs=(disc,))
    store = extract(tmp_path, {"pan.avi": scene}, remove_camera=True)
    view = VIEWS["smaller and mirrored"]
    distance = np.linalg.norm(in_frame(view) - (60, 70), axis=-1)
    for remove_camera, pan in (True, 0), (False, 6):
        steps, valid = motion_of(store, "pan.avi", view, dataclasses.replace(RECIPE, remove_camera=remove_camera))
        for where, velocity in (distance < 40 - 23, pan + 4), (distance > 40 + 23, pan):
            found = steps[valid & where]
            assert len(found) > 50
            np.testing.assert_allclose(found, np.broadcast_to(in_view([velocity, 0], view), found.shape), atol=UNIT)
