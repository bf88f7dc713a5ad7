"""Every file of a store, removed, cut off or with a bit turned over: found, never read as other values, mended."""

import itertools
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import store_bytes

from data_specs.demo_clips import write_clip
from data_specs.scene import random_scene
from data_specs.track_store import StoreError, TrackStore
from data_specs.validate import validate_store
from extraction import cli
from training.reading.track_reader import TrackReader

HOWS = ("removed", "truncated", "flipped")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three tiny videos and one that is missing, in two shards: two videos in the first, one and the missing one."""
    root = tmp_path_factory.mktemp("videos")
    for name, size, frames in [("a.avi", (48, 64), 9), ("b.avi", (40, 56), 11), ("c.avi", (56, 40), 12)]:
        write_clip(root / name, random_scene(ord(name[0]), 1.5, size), frames)
    (root / "list.txt").write_text("a.avi\nb.avi\nc.avi\nmissing.avi\n")
    return root


def extract(videos, store, *more):
    arguments = ["--dataset", videos / "list.txt", "--root", videos, "--shards", 2, "--out", store, "--flow", "dis"]
    return cli.main([str(a) for a in (*arguments, "--executor", "local", *more)])


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    store = tmp_path_factory.mktemp("whole") / "s"
    assert extract(videos, store) == 1
    return store


def names(store: Path) -> list[str]:
    """The files of shards and failures."""
    return [name for name in store_bytes(store) if name.startswith(("shards/", "failures/"))]


def damage(store: Path, name: str, how: str, rng: random.Random) -> None:
    file = store / name
    data = bytearray(file.read_bytes())
    if how == "removed":
        file.unlink()
        return
    if how == "truncated":
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def put_back(store: Path, whole: Path, name: str) -> None:
    shutil.copyfile(whole / name, store / name)


def plain_values(store: Path) -> dict[tuple[str, str], np.ndarray]:
    """What `TrackStore` gives of every video; of those that it refuses, nothing."""
    found = {}
    opened = TrackStore(store)
    for number in opened.complete_shards:
        try:
            shard = opened.shard(number)
            videos = list(enumerate(shard.metas))
        except StoreError:
            continue
        for video, meta in videos:
            try:
                rows = [shard.read_row(video, row) for row in shard.rows(video)]
            except StoreError:
                continue
            for field in ("frame", "positions", "valid", "homographies", "estimated", "hog"):
                found[meta.path, field] = np.array([getattr(row, field) for row in rows])
            found[meta.path, "meta"] = np.array([meta.num_frames, *meta.frame_size, *meta.source_size, meta.index])
    return found


def training_values(store: Path) -> dict[tuple[str, str], np.ndarray]:
    """The same of the trainer's reader; nothing where it refuses the store."""
    found = {}
    try:
        reader = TrackReader(store)
    except StoreError:
        return {}
    for video in reader.videos:
        try:
            fields = reader.rows(video, range(0, video.num_frames - 6, 4), hog=True)
        except StoreError:
            continue
        for number, field in enumerate(fields):
            if field is not None:
                for name in ("displacement", "valid", "hog_codes", "hog_scale"):
                    found[video.path, f"{number} {name}"] = np.asarray(getattr(field, name))
    found["failed", ""] = np.array([failure.to_line() for failure in reader.failed])
    return found


def same(found: dict, expected: dict) -> None:
    """What was read at all is what was written."""
    for key, value in found.items():
        np.testing.assert_array_equal(value, expected[key], err_msg=str(key))


@pytest.mark.parametrize("how", HOWS)
def test_damage_to_any_file_is_found_and_never_read_as_other_values(whole, tmp_path, how):
    store, rng = shutil.copytree(whole, tmp_path / "s"), random.Random(HOWS.index(how))
    plain, training = plain_values(whole), training_values(whole)
    assert len({path for path, _ in plain}) == 3
    assert len(names(whole)) > 70
    for name in names(whole):
        if name.startswith("shards/00001"):
            continue
        damage(store, name, how, rng)
        assert validate_store(store), f"{name} {how}: not found"
        same(plain_values(store), plain)
        same(training_values(store), training)
        put_back(store, whole, name)
    assert validate_store(store) == []


@pytest.mark.parametrize(
    "name", ["zarr.json", "displacement/zarr.json", "video/frame_size/zarr.json", "video/zarr.json"]
)
def test_any_bit_of_the_metadata(whole, tmp_path, name):
    """A digit of a shape or of a unit that has become another is still JSON."""
    store, rng = shutil.copytree(whole, tmp_path / "s"), random.Random(name)
    plain, training = plain_values(whole), training_values(whole)
    name = f"shards/00000.zarr/{name}"
    for _ in range(12):
        damage(store, name, "flipped", rng)
        assert validate_store(store)
        same(plain_values(store), plain)
        same(training_values(store), training)
        put_back(store, whole, name)


def pairs(store: Path) -> list[list[tuple[str, str]]]:
    """Every file that a shard has, with one of the kinds of damage; half of them in each shard, one at a time."""
    hows = itertools.cycle(HOWS)
    damaged = [(name, next(hows)) for name in names(store)]
    first, second = ([pair for pair in damaged if f"/{shard:05d}" in pair[0]] for shard in (0, 1))
    return [[*pair] for pair in zip(first[::2], second[1::2], strict=False)]


def test_damage_to_any_file_is_mended_by_running_again(videos, whole, tmp_path):
    store, rng = shutil.copytree(whole, tmp_path / "s"), random.Random(1)
    expected = store_bytes(whole)
    for batch in pairs(whole):
        for name, how in batch:
            damage(store, name, how, rng)
        # what changes no size is found by reading alone
        closely = ["--verify"] if any(how == "flipped" for _, how in batch) else []
        assert extract(videos, store, *closely) == 1, batch
        assert store_bytes(store) == expected, batch


@pytest.mark.parametrize("how", HOWS)
def test_all_files_at_once_are_mended(videos, whole, tmp_path, how):
    store, rng = shutil.copytree(whole, tmp_path / "s"), random.Random(2)
    for name in names(whole):
        damage(store, name, how, rng)
    assert extract(videos, store, "--verify") == 1
    assert store_bytes(store) == store_bytes(whole)


def test_a_shard_that_is_missing_is_made_again_and_the_other_left_alone(videos, whole, tmp_path):
    store = shutil.copytree(whole, tmp_path / "s")
    shutil.rmtree(store / "shards" / "00000.zarr")
    before = (store / "shards" / "00001.zarr").stat().st_ino
    assert extract(videos, store) == 1
    assert store_bytes(store) == store_bytes(whole)
    assert (store / "shards" / "00001.zarr").stat().st_ino == before


@pytest.mark.parametrize("how", ["removed", "truncated"])
def test_without_its_settings_a_store_is_refused_and_left_alone(videos, whole, tmp_path, capsys, how):
    """Nobody can tell then what it was begun with: that is for a person to put back."""
    store = shutil.copytree(whole, tmp_path / "s")
    damage(store, "store.json", how, random.Random(3))
    before = store_bytes(store)
    assert validate_store(store)
    with pytest.raises(StoreError, match=str(store)):
        TrackReader(store)
    assert extract(videos, store) == 2
    assert str(store) in capsys.readouterr().err
    assert store_bytes(store) == before


def test_no_bit_of_the_settings_makes_other_values(videos, whole, tmp_path):
    """It is refused, by name or for what differs, or stands in what no value hangs on (a name, a version)."""
    store, rng = shutil.copytree(whole, tmp_path / "s"), random.Random(4)
    plain, training = plain_values(whole), training_values(whole)
    refused = 0
    for _ in range(60):
        damage(store, "store.json", "flipped", rng)
        try:
            same(plain_values(store), plain)
            same(training_values(store), training)
        except StoreError:
            refused += 1
        put_back(store, whole, "store.json")
    assert refused > 20
