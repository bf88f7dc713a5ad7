"""extract-tracks and inspect-tracks as a user runs them: bad files, resuming, and the same bytes however it ran."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import zarr
from conftest import run_command, store_bytes
from videos import cut_off, noise_frames, write_video

from data_specs.track_store import TrackStore
from extraction import cli, inspect_cli, jobs
from extraction.plan import parse_part


def extract(*arguments):
    return cli.main([str(a) for a in (*arguments, "--flow", "dis", "--executor", "local")])


@pytest.fixture(scope="module")
def local_store(clips, tmp_path_factory):
    """The clips in two shards, extracted in one process, undisturbed."""
    store = tmp_path_factory.mktemp("local") / "s"
    assert extract("--dataset", clips / "list.txt", "--root", clips, "--shards", 2, "--out", store) == 0
    return store


# --- one set of bytes -------------------------------------------------------------------------------------------------


def ray_command(clips, store, workers):
    return [
        "extract-tracks", "--dataset", str(clips / "list.txt"), "--root", str(clips), "--shards", "2",
        "--out", str(store), "--flow", "dis", "--executor", "ray", "--workers", str(workers),
    ]  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
def test_ray_writes_the_same_bytes_as_one_process(clips, local_store, tmp_path, workers):
    result = run_command(ray_command(clips, tmp_path / "s", workers))
    assert result.returncode == 0, result.stderr
    assert store_bytes(tmp_path / "s") == store_bytes(local_store)


def test_a_killed_driver_is_resumed_to_the_same_bytes(clips, local_store, tmp_path):
    """SIGKILL to the driver when the first videos are done; workers may finish theirs; then the same command again."""
    store = tmp_path / "s"
    command = ray_command(clips, store, 2)
    driver = subprocess.Popen(
        [str(Path(sys.executable).parent / command[0]), *command[1:]], stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(store.glob("partial/*/[0-9]*.tracks")) and not list(store.glob("shards/*")):
        assert time.monotonic() < deadline
        assert driver.poll() is None
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    done_before = len(list(store.glob("partial/*/[0-9]*.tracks")))
    assert len(TrackStore(store).complete_shards) < 2, "the kill came too late to mean anything"
    result = run_command(command)
    assert result.returncode == 0, result.stderr
    again = int(re.search(r"(\d+) videos done", result.stderr)[1])
    assert again <= 5 - done_before, "what was done is not done again"
    assert store_bytes(store) == store_bytes(local_store)


def test_a_killed_local_run_is_resumed_to_the_same_bytes(clips, local_store, tmp_path):
    command = ["extract-tracks", "--dataset", str(clips / "list.txt"), "--root", str(clips), "--shards", "2", "--out",
               str(tmp_path / "s"), "--flow", "dis", "--executor", "local"]  # fmt: skip
    store = tmp_path / "s"
    for kill_after in (1, 3):
        process = subprocess.Popen([str(Path(sys.executable).parent / command[0]), *command[1:]])
        deadline = time.monotonic() + 120
        while len(list(store.glob("partial/*/[0-9]*.tracks"))) + 3 * len(list(store.glob("shards/*"))) < kill_after:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(TrackStore(store).complete_shards) < 2, "the kills came too late to mean anything"
    assert run_command(command).returncode == 0
    assert store_bytes(store) == store_bytes(local_store)


def test_shards_done_by_different_runs_make_the_same_store(clips, local_store, tmp_path):
    common = ("--dataset", clips / "list.txt", "--root", clips, "--shards", 2, "--out", tmp_path / "s")
    assert extract(*common, "--only-shards", "1") == 0
    assert TrackStore(tmp_path / "s").complete_shards == [1]
    assert extract(*common, "--only-shards", "0-1") == 0
    assert store_bytes(tmp_path / "s") == store_bytes(local_store)


def test_parts_of_a_store_make_the_same_store(clips, local_store, tmp_path):
    """Also where there are more parts than shards."""
    common = ("--dataset", clips / "list.txt", "--root", clips, "--shards", 2, "--out", tmp_path / "s")
    assert parse_part("1/4", 11) == [1, 5, 9]
    assert extract(*common, "--part", "2/3") == 0
    assert TrackStore(tmp_path / "s").complete_shards == []
    for part, complete in [("1/3", [1]), ("0/3", [0, 1])]:
        assert extract(*common, "--part", part) == 0
        assert TrackStore(tmp_path / "s").complete_shards == complete
    assert store_bytes(tmp_path / "s") == store_bytes(local_store)


def test_running_again_changes_nothing(clips, local_store):
    before = {path: (local_store / path).stat().st_mtime_ns for path in store_bytes(local_store)}
    assert extract("--dataset", clips / "list.txt", "--root", clips, "--shards", 2, "--out", local_store) == 0
    assert {path: (local_store / path).stat().st_mtime_ns for path in store_bytes(local_store)} == before


def test_a_video_that_kills_its_worker_is_recorded_and_the_others_are_kept(clips, tmp_path):
    """The worker's process dies on it each time: three tries, then a failure of stage `worker`."""
    listing = tmp_path / "list.txt"
    listing.write_text("a.avi\nsub folder/b.avi\nc.avi\n")
    arguments = [
        "--dataset", str(listing), "--root", str(clips), "--shards", "1", "--out", str(tmp_path / "s"),
        "--flow", "dis", "--workers", "2",
    ]  # fmt: skip
    # a job that kills its process, as a decoder's crash does; it travels to the workers by value
    driver = f"""
import os, sys
import extraction.jobs
import extraction.ray_runner as runner

def run_job(job):
    if isinstance(job, extraction.jobs.VideoJob) and job.entry.path.endswith("b.avi"):
        os.kill(os.getpid(), 9)
    return extraction.jobs.run_job(job)

runner.run_job = run_job
from extraction.cli import main
sys.exit(main({arguments!r}))
"""
    result = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1, result.stderr
    (failure,) = [json.loads(line) for line in (tmp_path / "s/failures/00000.jsonl").read_text().splitlines()]
    assert (failure["path"], failure["stage"], failure["attempts"]) == ("sub folder/b.avi", "worker", 3)
    assert failure["error"] == "WorkerLostError"
    assert TrackStore(tmp_path / "s").shard(0).paths == ["a.avi", "c.avi"]


@pytest.mark.parametrize("executor", ["ray", "local"])
def test_a_decoder_that_hangs_is_given_up(clips, tmp_path, executor):
    """Its process ends itself after recording the failure, once; on Ray the others go on, here the next run does."""
    (tmp_path / "list.txt").write_text("a.avi\nc.avi\n")
    arguments = [
        "--dataset", str(tmp_path / "list.txt"), "--root", str(clips), "--shards", "1", "--out", str(tmp_path / "s"),
        "--flow", "dis", "--executor", executor, "--stall-seconds", "8",
    ]  # fmt: skip
    driver = f"""
import sys, time
import extraction.jobs
from extraction import run, ray_runner

def run_job(job):
    original = extraction.jobs.process_video
    def hang(frames, recipe, stage, *where):
        with stage("decode"):
            time.sleep(300)
    if isinstance(job, extraction.jobs.VideoJob) and job.entry.path == "c.avi":
        extraction.jobs.process_video = hang
    try:
        return extraction.jobs.run_job(job)
    finally:
        extraction.jobs.process_video = original

run.run_job = ray_runner.run_job = run_job
from extraction.cli import main
sys.exit(main({arguments!r}))
"""
    result = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 1, result.stderr
    if executor == "local":
        assert "ending this process" in result.stderr
        assert cli.main(arguments) == 1
    (failure,) = [json.loads(line) for line in (tmp_path / "s/failures/00000.jsonl").read_text().splitlines()]
    assert failure["error"] == "VideoStalledError"
    assert (failure["path"], failure["stage"], failure["attempts"]) == ("c.avi", "decode", 1)
    assert TrackStore(tmp_path / "s").shard(0).paths == ["a.avi"]


def test_a_process_ends_over_a_decoder_that_hangs_also_where_that_cannot_be_written(clips, tmp_path):
    """A full disk, a store that is gone: what hangs has no other end."""
    arguments = [
        "--dataset", str(clips / "list.txt"), "--root", str(clips), "--shards", "1", "--out", str(tmp_path / "s"),
        "--flow", "dis", "--executor", "local", "--stall-seconds", "1",
    ]  # fmt: skip
    driver = f"""
import sys, time
import extraction.jobs
from extraction.commit import ShardFolder

def hang(*_):
    time.sleep(300)
    yield

def write_failed(*_):
    raise OSError(28, "No space left on device")

extraction.jobs.process_video = hang
ShardFolder.write_failed = write_failed
from extraction.cli import main
sys.exit(main({arguments!r}))
"""
    result = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == jobs.EXIT_STALLED, result.stderr
    assert "nothing went forward for 1 s; ending this process" in result.stderr
    assert list((tmp_path / "s/partial").rglob("*.tries"))


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_videos_are_recorded_and_nothing_else_is_lost(clips, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(clips, root)
    write_video(root / "short.mkv", noise_frames(6, 48, 80))
    cut_off(write_video(tmp_path / "whole.mkv", noise_frames(60, 48, 80), "libx264", "yuv420p"), root / "cut.mkv", 0.5)
    write_video(root / "size.mkv", noise_frames(9, 64, 100) + noise_frames(9, 80, 132), "mjpeg", "yuvj420p")
    write_video(root / "tiny.mkv", noise_frames(9, 7, 20))
    (root / "text.mp4").write_text("hello")
    (root / "empty.mp4").touch()
    expected = {
        "short.mkv": ("VideoTooShortError", "6 frames; a trajectory of 6 steps needs 7"),
        "cut.mkv": ("VideoTruncatedError", "60 frames"),
        "size.mkv": ("FrameSizeChangedError", "64x100 and 80x132"),
        "tiny.mkv": ("FrameTooSmallError", "frames are 7x20; they must be 16x16 or larger"),
        "text.mp4": ("VideoOpenError", "not a video file"),
        "empty.mp4": ("VideoOpenError", "the file is empty"),
        "gone.mp4": ("VideoOpenError", "no such file"),
    }
    (root / "list.txt").write_text("".join(f"{name}\n" for name in ["a.avi", *expected, "c.avi"]))
    store = tmp_path / "s"
    assert extract("--dataset", root / "list.txt", "--root", root, "--shards", 2, "--out", store) == 1
    lines = [line for f in sorted((store / "failures").iterdir()) for line in f.read_text().splitlines()]
    failures = {failure["path"]: failure for failure in map(json.loads, lines)}
    assert failures.keys() == expected.keys()
    for path, (error, message) in expected.items():
        assert failures[path]["error"] == error, failures[path]
        assert message in failures[path]["message"]
        assert failures[path]["stage"] == "decode"
        assert failures[path]["attempts"] == 1
        assert str(tmp_path) not in failures[path]["message"]
    assert sorted(path for _, shard in TrackStore(store).shards() for path in shard.paths) == ["a.avi", "c.avi"]
    assert inspect_cli.main([str(store), "--verify"]) == 0


def test_when_every_video_fails_nothing_is_done(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4\nb.mp4\n")
    assert extract("--dataset", tmp_path / "list.txt", "--root", tmp_path, "--shards", 1, "--out", tmp_path / "s") == 2


def test_more_shards_than_videos_make_empty_shards(clips, tmp_path):
    (tmp_path / "list.txt").write_text("a.avi\n")
    store = tmp_path / "s"
    common = ("--dataset", tmp_path / "list.txt", "--root", clips, "--shards", 3, "--out", store)
    assert extract(*common, "--only-shards", "2") == 0, "there is nothing in it that could fail"
    assert extract(*common) == 0
    assert TrackStore(store).complete_shards == [0, 1, 2]
    assert TrackStore(store).shard(2).num_videos == 0
    assert inspect_cli.main([str(store), "--verify"]) == 0
    assert "1 done" in inspect_cli.summarise(TrackStore(store))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--shards", "0"], "--shards is 0, must be 1 or more"),
        (["--shards", "2", "--only-shards", "2"], "'2' is not within 0-1"),
        (["--shards", "2", "--only-shards", "1-0"], "'1-0' is not within"),
        (["--shards", "2", "--only-shards", "x"], "'x' is neither a number nor a range"),
        (["--shards", "2", "--part", "2/2"], "the parts of 2 are 0/2 to 1/2"),
        (["--shards", "2", "--part", "1"], "--part 1: give I/N"),
        (["--shards", "2", "--part", "0/2", "--only-shards", "0"], "--part and --only-shards both choose shards"),
        (["--shards", "2", "--limit", "0"], "--limit is 0"),
        (["--shards", "2", "--recipe", "mmme"], "shipped are mme, mme-object"),
        (["--shards", "2", "--workers", "3"], "--executor local does one video at a time"),
        (["--shards", "2", "--split", "test"], "has no split test"),
    ],
)
def test_usage_errors(clips, tmp_path, capsys, arguments, problem):
    status = extract("--dataset", clips / "list.txt", "--root", clips, "--out", tmp_path / "s", *arguments)
    assert status == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("arguments", [[], ["--dataset", "demo"], ["--dataset", "demo", "--shards", "two"], ["--no"]])
def test_wrong_options_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: extract-tracks" in capsys.readouterr().err


def test_a_store_that_cannot_be_written_stops_the_run_and_blames_no_video(clips, tmp_path, capsys, monkeypatch):
    """A full disk: no video is recorded as failed, and the same command goes on afterwards."""
    store = tmp_path / "s"
    common = ("--dataset", clips / "list.txt", "--root", clips, "--shards", 2, "--out", store)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("extraction.partial.PartialWriter.finish", full)
    assert extract(*common) == 1
    assert "No space left on device; the same command goes on" in capsys.readouterr().err
    assert not list(store.rglob("*.failed"))
    assert not list(store.rglob("*.tracks"))
    monkeypatch.undo()
    assert extract(*common) == 0


# --- options ----------------------------------------------------------------------------------------------------------


def test_k400_needs_no_more_than_its_root_from_the_environment(clips, tmp_path, monkeypatch, capsys):
    """`extract-tracks --dataset k400 --shards N`: the list beside the videos, the store under a default name."""
    (tmp_path / "train.csv").write_text("a.avi 3\nc.avi 7\n")
    for name in ("a.avi", "c.avi"):
        (tmp_path / name).symlink_to(clips / name)
    monkeypatch.setenv("K400_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert extract("--dataset", "k400", "--shards", 2) == 2
    assert re.search(r"links lead out of it: a\.avi is \S+a\.avi; --follow-links takes", capsys.readouterr().err)
    assert not list(tmp_path.glob("*.tracks"))
    assert extract("--dataset", "k400", "--shards", 2, "--follow-links") == 0
    info = json.loads((tmp_path / "k400-mme-object.tracks" / "store.json").read_text())
    assert info["dataset"] == {"name": "k400", "split": "train", "clip_stride": 4, "flip": True}
    assert info["recipe"]["start_stride"] == 4
    assert info["recipe"]["flow"] == "dis"


def test_dry_run_says_what_would_be_done_and_does_nothing(clips, local_store, tmp_path, capsys):
    common = ("--dataset", clips / "list.txt", "--root", clips, "--shards", 2)
    assert extract(*common, "--out", tmp_path / "s", "--dry-run") == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "s").exists()
    assert re.search(r"videos +5 of list train", text)
    assert re.search(r"shards +2, 0 of them complete", text)
    assert re.search(r"to do +5 videos", text)
    frames = sum(meta.num_frames for _, shard in TrackStore(local_store).shards() for meta in shard.metas)
    assert re.search(rf"estimate +{frames} frames", text)
    assert extract(*common, "--out", local_store, "--dry-run") == 0
    text = capsys.readouterr().out
    assert re.search(r"shards +2, 2 of them complete", text)
    assert re.search(r"to do +0 videos", text)


def test_the_estimate_is_of_the_right_size(clips, local_store, capsys, tmp_path):
    extract("--dataset", clips / "list.txt", "--root", clips, "--shards", 2, "--out", tmp_path / "s", "--dry-run")
    megabytes = float(re.search(r"frames, ([\d.]+) MB", capsys.readouterr().out)[1])
    stored = sum(
        len(data) for path, data in store_bytes(local_store).items() if re.search(r"(displacement|valid|hog)/c/", path)
    )
    assert 0.5 < megabytes / (stored / 1e6) < 2


def test_hog_is_optional_and_may_have_three_channels(clips, tmp_path):
    recipe = tmp_path / "r.yaml"
    (tmp_path / "list.txt").write_text("a.avi\n")
    common = ("--dataset", tmp_path / "list.txt", "--root", clips, "--shards", 1, "--recipe", recipe)
    recipe.write_text("extends: mme-object\nname: plain\nhog: false\n")
    assert extract(*common, "--out", tmp_path / "plain") == 0
    shard = TrackStore(tmp_path / "plain").shard(0)
    assert "hog" not in shard.group
    assert shard.read_row(0, 0).hog is None
    recipe.write_text("extends: mme-object\nname: rgb\nhog_channels: 3\n")
    assert extract(*common, "--out", tmp_path / "rgb") == 0
    assert TrackStore(tmp_path / "rgb").shard(0).read_row(0, 0).hog.shape == (117, 6, 27)
    for name in ("plain", "rgb"):
        assert inspect_cli.main([str(tmp_path / name), "--verify"]) == 0


def test_limit_takes_the_first_videos(clips, tmp_path):
    common = ("--dataset", clips / "list.txt", "--root", clips, "--shards", 1, "--out", tmp_path / "s")
    assert extract(*common, "--limit", 2) == 0
    assert TrackStore(tmp_path / "s").shard(0).paths == ["a.avi", "sub folder/b.avi"]


def test_positions_are_the_same_through_any_file_and_store(clips, local_store):
    """The unit on disk is 1/64 px, said by the attribute; nothing is scaled twice on the way."""
    shard = TrackStore(local_store).shard(0)
    raw = zarr.open_array(shard.path / "displacement", mode="r")
    row = shard.read_row(0, 0)
    assert raw.attrs["unit_px"] == 1 / 64
    np.testing.assert_allclose(row.displacements, raw[: len(row.positions)] / 64, atol=1e-12)
    lost = row.valid[:, 1:] == 0
    assert not row.displacements[lost].any()


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_prints_what_is_there(local_store, capsys):
    assert inspect_cli.main([str(local_store)]) == 0
    text = capsys.readouterr().out
    for expected in [
        r"shards +2 complete, 0 missing",
        r"videos +5 done, 0 failed",
        r"start rows +\d+",
        r"valid steps +\d+\.\d %",
        r"hog +[\d,]+ +[\d,]+ for each start row",
        r"displacement +[\d,]+",
        r"bytes +[\d,]+: [\d,]+ for each video, [\d,]+ for each start row",
    ]:
        assert re.search(expected, text), text
    total = int(re.search(r"bytes +([\d,]+)", text)[1].replace(",", ""))
    assert total == sum(len(data) for path, data in store_bytes(local_store).items() if path.startswith("shards/"))


def test_inspect_names_missing_shards_and_failures(clips, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("a.avi\ngone.avi\nc.avi\nd.avi\n")
    common = ("--dataset", tmp_path / "list.txt", "--root", clips, "--shards", 4, "--out", tmp_path / "s")
    assert extract(*common, "--only-shards", "0,1") == 1
    capsys.readouterr()
    inspect_cli.main([str(tmp_path / "s")])
    text = capsys.readouterr().out
    assert re.search(r"2 complete, 2 missing \(2-3\)", text)
    assert re.search(r"failed +1 VideoOpenError", text)
    inspect_cli.main([str(tmp_path / "s"), "--failures"])
    assert json.loads(capsys.readouterr().out)["path"] == "gone.avi"
    assert inspect_cli.main([str(tmp_path / "s"), "--verify"]) == 0
    assert "0 problem(s) in 2 shards; 2 of 4 shards are not complete yet" in capsys.readouterr().out


def test_verify_exits_with_1_and_prints_all_problems(local_store, tmp_path, capsys):
    store = shutil.copytree(local_store, tmp_path / "s")
    for name in ("valid", "hog"):
        (file,) = [f for f in (store / "shards" / "00000.zarr" / name / "c").rglob("*") if f.is_file()]
        file.unlink()
    assert inspect_cli.main([str(store), "--verify"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"00000\.zarr/valid\[0\]", text)
    assert re.search(r"00000\.zarr/hog\[0\]", text)


def test_render_draws_trajectories_beside_compensated_ones(clips, local_store, tmp_path):
    """Colour is drawn, on both panels, and not the same: the scene's camera moves."""
    out = tmp_path / "new" / "a.png"
    assert (
        inspect_cli.main([str(local_store), "--render", str(clips / "a.avi"), "--out", str(out), "--frame", "4"]) == 0
    )
    with av.open(str(out)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert picture.shape == (72 * 4, 2 * 104 * 4, 3)
    left, right = picture[:, : 104 * 4], picture[:, 104 * 4 :]
    assert np.abs(left - right).mean() > 1
    spread = picture.max(axis=2) - picture.min(axis=2)
    assert (spread > 120).mean() > 0.002


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_render_makes_films(clips, local_store, tmp_path, suffix):
    out = tmp_path / f"b{suffix}"
    arguments = [str(local_store), "--render", "sub folder/b.avi", "--root", str(clips), "--out", str(out)]
    assert inspect_cli.main(arguments) == 0
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 15
    assert frames[0].shape[1] > 1.9 * frames[0].shape[0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--render", "a.avi"], "--render VIDEO and --out FILE go together"),
        (["--render", "a.avi", "--out", "x.png"], "Give --render its file, or the data set's folder with --root"),
        (["--render", "z.avi", "--out", "x.png", "--root", "/"], "no video called 'z.avi'"),
        (["--render", "a.avi", "--out", "x.jpg", "--root", "CLIPS"], "must end in one of .png, .mp4, .gif"),
        (["--render", "a.avi", "--out", "x.png", "--root", "CLIPS", "--frame", "3"], "they begin at [0, 4]"),
        (["--render", "CLIPS/c.avi", "--out", "x.png"], None),
    ],
)
def test_render_errors(clips, local_store, tmp_path, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(tmp_path)
    status = inspect_cli.main([str(local_store), *(a.replace("CLIPS", str(clips)) for a in arguments)])
    assert status == (2 if problem else 0)
    if problem:
        assert problem in capsys.readouterr().err


def test_what_is_not_a_store_is_said_so(tmp_path, capsys):
    assert inspect_cli.main([str(tmp_path)]) == 2
    assert "is not a track store" in capsys.readouterr().err
