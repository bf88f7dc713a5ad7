"""Videos with too few frames for a trajectory, kept by a recipe's `keep_short`: extracted, checked, trained on."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
import zarr
from conftest import store_bytes
from cotracker_stand_in import stand_in_model, use_stand_in, write_weights
from tracked_stores import TRACKMAE, Film, make_tracked_store

from data_specs.demo_clips import write_clip
from data_specs.recipe import load_recipe
from data_specs.scene import Disc, Scene, Texture, moving
from data_specs.track_store import TrackStore
from data_specs.validate import validate_store
from data_specs.view import View
from extraction.cli import main as extract
from extraction.motion.cotracker3 import package
from extraction.motion.cotracker3.network import CoTracker3
from extraction.motion.cotracker3.window_tracker import WindowTracker
from extraction.motion.flow_tracker import FlowTracker
from extraction.plan import _plain_bytes
from extraction.process_video import encode_rows
from extraction.stages import untimed
from training.reading.clips import ClipDataset
from training.recipe import HeadOptions, PretrainRecipe
from training.targets import compute_targets

SIZE = (72, 104)
STEP, LENGTH = 3, 4
SPAN = STEP * LENGTH
COUNTS = (STEP, STEP + 1, SPAN, SPAN + 1, SPAN + 3)
"""Frames: none of a step, just one step, all steps but the last frame, one trajectory, two."""
EXPECTED = {STEP + 1: [0], SPAN: [0], SPAN + 1: [0], SPAN + 3: [0, 2]}
SCENE = Scene(
    size=SIZE,
    background=Texture(2, shortest=8),
    camera=moving((0.6, -0.4)),
    discs=(Disc(texture=Texture(3, shortest=8), centre=(50, 36), radius=20, motion=moving((0.7, 0.3))),),
)
OTHER = Scene(size=SIZE, background=Texture(9, shortest=8), camera=moving((-0.5, 0.8)))
FLOW = dataclasses.replace(
    load_recipe("mme-object"), flow="dis", length=LENGTH, frame_step=STEP, start_stride=2, keep_short=True
)
POINTS = dataclasses.replace(
    TRACKMAE, length=LENGTH, frame_step=STEP, start_stride=2, hog=True, remove_camera=True, min_inliers=8
)
BY_RECIPE = {"mme-object": "flow: dis", "trackmae": "hog: true\nremove_camera: true\nmin_inliers: 8"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for count in COUNTS:
        write_clip(root / f"{count}.avi", SCENE, count)
    (root / "list.txt").write_text("".join(f"{count}.avi\n" for count in COUNTS))
    (root / "whole.txt").write_text("".join(f"{count}.avi\n" for count in COUNTS if count > SPAN))
    write_weights(root / "weights.pth")
    return root


def run(videos, out, parent, *, keep_short, listed="list.txt"):
    """extract-tracks by a recipe that extends `parent`; returns its exit status."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(
        f"extends: {parent}\nname: test\nlength: {LENGTH}\nframe_step: {STEP}\nstart_stride: 2\n"
        f"keep_short: {str(keep_short).lower()}\n{BY_RECIPE[parent]}\n"
    )
    weights = ["--checkpoint", str(videos / "weights.pth")] if parent == "trackmae" else []
    package.open_network.cache_clear()
    status = extract([
        "--dataset", str(videos / listed), "--root", str(videos), "--shards", "1", "--out", str(out),
        "--recipe", str(recipe), "--executor", "local", *weights,
    ])  # fmt: skip
    package.open_network.cache_clear()
    return status


def failures(store):
    lines = (store / "failures" / "00000.jsonl").read_text().splitlines()
    return {failure["path"]: failure for failure in map(json.loads, lines)}


def rows_of(store, path):
    shard, video = TrackStore(store).find(path)
    return [shard.read_row(video, number) for number in shard.rows(video)]


@pytest.mark.parametrize("parent", ["mme-object", "trackmae"])
def test_a_short_video_has_one_row_that_ends_with_it(videos, tmp_path, monkeypatch, parent):
    """From the command line to the store: counts, failures, and rendered truth, for flow and for tracks."""
    use_stand_in(monkeypatch)
    store = tmp_path / "kept"
    assert run(videos, store, parent, keep_short=True) == 1
    assert validate_store(store) == []
    (failure,) = failures(store).values()
    assert (failure["path"], failure["stage"], failure["error"]) == ("3.avi", "decode", "VideoTooShortError")
    assert failure["message"] == "3 frames; a trajectory of one step needs 4"
    for count, starts in EXPECTED.items():
        rows = rows_of(store, f"{count}.avi")
        assert [row.frame for row in rows] == starts
        row, there = rows[0], (count - 1) // STEP + 1  # positions that the video has
        there = min(there, LENGTH + 1)
        assert there == {4: 2, 12: 4, 13: 5, 15: 5}[count]
        true, seen = SCENE.track(row.positions[:, 0], 0, LENGTH, STEP)
        counted = row.valid[:, :there] & seen[:, :there]
        assert counted[:, 1:].mean() > 0.6
        error = np.linalg.norm(row.positions - true, axis=-1)[:, :there][counted]
        still = np.linalg.norm(row.positions[:, :1] - true, axis=-1)[:, :there][counted]
        assert np.median(error) < 0.6
        assert np.median(error) < 0.5 * np.median(still[still > 0])
        # past the end
        assert not row.valid[:, there:].any()
        np.testing.assert_array_equal(
            row.positions[:, there:], np.repeat(row.positions[:, there - 1, None], 5 - there, 1)
        )
        assert row.estimated.tolist() == [True] * (there - 1) + [False] * (5 - there)
        np.testing.assert_array_equal(row.homographies[there - 1 :], np.tile(np.eye(3), (5 - there, 1, 1)))
        assert row.hog[:, : there - 1].any(axis=(0, 2)).all()
        assert not row.hog[:, there:].any()
        if there < LENGTH:
            assert row.hog[:, there - 1].any(), "in the last frame that there is"
        if parent == "trackmae":
            assert not row.visibility[:, there:].any()
            assert not row.confidence[:, there:].any()
            assert row.visibility[:, :there].any(axis=0).all()


@pytest.mark.parametrize("parent", ["mme-object", "trackmae"])
def test_without_the_option_short_videos_fail_and_with_it_the_others_are_the_same(
    videos, tmp_path, monkeypatch, parent
):
    use_stand_in(monkeypatch)
    assert run(videos, tmp_path / "off", parent, keep_short=False) == 1
    assert {path: f["message"] for path, f in failures(tmp_path / "off").items()} == {
        f"{count}.avi": f"{count} frames; a trajectory of 4 steps needs 13" for count in (3, 4, 12)
    }
    for keep_short in (False, True):
        assert run(videos, tmp_path / str(keep_short), parent, keep_short=keep_short, listed="whole.txt") == 0
    without, kept = (store_bytes(tmp_path / str(keep_short)) for keep_short in (False, True))
    recipes = [json.loads(files.pop("store.json"))["recipe"] for files in (without, kept)]
    assert [recipe.pop("keep_short") for recipe in recipes] == [False, True]
    assert recipes[0] == recipes[1]
    roots = [json.loads(files.pop("shards/00000.zarr/zarr.json"))["attributes"] for files in (without, kept)]
    assert roots[0].pop("settings_sha256") != roots[1].pop("settings_sha256")
    assert roots[0].pop("crc32") != roots[1].pop("crc32")
    assert roots[0] == roots[1]
    assert len(kept) > 20
    assert without == kept


def test_a_store_from_before_is_gone_on_with(videos, tmp_path):
    """Its recipe has no keep_short."""
    assert run(videos, tmp_path / "s", "mme-object", keep_short=False) == 1
    file = tmp_path / "s" / "store.json"
    info = json.loads(file.read_text())
    del info["recipe"]["keep_short"]
    file.write_text(json.dumps(info))
    assert validate_store(tmp_path / "s") == []
    assert run(videos, tmp_path / "s", "mme-object", keep_short=False) == 1
    assert run(videos, tmp_path / "s", "mme-object", keep_short=True) == 2, "another recipe"


def test_the_estimate_counts_the_row_of_a_short_video():
    sizes = {count: _plain_bytes(count, SIZE, FLOW) for count in COUNTS}
    assert sizes[STEP] == 0
    assert sizes[STEP + 1] == sizes[SPAN] == sizes[SPAN + 1] > 0
    assert sizes[SPAN + 3] == 2 * sizes[SPAN]


# --- trackers ---------------------------------------------------------------------------------------------------------


def tracked(kind, frames, cuts=(), batch=1):
    if kind == "flow":
        tracker, recipe = FlowTracker(FLOW, untimed, batch=batch), FLOW
    else:
        network = CoTracker3(stand_in_model(), torch.device("cpu"))
        tracker, recipe = WindowTracker(POINTS, network, untimed, batch), POINTS
    rows = list(encode_rows([(frame, t in cuts) for t, frame in enumerate(frames)], tracker, recipe, untimed))
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("kind", ["flow", "points"])
def test_batches_change_nothing(kind):
    frames = SCENE.frames(SPAN - 1)
    alone, batched = (tracked(kind, frames, batch=batch) for batch in (1, 5))
    assert alone.keys() == batched.keys()
    for name, values in alone.items():
        np.testing.assert_array_equal(values, batched[name], err_msg=name)


@pytest.mark.parametrize("cut", [1, 3, 4, 7, 10])
@pytest.mark.parametrize("kind", ["flow", "points"])
def test_a_cut_inside_a_short_video(kind, cut):
    """11 frames: positions in frames 0, 3, 6 and 9, and one past the end. Only those before the cut count."""
    row = tracked(kind, SCENE.frames(cut) + OTHER.frames(11 - cut), cuts=(cut,))
    before = sum(frame < cut for frame in (0, 3, 6, 9))
    assert row["valid"][:, :before].mean() > 0.7
    assert not row["valid"][:, before:].any()
    assert not row["displacement"][:, before - 1 :].any()
    assert row["camera/estimated"][0].tolist() == [1] * (before - 1) + [0] * (LENGTH - before + 1)
    if kind == "points":
        assert not row["visibility"][:, before:].any()
    if kind == "flow" and before > 1:  # the network sees all of a window's frames, the flow two
        whole = tracked(kind, SCENE.frames(11))["displacement"][:, : before - 1]
        both = row["valid"][:, before - 1] == 1
        assert whole[both].any()
        np.testing.assert_array_equal(row["displacement"][both, : before - 1], whole[both])


# --- stores -----------------------------------------------------------------------------------------------------------

FILMS = {
    "short.avi": Film((SCENE, 8)),
    "cut.avi": Film((SCENE, 5), (OTHER, 6)),
    "long.avi": Film((SCENE, 15)),
}


@pytest.fixture(scope="module")
def good_store(tmp_path_factory):
    return make_tracked_store(tmp_path_factory.mktemp("tracked"), FILMS, POINTS)


def test_true_tracks_of_short_films_are_sound(good_store):
    assert validate_store(good_store) == []
    assert [meta.num_starts for meta in TrackStore(good_store).shard(0).metas] == [1, 1, 2]
    for name, film in FILMS.items():
        for row in rows_of(good_store, name):
            truth = film.row(row.frame, POINTS)
            np.testing.assert_array_equal(row.valid, truth.valid)
            assert np.abs(row.positions - truth.positions).max() <= 1 / 128
    short, cut = (rows_of(good_store, name)[0].valid.any(axis=0).tolist() for name in ("short.avi", "cut.avi"))
    assert short == [True, True, True, False, False], "frames 0, 3, 6"
    assert cut == [True, True, False, False, False], "frames 0 and 3"


@pytest.mark.parametrize(
    ("name", "step", "value"),
    [
        ("valid", 3, 1),
        ("valid", 4, 1),
        ("visibility", 3, 0.25),
        ("confidence", 4, 0.5),
        ("displacement", 2, 7),
        ("camera/estimated", 2, 1),
        ("hog", 3, 9),
    ],
)
@pytest.mark.parametrize("film", ["short.avi", "long.avi"])
def test_the_validator_finds_what_is_claimed_past_the_end(good_store, tmp_path, film, name, step, value):
    """short.avi has frames 0 to 7: positions 3 and 4 are past them. In long.avi the same is sound, or another fault."""
    store = shutil.copytree(good_store, tmp_path / "s")
    shard, video = TrackStore(store).find(film)
    row = shard.rows(video)[0]
    array = zarr.open_array(shard.path / name, mode="r+")
    values = array[:]
    values[row if name == "camera/estimated" else int(shard.first_point[row]) + 5, step] = value
    array[:] = values
    problems = "\n".join(validate_store(store))
    said = re.search(rf"short\.avi.*: {name} of \d+ at step {step} is not 0, past the last of 8 frames", problems)
    assert bool(said) == (film == "short.avi"), problems


def test_a_row_of_a_video_without_a_step_is_reported(good_store, tmp_path):
    store = shutil.copytree(good_store, tmp_path / "s")
    array = zarr.open_array(store / "shards" / "00000.zarr" / "video" / "num_frames", mode="r+")
    array[:] = [3, 11, 15]
    assert "short.avi): has 1 start rows, must have 0 for 3 frames" in "\n".join(validate_store(store))


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_clip_of_a_short_video_has_motion_up_to_its_end(tmp_path):
    """TrackMAE's clip, 16 frames every second one: 13 frames of 31. Token t has step t where frame 4 t + 4 exists."""
    recipe = dataclasses.replace(TRACKMAE, frame_step=4, start_stride=2, grid_stride=8)
    film = Film((SCENE, 13))
    store = make_tracked_store(tmp_path, {"short.avi": film}, recipe)
    assert validate_store(store) == []
    training = PretrainRecipe(
        name="test",
        heads={"displacement": HeadOptions(normalise="none")},
        clip_stride=2,
        crop_scales=(1.0,),
        input_size=64,
        flip=False,
        anchoring="clip",
        remove_camera=False,
    )
    dataset = ClipDataset(store, store.parent / "videos", training)
    assert not dataset.reader.failed
    sample = dataset[0]
    assert sample["clip"][0].start == 0
    frames = sample["frames"][0].numpy()
    for t in range(7, 16):
        np.testing.assert_array_equal(frames[t], frames[6], err_msg=str(t))
    assert not np.array_equal(frames[5], frames[6])
    valid = sample["displacement_valid"][0, ..., 0].numpy()
    assert valid[:3].any(axis=(1, 2)).all()
    assert valid[:3].mean() > 0.5
    assert not valid[3:].any()
    assert not sample["displacement"][0, 3:].any()
    target = compute_targets(sample, dataset.recipe)["displacement"]
    past = sample["predict"][0] >= 3 * 16
    assert target.weights[0][past].max() == 0
    assert target.weights[0][~past].mean() > 0.3
    # in a view whose points are the store's
    arrays = {name: values[0] for name, values in dataset.motion.empty(1).items()}
    view = View(top=8, left=16, height=64, width=64, size=(64, 64))
    dataset.motion.fill(arrays, dataset.reader.videos[0], list(range(0, 32, 2)), view)
    truth = film.row(0, recipe)
    steps = np.diff(truth.positions, axis=1).reshape(9, 13, 7, 2)[1:9, 2:10]
    seen = (truth.valid[:, :-1] & truth.valid[:, 1:]).reshape(9, 13, 7)[1:9, 2:10]
    for t in range(7):
        there = arrays["displacement_valid"][t, ..., 0]
        np.testing.assert_array_equal(there, seen[:, :, t])
        assert there.any() == (t < 3)
        np.testing.assert_allclose(arrays["displacement"][t, ..., 0, :][there], steps[:, :, t][there], atol=1 / 64)


def test_by_flow_the_tokens_of_the_first_tubelet_have_what_there_is(tmp_path):
    """Recipe mme-object, 4 steps of 3 frames; its later tubelets begin where no trajectory does."""
    write_clip(tmp_path / "short.avi", SCENE, 9)
    (tmp_path / "list.txt").write_text("short.avi\n")
    assert run(tmp_path, tmp_path / "store", "mme-object", keep_short=True) == 0
    heads = {"displacement": HeadOptions(normalise="none"), "trajectory_hog": HeadOptions()}
    recipe = PretrainRecipe(name="test", heads=heads, frames=8, clip_stride=2, input_size=64, flip=False)
    sample = ClipDataset(tmp_path / "store", tmp_path, recipe)[0]
    steps, hog = sample["displacement_valid"][0].numpy(), sample["trajectory_hog_valid"][0].numpy()
    assert steps[0, ..., :2].mean() > 0.7
    assert not steps[0, ..., 2:].any()
    assert hog[0, ..., :3].any(axis=(0, 1)).all(), "in frames 0, 3 and 6"
    assert not hog[0, ..., 3].any()
    assert not steps[1:].any()
    assert not hog[1:].any()
