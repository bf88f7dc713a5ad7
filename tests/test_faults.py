"""What goes wrong around a run, made to happen: disks, the store's folder, a second run, clocks, other videos."""

import asyncio
import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos_disk import Disk, can_mount
from conftest import REPOSITORY, store_bytes
from zarr.storage import LocalStore

from data_specs.demo_clips import write_clip
from data_specs.scene import random_scene
from data_specs.track_store import StoreError, TrackStore
from data_specs.validate import validate_store
from extraction import assembly, cli, inspect_cli, jobs, shard_writer, stopping
from extraction.commit import ShardFolder
from extraction.stopping import GraceOverError, stopping_on_signals
from training.reading.track_reader import TrackReader

needs_a_disk = pytest.mark.skipif(not can_mount(), reason="only root can make a small disk (tmpfs)")


def arguments(clips, store, *more, listing=None):
    return [
        "--dataset", str(listing or clips / "list.txt"), "--root", str(clips), "--shards", "2", "--out", str(store),
        "--flow", "dis", "--executor", "local", *map(str, more),
    ]  # fmt: skip


def extract(clips, store, *more, listing=None):
    return cli.main(arguments(clips, store, *more, listing=listing))


@pytest.fixture(scope="module")
def some_missing(clips, tmp_path_factory):
    """A list of the clips with a video that is not there in each shard."""
    listing = tmp_path_factory.mktemp("lists") / "list.txt"
    lines = (clips / "list.txt").read_text().splitlines()
    listing.write_text("".join(f"{line}\n" for line in ["gone.avi", *lines[:3], "lost.avi", *lines[3:]]))
    return listing


@pytest.fixture(scope="module")
def undisturbed(clips, some_missing, tmp_path_factory):
    store = tmp_path_factory.mktemp("undisturbed") / "s"
    assert extract(clips, store, listing=some_missing) == 1
    return store


# --- the disk ---------------------------------------------------------------------------------------------------------


@needs_a_disk
def test_a_disk_that_is_full_again_and_again(clips, some_missing, undisturbed, tmp_path, capsys):
    """Space for a little more each time: the run stops in a count, a record, a video, an assembly, and goes on."""
    expected = store_bytes(undisturbed)
    with Disk(tmp_path / "disk", sum(map(len, expected.values())) * 4 + (4 << 20)) as disk:
        store, stopped = disk.folder / "s", []
        disk.fill()
        assert extract(clips, store, listing=some_missing) == 2
        assert re.search("cannot be created: No space left on device", capsys.readouterr().err)
        for space in range(0, 40):
            disk.free()
            disk.fill(leave=4096 * (1 + 6 * space))
            status = extract(clips, store, listing=some_missing)
            said = capsys.readouterr().err
            if "No space left on device" not in said:
                break
            assert status in (1, 2)  # 2: there was none for store.json
            stopped.append({path.suffix for path in store.glob("partial/*/*")})
            assert not list(store.glob("partial/*/.tmp-*")), "what was half written is gone"
            if (store / "store.json").exists():
                assert validate_store(store) == []
        disk.free()
        assert extract(clips, store, listing=some_missing) == 1
        assert store_bytes(store) == expected
    assert len(stopped) > 5
    assert set() in stopped or {""} in stopped, "before anything was done"
    assert any(".tracks" in suffixes for suffixes in stopped), "between videos, or in an assembly"


@needs_a_disk
def test_a_disk_that_becomes_full_in_the_middle_of_a_video(clips, some_missing, undisturbed, tmp_path, monkeypatch):
    original = jobs.PartialWriter.finish
    with Disk(tmp_path / "disk", 64 << 20) as disk:
        store = disk.folder / "s"

        def finish(writer, meta):
            if meta.path == "c.avi":
                disk.fill()
            original(writer, meta)

        monkeypatch.setattr(jobs.PartialWriter, "finish", finish)
        assert extract(clips, store, listing=some_missing) == 1
        monkeypatch.undo()
        assert not list(store.glob("partial/*/.tmp-*"))
        assert validate_store(store) == []
        disk.free()
        assert extract(clips, store, listing=some_missing) == 1
        assert store_bytes(store) == store_bytes(undisturbed)


@needs_a_disk
@pytest.mark.parametrize("leave", [0, 1 << 14, 1 << 16])
def test_a_disk_that_becomes_full_while_a_shard_is_put_together(
    clips, some_missing, undisturbed, tmp_path, monkeypatch, capsys, leave
):
    original = assembly.write_shard
    with Disk(tmp_path / "disk", 64 << 20) as disk:
        store = disk.folder / "s"

        def write_shard(*what, **more):
            disk.fill(leave)
            original(*what, **more)

        monkeypatch.setattr(assembly, "write_shard", write_shard)
        assert extract(clips, store, listing=some_missing) == 1
        assert "No space left on device; the same command goes on" in capsys.readouterr().err
        monkeypatch.undo()
        assert TrackStore(store).complete_shards == []
        disk.free()
        before = {path: path.stat().st_ino for path in store.glob("partial/*/*.tracks")}
        assert before, "its videos are not lost"
        assert extract(clips, store, listing=some_missing) == 1
        assert store_bytes(store) == store_bytes(undisturbed)


def test_what_zarr_still_writes_after_an_error_is_waited_for(
    clips, some_missing, undisturbed, tmp_path, monkeypatch, capsys
):
    """An array's metadata and its groups' are written at once; the slower ones would bring the folder back."""
    store, slow = tmp_path / "s", []
    originals = {name: getattr(LocalStore, name) for name in ("set", "set_if_not_exists")}

    def patched(name):
        async def write(local, key, value):
            if key == "video/index/zarr.json":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            slow.append(key)
            await asyncio.sleep(0.3)
            await originals[name](local, key, value)

        return write

    for name in originals:
        monkeypatch.setattr(LocalStore, name, patched(name))
    assert extract(clips, store, listing=some_missing) == 1
    assert "No space left on device; the same command goes on" in capsys.readouterr().err
    assert "video/zarr.json" in slow
    time.sleep(0.5)
    assert not list(store.glob("partial/*/.tmp-*"))
    monkeypatch.undo()
    assert extract(clips, store, listing=some_missing) == 1
    assert store_bytes(store) == store_bytes(undisturbed)


@needs_a_disk
def test_a_store_that_cannot_be_written(clips, some_missing, undisturbed, tmp_path, capsys):
    """One that is finished is read, verified, and gone over by extraction; one that is not says so."""
    with Disk(tmp_path / "disk", 64 << 20) as disk:
        store = disk.folder / "s"
        assert extract(clips, store, "--only-shards", 0, listing=some_missing) == 1
        assert disk.set_read_only()
        capsys.readouterr()
        assert extract(clips, store, listing=some_missing) == 1
        assert "Read-only file system" in capsys.readouterr().err
        disk.set_writable()
        assert extract(clips, store, listing=some_missing) == 1
        assert disk.set_read_only()
        assert extract(clips, store, listing=some_missing) == 1, "as before: two videos failed"
        assert inspect_cli.main([str(store), "--verify"]) == 0
        reader = TrackReader(store)
        assert len(reader.videos) == 5
        assert all(row is not None for row in reader.rows(reader.videos[0], [0, 4], hog=True))
        disk.set_writable()
        assert store_bytes(store) == store_bytes(undisturbed)


# --- the store's folder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["a video is written", "a shard is put together"])
@pytest.mark.parametrize("what", ["deleted", "begun anew", "moved"])
def test_a_store_that_goes_away_under_a_run(clips, some_missing, tmp_path, monkeypatch, capsys, when, what):
    """It is not brought back to life, and what has taken its place is left alone."""
    store, aside = tmp_path / "s", tmp_path / "aside"
    module, name = (jobs, "process_video") if when == "a video is written" else (assembly, "write_shard")
    original = getattr(module, name)
    begun: list[bool] = []

    def go_away():
        if begun:
            return
        begun.append(True)
        if what == "moved":
            store.rename(aside)
        else:
            shutil.rmtree(store)
        if what == "begun anew":
            with monkeypatch.context() as patch:
                patch.setattr(module, name, original)
                assert extract(clips, store, "--only-shards", 1) == 0

    def call(*positional, **named):
        go_away()
        return original(*positional, **named)

    monkeypatch.setattr(module, name, call)
    assert extract(clips, store, listing=some_missing) == 1
    assert f"{store} is gone: it was deleted, moved or begun anew while this run wrote to it" in capsys.readouterr().err
    if what == "begun anew":
        assert TrackStore(store).complete_shards == [1]
        assert validate_store(store) == []
        monkeypatch.undo()
        assert extract(clips, store) == 0
    else:
        assert not list(tmp_path.glob("s/**/*.tracks"))
        assert not (store / "store.json").exists()


# --- two runs ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped_run(clips, store, *more, listing):
    """A run of its own that is stopped (SIGSTOP) once it has a video at work."""
    command = [sys.executable, "-m", "extraction.cli", *arguments(clips, store, *more, listing=listing)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        try:
            deadline = time.monotonic() + 120
            while not list(store.glob("partial/*/*.tries")):
                assert run.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
            run.send_signal(signal.SIGSTOP)
            yield run
        finally:
            run.kill()


def test_a_second_run_takes_the_shards_that_are_free(clips, some_missing, undisturbed, tmp_path, caplog):
    store = tmp_path / "s"
    with stopped_run(clips, store, "--only-shards", "0", listing=some_missing) as first:
        assert extract(clips, store, listing=some_missing) == 75
        assert f"shard 0 is left to process {first.pid} on {os.uname().nodename}" in caplog.text
        assert TrackStore(store).complete_shards == [1]
        assert validate_store(store) == []
        first.send_signal(signal.SIGCONT)
        _, said = first.communicate(timeout=120)
        assert first.returncode == 1, said
    assert store_bytes(store) == store_bytes(undisturbed)


def test_the_shards_of_a_killed_run_are_free_at_once(clips, some_missing, undisturbed, tmp_path):
    store = tmp_path / "s"
    with stopped_run(clips, store, listing=some_missing) as first:
        assert extract(clips, store, listing=some_missing) == 75
        assert TrackStore(store).complete_shards == []
        first.kill()
        first.wait()
        assert extract(clips, store, listing=some_missing) == 1
    assert store_bytes(store) == store_bytes(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_end_finishes_what_it_holds(clips, some_missing, undisturbed, tmp_path, number):
    store = tmp_path / "s"
    with stopped_run(clips, store, listing=some_missing) as run:
        run.send_signal(number)
        run.send_signal(signal.SIGCONT)
        _, said = run.communicate(timeout=120)
        assert run.returncode == 75, said
        assert number.name in said
    assert not list(store.glob("partial/*/*.tries")), "that was no try"
    assert not list(store.glob("partial/*/.tmp-*"))
    assert len(TrackStore(store).complete_shards) < 2, "the signal came too late to mean anything"
    assert extract(clips, store, listing=some_missing) == 1
    assert store_bytes(store) == store_bytes(undisturbed)


def test_a_run_on_ray_is_asked_to_end(clips, some_missing, undisturbed, tmp_path):
    """Ray has a way of its own with SIGTERM, which must not take the place of ours."""
    store = tmp_path / "s"
    command = [word if word != "local" else "ray" for word in arguments(clips, store, listing=some_missing)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "extraction.cli", *command, "--workers", "1"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 120
        while not list(store.glob("partial/*/*.tries")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=120)
    assert run.returncode == 75, said
    assert "SIGTERM: no video is begun any more" in said
    assert not list(store.glob("partial/*/*.tries")), "that was no try"
    assert len(TrackStore(store).complete_shards) < 2, "the signal came too late to mean anything"
    assert extract(clips, store, listing=some_missing) == 1
    assert store_bytes(store) == store_bytes(undisturbed)


@pytest.mark.parametrize("step", ["before it begins", 3, 12])
def test_an_orphan_that_puts_a_shard_in_place_first(clips, some_missing, undisturbed, tmp_path, monkeypatch, step):
    """A worker of a killed driver finishes the shard, and removes its partial files, while this run assembles it."""
    store, created, extracted = tmp_path / "s", itertools.count(), []
    create, extract_video = shard_writer._create, jobs.extract_video

    def orphan():
        shutil.copytree(undisturbed / "shards/00000.zarr", store / "shards/00000.zarr")
        (store / "failures").mkdir()
        shutil.copy(undisturbed / "failures/00000.jsonl", store / "failures")
        ShardFolder(store, 0).remove_partial()

    def create_array(*what):
        if next(created) == step:
            orphan()
        return create(*what)

    def assemble_shard(job):
        if step == "before it begins":
            orphan()
        return assemble(job)

    assemble = jobs.assemble_shard
    monkeypatch.setattr(shard_writer, "_create", create_array)
    monkeypatch.setattr(jobs, "assemble_shard", assemble_shard)
    monkeypatch.setattr(jobs, "extract_video", lambda job: extracted.append(job.place) or extract_video(job))
    assert extract(clips, store, "--only-shards", 0, listing=some_missing) == 1
    assert sorted(extracted) == sorted(set(extracted)), "nothing was done twice"
    assert store_bytes(store / "shards/00000.zarr") == store_bytes(undisturbed / "shards/00000.zarr")
    assert not ShardFolder(store, 0).partial_names()


def test_a_signal_while_its_handler_is_put_in_place(monkeypatch):
    """Between one instruction and the next of what makes the run listen."""
    real, asked = signal.signal, []

    def signalled(number, handler):
        before = real(number, handler)
        if number == signal.SIGUSR1 and not asked:
            asked.append(number)
            signal.raise_signal(number)
        return before

    monkeypatch.setattr(signal, "signal", signalled)
    with stopping_on_signals(60) as stopping:
        assert stopping()
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_end_of_grace_is_not_lost_in_a_destructor(monkeypatch):
    """Python drops what is raised there."""
    monkeypatch.setattr(stopping, "_AGAIN_SECONDS", 1.0)
    dropped: list[type[BaseException]] = []

    class Slow:
        def __del__(self):
            while not dropped:
                time.sleep(0.001)

    monkeypatch.setattr(sys, "unraisablehook", lambda what: dropped.append(what.exc_type))

    with pytest.raises(GraceOverError), stopping_on_signals(0.01):
        slow = Slow()
        signal.raise_signal(signal.SIGTERM)
        del slow
        time.sleep(60)
    assert dropped == [GraceOverError]


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [1970, 1979, 2055, 2150])
def test_no_clock_is_asked(clips, some_missing, undisturbed, tmp_path, monkeypatch, year):
    """A host whose clock is decades off, with videos from the future."""
    root, store = shutil.copytree(clips, tmp_path / "root"), tmp_path / "s"
    seconds = (year - 1970) * 31556952.0
    for number, file in enumerate(sorted(root.rglob("*.avi"))):
        os.utime(file, (0, seconds if number % 2 else 2**32))
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: seconds)
    monkeypatch.setattr(time, "localtime", lambda *when: time.gmtime(*(when or (seconds,))))
    assert extract(root, store, "--only-shards", 0, listing=some_missing) == 1
    for file in store.rglob("*"):  # and the first part was done by one that was off the other way
        os.utime(file, (real + 1e9, real + 1e9))
    monkeypatch.setattr(time, "time", lambda: real)
    assert extract(root, store, listing=some_missing) == 1
    assert store_bytes(store) == store_bytes(undisturbed)


# --- videos -----------------------------------------------------------------------------------------------------


def test_a_video_that_has_changed_since(clips, some_missing, undisturbed, tmp_path, capsys):
    """It is said, training refuses it, and --verify extracts it again, it alone."""
    root, store = shutil.copytree(clips, tmp_path / "root"), shutil.copytree(undisturbed, tmp_path / "s")
    write_clip(root / "c.avi", random_scene(99, 1.5, (72, 96)), 20)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    assert extract(root, store, listing=some_missing) == 1, "a plain run does not look at the videos that are done"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert inspect_cli.main([str(store), "--verify"]) == 0, "the store itself is sound"
    capsys.readouterr()
    assert inspect_cli.main([str(store), "--verify", "--root", str(root)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"c\.avi: has \d+ bytes; when it was extracted it had \d+", said)
    assert "1 problem(s)" in said
    assert extract(root, store, "--verify", listing=some_missing) == 1
    assert extract(root, tmp_path / "fresh", listing=some_missing) == 1
    assert store_bytes(store) == store_bytes(tmp_path / "fresh")
    assert inspect_cli.main([str(store), "--verify", "--root", str(root)]) == 0


def test_a_video_that_has_changed_but_not_in_size(clips, some_missing, undisturbed, tmp_path, capsys):
    root = shutil.copytree(clips, tmp_path / "root")
    data = bytearray((root / "a.avi").read_bytes())
    data[len(data) // 2] ^= 1
    (root / "a.avi").write_bytes(data)
    assert inspect_cli.main([str(undisturbed), "--verify", "--root", str(root)]) == 1
    assert re.search(r"a\.avi: its CRC-32 is \d+; when it was extracted", capsys.readouterr().out)


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
def test_a_video_that_cannot_be_read_stops_no_other(clips, undisturbed, some_missing, tmp_path, monkeypatch, error):
    """A bad sector, a file of somebody else's: errors of the operating system, but the store is not at fault."""
    read = jobs.size_and_crc32

    def unreadable(path):
        if path.name == "c.avi":
            raise OSError(error, os.strerror(error), str(path))
        return read(path)

    monkeypatch.setattr(jobs, "size_and_crc32", unreadable)
    assert extract(clips, tmp_path / "s", listing=some_missing) == 1
    records = [json.loads(line) for file in (tmp_path / "s/failures").iterdir() for line in file.open()]
    (record,) = [record for record in records if record["path"] == "c.avi"]
    assert (record["error"], record["message"]) == ("VideoOpenError", os.strerror(error).lower())
    assert len(records) == 3
    monkeypatch.undo()
    assert extract(clips, tmp_path / "s", "--retry-failed", listing=some_missing) == 1
    assert TrackStore(tmp_path / "s").complete_shards == [0, 1]


def test_a_video_that_is_removed_while_it_is_read(clips, some_missing, tmp_path, monkeypatch):
    root, process_video = shutil.copytree(clips, tmp_path / "root"), jobs.process_video

    def remove(frames, *more):
        yield from process_video(frames, *more)
        Path(frames._frames.path).unlink()

    monkeypatch.setattr(jobs, "process_video", remove)
    assert extract(root, tmp_path / "s", listing=some_missing) == 2
    records = [json.loads(line) for file in (tmp_path / "s/failures").iterdir() for line in file.open()]
    assert sorted({record["error"] for record in records}) == ["VideoChangedError", "VideoOpenError"]


def test_videos_are_not_blamed_for_a_root_that_goes_away(
    clips, some_missing, undisturbed, tmp_path, monkeypatch, capsys
):
    root, store = shutil.copytree(clips, tmp_path / "root"), tmp_path / "s"
    process_video = jobs.process_video

    def unmount(frames, *more):
        yield from process_video(frames, *more)
        root.rename(tmp_path / "away")

    monkeypatch.setattr(jobs, "process_video", unmount)
    assert extract(root, store, listing=some_missing) == 1
    assert f"{root}: the folder of the videos is gone; the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "away").rename(root)
    assert extract(root, store, listing=some_missing) == 1
    assert store_bytes(store) == store_bytes(undisturbed)


def test_an_id_twice_in_the_list(clips, tmp_path, capsys):
    listing = tmp_path / "list.txt"
    listing.write_text("a.avi\nc.avi\na.avi\n")
    assert extract(clips, tmp_path / "s", listing=listing) == 2
    said = capsys.readouterr().err
    assert "a.avi" in said
    assert str(listing) in said
    assert not (tmp_path / "s").exists()


def test_failures_name_what_was_tried(undisturbed):
    """The records that the other tests compare byte for byte."""
    lines = [line for file in sorted((undisturbed / "failures").iterdir()) for line in file.read_text().splitlines()]
    assert [(record["path"], record["attempts"]) for record in map(json.loads, lines)] == [
        ("gone.avi", 1),
        ("lost.avi", 1),
    ]
    with pytest.raises(StoreError, match="no video called"):
        TrackStore(undisturbed).find("gone.avi")
