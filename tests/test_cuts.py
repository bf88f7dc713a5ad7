"""Shot cuts: found where they are, nowhere else, and never crossed by a trajectory."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import zarr
from conftest import REPOSITORY
from videos import write_video

from data_specs.recipe import load_recipe
from data_specs.scene import Scene, Texture, moving, random_scene
from data_specs.track_store import TrackStore
from data_specs.validate import validate_store
from extraction import cli, inspect_cli
from extraction.cuts import LOOKAHEAD, CutDetector, ShotFrames
from extraction.motion.flow_tracker import FlowTracker
from extraction.stages import untimed

SIZE = (96, 132)


def find(frames):
    shots = ShotFrames(frames, True, untimed)
    handed_out = list(shots)
    assert len(handed_out) == len(frames)
    assert all(given is frame for (given, _), frame in zip(handed_out, frames, strict=True))
    assert shots.cuts == [t for t, (_, begins_shot) in enumerate(handed_out) if begins_shot]
    return shots.cuts


def shot(seed, count, speed=1.0, size=SIZE):
    return random_scene(seed, speed, size).frames(count)


@pytest.fixture(scope="module")
def first():
    return shot(0, 24)


@pytest.fixture(scope="module")
def second():
    return shot(7, 24)


# --- detection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [1, 2, 3, 9, 22, 23])
def test_a_hard_cut_is_found_at_the_frame_at_which_the_shot_begins(first, second, place):
    assert find(first[:place] + second[place:]) == [place]


@pytest.mark.parametrize("seed", range(2))
def test_a_cut_between_fast_shots_is_found(seed):
    size = (144, 188)
    frames = [shot(2 * seed + n, 6, speed=8.0, size=size) for n in range(2)]
    assert find(frames[0] + frames[1]) == [6]


def test_cuts_that_follow_each_other_are_all_found(first, second):
    third = shot(5, 24)
    assert find(first[:8] + second[8:12] + third[12:15] + first[15:]) == [8, 12, 15]


def test_a_single_frame_of_another_shot_between_two_shots_begins_one(first, second):
    assert find(first[:8] + shot(5, 1) + second[9:]) == [8, 9]


@pytest.mark.parametrize(("speed", "angle"), [(3, 2.0), (11, 1.0), (20, 0.0), (20, 0.7), (20, 1.5)])
def test_a_pan_is_not_a_cut(speed, angle):
    """Up to 20 px per frame at the size at which videos are tracked, with noise."""
    camera = moving((speed * np.cos(angle), speed * np.sin(angle)))
    texture = Texture(4, waves=20, shortest=4, longest=50)
    assert find(Scene(size=(256, 340), background=texture, camera=camera, noise=3).frames(4)) == []


@pytest.mark.parametrize("seed", range(2))
def test_fast_objects_and_zooms_are_not_cuts(seed):
    assert find(shot(seed, 4, speed=15.0, size=(256, 340))) == []


def test_a_still_video_has_no_cut(first):
    assert find([first[0]] * 9) == []
    assert find([np.full((*SIZE, 3), level, np.uint8) for level in (0, 0, 200, 200, 9, 9, 9)]) == []


def test_noise_is_not_a_cut():
    """A noisy picture resembles itself; static never does, and none of its frames stands out."""
    assert find(replace(random_scene(3, 0.0, SIZE), noise=40.0).frames(9)) == []
    rng = np.random.default_rng(1)
    for size in [SIZE, (256, 340), (17, 40)]:
        assert find(list(rng.integers(0, 256, (9, *size, 3), dtype=np.uint8))) == []


def brighter(frame, gain, offset):
    return np.clip(frame * gain + offset, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize(("gain", "offset"), [(1.5, 60), (0, 255), (0, 0), (0.3, 0)])
@pytest.mark.parametrize("place", [0, 1, 2, 10, 21])
def test_a_flash_is_not_a_cut(first, place, gain, offset, frames):
    """One or two frames, brighter, white, or black: the shot goes on afterwards. At the start nothing was before it."""
    flashed = list(first)
    for t in range(place, place + frames):
        flashed[t] = brighter(first[t], gain, offset)
    assert find(flashed) == ([frames] if place == 0 and gain == 0 else [])


def test_a_flash_does_not_hide_a_cut(first, second):
    flashed = first[:10] + second[10:]
    flashed[4] = brighter(flashed[4], 0, 255)
    flashed[16] = brighter(flashed[16], 0, 255)
    assert find(flashed) == [10]


@pytest.mark.parametrize("gain", [0.5, 1.6])
def test_a_light_that_is_switched_is_not_a_cut(first, gain):
    assert find(first[:10] + [brighter(frame, gain, 0) for frame in first[10:]]) == []


@pytest.mark.parametrize(("frames", "found"), [(1, [10, 11]), (8, [])])
def test_dissolves(first, second, frames, found):
    """A blended frame between two shots is a shot of its own; a dissolve of eight frames is not found."""
    mixed = [
        np.rint(a * (1 - share) + b * share).astype(np.uint8)
        for t, (a, b) in enumerate(zip(first, second, strict=True))
        for share in [np.clip((t - 9) / (frames + 1), 0, 1)]
    ]
    assert find(mixed) == found


def test_answers_come_two_frames_later_and_do_not_depend_on_what_follows(first, second):
    frames = first[:7] + second[7:]
    detector = CutDetector()
    answers = [detector.push(frame) for frame in frames]
    assert [len(a) for a in answers] == [0] * LOOKAHEAD + [1] * (24 - LOOKAHEAD)
    assert [t for t, a in enumerate(answers) if a == [True]] == [7 + LOOKAHEAD]
    assert detector.finish() == [False] * LOOKAHEAD


def test_nothing_is_looked_for_or_held_back_on_request(first, second):
    source = iter(first[:7] + second[7:])
    shots = ShotFrames(source, False, untimed)
    handed_out = iter(shots)
    assert next(handed_out)[0] is first[0]
    assert next(source) is first[1]
    assert not any(begins_shot for _, begins_shot in handed_out)
    assert shots.cuts == []


# --- trajectories -----------------------------------------------------------------------------------------------------


def track(frames, recipe):
    tracker = FlowTracker(recipe, untimed)
    pairs = []
    original = tracker.pair_motion
    tracker.pair_motion = lambda a, b: pairs.append(1) or original(a, b)
    rows = [row for frame, begins_shot in ShotFrames(frames, True, untimed) for row in tracker.push(frame, begins_shot)]
    return rows, len(pairs)


def same(row, other, positions=None):
    """Whether two rows agree, in their first positions or altogether."""
    steps = None if positions is None else positions - 1
    np.testing.assert_array_equal(row.positions[:, :positions], other.positions[:, :positions])
    np.testing.assert_array_equal(row.valid[:, :positions], other.valid[:, :positions])
    np.testing.assert_array_equal(row.homographies[:steps], other.homographies[:steps])
    np.testing.assert_array_equal(row.estimated[:steps], other.estimated[:steps])


@pytest.mark.parametrize("recipe", ["mme-object", "mme"])
@pytest.mark.parametrize(("length", "frame_step"), [(6, 1), (3, 2)])
def test_no_trajectory_crosses_a_cut_and_the_others_are_as_without_it(first, second, recipe, length, frame_step):
    cut = 11
    recipe = replace(load_recipe(recipe), flow="dis", length=length, frame_step=frame_step, start_stride=1)
    rows, pairs = track(first[:cut] + second[cut:], recipe)
    before, _ = track(first, recipe)
    after, _ = track(second[cut:], recipe)
    assert [row.start for row in rows] == list(range(24 - 6))
    for row in rows:
        if row.start >= cut:
            same(row, after[row.start - cut])
            continue
        reached = sum(row.start + k * frame_step < cut for k in range(length + 1))  # positions before the cut
        same(row, before[row.start], reached)
        assert not row.valid[:, reached:].any()
        assert not row.estimated[reached - 1 :].any()
        np.testing.assert_array_equal(row.homographies[reached - 1 :], np.tile(np.eye(3), (length - reached + 1, 1, 1)))
        steps = np.diff(row.positions, axis=1)
        assert not steps[:, reached - 1 :].any(), "an invalid point stays where it was"
        assert reached < 2 or row.valid[:, reached - 1].mean() > 0.5
    assert rows[cut].valid.all(axis=1).mean() > 0.5, "trajectories start with a shot"
    assert pairs == 24 - frame_step - frame_step, "no flow between frames of two shots"


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut_store(first, second, tmp_path_factory):
    """Three videos in two shards: one cut, none, two cuts; their list; a start row at every second frame."""
    root = tmp_path_factory.mktemp("cuts")
    write_video(root / "one.mkv", first[:9] + second[9:20])
    write_video(root / "none.mkv", first[:12])
    write_video(root / "two.mkv", second[:8] + first[8:13] + second[13:19])
    (root / "list.txt").write_text("one.mkv\nnone.mkv\ntwo.mkv\n")
    extract(root, root / "s")
    return root / "s"


def extract(root, store, *more):
    status = cli.main(
        ["--dataset", str(root / "list.txt"), "--root", str(root), "--shards", "2", "--out", str(store), "--flow",
         "dis", "--executor", "local", "--start-stride", "2", *more]
    )  # fmt: skip
    assert status == 0


@pytest.fixture
def store(cut_store, tmp_path):
    return shutil.copytree(cut_store, tmp_path / "s")


def test_cuts_are_in_the_store_and_no_valid_step_crosses_one(cut_store, capsys):
    store = TrackStore(cut_store)
    found = {meta.path: meta.cuts for _, shard in store.shards() for meta in shard.metas}
    assert found == {"one.mkv": (9,), "none.mkv": (), "two.mkv": (8, 13)}
    plain = zarr.open_group(cut_store / "shards" / "00000.zarr", mode="r")
    assert plain["video/first_cut"][:].tolist() == [0, 1, 3]
    assert plain["cut/frame"][:].tolist() == [9, 8, 13]
    assert plain.attrs["num_cuts"] == 3
    shard, video = store.find("two.mkv")
    for number in shard.rows(video):
        row = shard.read_row(video, number)
        same_shot = [sum(c <= row.frame + k for c in (8, 13)) == sum(c <= row.frame for c in (8, 13)) for k in range(7)]
        assert not row.valid[:, np.logical_not(same_shot)].any()
        assert row.valid[:, same_shot].mean() > 0.5
        assert row.step_valid.any() == (row.frame + 1 not in (8, 13))
    assert validate_store(cut_store) == []
    assert inspect_cli.main([str(cut_store)]) == 0
    assert re.search(r"cuts +3 in 2 videos", capsys.readouterr().out)


def test_the_spec_s_example_reads_the_cuts(cut_store):
    text = (REPOSITORY / "data_specs" / "track_store.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {"STORE": cut_store}
    exec(code, names)
    assert names["cuts"].tolist() == [9]


def test_a_retried_shard_keeps_its_cuts(cut_store, tmp_path):
    """A complete shard is built anew from its former self and the retried video."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("one.mkv", "none.mkv", "list.txt"):
        shutil.copy(cut_store.parent / name, root / name)
    arguments = ["--dataset", str(root / "list.txt"), "--root", str(root), "--shards", "2", "--out",
                 str(tmp_path / "s"), "--flow", "dis", "--executor", "local", "--start-stride", "2"]  # fmt: skip
    assert cli.main(arguments) == 1
    shutil.copy(cut_store.parent / "two.mkv", root / "two.mkv")
    assert cli.main([*arguments, "--retry-failed"]) == 0
    assert TrackStore(tmp_path / "s").shard(0).cuts == [(9,), (8, 13)]
    assert validate_store(tmp_path / "s") == []


def rewrite(store, name, change):
    array = zarr.open_array(store / "shards" / "00000.zarr" / name, mode="r+")
    values = array[:]
    change(values)
    array[:] = values


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("cut/frame", lambda f: f.__setitem__(0, 11), r"one\.mkv.*valid is 1 for the step from frame 10 to frame 11, "),
        ("cut/frame", lambda f: f.__setitem__(0, 20), r"cut/frame is \[20\], must rise strictly within 1 \.\.\. 19"),
        ("cut/frame", lambda f: f.__setitem__(0, 0), r"cut/frame is \[0\], must rise strictly within 1 \.\.\. 19"),
        ("cut/frame", lambda f: f.__setitem__(2, 8), r"two\.mkv.*cut/frame is \[8, 8\], must rise strictly within 1"),
        ("cut/frame", lambda f: f.__setitem__(1, -1), r"cut/frame\[1\]: holds the fill value"),
        ("video/first_cut", lambda o: o.__setitem__(2, 2), r"video/first_cut: must rise from 0 to 3, is \[0, 1, 2\]"),
        ("video/first_cut", lambda o: o.__setitem__(1, 4), r"video/first_cut: must rise from 0 to 3"),
        ("video/first_cut", lambda o: o.__setitem__(1, 0), r"two\.mkv.*cut/frame is \[9, 8, 13\]"),
        ("camera/estimated", lambda e: e.__setitem__((4, 0), 1), r"camera/estimated is 1 for the step from frame 8 to"),
        ("valid", lambda v: v.__setitem__((slice(None), 1), 1), r"one\.mkv.*: valid is 1 for the step from frame 8 to"),
    ],
)  # fmt: skip
def test_the_validator_finds_what_was_tampered_with(store, name, change, problem):
    rewrite(store, name, change)
    problems = "\n".join(validate_store(store))
    assert re.search(problem, problems), problems


def test_a_store_from_before_cuts_were_looked_for_still_opens(store, capsys):
    for shard in (store / "shards").iterdir():
        shutil.rmtree(shard / "cut")
        for name in ("first_cut", "file_bytes", "file_crc32"):
            shutil.rmtree(shard / "video" / name)
        root = json.loads((shard / "zarr.json").read_text())
        for later in ("num_cuts", "files", "failures", "crc32"):
            del root["attributes"][later]
        (shard / "zarr.json").write_text(json.dumps(root))
    info = json.loads((store / "store.json").read_text())
    del info["recipe"]["detect_cuts"], info["recipe"]["forward_backward"]
    info["recipe"]["flow"] = "tvl1"
    (store / "store.json").write_text(json.dumps(info))
    assert TrackStore(store).info.recipe.flow == "tvl1-opencv", "what tvl1 was then"
    assert TrackStore(store).shard(0).metas[0].cuts == ()
    assert validate_store(store) == []
    assert inspect_cli.main([str(store)]) == 0
    assert re.search(r"cuts +not looked for", capsys.readouterr().out)


def test_a_recipe_can_do_without(cut_store, tmp_path):
    recipe = tmp_path / "uncut.yaml"
    recipe.write_text("extends: mme-object\nname: uncut\ndetect_cuts: false\n")
    extract(cut_store.parent, tmp_path / "s", "--recipe", str(recipe))
    shard = TrackStore(tmp_path / "s").shard(0)
    assert "cut" not in shard.group
    assert shard.cuts == [(), ()]
    assert validate_store(tmp_path / "s") == []


@pytest.mark.parametrize(
    ("lengths", "cuts"), [((1, 1, 9), [1, 2]), ((9, 1, 1), [9, 10]), ((1, 1, 1), [1, 2]), ((1, 7), [1]), ((7, 1), [7])]
)
def test_shots_of_one_frame_at_the_video_s_ends(lengths, cuts):
    shots = [random_scene(10 * i + 3, 1.5, (128, 168)).frames(length) for i, length in enumerate(lengths)]
    detected = ShotFrames([frame for shot in shots for frame in shot], True, untimed)
    assert sum(1 for _ in detected) == sum(lengths)
    assert detected.cuts == cuts
