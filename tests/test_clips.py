"""Clips and their motion: rendered videos, extracted, stored, cropped, resized, flipped, against the scene's truth."""

import dataclasses
import itertools
import multiprocessing
import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch
from stores import only_file

from data_specs.clip_frames import ClipFrames
from data_specs.demo_clips import write_clip
from data_specs.geometry import apply_homography
from data_specs.scene import Disc, Scene, Texture, moving
from data_specs.track_store import StoreError
from data_specs.view import View
from extraction.cli import main as extract
from training.image_hog import image_hog
from training.reading.clips import ClipDataset, Skipped, clip_loader
from training.reading.resampling import view_points
from training.reading.store_fit import StoreFitError
from training.recipe import HeadOptions, PretrainRecipe
from training.step_batches import StepBatches
from training.targets import compute_targets

STEPS = 6
SCENE = Scene(
    size=(112, 160),
    background=Texture(2, shortest=8),
    camera=moving((0.9, -0.4), about=(80, 56), zoom=1.002),
    discs=(
        Disc(texture=Texture(3, shortest=4, longest=30), centre=(60, 60), radius=26, motion=moving((1.6, 0.5))),
        Disc(texture=Texture(4, shortest=4, longest=30), centre=(120, 40), radius=20, motion=moving((-1.2, 1.0))),
    ),
    noise=1.0,
)
NAMES = ("scene.avi", "mirrored.avi", "tall.avi", "short.avi")
TALL = dataclasses.replace(SCENE, size=(136, 88), seed=1)

RECIPE = PretrainRecipe(
    name="test",
    heads={"displacement": HeadOptions(), "trajectory_hog": HeadOptions()},
    frames=8,
    clip_stride=4,
    input_size=96,
    flip=True,
)
GRID = RECIPE.point_grid


class Mirrored:
    """A scene in the mirror, as far as `write_clip` looks at it."""

    size = SCENE.size

    def render(self, t):
        return np.ascontiguousarray(SCENE.render(t)[:, ::-1])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, scene, frames in zip(NAMES, (SCENE, Mirrored(), TALL, SCENE), (44, 24, 40, 18), strict=True):
        write_clip(folder / name, scene, frames)
    (folder / "list.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return folder


def extracted(root, out, shards=2, **fields):
    text = "extends: mme-object\nname: test\nflow: tvl1-fast\nstart_stride: 4\n"
    recipe = out.with_suffix(".yaml")
    recipe.write_text(text + "".join(f"{k}: {v}\n" for k, v in fields.items()), encoding="utf-8")
    options = ["--shards", str(shards), "--recipe", str(recipe), "--out", str(out), "--executor", "local"]
    assert extract(["--dataset", str(root / "list.txt"), "--root", str(root), *options]) == 0
    return out


@pytest.fixture(scope="module")
def store(root, tmp_path_factory):
    return extracted(root, tmp_path_factory.mktemp("store") / "s.tracks", descriptors="[flow, hof, mbh]")


@pytest.fixture(scope="module")
def dataset(root, store):
    return ClipDataset(store, root, RECIPE, seed=5)


def video_called(dataset, name):
    return next(v for v in dataset.reader.videos if v.path == name)


def samples(dataset, name, count):
    """So many samples of one video."""
    found = (dataset[p] for p in itertools.count() if dataset.reader.videos[dataset.stream[p].video].path == name)
    return [alone(batch) for batch in itertools.islice(found, count)]


def alone(batch):
    """The one clip of a batch, without the axis of clips."""
    return {
        name: values[0].numpy() if name != "clip" else values[0] for name, values in batch.items() if name != "skipped"
    }


def motion_of(dataset, video, times, view):
    """The motion of a clip that shows these frames through this view: (len(times) / 2, Gh, Gw, ...)."""
    arrays = {name: values[0, : len(times) // 2] for name, values in dataset.motion.empty(1).items()}
    dataset.motion.fill(arrays, video, times, view)
    return arrays


def true_steps(scene, view, start):
    """Displacements (Gh, Gw, L, 2) in the view, without the camera, and whether their points are seen throughout."""
    where = view.to_frame(view_points(view.size, GRID)).reshape(-1, 2)
    positions, visible = scene.track(where, start, STEPS)
    steps = []
    for k in range(STEPS):
        camera = scene.homography(start + k, start + k + 1)
        home = apply_homography(np.linalg.inv(camera), positions[:, k + 1])
        steps.append(view.to_view(home) - view.to_view(positions[:, k]))
    seen = np.logical_and.accumulate(visible, axis=1)
    return np.stack(steps, 1).reshape(*GRID, STEPS, 2), (seen[:, :-1] & seen[:, 1:]).reshape(*GRID, STEPS)


@pytest.mark.parametrize(("name", "scene"), [("scene.avi", SCENE), ("tall.avi", TALL)])
def test_displacements_are_the_scenes_in_every_view(dataset, name, scene):
    """Through crop, anisotropic resize and flip; and no other way of scaling, flipping or ordering axes would do."""
    errors, wrong, flips, shapes = [], {}, set(), set()
    for sample in samples(dataset, name, 10):
        clip = sample["clip"]
        flips.add(clip.view.flip)
        shapes.add((clip.view.height, clip.view.width))
        for t in range(4):
            truth, seen = true_steps(scene, clip.view, clip.start + 8 * t)
            ok = sample["displacement_valid"][t] & seen
            if not ok.any():
                continue
            errors.append(np.linalg.norm(sample["displacement"][t][ok] - truth[ok], axis=-1))
            ok &= np.linalg.norm(truth, axis=-1) > 0.5
            found, truth = sample["displacement"][t][ok], truth[ok]
            unscaled = found / np.array(clip.view.scale)
            for what, other in [
                ("right", found),
                ("x and y swapped", found[:, ::-1]),
                ("not scaled", unscaled),
                ("scaled by the other axis", unscaled * np.array(clip.view.scale[::-1])),
                ("not mirrored", found * [-1 if clip.view.flip else 1, 1]),
            ]:
                wrong.setdefault(what, []).append(np.linalg.norm(other - truth, axis=-1))
    assert flips == {True, False}
    assert any(height != width for height, width in shapes)
    error = np.concatenate(errors)
    assert len(error) > 5000
    assert np.median(error) < 0.08
    assert np.quantile(error, 0.9) < 0.6  # points at the discs' edges
    of_moving = {what: np.median(np.concatenate(values)) for what, values in wrong.items()}
    assert of_moving.pop("right") < 0.75 * min(of_moving.values()), of_moving


def test_the_background_is_still_and_the_disc_moves_as_it_does(dataset):
    """A number for the eye: on the disc 1.6 px per frame to the right, times the view's scale; beside it nothing."""
    for sample in samples(dataset, "scene.avi", 4):
        view, start = sample["clip"].view, sample["clip"].start
        where = view.to_frame(view_points(view.size, GRID))
        layer = SCENE.layers(where, start)
        steps, valid = sample["displacement"][0][:, :, 0], sample["displacement_valid"][0][:, :, 0]
        mirrored = np.array([-1 if view.flip else 1, 1])
        for number, velocity in [(0, (0, 0)), (1, (1.6, 0.5)), (2, (-1.2, 1.0))]:
            chosen = valid & (layer == number)
            if chosen.sum() > 12:
                expected = np.array(velocity) * view.scale * mirrored
                # at a disc's edge the measured flow is slower; the camera's zoom makes all a little faster
                np.testing.assert_allclose(np.median(steps[chosen], axis=0), expected, atol=0.25)


def test_the_video_in_the_mirror_has_the_mirrored_targets(dataset):
    """Extracted from a mirrored video, or mirrored on the way to the model: the same motion and histograms."""
    heads = {name: HeadOptions() for name in ("displacement", "trajectory_hog", "flow", "hof", "mbh")}
    dataset = ClipDataset(dataset.reader.path, dataset.root, dataclasses.replace(RECIPE, heads=heads))
    crop = dict(top=5, height=90, width=104, size=(96, 96))
    left = 13
    original = View(left=left, **crop, flip=True)
    mirror = View(left=160 - left - crop["width"], **crop)
    times = [0, 4, 8, 12]  # of two tubelets
    a = motion_of(dataset, video_called(dataset, "scene.avi"), times, original)
    b = motion_of(dataset, video_called(dataset, "mirrored.avi"), times, mirror)
    both = a["displacement_valid"] & b["displacement_valid"]
    assert both.mean() > 0.7
    assert (a["displacement_valid"] == b["displacement_valid"]).mean() > 0.97
    assert np.median(np.abs(a["displacement"] - b["displacement"])[both]) < 0.03
    hog = both[..., 0]
    # step 0 lies on the grid: but for the decoder and the coding nothing is different
    size = a["trajectory_hog"][..., 0, :][hog].mean()
    assert np.abs(a["trajectory_hog"] - b["trajectory_hog"])[..., 0, :][hog].mean() < 0.03 * size
    assert np.abs(a["trajectory_hog"] - b["trajectory_hog"])[both].mean() < 0.06 * size
    unmirrored = np.abs(a["trajectory_hog"][..., ::-1] - b["trajectory_hog"])[both].mean()
    assert unmirrored > 0.2 * size
    cells = a["cell_valid"] & b["cell_valid"]
    assert cells.mean() > 0.7
    for name in ("flow", "hof", "mbh"):
        size = np.abs(b[name][cells]).mean()
        assert np.abs(a[name] - b[name])[cells].mean() < 0.25 * size, name


class Seen:
    """A scene through a view, made with OpenCV, as far as `write_clip` looks at it."""

    def __init__(self, scene, view):
        self.scene, self.view, self.size = scene, view, view.size

    def render(self, t):
        v = self.view
        crop = self.scene.render(t)[v.top : v.top + v.height, v.left : v.left + v.width]
        shown = cv2.resize(crop, v.size[::-1], interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(shown[:, ::-1] if v.flip else shown)


@pytest.mark.parametrize("flip", [False, True])
def test_tracks_of_the_transformed_video_are_the_transformed_tracks(dataset, tmp_path, flip):
    """80 x 128 pixels, resized to 96 x 96: extracted from such a video, or from the whole one and then transformed."""
    view = View(top=16, left=20, height=80, width=128, size=(96, 96), flip=flip)
    write_clip(tmp_path / "seen.avi", Seen(SCENE, view), 16)
    (tmp_path / "list.txt").write_text("seen.avi", encoding="utf-8")
    of_seen = ClipDataset(extracted(tmp_path, tmp_path / "s.tracks", shards=1), tmp_path, RECIPE)
    times = [0, 4, 8, 12]  # of two tubelets
    a = motion_of(dataset, video_called(dataset, "scene.avi"), times, view)
    whole = View(top=0, left=0, height=96, width=96, size=(96, 96))
    b = motion_of(of_seen, video_called(of_seen, "seen.avi"), times, whole)
    both = a["displacement_valid"] & b["displacement_valid"]
    assert both.mean() > 0.8
    found, expected = a["displacement"][both], b["displacement"][both]
    moving = np.linalg.norm(expected, axis=-1) > 0.7
    assert moving.sum() > 500
    error = np.median(np.linalg.norm(found - expected, axis=-1)[moving])
    assert error < 0.2, "either flow is some hundredths of a pixel off, and the smaller picture has less detail"
    unscaled = found / np.array(view.scale)
    for what, other in [
        ("not scaled", unscaled),
        ("scaled by the other axis", unscaled * np.array(view.scale[::-1])),
        ("mirrored once too often", found * [-1, 1]),
        ("x and y swapped", found[:, ::-1]),
    ]:
        assert np.median(np.linalg.norm(other - expected, axis=-1)[moving]) > 1.5 * error, what


@pytest.mark.parametrize("flip", [False, True])
def test_histograms_are_those_of_the_frames_shown_and_in_their_unit(dataset, flip):
    """Where the view's grid is the store's and nothing is resized: the mean over the 8 x 8 pixels around each point."""
    video = video_called(dataset, "scene.avi")
    view = View(top=8, left=24, height=96, width=96, size=(96, 96), flip=flip)
    motion = motion_of(dataset, video, [8, 12], view)
    whole = View(top=0, left=0, height=112, width=160, size=(112, 160), flip=flip)
    with ClipFrames(dataset.root / video.path, source_size=(112, 160), num_frames=44, short_side=256) as reader:
        frame = torch.from_numpy(reader.read([8], whole))[None]
    pixels = image_hog(frame, cell=1)[0, 0]  # (112, 160, colour, 9)
    strongest = pixels.sum(-1).argmax(-1)[..., None, None].expand(-1, -1, 1, 9)
    of_pixels = pixels.gather(2, strongest)[:, :, 0]
    left = 160 - 24 - 96 if flip else 24
    expected = of_pixels[8:104, left : left + 96].reshape(12, 8, 12, 8, 9).mean((1, 3)).numpy()
    valid = motion["trajectory_hog_valid"][0, :, :, 0]
    assert valid.mean() > 0.95
    error = np.abs(motion["trajectory_hog"][0, :, :, 0] - expected)[valid]
    assert error.mean() < 0.01 * expected.mean(), "254 levels of the square root"


def test_frames_and_motion_are_of_the_same_view(dataset):
    """What is at a point of the first frame is at the end of its trajectory, camera and all, in the last."""
    recipe = dataclasses.replace(RECIPE, remove_camera=False, clip_stride=1, tubelet=8, frames=8, shuffle_frames=False)
    dataset = ClipDataset(dataset.reader.path, dataset.root, recipe, seed=1)
    kept, moved = [], []
    for sample in samples(dataset, "scene.avi", 4):
        valid = sample["displacement_valid"][0].all(-1)
        steps = sample["displacement"][0]
        start = view_points((96, 96), GRID)
        end = (start + steps.sum(2)).astype(np.float32)
        first, last = (sample["frames"][k].astype(np.float32) for k in (0, STEPS))
        inside = valid & (end >= 0).all(-1) & (end <= 95).all(-1)

        def look(image, points):
            return cv2.remap(image, np.float32(points[..., 0]), np.float32(points[..., 1]), cv2.INTER_LINEAR)

        moved.append(np.abs(look(last, end) - look(first, start))[inside].mean())
        kept.append(np.abs(look(last, start) - look(first, start))[inside].mean())
    assert np.mean(moved) < 0.35 * np.mean(kept)


def test_a_clip_past_the_end_repeats_the_last_frame_and_its_tokens_leave_the_loss(dataset):
    sample = samples(dataset, "short.avi", 1)[0]  # 18 frames; the clip spans 29
    assert sample["clip"].start == 0
    frames = sample["frames"]
    np.testing.assert_array_equal(frames[5], frames[6])
    np.testing.assert_array_equal(frames[5], frames[7])
    assert not np.array_equal(frames[4], frames[5])
    assert sample["displacement_valid"][:2].mean() > 0.5
    assert not sample["displacement_valid"][2:].any()
    batch = {name: torch.from_numpy(values)[None] for name, values in sample.items() if name != "clip"}
    target = compute_targets(batch, dataset.recipe)["displacement"]
    late = batch["predict"][0] >= 2 * 36
    assert late.any()
    assert target.weights[0][late].max() == 0
    assert target.weights[0][~late].mean() > 0.4


def test_everything_is_filled_whatever_was_there_before(root, store, tmp_path):
    """Also for a clip that runs past the end of its video, and for one that begins there."""
    names = ("displacement", "trajectory_hog", "flow", "hof", "mbh")
    anchored = extracted(root, tmp_path / "anchored.tracks", frame_step=8, length=2)
    for path, anchoring, heads in ((store, "tubelet", names), (anchored, "clip", names[:2])):
        recipe = dataclasses.replace(RECIPE, heads={name: HeadOptions() for name in heads}, anchoring=anchoring)
        dataset = ClipDataset(path, root, recipe)
        motion, video = dataset.motion, video_called(dataset, "scene.avi")
        for start, some in ((0, True), (24, True), (80, False)):
            times, view = list(range(start, start + 32, 4)), View(top=9, left=5, height=84, width=96, size=(96, 96))
            filled = []
            for before in (0, 255):
                arrays = {name: values[0] for name, values in motion.empty(1).items()}
                assert len(arrays) == (8 if anchoring == "tubelet" else 4)
                for values in arrays.values():
                    values.view(np.uint8)[...] = before  # NaN, where they are floats
                motion.fill(arrays, video, times, view)
                filled.append(arrays)
            for name, values in filled[0].items():
                np.testing.assert_array_equal(values.view(np.uint8), filled[1][name].view(np.uint8), err_msg=name)
                assert values.any() == some
                assert np.isfinite(values).all()


def test_anchored_at_the_clip_each_tubelet_takes_its_step(root, tmp_path):
    """TrackMAE's: token (t, h, w) takes step t of the trajectory that starts at (h, w) in the first frame."""
    store = extracted(root, tmp_path / "anchored.tracks", frame_step=8, length=2)
    recipe = dataclasses.replace(RECIPE, anchoring="clip", flip=False)
    dataset = ClipDataset(store, root, recipe, seed=3)
    assert dataset.motion.steps == 1
    sample = samples(dataset, "scene.avi", 1)[0]
    clip, video = sample["clip"], video_called(dataset, "scene.avi")
    assert sample["displacement"].shape == (4, *GRID, 1, 2)
    row = dataset.reader.rows(video, [clip.start], hog=True)[0]
    cell = ((clip.view.to_frame(view_points((96, 96), GRID)) - 3.5) / 8 + 0.5).astype(int)  # of the nearest grid point
    for t in range(4):
        if t < 2:
            steps = row.valid[:, :, t] & row.valid[:, :, t + 1]
            np.testing.assert_array_equal(sample["displacement_valid"][t, :, :, 0], steps[cell[..., 1], cell[..., 0]])
        else:  # nothing is invented past the last step
            assert not sample["displacement_valid"][t].any()
    speeds = [np.abs(sample["displacement"][t][sample["displacement_valid"][t]]).max() for t in range(2)]
    assert min(speeds) > 8  # eight frames' worth


def test_shuffled_frames_keep_their_own_motion(dataset):
    """Each tubelet's trajectories start in the frame that it begins with, wherever that frame has gone."""
    recipe = dataclasses.replace(RECIPE, shuffle_frames=True, flip=False)
    dataset = ClipDataset(dataset.reader.path, dataset.root, recipe, seed=2)
    sample = samples(dataset, "scene.avi", 1)[0]
    clip, video = sample["clip"], video_called(dataset, "scene.avi")
    reader = ClipFrames(dataset.root / video.path, source_size=(112, 160), num_frames=44, short_side=256)
    times = [clip.start + 4 * k for k in range(8)]
    ordered = reader.read(times, clip.view)
    order = [times[int(np.abs(ordered.astype(int) - f).sum((1, 2, 3)).argmin())] for f in sample["frames"]]
    assert sorted(order) == times
    assert order != times
    expected = motion_of(dataset, video, order, clip.view)
    np.testing.assert_array_equal(sample["displacement"], expected["displacement"])


def test_one_seed_gives_one_stream_whatever_the_workers(root, store, dataset):
    def batches(workers, seed=5, position=0):
        same = ClipDataset(store, root, RECIPE, seed=seed)
        loader = clip_loader(same, batch_size=3, workers=workers, position=position)
        return list(itertools.islice(loader, 4))

    alone, apart = batches(0), batches(2)
    for a, b in zip(alone, apart, strict=True):
        assert a["clip"] == b["clip"]
        assert all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor))
    assert [b["clip"] for b in batches(0, position=6)[:2]] == [b["clip"] for b in alone[2:]]
    assert [b["clip"] for b in batches(0, seed=6)] != [b["clip"] for b in alone]
    first_epoch = [clip.id for b in alone for clip in b["clip"]][:4]
    assert sorted(first_epoch) == sorted(NAMES)


def test_a_video_is_opened_once_for_its_clips(root, store, monkeypatch):
    opened = []

    class Counted(ClipFrames):
        def __init__(self, path, **options):
            opened.append(path)
            super().__init__(path, **options)

    monkeypatch.setattr("training.reading.clips.ClipFrames", Counted)
    dataset = ClipDataset(store, root, RECIPE, clips_per_video=3)
    batch = next(iter(clip_loader(dataset, batch_size=6)))
    assert len(opened) == 2
    assert [clip.repeat for clip in batch["clip"]] == [0, 1, 2] * 2
    assert len({(clip.start, clip.view) for clip in batch["clip"]}) > 2


def test_an_unreadable_video_is_skipped_by_name_and_nothing_takes_its_place(root, store, tmp_path):
    for name in NAMES:
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "tall.avi").unlink()
    (tmp_path / "short.avi").unlink()
    write_clip(tmp_path / "short.avi", TALL, 18)  # another video under the name
    dataset = ClipDataset(store, tmp_path, RECIPE, follow_links=True)
    batch = next(iter(clip_loader(dataset, batch_size=4)))
    assert sorted(clip.id for clip in batch["clip"]) == ["mirrored.avi", "scene.avi"]
    assert len(batch["frames"]) == 2
    reasons = {skipped.id: skipped.reason for skipped in batch["skipped"]}
    assert sorted(reasons) == ["short.avi", "tall.avi"]
    assert "no such file" in reasons["tall.avi"]
    assert "VideoChangedError" in reasons["short.avi"]
    was, now = ((folder / "short.avi").stat().st_size for folder in (root, tmp_path))
    assert f"has {now} bytes, the one that the track store was extracted from had {was}" in reasons["short.avi"]
    assert isinstance(pickle.loads(pickle.dumps(batch["skipped"][0])), Skipped)


def test_a_damaged_store_stops_the_loader_and_its_workers(root, store, tmp_path):
    """The workers ignore the signals by which Python ends what is left of them, and would keep it from ending."""
    damaged = shutil.copytree(store, tmp_path / "s")
    for shard in (damaged / "shards").iterdir():
        only_file(shard / "hog").unlink()
    before = set(multiprocessing.active_children())
    loader = clip_loader(ClipDataset(damaged, root, RECIPE), batch_size=2, workers=2)
    with (
        pytest.raises(StoreError, match=r"hog/c/.*: cannot be opened") as caught,
        StepBatches(loader, 1, torch.device("cpu")) as batches,
    ):
        assert len(set(multiprocessing.active_children()) - before) == 2
        batches.take()
    assert not set(multiprocessing.active_children()) - before
    assert caught.value.__traceback__ is not None  # the error is still held, as it is where nobody catches it


def test_a_mask_without_a_token_is_refused_before_anything_is_read(root, store):
    recipe = dataclasses.replace(RECIPE, heads={"pixels": HeadOptions()}, input_size=16)
    with pytest.raises(ValueError, match="4 visible and 0 predicted of the 4 x 1 x 1 tokens"):
        ClipDataset(store, root, recipe)


def test_an_incomplete_store_is_refused_unless_allowed(root, store, tmp_path):
    part = tmp_path / "part.tracks"
    (part / "shards").mkdir(parents=True)
    (part / "store.json").write_bytes((store / "store.json").read_bytes())
    shutil.copytree(store / "shards" / "00001.zarr", part / "shards" / "00001.zarr")
    with pytest.raises(StoreFitError, match=r"1 of its 2 shards.*--allow-incomplete"):
        ClipDataset(part, root, RECIPE)
    assert len(ClipDataset(part, root, RECIPE, allow_incomplete=True).reader.videos) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_stride": 3}, r"start_stride is 4.*3 = 6.*that fit this clip are 1, 2, 3, 6.*this store are 2, 4, 6"),
        ({"clip_stride": 2, "shuffle_frames": True}, r"clip stride 2 = 2.*this clip are 1, 2 .*this store are 4, 8"),
        ({"anchoring": "clip"}, r"frame_step is 1; extract with frame_step: 8"),
        ({"interpolate": False}, r"interpolate: false.*extract with frame_step: 4"),
        ({"trajectory_length": 7}, r"trajectory_length is 7, its trajectories have 6 steps"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(root, store, fields, message):
    with pytest.raises(StoreFitError, match=message):
        ClipDataset(store, root, dataclasses.replace(RECIPE, **fields))


def test_heads_that_the_store_cannot_serve_are_named_together(root, tmp_path):
    bare = extracted(root, tmp_path / "bare.tracks", hog="false", positions_in="stabilised")
    heads = {name: HeadOptions() for name in ("displacement", "trajectory_hog", "hof")}
    with pytest.raises(StoreFitError) as caught:
        ClipDataset(bare, root, dataclasses.replace(RECIPE, heads=heads, remove_camera=False))
    for part in ("hog: true", "descriptors: [hof]", "positions_in: image"):
        assert part in str(caught.value)


def test_pixels_need_nothing_of_the_store_but_its_videos(root, store):
    """The same clips through the same views as with motion, so that recipes can be compared."""
    recipe = dataclasses.replace(RECIPE, heads={"pixels": HeadOptions()})
    with_motion, without = ClipDataset(store, root, RECIPE, seed=5), ClipDataset(store, root, recipe, seed=5)
    a, b = alone(with_motion[2]), alone(without[2])
    assert a["clip"] == b["clip"]
    np.testing.assert_array_equal(a["frames"], b["frames"])
    assert "displacement" not in b
    ClipDataset(store, root, dataclasses.replace(recipe, clip_stride=3))


def test_fewer_steps_are_the_first_ones(root, store, dataset):
    shorter = ClipDataset(store, root, dataclasses.replace(RECIPE, trajectory_length=4), seed=5)
    assert shorter.motion.steps == 4
    few, all_of_them = alone(shorter[0]), alone(dataset[0])
    np.testing.assert_array_equal(few["displacement"], all_of_them["displacement"][..., :4, :])
    np.testing.assert_allclose(few["trajectory_hog"], all_of_them["trajectory_hog"][..., :4, :], rtol=1e-5)


def test_flow_grows_with_the_view_and_so_do_hofs_lengths(dataset):
    """At twice the size everything moves twice as far; still pixels stay as many, and gradients of flow as steep."""
    heads = {name: HeadOptions(normalise="none") for name in ("flow", "hof", "mbh")}
    video = video_called(dataset, "scene.avi")
    views = [View(top=8, left=16, height=96, width=96, size=(side, side)) for side in (96, 192)]
    recipes = [
        dataclasses.replace(RECIPE, heads=heads, input_size=side, points_per_side=points)
        for side, points in ((96, 2), (192, 1))
    ]
    small, large = (
        motion_of(ClipDataset(dataset.reader.path, dataset.root, recipe), video, [0, 4], view)
        for recipe, view in zip(recipes, views, strict=True)
    )
    cells = small["cell_valid"]
    assert cells.mean() > 0.7
    np.testing.assert_array_equal(large["cell_valid"], cells)
    np.testing.assert_allclose(large["flow"][cells], 2 * small["flow"][cells], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(large["hof"][cells][:, :8], 2 * small["hof"][cells][:, :8], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(large["hof"][cells][:, 8], small["hof"][cells][:, 8], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(large["mbh"][cells], small["mbh"][cells], rtol=1e-5, atol=1e-6)


def test_what_no_head_needs_is_not_read(root, store, tmp_path):
    """Shape alone, or short-term motion, comes from a store whose displacements and cameras are gone."""
    bare = shutil.copytree(store, tmp_path / "s")
    for shard in (bare / "shards").iterdir():
        only_file(shard / "displacement").unlink()
        only_file(shard / "camera" / "homography").unlink()
    for heads in (("trajectory_hog",), ("flow", "hof", "mbh")):
        recipe = dataclasses.replace(RECIPE, heads={name: HeadOptions() for name in heads})
        whole, part = (alone(ClipDataset(path, root, recipe, seed=5)[0]) for path in (store, bare))
        for name in heads:
            np.testing.assert_array_equal(part[name], whole[name])
    with pytest.raises(StoreError, match=r"camera/homography/c/.*: cannot be opened"):
        ClipDataset(bare, root, RECIPE, seed=5)[0]
    with pytest.raises(StoreError, match=r"displacement/c/.*: cannot be opened"):
        ClipDataset(bare, root, dataclasses.replace(RECIPE, remove_camera=False), seed=5)[0]
