"""A shard is put in place whole, from whichever point a crash left it at."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import store_bytes

from data_specs.dataset import VideoEntry
from data_specs.durable import replacing
from data_specs.schema import STREAMED, array_specs
from data_specs.track_store import StoreError, TrackStore
from data_specs.validate import validate_store
from extraction.cli import main
from extraction.commit import ShardFolder
from extraction.job_records import VideoJob
from extraction.jobs import run_job
from extraction.partial import PartialError, PartialFile


def extract(clips, store, *more, listing=None):
    return main(
        ["--dataset", str(listing or clips / "list.txt"), "--root", str(clips), "--shards", "2", "--out", str(store),
         "--flow", "dis", "--executor", "local", *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    store = tmp_path_factory.mktemp("commit") / "s"
    assert extract(clips, store) == 0
    return store


class CrashError(Exception):
    """Stands for a kill at this place."""


@pytest.mark.parametrize("crash_at", ["commit", "shard.zarr"])
def test_a_crash_between_renames_is_mended_by_the_next_run(clips, undisturbed, tmp_path, monkeypatch, crash_at):
    """Before commit/ appears, and before the shard leaves it; the exchange has a test of its own below."""
    store = tmp_path / "s"
    original = type(store).rename

    def rename(self, target):
        if crash_at in (self.name, target.name):
            raise CrashError
        return original(self, target)

    monkeypatch.setattr(type(store), "rename", rename)
    with pytest.raises(CrashError):
        extract(clips, store)
    monkeypatch.undo()
    assert not TrackStore(store).complete_shards, "nothing half-done is to be seen"
    assert extract(clips, store) == 0
    assert store_bytes(store) == store_bytes(undisturbed)


def test_a_crash_while_cleaning_up_is_mended(clips, undisturbed, tmp_path, monkeypatch):
    """The shard is in place, and the partial files are only half gone."""
    store = tmp_path / "s"
    original = type(store).unlink

    def unlink(self, *arguments, **options):
        if self.suffix == ".tracks" and not self.name.startswith(".tmp"):
            raise CrashError
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(store), "unlink", unlink)
    with pytest.raises(CrashError):
        extract(clips, store)
    monkeypatch.undo()
    assert TrackStore(store).complete_shards == [0]
    assert extract(clips, store) == 0
    assert store_bytes(store) == store_bytes(undisturbed)
    assert not list((store / "partial").iterdir())


def test_a_retry_that_was_killed_before_assembly_is_finished(clips, undisturbed, tmp_path, monkeypatch):
    store, root = tmp_path / "s", tmp_path / "root"
    shutil.copytree(clips, root)
    (root / "a.avi").rename(root / "a.away")
    assert extract(root, store) == 1
    (root / "a.away").rename(root / "a.avi")
    monkeypatch.setattr("extraction.assembly.write_shard", lambda *a, **k: (_ for _ in ()).throw(CrashError()))
    with pytest.raises(CrashError):
        extract(root, store, "--retry-failed")
    monkeypatch.undo()
    assert extract(root, store) == 0, "its video is done: a plain run puts it in place"
    assert store_bytes(store) == store_bytes(undisturbed)


def test_a_task_that_was_killed_while_beginning_the_store_is_no_obstacle(clips, undisturbed, tmp_path):
    store = tmp_path / "s"
    store.mkdir()
    (store / ".tmp-0123-store.json").write_text("{")
    assert extract(clips, store) == 0
    (store / ".tmp-0123-store.json").unlink()
    assert store_bytes(store) == store_bytes(undisturbed)


def test_a_store_that_cannot_be_created_is_a_usage_error(clips, capsys):
    assert extract(clips, "/proc/nowhere/s") == 2
    assert "/proc/nowhere/s: cannot be created" in capsys.readouterr().err


def test_a_crash_in_the_middle_of_an_exchange_is_mended(clips, undisturbed, tmp_path):
    """--retry-failed took the old shard away and was killed before the new one was in its place."""
    store = tmp_path / "s"
    shutil.copytree(undisturbed, store)
    folder = ShardFolder(store, 1)
    commit = folder.partial_path / "commit"
    commit.mkdir(parents=True)
    (commit / "failures.jsonl").touch()
    shutil.copytree(folder.complete_path, commit / "shard.zarr")
    folder.complete_path.rename(folder.partial_path / ".tmp-old")
    assert extract(clips, store) == 0
    assert store_bytes(store) == store_bytes(undisturbed)


def test_what_a_killed_writer_left_is_never_read(clips, undisturbed, tmp_path):
    store = tmp_path / "s"
    assert extract(clips, store, "--only-shards", "0") == 0
    partial = store / "partial" / "00001"
    partial.mkdir(parents=True)
    (partial / ".tmp-0123-000000.tracks").write_bytes(b"half a video")
    (partial / ".tmp-4567-commit").mkdir()
    assert extract(clips, store) == 0
    assert store_bytes(store) == store_bytes(undisturbed)


def test_a_damaged_partial_file_is_extracted_again(clips, undisturbed, tmp_path, monkeypatch):
    store = tmp_path / "s"
    monkeypatch.setattr("extraction.assembly.write_shard", lambda *a, **k: (_ for _ in ()).throw(CrashError()))
    with pytest.raises(CrashError):
        extract(clips, store)
    monkeypatch.undo()
    tracks = sorted((store / "partial" / "00000").glob("*.tracks"))
    assert len(tracks) == 3
    whole = tracks[0].read_bytes()
    tracks[0].write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(tracks[1].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    tracks[1].write_bytes(flipped)
    assert extract(clips, store) == 0
    assert store_bytes(store) == store_bytes(undisturbed)


def test_damage_anywhere_in_a_partial_file_is_noticed(tmp_path, clips, undisturbed):
    """Every byte that is flipped either leaves the arrays as they were or is reported; nothing else is raised."""
    store = tmp_path / "s"
    recipe = TrackStore(undisturbed).info.recipe
    job = VideoJob(
        store=store, shard=0, place=0, entry=VideoEntry(0, "a.avi", "a.avi"), root=clips, recipe=recipe, attempts=0,
        stall_seconds=600,
    )  # fmt: skip
    run_job(job)
    path = ShardFolder(store, 0).tracks_path(0)
    whole = path.read_bytes()

    def arrays():
        file = PartialFile(path)
        return [np.concatenate(list(file.blocks(name))) for name in array_specs(recipe) if name in STREAMED]

    expected = arrays()
    reported = 0
    for place in np.random.default_rng(0).integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            found = arrays()
        except PartialError as error:
            assert str(path) in str(error)
            reported += 1
        else:
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
    assert reported > 250


def test_retrying_failures_gives_the_store_of_an_undisturbed_run(clips, undisturbed, tmp_path):
    """Two videos were missing; they come back; the shards are rebuilt around them without coding anything again."""
    store, root = tmp_path / "s", tmp_path / "root"
    shutil.copytree(clips, root)
    for name in ("a.avi", "sub folder/b.avi"):
        (root / name).rename(root / f"{name}.away")
    assert extract(root, store) == 1
    assert [len(list(TrackStore(store).shard(s).ids)) for s in (0, 1)] == [2, 1]
    assert extract(root, store, "--retry-failed") == 1, "they are still away"
    attempts = [re.search(r'"attempts": (\d+)', f.read_text())[1] for f in (store / "failures").iterdir()]
    assert attempts == ["2", "2"]
    for name in ("a.avi", "sub folder/b.avi"):
        (root / f"{name}.away").rename(root / name)
    assert extract(root, store) == 1, "without --retry-failed they stay failed"
    assert extract(root, store, "--retry-failed") == 0
    assert validate_store(store) == []
    assert store_bytes(store) == store_bytes(undisturbed)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--shards", "3"], "shards: the store has 2, this run 3"),
        (["--start-stride", "2"], "recipe.start_stride: the store has 4, this run 2"),
        (["--recipe", "mme"], "recipe.positions_in: the store has image, this run stabilised"),
        (["--limit", "3"], "videos in the list: the store has 5, this run 3"),
    ],
)
def test_other_settings_on_the_same_store_are_refused(clips, undisturbed, capsys, more, problem):
    before = store_bytes(undisturbed)
    assert extract(clips, undisturbed, *more) == 2
    assert problem in capsys.readouterr().err
    assert store_bytes(undisturbed) == before


def test_a_changed_list_is_refused(clips, undisturbed, tmp_path, capsys):
    listing = tmp_path / "list.txt"
    listing.write_text("".join(reversed((clips / "list.txt").read_text().splitlines(keepends=True))))
    assert extract(clips, undisturbed, listing=listing) == 2
    assert "SHA-256 of the list: the store has" in capsys.readouterr().err


def test_a_folder_with_other_things_in_it_is_refused(clips, tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert extract(clips, tmp_path) == 2
    assert "is not empty and not a track store" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_from_before_there_were_trackers_is_gone_on_with(clips, undisturbed, tmp_path):
    store = shutil.copytree(undisturbed, tmp_path / "s")
    fields = json.loads((store / "store.json").read_text())
    for later in ("tracker", "support_grid", "refinements", "visible_above", "precision", "compiled"):
        del fields["recipe"][later]
    (store / "store.json").write_text(json.dumps(fields))
    shutil.rmtree(store / "shards" / "00001.zarr")
    assert extract(clips, store) == 0
    assert json.loads((store / "store.json").read_text()) == fields
    assert validate_store(store) == []
    ours, theirs = store_bytes(store), store_bytes(undisturbed)
    assert {name for name in ours if ours[name] != theirs[name]} == {"store.json"}
    assert ours.keys() == theirs.keys()


def test_other_software_is_warned_of(clips, undisturbed, tmp_path, caplog):
    store = tmp_path / "s"
    shutil.copytree(undisturbed, store)
    text = (store / "store.json").read_text()
    (store / "store.json").write_text(re.sub(r'"opencv": "[^"]*"', '"opencv": "1.0"', text))
    assert extract(clips, store) == 0
    assert "was begun with opencv 1.0, this is" in caplog.text


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "f").write_text("old")
    with pytest.raises(CrashError), replacing(tmp_path / "f") as temporary:
        temporary.write_text("new")
        raise CrashError
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_an_opened_store_error_names_the_folder(tmp_path):
    with pytest.raises(StoreError, match=str(tmp_path)):
        TrackStore(tmp_path)
