"""The reader of shards against zarr-python and tensorstore, and against damage."""

import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import stores
import tensorstore
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec

from data_specs.schema import ArraySpec, array_specs
from data_specs.track_store import StoreError, TrackStore
from training.reading.shard_reader import ArrayReader, OpenFiles, ShardReader

SPEC = ArraySpec("a", "int16", "point", -32768, (3, 2))
CODECS = [BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"), Crc32cCodec()]
NAMES = ["displacement", "hog", "start/frame"]


@pytest.fixture(scope="module")
def good_store(clips, tmp_path_factory):
    return stores.make_store(clips, tmp_path_factory.mktemp("store") / "s", stores.EVERYTHING)


@pytest.fixture
def shard(good_store, tmp_path):
    """A copy of shard 0, to be damaged."""
    return shutil.copytree(good_store / "shards" / "00000.zarr", tmp_path / "00000.zarr")


@pytest.fixture(scope="module")
def recipe(good_store):
    return TrackStore(good_store).info.recipe


def write_array(path, length=103, written=None, **changed):
    """An array of five files of three chunks of seven rows; the last file and its last chunk are not full."""
    options = {"shape": (length, 3, 2), "chunks": (7, 3, 2), "shards": (21, 3, 2), "dtype": "int16",
               "fill_value": -32768, "compressors": CODECS} | changed  # fmt: skip
    array = zarr.create_array(path, **options)
    values = np.random.default_rng(3).integers(-300, 300, (length, 3, 2)).astype(np.int16)
    written = slice(None) if written is None else written
    array[written] = values[written]
    return values


def by_tensorstore(path):
    return (
        tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result().read().result()
    )


def test_every_array_is_what_zarr_and_tensorstore_read(good_store, recipe):
    for number in (0, 1):
        shard, path = TrackStore(good_store).shard(number), TrackStore(good_store).shard_path(number)
        reader = ShardReader(path, recipe)
        assert (reader.num_videos, reader.num_starts, reader.num_points, reader.num_cuts) == (
            shard.num_videos, shard.num_starts, shard.num_points, shard.num_cuts
        )  # fmt: skip
        assert reader.texts() == (shard.ids, shard.paths)
        assert {"hog", "mbh", "flow", "hof", "video/first_cut"} < array_specs(recipe).keys()
        for name in array_specs(recipe):
            theirs = np.asarray(shard.array(name)[:])
            ours = reader.read(name, 0, len(theirs))
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(ours, by_tensorstore(path / name))
            low, high = len(theirs) // 3, len(theirs) - 1
            np.testing.assert_array_equal(reader.read(name, low, max(low, high)), theirs[low : max(low, high)])


def test_ranges_across_chunks_and_files(tmp_path):
    values = write_array(tmp_path / "a")
    reader = ArrayReader(tmp_path / "a", SPEC, OpenFiles())
    np.testing.assert_array_equal(by_tensorstore(tmp_path / "a"), values)
    for start in range(104):
        for stop in (start, start + 1, start + 6, start + 7, start + 8, start + 30, 103):
            if start <= stop <= 103:
                np.testing.assert_array_equal(reader.read(start, stop), values[start:stop])
    for starts, count in [([0, 14, 7], 7), ([3, 10, 50], 7), ([98, 0, 5, 5], 5), ([96, 2], 7), ([], 4), ([4, 9], 0)]:
        runs = reader.read_runs(starts, count)
        for first, start in zip(runs.first.tolist(), starts, strict=True):
            assert first + count <= len(runs.values)
            np.testing.assert_array_equal(runs.values[first : first + count], values[start : start + count])
    for start, stop in [(-1, 2), (100, 104), (104, 104), (5, 4)]:
        with pytest.raises(IndexError, match=r"a: "):
            reader.read(start, stop)


def test_chunks_far_apart_or_out_of_order_in_a_file(tmp_path, monkeypatch):
    """Where chunks lie in a file is for its index to say: here last to first, with gaps, read together and apart."""
    values = write_array(tmp_path / "a", length=21)
    file = stores.only_file(tmp_path / "a")
    data = file.read_bytes()
    index = np.frombuffer(data[-52:-4], "<u8").reshape(3, 2)
    chunks = [data[offset : offset + length] for offset, length in index.tolist()]
    turned, places = b"", []
    for chunk in reversed(chunks):
        turned += bytes(11)
        places.append((len(turned), len(chunk)))
        turned += chunk
    table = np.array(places[::-1], "<u8").tobytes()
    file.write_bytes(turned + with_crc32c(table))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a")[:], values)
    for gap in (128 << 10, 0):
        monkeypatch.setattr("training.reading.shard_reader._GAP", gap)
        reader = ArrayReader(tmp_path / "a", SPEC, OpenFiles())
        np.testing.assert_array_equal(reader.read(2, 20), values[2:20])


def with_crc32c(data):
    """Data with its checksum, by the definition: bit by bit, reflected polynomial 0x82f63b78."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return data + (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


@pytest.mark.parametrize("name", ["displacement", "valid", "hog", "mbh", "camera/homography", "start/hog_scale"])
@pytest.mark.parametrize("place", [0.3, 1.0])
def test_a_flipped_bit_is_found_in_data_and_in_the_index(shard, recipe, name, place):
    reader = ShardReader(shard, recipe)
    stores.flip_bit(stores.only_file(shard / name), place)
    with pytest.raises(StoreError, match=rf"00000\.zarr/{name}.*checksum .*is wrong"):
        reader.read(name, 0, reader.array(name).shape[0])


def test_each_flipped_bit_of_a_file_is_found(tmp_path):
    write_array(tmp_path / "a", length=7, shards=(7, 3, 2))
    file = stores.only_file(tmp_path / "a")
    good = file.read_bytes()
    for place in range(len(good)):
        file.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        with pytest.raises(StoreError):
            ArrayReader(tmp_path / "a", SPEC, OpenFiles()).read(0, 7)


def test_a_header_that_claims_more_bytes_than_there_are_is_refused(tmp_path):
    """With sound checksums, as one who means harm would write it: blosc itself reads on behind the chunk."""
    write_array(tmp_path / "a", length=7, shards=(7, 3, 2))
    file = stores.only_file(tmp_path / "a")
    data = file.read_bytes()
    offset, length = np.frombuffer(data[-20:-4], "<u8").tolist()
    chunk = bytearray(data[offset : offset + length - 4])
    assert int.from_bytes(chunk[12:16], "little") == len(chunk)
    chunk[12:16] = (len(chunk) + 4096).to_bytes(4, "little")
    file.write_bytes(data[:offset] + with_crc32c(bytes(chunk)) + data[offset + length :])
    with pytest.raises(
        StoreError, match=rf"a\[0:7\]: has {len(chunk)} coded bytes, its header says {len(chunk) + 4096}"
    ):
        ArrayReader(tmp_path / "a", SPEC, OpenFiles()).read(0, 7)


@pytest.mark.parametrize("share", [0.0, 0.002, 0.5, 0.999])
def test_a_truncated_file_is_found(shard, recipe, share):
    file = stores.only_file(shard / "hog")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(StoreError, match=r"00000\.zarr/hog.*(truncated|damaged)"):
        ShardReader(shard, recipe).read("hog", 0, 1)


def test_a_file_that_is_cut_after_its_index_was_read(tmp_path):
    write_array(tmp_path / "a")
    reader = ArrayReader(tmp_path / "a", SPEC, OpenFiles())
    reader.read(0, 7)
    os.truncate(tmp_path / "a/c/0/0/0", 200)
    with pytest.raises(StoreError, match=r"a/c/0/0/0: ends within bytes .*: truncated"):
        reader.read(7, 14)


def test_a_missing_file_or_chunk_is_not_its_fill_value(tmp_path, shard, recipe):
    stores.only_file(shard / "valid").unlink()
    with pytest.raises(StoreError, match=r"00000\.zarr/valid/c/0/0: cannot be opened: No such file"):
        ShardReader(shard, recipe).read("valid", 0, 1)
    values = write_array(tmp_path / "a", written=slice(0, 35))
    reader = ArrayReader(tmp_path / "a", SPEC, OpenFiles())
    np.testing.assert_array_equal(reader.read(21, 35), values[21:35])
    with pytest.raises(StoreError, match=r"a\[35:42\]: is missing: it was not written"):
        reader.read(30, 36)
    write_array(tmp_path / "b", written=slice(0, 40))  # the last two rows of chunk 35:42 are its fill value
    reader = ArrayReader(tmp_path / "b", SPEC, OpenFiles())
    assert reader.read(35, 40).shape == (5, 3, 2)
    with pytest.raises(StoreError, match=r"b\[40\]: holds the fill value: it was not written"):
        reader.read_runs([0, 38], 3)


def test_a_scale_that_was_not_written_is_found(shard, recipe):
    """NaN is the fill value of scales."""
    array = zarr.open_array(shard / "start/hog_scale", mode="r+")
    array[2] = np.nan
    reader = ShardReader(shard, recipe)
    reader.read("start/hog_scale", 0, 2)
    with pytest.raises(StoreError, match=r"start/hog_scale\[2\]: holds the fill value"):
        reader.read("start/hog_scale", 1, 4)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"compressors": [GzipCodec(), Crc32cCodec()]}, r"codecs of a chunk is \['bytes', 'gzip', 'crc32c'\]"),
        ({"compressors": CODECS[:1]}, r"codecs of a chunk is \['bytes', 'blosc'\]"),
        ({"serializer": BytesCodec(endian="big")}, r"codecs of a chunk is \['bytes \(big-endian\)'"),
        ({"shards": None}, "a field is missing or wrong"),
        ({"chunks": (7, 3, 1)}, r"chunk_shape of the codec after the first axis is \[3, 1\]"),
        ({"shards": (21, 6, 2)}, r"chunk_shape after the first axis is \[6, 2\]"),
        ({"dtype": "int32"}, "data_type is 'int32'; this reader knows 'int16' alone"),
        ({"fill_value": 0}, "fill_value is 0"),
        ({"chunk_key_encoding": {"name": "v2", "separator": "."}}, "chunk_key_encoding is"),
    ],
)  # fmt: skip
def test_an_array_that_is_coded_in_another_way_is_refused(tmp_path, changed, problem):
    write_array(tmp_path / "a", **changed)
    with pytest.raises(StoreError, match=rf"a/zarr\.json: {problem}"):
        ArrayReader(tmp_path / "a", SPEC, OpenFiles())


@pytest.mark.parametrize("text", ['{"zarr_format": 3, "node_ty', "[]", "{}"])
@pytest.mark.parametrize("file", ["hog/zarr.json", "zarr.json", "video/zarr.json"])
def test_damaged_metadata_names_its_file(shard, recipe, file, text):
    (shard / file).write_text(text)
    with pytest.raises(StoreError, match=rf"00000\.zarr/{file}"):
        reader = ShardReader(shard, recipe)
        reader.texts()
        reader.read("hog", 0, 1)


def test_counts_and_units_must_agree(shard, recipe):
    with pytest.raises(StoreError, match=r"00000\.zarr/visibility: a store of recipe everything has no such array"):
        ShardReader(shard, recipe).array("visibility")
    metadata = json.loads((shard / "zarr.json").read_text())
    metadata["attributes"]["num_points"] -= 1
    (shard / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match=r"00000\.zarr/zarr\.json: the attributes' CRC-32 is"):
        ShardReader(shard, recipe)
    stores.seal_again(shard)
    with pytest.raises(StoreError, match=r"hog: has \d+ rows, by the shard's counts \d+"):
        ShardReader(shard, recipe).array("hog")
    metadata["attributes"] = {}
    (shard / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match=r"00000\.zarr: format None, version None"):
        ShardReader(shard, recipe)
    metadata = json.loads((shard / "flow/zarr.json").read_text())
    metadata["attributes"]["unit_px"] = 1 / 16
    (shard / "flow/zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match=r"attribute unit_px is 0\.0625"):
        ArrayReader(shard / "flow", array_specs(recipe)["flow"], OpenFiles())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files in /proc")
def test_no_more_files_are_open_than_allowed_and_none_afterwards(tmp_path):
    def open_here():
        # the folder's own entry is gone again when it is looked at
        return sum(f.exists() and f.readlink().is_relative_to(tmp_path) for f in Path("/proc/self/fd").iterdir())

    values = write_array(tmp_path / "a")
    reader = ArrayReader(tmp_path / "a", SPEC, OpenFiles(limit=2))
    for start in (0, 98, 21, 50, 0, 70):
        np.testing.assert_array_equal(reader.read(start, start + 5), values[start : start + 5])
        assert 1 <= open_here() <= 2
    np.testing.assert_array_equal(reader.read(0, 103), values)
    assert open_here() == 2
    copy = pickle.loads(pickle.dumps(reader))
    assert open_here() == 2
    assert copy._files.limit == 2
    del reader, copy
    assert open_here() == 0


def test_after_pickling_in_a_forkserver_and_after_a_fork(good_store, recipe):
    reader = ShardReader(TrackStore(good_store).shard_path(0), recipe)
    expected = stores.shard_sums(reader, NAMES)
    assert stores.shard_sums(pickle.loads(pickle.dumps(reader)), NAMES) == expected
    for method in ("forkserver", "fork"):
        # the fork inherits what this process has open, and both read on
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            asked = [pool.submit(stores.shard_sums, reader, NAMES) for _ in range(4)]
            assert stores.shard_sums(reader, NAMES) == expected
            assert [future.result(60) for future in asked] == [expected] * 4
