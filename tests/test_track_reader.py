"""Training's reader of track stores against the plain one (`data_specs.track_store`), and against stores gone wrong."""

import dataclasses
import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import stores
import zarr

from data_specs.encoding import decode_histograms
from data_specs.track_store import StoreError, TrackStore
from training.reading.track_reader import TrackReader

PLAIN = "extends: mme\nname: plain\nhog: false\ndetect_cuts: false\nlength: 4\nframe_step: 2\n"
KINDS = ("flow", "hof", "mbh")


@pytest.fixture(scope="module")
def good_store(clips, tmp_path_factory):
    return stores.make_store(clips, tmp_path_factory.mktemp("store") / "s", stores.EVERYTHING)


@pytest.fixture(scope="module")
def plain_store(clips, tmp_path_factory):
    """Stabilised, without HOG and without cuts; three shards, so that one of them has one video that failed."""
    return stores.make_store(clips, tmp_path_factory.mktemp("store") / "p", PLAIN, shards=3)


@pytest.fixture
def store(good_store, tmp_path):
    return shutil.copytree(good_store, tmp_path / "s")


def test_videos_in_list_order_and_those_that_failed(good_store, plain_store):
    for path, shards in [(good_store, 2), (plain_store, 3)]:
        reader, store = TrackReader(path), TrackStore(path)
        assert [v.path for v in reader.videos] == ["a.avi", "sub folder/b.avi", "c.avi", "d.avi", "e.avi"]
        assert [v.index for v in reader.videos] == [0, 1, 2, 3, 4]
        assert [(f.index, f.path, f.stage) for f in reader.failed] == [(5, "missing.avi", "decode")]
        assert reader.missing_shards == []
        assert reader.info == store.info
        assert len(reader.videos[1:4]) == 3
        for video in reader.videos:
            assert video.shard == video.index % shards
            meta = store.shard(video.shard).metas[video.number]
            for field in dataclasses.fields(video):
                if field.name not in ("shard", "number"):
                    assert getattr(video, field.name) == getattr(meta, field.name), field.name
            assert video.num_frames == 12 + 3 * video.index


def test_a_video_whose_id_is_its_path_has_one_text_for_both(store):
    """Millions of them go to every worker. Ids of their own stay what they are."""
    texts = store / "shards" / "00000.zarr" / "video" / "zarr.json"
    fields = json.loads(texts.read_text())
    fields["attributes"]["id"][1] = "of its own"
    texts.write_text(json.dumps(fields))
    stores.seal_again(store / "shards" / "00000.zarr")
    for reader in (opened := TrackReader(store), pickle.loads(pickle.dumps(opened))):
        assert reader.videos.ids == ["a.avi", "sub folder/b.avi", "of its own", "d.avi", "e.avi"]
        assert reader.videos.paths == ["a.avi", "sub folder/b.avi", "c.avi", "d.avi", "e.avi"]
        shared = [a is b for a, b in zip(reader.videos.ids, reader.videos.paths, strict=True)]
        assert shared == [True, True, False, True, True]


def assert_is(field, row, grid_size, kinds=(), *, hog=True, remove_camera=True):
    """A field is the plain reader's row on its grid."""
    length = row.valid.shape[1] - 1
    assert field.displacement.dtype == np.float32
    assert field.displacement.shape == (*grid_size, length, 2)
    np.testing.assert_array_equal(field.valid, row.valid.reshape(*grid_size, length + 1))
    assert field.valid.dtype == np.bool_
    expected = np.where(row.step_valid[..., None], row.compensated if remove_camera else row.displacements, 0)
    # float32 of steps of up to 100 px
    np.testing.assert_allclose(field.displacement, expected.reshape(*grid_size, length, 2), atol=1e-5)
    assert field.hog_codes is None or hog
    if hog:
        np.testing.assert_array_equal(
            decode_histograms(field.hog_codes, field.hog_scale), row.hog.reshape(*grid_size, length, -1)
        )
    np.testing.assert_array_equal(field.cell_measured, row.cell_measured.reshape(grid_size) if kinds else None)
    np.testing.assert_array_equal(field.flow, row.flow.reshape(*grid_size, 2) if "flow" in kinds else None)
    for name in ("hof", "mbh"):
        codes, scale = getattr(field, f"{name}_codes"), getattr(field, f"{name}_scale")
        if name in kinds:
            values = getattr(row, name)
            np.testing.assert_array_equal(
                decode_histograms(codes, scale), values.reshape(*grid_size, *values.shape[1:])
            )
        else:
            assert codes is scale is None


@pytest.mark.parametrize(
    ("kinds", "remove_camera"), [((), True), (KINDS, True), (("mbh",), False), (("flow", "hof"), False)]
)
def test_every_row_is_the_plain_reader_s(good_store, kinds, remove_camera):
    reader, store = TrackReader(good_store), TrackStore(good_store)
    compared, moved = 0, 0.0
    for video in reader.videos:
        shard = store.shard(video.shard)
        frames = range(-8, video.num_frames + 9)
        fields = reader.rows(video, frames, hog=True, descriptors=kinds, remove_camera=remove_camera)
        there = {frame: field for frame, field in zip(frames, fields, strict=True) if field is not None}
        rows = [shard.read_row(video.number, number) for number in shard.rows(video.number)]
        assert list(there) == [row.frame for row in rows]
        for row in rows:
            assert_is(there[row.frame], row, shard.metas[video.number].grid_size, kinds, remove_camera=remove_camera)
            moved = max(moved, np.abs(row.compensated - row.displacements).max())
            compared += 1
    assert compared == 2 + 3 + 3 + 4 + 5
    assert moved > 0.5  # the camera did move


def test_frames_in_any_order_and_twice(good_store):
    reader = TrackReader(good_store)
    video = reader.videos[4]
    fields = reader.rows(video, [16, 3, 0, 16, 20, 8], hog=False)
    assert [field is None for field in fields] == [False, True, False, False, True, False]
    for field, frame in zip(fields, [16, 3, 0, 16, 20, 8], strict=True):
        (alone,) = reader.rows(video, [frame], hog=False)
        if field is not None:
            np.testing.assert_array_equal(field.displacement, alone.displacement)
            np.testing.assert_array_equal(field.valid, alone.valid)
    assert not np.array_equal(fields[0].displacement, fields[2].displacement)
    assert reader.rows(video, [], hog=True) == []
    assert reader.rows(video, [1, 999], hog=True) == [None, None]


def test_the_first_steps_alone(good_store):
    reader = TrackReader(good_store)
    for video in reader.videos:
        (whole,) = reader.rows(video, [4], hog=True)
        (part,) = reader.rows(video, [4], hog=True, length=2)
        assert part.displacement.shape[2:] == (2, 2)
        np.testing.assert_array_equal(part.displacement, whole.displacement[:, :, :2])
        np.testing.assert_array_equal(part.valid, whole.valid[:, :, :3])
        np.testing.assert_array_equal(part.hog_codes, whole.hog_codes[:, :, :2])


def test_steps_of_a_part_of_the_grid(good_store):
    """Those of the whole grid; outside of the part, none is valid."""
    reader = TrackReader(good_store)
    for video in reader.videos:
        stored = reader.stored_rows(video, [3, 8, 0], hog=False)
        assert stored.asked.tolist() == ([1, 2] if video.num_starts > 2 else [2])
        rows, columns = stored.grid
        part = range(2, rows - 1), range(1, columns - 3)
        inside = np.zeros(stored.grid, np.bool_)
        inside[2 : rows - 1, 1 : columns - 3] = True
        for length, outside in ((7, None), (4, (range(-1, 3), range(3))), (4, (range(3), range(columns + 1)))):
            with pytest.raises(IndexError, match=f"{length} steps"):
                stored.steps(length, outside)
        whole, flags = stored.steps(4)
        some, some_flags = stored.steps(4, part)
        for r in range(len(stored.asked)):
            (a, b), (valid, part_valid) = (
                [runs.values[runs.first[r] :][: inside.size].reshape(rows, columns, 4, -1) for runs in pair]
                for pair in ((whole, some), (flags, some_flags))
            )
            np.testing.assert_array_equal(b[inside], a[inside])
            np.testing.assert_array_equal(part_valid, valid & inside[..., None, None])
            assert part_valid.any()
            assert (a[~valid[..., 0]] == 0).all()


def test_a_store_of_stabilised_positions_without_hog(plain_store):
    reader, store = TrackReader(plain_store), TrackStore(plain_store)
    assert not store.info.recipe.detect_cuts
    for video in reader.videos:
        shard = store.shard(video.shard)
        for number in shard.rows(video.number):
            row = shard.read_row(video.number, number)
            (field,) = reader.rows(video, [row.frame], hog=False)
            assert_is(field, row, shard.metas[video.number].grid_size, hog=False)


def test_what_the_store_does_not_have_is_refused(good_store, plain_store):
    reader, video = TrackReader(plain_store), TrackReader(plain_store).videos[0]
    for request, problem in [
        ({"hog": True}, r"has no HOG \(its recipe, plain"),
        ({"hog": False, "descriptors": ("hof",)}, r"has no hof \(its recipe, plain"),
        ({"hog": False, "remove_camera": False}, "are stabilised, without the camera"),
        ({"hog": False, "length": 5}, r"length 5: the trajectories of .* have 4 steps"),
        ({"hog": False, "length": 0}, "length 0"),
    ]:
        with pytest.raises(ValueError, match=problem):
            reader.rows(video, [0], **request)
    other = TrackReader(good_store)
    for foreign in (dataclasses.replace(other.videos[0], index=9), reader.videos[4]):
        with pytest.raises(ValueError, match="is not of this store"):
            other.rows(foreign, [0], hog=False)


def test_valid_may_come_back_as_trackers_have_it(store):
    """A step counts where both ends are valid, wherever that is; positions run on below the others."""
    path = store / "shards" / "00000.zarr"
    valid, moved = (zarr.open_array(path / name, mode="r+") for name in ("valid", "displacement"))
    values, steps = valid[:], moved[:]
    rng = np.random.default_rng(5)
    values[:, 1:] = rng.integers(0, 2, values[:, 1:].shape)
    steps[:] = rng.integers(-200, 200, steps.shape)
    valid[:], moved[:] = values, steps
    reader, shard = TrackReader(store), TrackStore(store).shard(0)
    for video in (v for v in reader.videos if v.shard == 0):
        (field,) = reader.rows(video, [4], hog=True)
        row = shard.read_row(video.number, shard.rows(video.number)[1])
        assert_is(field, row, shard.metas[video.number].grid_size)


def test_an_older_store_is_read(store, good_store):
    """From before cuts were looked for."""
    info = json.loads((store / "store.json").read_text())
    del info["recipe"]["detect_cuts"]
    (store / "store.json").write_text(json.dumps(info))
    for shard in (store / "shards").iterdir():
        metadata = json.loads((shard / "zarr.json").read_text())
        for later in ("num_cuts", "files", "failures", "crc32"):
            del metadata["attributes"][later]
        (shard / "zarr.json").write_text(json.dumps(metadata))
        shutil.rmtree(shard / "cut")
        shutil.rmtree(shard / "video" / "first_cut")
    assert stores.field_sums(TrackReader(store)) == stores.field_sums(TrackReader(good_store))


def test_shards_that_are_missing_are_known(store):
    shutil.rmtree(store / "shards" / "00000.zarr")
    reader = TrackReader(store)
    assert reader.missing_shards == [0]
    assert [v.index for v in reader.videos] == [1, 3]
    assert len(reader.failed) == 1
    shutil.rmtree(store / "shards" / "00001.zarr")
    reader = TrackReader(store)
    assert reader.missing_shards == [0, 1]
    assert len(reader.videos) == len(reader.failed) == 0
    with pytest.raises(IndexError):
        reader.videos[0]


def rewrite(store, name, change, shard=0):
    array = zarr.open_array(store / "shards" / f"{shard:05d}.zarr" / name, mode="r+")
    values = array[:]
    change(values)
    array[:] = values


def set_to(place, value):
    return lambda values: values.__setitem__(place, value)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("valid", set_to((5, 2), 3), "valid: holds 3, must be 0 or 1"),
        ("valid", set_to((5, 2), 255), r"valid\[5\]: holds the fill value"),
        ("cell_measured", set_to(7, 2), "cell_measured: holds 2, must be 0 or 1"),
        ("displacement", set_to((5, 2, 1), -32768), r"displacement\[5\]: holds the fill value"),
        ("hog", set_to((5, 2, 1), 255), r"hog\[5\]: holds the fill value"),
        ("start/hof_scale", set_to(0, np.nan), r"start/hof_scale\[0\]: holds the fill value"),
        ("camera/homography", set_to((0, 2), 0.0), "camera/homography: of a.avi: Singular matrix"),
        ("start/frame", set_to(1, 5), "start/frame: contradicts the videos' numbers"),
        ("start/first_point", set_to(1, 5), "start/first_point: contradicts the videos' numbers"),
        ("video/grid_size", set_to((0, 0), 3), r"video/grid_size: makes \d+ points, the shard has \d+"),
        # fields are read at places that follow from the frame's size
        ("video/grid_size", set_to(0, (13, 9)), "video/grid_size: of a.avi: is 13x9, a frame of 72x104 has 9x13"),
        (
            "video/frame_size",
            set_to(0, (144, 208)),
            "video/frame_size: of a.avi: is 144x208, .* 72x104 is tracked at 72x104",
        ),
        (
            "video/source_size",
            set_to(0, (480, 640)),
            "video/frame_size: of a.avi: is 72x104, .* 480x640 is tracked at 256x341",
        ),
        ("video/num_frames", set_to(0, 40), r"video/first_start: of a\.avi: \d+ start rows, 40 frames have \d+"),
        ("video/first_start", set_to(-1, 99), r"video/first_start: must rise from 0 to \d+"),
        ("video/index", set_to(0, 1), "its videos and failures are not those that the list has for it"),
    ],
)
def test_contradictions_are_errors_with_a_place(store, name, change, problem):
    rewrite(store, name, change)
    with pytest.raises(StoreError, match=rf"00000\.zarr.*{problem}|00000\.zarr: {problem}"):
        reader = TrackReader(store)
        reader.rows(reader.videos[0], [0], hog=True, descriptors=KINDS)


@pytest.mark.parametrize("name", ["valid", "displacement", "hog", "camera/homography", "mbh", "start/first_point"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_never_zeros(store, name, damage):
    reader = TrackReader(store)
    file = stores.only_file(store / "shards" / "00000.zarr" / name)
    if damage == "flip":
        stores.flip_bit(file, 0.01)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        file.unlink()
    with pytest.raises(StoreError, match=rf"00000\.zarr/{name}"):
        reader.rows(reader.videos[0], [0], hog=True, descriptors=KINDS)
    video = reader.videos[1]  # in the other shard
    assert reader.rows(video, [0], hog=True, descriptors=KINDS)[0] is not None


def test_a_store_that_changed_since_it_was_opened_is_refused(store, plain_store):
    reader = TrackReader(store)
    shutil.rmtree(store / "shards" / "00000.zarr")
    shutil.copytree(plain_store / "shards" / "00000.zarr", store / "shards" / "00000.zarr")
    with pytest.raises(StoreError, match=r"00000\.zarr: has changed since the store was opened"):
        reader.rows(reader.videos[0], [0], hog=False)


def test_failures_and_shards_must_be_the_list_s(store):
    (store / "failures" / "00001.jsonl").write_text("{}\n")
    with pytest.raises(StoreError, match=r"00001\.jsonl:1: is not a failure record"):
        TrackReader(store)
    (store / "failures" / "00001.jsonl").unlink()
    with pytest.raises(StoreError, match=r"00001\.zarr: its videos and failures are not those that the list has"):
        TrackReader(store)
    (store / "shards" / "00001.zarr").rename(store / "shards" / "00007.zarr")
    with pytest.raises(StoreError, match=r"00007\.zarr: the store has 2 shards"):
        TrackReader(store)


def test_after_pickling_in_a_forkserver_and_after_a_fork(good_store):
    fresh = pickle.dumps(TrackReader(good_store))
    reader = TrackReader(good_store, open_files=3)
    expected = stores.field_sums(reader)
    assert len(set(expected)) == 5
    assert len(pickle.dumps(reader)) <= len(fresh) + 100  # what was read is not taken along
    assert stores.field_sums(pickle.loads(pickle.dumps(reader))) == expected
    for method in ("forkserver", "fork"):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            asked = [pool.submit(stores.field_sums, reader) for _ in range(3)]
            assert stores.field_sums(reader) == expected
            assert [future.result(60) for future in asked] == [expected] * 3
