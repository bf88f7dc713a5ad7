"""What is damaged in a store is found, and extracted again, without touching what is sound."""

import json
import os
import shutil

import pytest
from conftest import store_bytes
from stores import flip_bit, only_file

from data_specs.shard_files import attribute_problems, file_problems
from data_specs.store_metadata import read_attributes
from data_specs.track_store import StoreError, TrackStore
from data_specs.validate import validate_store
from data_specs.validate_shard import shard_damage
from extraction import cli, inspect_cli, jobs


def extract(clips, store, *more):
    arguments = ["--dataset", clips / "list.txt", "--root", clips, "--shards", 2, "--out", store, *more]
    return cli.main([str(a) for a in (*arguments, "--flow", "dis", "--executor", "local")])


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    store = tmp_path_factory.mktemp("mending") / "s"
    assert extract(clips, store) == 0
    return store


@pytest.fixture
def store(undisturbed, tmp_path):
    return shutil.copytree(undisturbed, tmp_path / "s")


def test_a_flipped_bit_costs_one_video(clips, undisturbed, store, caplog):
    flip_bit(only_file(store / "shards/00000.zarr/displacement"), 0.02)
    damage = shard_damage(TrackStore(store), 0)
    assert len(damage.videos) == 1
    assert extract(clips, store) == 0
    assert store_bytes(store) != store_bytes(undisturbed), "only --verify reads everything back"
    caplog.clear()
    assert extract(clips, store, "--verify") == 0
    assert store_bytes(store) == store_bytes(undisturbed)
    assert "shard 0 is mended; 1 of its videos are extracted again" in caplog.text


def test_damage_that_a_look_at_the_files_shows_is_mended_without_being_asked(clips, undisturbed, store):
    only_file(store / "shards/00000.zarr/valid").unlink()
    cut = only_file(store / "shards/00001.zarr/hog")
    cut.write_bytes(cut.read_bytes()[:-1])
    (store / "shards/00001.zarr/left.over").write_text("?")
    assert extract(clips, store) == 0
    assert store_bytes(store) == store_bytes(undisturbed)
    assert not list((store / "partial").iterdir())


def test_flipped_metadata_is_noticed_where_json_is_none_the_wiser(clips, undisturbed, store):
    """A letter of a video's path, and one of a software's version: still JSON, still text."""
    for name, old, new in [("video/zarr.json", "a.avi", "c.avi"), ("zarr.json", '"python": "3', '"python": "7')]:
        path = store / "shards/00000.zarr" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        assert any(name in problem for problem in validate_store(store))
        assert extract(clips, store, "--verify") == 0
        assert store_bytes(store) == store_bytes(undisturbed)


def test_the_reader_refuses_attributes_that_are_not_as_they_were_written(store):
    path = store / "shards/00001.zarr/zarr.json"
    path.write_text(path.read_text().replace('"num_starts": ', '"num_starts": 1'))
    with pytest.raises(StoreError, match=r"00001\.zarr/zarr\.json: the attributes' CRC-32 is \d+, must be \d+"):
        TrackStore(store).shard(1)


def test_mending_that_was_interrupted_goes_on(clips, undisturbed, store, monkeypatch):
    flip_bit(only_file(store / "shards/00000.zarr/displacement"), 0.02)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("extraction.assembly.write_shard", killed)
    assert extract(clips, store, "--verify") == 75
    monkeypatch.undo()
    (done,) = (store / "partial").rglob("*.tracks")
    assert extract(clips, store) == 0, "the video is done again: a plain run puts it in place"
    assert not done.exists()
    assert store_bytes(store) == store_bytes(undisturbed)


def test_mending_that_was_interrupted_does_nothing_twice(clips, undisturbed, store, monkeypatch):
    """Two videos are damaged, and one is done when the run ends; the next is not told of the damage."""
    extract_video, extracted = jobs.extract_video, []

    def first_only(job):
        if extracted:
            raise KeyboardInterrupt
        extracted.append(job.entry.path)
        return extract_video(job)

    for place in (0.02, 0.95):
        flip_bit(only_file(store / "shards/00000.zarr/displacement"), place)
    assert len(shard_damage(TrackStore(store), 0).videos) == 2
    monkeypatch.setattr(jobs, "extract_video", first_only)
    assert extract(clips, store, "--verify") == 75
    monkeypatch.setattr(jobs, "extract_video", lambda job: extracted.append(job.entry.path) or extract_video(job))
    assert extract(clips, store) == 0
    assert len(extracted) == len(set(extracted)) == 2
    assert store_bytes(store) == store_bytes(undisturbed)


def test_what_a_retry_meets_in_the_old_shard_is_mended_too(clips, undisturbed, tmp_path):
    """a.avi failed, and comes back when another video of its shard has been damaged."""
    store, root = tmp_path / "s", shutil.copytree(clips, tmp_path / "root")
    (root / "a.avi").rename(root / "a.away")
    assert extract(root, store) == 1
    flip_bit(only_file(store / "shards/00000.zarr/displacement"), 0.9)
    (root / "a.away").rename(root / "a.avi")
    assert extract(root, store, "--retry-failed") == 0
    assert store_bytes(store) == store_bytes(undisturbed)


def test_a_damaged_video_that_is_gone_by_now_is_recorded_as_failed(clips, store, tmp_path):
    root = shutil.copytree(clips, tmp_path / "root")
    flip_bit(only_file(store / "shards/00000.zarr/displacement"), 0.02)
    (index,) = shard_damage(TrackStore(store), 0).videos
    path = (clips / "list.txt").read_text().splitlines()[index]
    (root / path).unlink()
    assert extract(root, store, "--verify") == 1
    (failure,) = [json.loads(line) for line in (store / "failures/00000.jsonl").read_text().splitlines()]
    assert failure["path"] == path
    assert validate_store(store) == []


def test_lost_records_of_failures_are_made_again(clips, store, tmp_path):
    root, lost = shutil.copytree(clips, tmp_path / "root"), tmp_path / "lost"
    (root / "d.avi").unlink()
    assert extract(root, lost) == 1
    whole = store_bytes(lost)
    listed = lost / "failures/00001.jsonl"
    listed.unlink()
    assert any("failures/00001.jsonl: has 0 bytes" in problem for problem in validate_store(lost))
    assert extract(root, lost) == 1
    assert store_bytes(lost) == whole
    listed.write_text(listed.read_text()[:-5])
    assert extract(root, lost) == 1
    assert store_bytes(lost) == whole
    listed.write_text(listed.read_text().replace("d.avi", "e.avi"))
    assert validate_store(lost)
    assert extract(root, lost, "--verify") == 1
    assert store_bytes(lost) == whole


@pytest.mark.parametrize("text", [None, "", '{"format": "motion-tra'])
def test_a_lost_store_json_is_written_again_for_the_same_run_only(clips, undisturbed, store, text, capsys):
    file = store / "store.json"
    file.unlink() if text is None else file.write_text(text)
    assert extract(clips, store, "--start-stride", 2) == 2
    assert ("is not empty and not a track store" if text is None else "is not JSON") in capsys.readouterr().err
    assert extract(clips, store) == 0
    assert store_bytes(store) == store_bytes(undisturbed)


def test_a_video_that_changed_since_is_named_and_extracted_again(clips, store, tmp_path, capsys):
    root = shutil.copytree(clips, tmp_path / "root")
    assert inspect_cli.main([str(store), "--verify", "--root", str(root)]) == 0
    before = store_bytes(store)
    shutil.copy(clips / "d.avi", root / "a.avi")
    same_size = bytearray((root / "c.avi").read_bytes())
    same_size[-1] ^= 1
    (root / "c.avi").write_bytes(same_size)
    capsys.readouterr()
    assert inspect_cli.main([str(store), "--verify", "--root", str(root)]) == 1
    said = capsys.readouterr().out
    assert f"a.avi: has {(root / 'a.avi').stat().st_size} bytes; when it was extracted it had" in said
    assert "c.avi: its CRC-32 is" in said
    assert extract(root, store) == 0
    assert store_bytes(store) == before, "a plain run does not read the videos again"
    assert extract(root, store, "--verify") == 0
    assert inspect_cli.main([str(store), "--verify", "--root", str(root)]) == 0
    assert store_bytes(store) != before


def test_a_video_that_is_written_to_while_it_is_read_is_refused(clips, tmp_path, monkeypatch):
    root = shutil.copytree(clips, tmp_path / "root")
    original = jobs.process_video

    def grows(frames, *others):
        yield from original(frames, *others)
        with (root / "c.avi").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr("extraction.jobs.process_video", grows)
    (root / "list.txt").write_text("c.avi\n")
    assert extract(root, tmp_path / "s") == 2
    (failure,) = [json.loads(line) for line in (tmp_path / "s/failures/00000.jsonl").read_text().splitlines()]
    assert (failure["error"], failure["message"]) == (
        "VideoChangedError", "was written to while it was read; extract it again when it is whole",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["locks", "partial", "failures", "partial/00000", "partial/00000/commit"])
def test_a_store_whose_links_lead_elsewhere_is_not_written_to(clips, store, tmp_path, capsys, name):
    """It came from somebody else, and is gone on with or mended."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "00000").mkdir(parents=True)
    (elsewhere / "00000" / "precious").write_text("x")
    (store / "locks").unlink(missing_ok=True)
    shutil.rmtree(store / "partial", ignore_errors=True)
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).symlink_to(elsewhere)
    shutil.rmtree(store / "shards/00000.zarr/displacement")
    assert extract(clips, store) == 2
    assert f"{store / name}: is a symbolic link" in capsys.readouterr().err
    assert [str(path.relative_to(elsewhere)) for path in elsewhere.rglob("*")] == ["00000", "00000/precious"]


def test_who_works_on_a_shard_is_not_said_through_a_link(clips, undisturbed, store, tmp_path):
    (tmp_path / "precious").write_text("x")
    shutil.rmtree(store / "shards/00000.zarr/displacement")
    (store / "partial/00000").mkdir(parents=True)
    (store / "partial/00000/holder").symlink_to(tmp_path / "precious")
    assert extract(clips, store) == 0
    assert (tmp_path / "precious").read_text() == "x"
    assert store_bytes(store) == store_bytes(undisturbed)


@pytest.mark.parametrize("name", ["000000.failed", "000000.tries"])
def test_a_pipe_in_partial_is_not_waited_for(clips, store, capsys, name):
    shutil.rmtree(store / "shards/00000.zarr")
    (store / "partial/00000").mkdir(parents=True)
    os.mkfifo(store / "partial/00000" / name)
    assert extract(clips, store) == 1
    assert "is a pipe, not a file" in capsys.readouterr().err


def test_a_shard_s_seal_is_over_every_file(undisturbed):
    shard = undisturbed / "shards/00000.zarr"
    attributes = read_attributes(shard)
    files = {f.relative_to(shard).as_posix() for f in shard.rglob("*") if f.is_file()}
    assert files == attributes["files"].keys() | {"zarr.json"}
    assert list(file_problems(shard, attributes, contents=True)) == []
    assert list(attribute_problems(shard, attributes)) == []
    for key in attributes.keys() - {"crc32"}:
        changed = {**attributes, key: "x"}
        assert list(attribute_problems(shard, changed)), key


@pytest.mark.parametrize("name", ["valid/zarr.json", "video/zarr.json", "zarr.json"])
def test_a_shard_is_not_given_up_where_no_video_is_there(clips, undisturbed, store, tmp_path, capsys, name):
    """As where the folder of the videos is not mounted; what of the shard is sound would be lost. Others are done."""
    away = tmp_path / "away"
    away.mkdir()
    shutil.copy(clips / "list.txt", away)
    for shard in ("00000", "00001"):
        file = store / f"shards/{shard}.zarr" / name
        file.write_bytes(file.read_bytes()[:-1])
    before = store_bytes(store / "shards")
    assert extract(away, store) == 1
    assert f"shard 1 is damaged, and none of its videos is in {away}" in capsys.readouterr().err
    assert store_bytes(store / "shards") == before
    shutil.copy(clips / "c.avi", away)
    assert extract(away, store) == 1
    assert f"shard 1 is damaged, and none of its videos is in {away}" in capsys.readouterr().err
    assert TrackStore(store).shard(0).paths == ["c.avi"], "here some are there: the others have failed"
    assert extract(clips, store, "--retry-failed") == 0
    assert store_bytes(store) == store_bytes(undisturbed)


def test_a_damaged_record_of_a_failure_is_made_again(clips, tmp_path, monkeypatch, caplog):
    root = shutil.copytree(clips, tmp_path / "root")
    (root / "d.avi").unlink()
    assert extract(root, tmp_path / "whole") == 1

    def killed(*_, **__):
        raise KeyboardInterrupt

    for number, damage in enumerate([b"", b'{"index": 3, "id', b"\xff"]):
        store = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr("extraction.assembly.write_shard", killed)
            assert extract(root, store, "--only-shards", 1) == 75
        (record,) = store.rglob("*.failed")
        record.write_bytes(damage)
        assert inspect_cli.main([str(store), "--failures"]) == 0, "the others are named"
        assert extract(root, store) == 1
        assert f"{record}: the record is damaged" in caplog.text
        assert store_bytes(store) == store_bytes(tmp_path / "whole")
