"""A shard is put in place once, whoever else does the same at the same time: workers can outlive their driver."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from extraction import commit
from extraction.commit import ShardFolder

CALLS = ["rename", "replace", "unlink", "rmdir", "iterdir"]


def begun_commit(store: Path, former: bool) -> ShardFolder:
    """A shard whose commit has been begun, no more: new/zarr.json is in `commit/`."""
    folder = ShardFolder(store, 3)
    if former:
        folder.complete_path.mkdir(parents=True)
        (folder.complete_path / "zarr.json").write_text("former")
        (store / "failures").mkdir()
        (store / "failures/00003.jsonl").write_text("former\n")
    (store / "partial").mkdir(parents=True)
    folder.begin()
    folder.tracks_path(0).write_text("tracks")
    staging = folder.staging_path()
    (staging / "shard.zarr").mkdir()
    (staging / "shard.zarr/zarr.json").write_text("new")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardFolder, "roll_forward", lambda _: True)
        folder.commit(staging, [])
    return folder


def look(store: Path) -> dict[str, str]:
    return {path.relative_to(store).as_posix(): path.read_text() for path in store.rglob("*") if path.is_file()}


class CutShortError(Exception):
    """In place of SIGKILL."""


@pytest.fixture
def calls(monkeypatch):
    """Give a function that has another called before the n-th change of the file system."""
    count, before = [0], {}
    monkeypatch.setattr(commit, "sync", lambda _: None)  # which takes most of the time
    monkeypatch.setattr(commit, "sync_tree", lambda _: None)

    def counted(name, original):
        def call(self, *more, **named):
            number, count[0] = count[0], count[0] + 1
            if number in before:
                before.pop(number)()
            return original(self, *more, **named)

        monkeypatch.setattr(Path, name, call)

    for name in CALLS:
        counted(name, getattr(Path, name))

    def at(number, do):
        count[0] = 0
        before.clear()
        before[number] = do
        return before

    return at


@pytest.mark.parametrize("former", [True, False])
def test_a_commit_that_is_cut_short_anywhere_goes_on(tmp_path, calls, former):
    def cut_short():
        raise CutShortError

    for number in range(100):
        store = tmp_path / str(number)
        folder = begun_commit(store, former)
        left = calls(number, cut_short)
        try:
            folder.roll_forward()
        except CutShortError:
            assert folder.partial_path.exists()
            folder.roll_forward()
            if folder.partial_path.exists():
                folder.remove_partial()  # as the driver does where a shard is in place
        assert look(store) == {"shards/00003.zarr/zarr.json": "new"}
        if left:
            break
    assert number > 5


@pytest.mark.parametrize("former", [True, False])
@pytest.mark.parametrize("progress", range(12))
def test_two_that_put_a_shard_in_place_at_once(tmp_path, calls, former, progress):
    """One comes as far as `progress` of its changes before any one of the other's."""
    for number in range(100):
        store = tmp_path / str(number)
        folder = begun_commit(store, former)

        def other(store=store):
            def cut_short():
                raise CutShortError

            waiting = calls(progress, cut_short)
            with contextlib.suppress(CutShortError):
                ShardFolder(store, 3).roll_forward()
            waiting.clear()

        left = calls(number, other)
        assert folder.roll_forward()
        assert folder.complete_path.exists(), number
        folder.roll_forward()
        assert look(store) == {"shards/00003.zarr/zarr.json": "new"}
        assert not folder.partial_path.exists()
        if left:
            break
    assert number > 5


def test_a_folder_that_a_slow_worker_still_writes_to_is_left_to_the_next_run(tmp_path, monkeypatch):
    folder = begun_commit(tmp_path, former=False)
    original = os.rmdir

    def write_first(path, *more, **named):
        if Path(path) == folder.partial_path:
            folder.tries_path(0).write_text("late")
        return original(path, *more, **named)

    monkeypatch.setattr(os, "rmdir", write_first)
    assert folder.roll_forward()
    assert folder.is_complete
    monkeypatch.undo()
    assert folder.partial_names() == {"000000.tries"}
    folder.remove_partial()
    assert look(tmp_path) == {"shards/00003.zarr/zarr.json": "new"}


def test_a_commit_that_another_version_began_goes_on(tmp_path):
    """Before 0.5 there was no commit/former."""
    folder = begun_commit(tmp_path, former=False)
    shutil.rmtree(folder.partial_path / "commit/former")
    (folder.partial_path / "commit/shard.zarr").rename(tmp_path / "aside")
    (tmp_path / "shards").mkdir()
    (tmp_path / "aside").rename(folder.complete_path)
    assert folder.roll_forward()
    assert look(tmp_path) == {"shards/00003.zarr/zarr.json": "new"}
