"""Stores by someone who means harm: what they say of themselves is held against the spec before it is built on."""

import json
import os
import resource
import shutil
import zipfile
from pathlib import Path

import fuzz_inputs
import numcodecs.blosc
import numpy as np
import pytest
import stores
import zarr
from fuzz_targets import read_for_training, read_plainly
from zarr.codecs import BloscCodec, Crc32cCodec

from data_specs.failures import Failure, failures_path, read_failures
from data_specs.schema import ArraySpec, VideoMeta, array_specs
from data_specs.store_metadata import MOST_CHUNK_BYTES, MOST_EXPANSION
from data_specs.track_store import StoreError, TrackStore
from data_specs.validate import validate_store
from extraction.partial import PartialError, PartialFile, PartialWriter
from training.reading.shard_reader import ArrayReader, OpenFiles, ShardReader
from training.reading.track_reader import TrackReader

READERS = [read_plainly, read_for_training]
SHARD = "shards/00000.zarr"


@pytest.fixture(scope="module")
def good_store(clips, tmp_path_factory):
    store = stores.make_store(clips, tmp_path_factory.mktemp("store") / "s", stores.EVERYTHING, shards=1)
    stores.unseal(store)
    for read in READERS:
        read(store)
    return store


@pytest.fixture
def store(good_store, tmp_path):
    return shutil.copytree(good_store, tmp_path / "s")


def change(file: Path, **fields):
    """Set fields of a JSON file; a name such as `recipe__length` is that of a field within one."""
    content = json.loads(file.read_text())
    for name, value in fields.items():
        *path, last = name.split("__")
        holder = content
        for key in path:
            holder = holder[int(key) if isinstance(holder, list) else key]
        holder[last] = value
    file.write_text(json.dumps(content))


def refused(store, said, readers=READERS):
    for read in readers:
        with pytest.raises(StoreError, match=said) as error:
            read(store)
        assert len(str(error.value)) < 1000
    assert validate_store(store)


# --- store.json -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"shards": 10**12}, "1000000000000 is not a whole number from 1 to 1000000"),
        ({"shards": 0}, "0 is not a whole number"),
        ({"shards": True}, "True is not a whole number"),
        ({"shards": "2"}, "2 is not a whole number"),
        ({"shards": 1.5}, "1.5 is not a whole number"),
        ({"list__videos": -1}, "-1 is not a whole number"),
        ({"list__videos": 10**30}, "is not a whole number from 0"),
        ({"list__videos": 10**9}, "its videos and failures are not those that the list has"),
        ({"recipe__length": 10**9}, "length is 1000000000, must be 1 or more, at most 1000"),
        ({"recipe__grid_stride": 0}, "grid_stride is 0"),
        ({"recipe__name": "a/b"}, "name is 'a/b'"),
        ({"recipe__ransac_px": [1]}, "ransac_px"),
        ({"recipe": []}, "a field is missing or wrong"),
        ({"dataset": None}, "a field is missing or wrong"),
        ({"software": []}, "a field is missing or wrong"),
        ({"format": [[]]}, "is not a track store's"),
        ({"dataset__name": "\x1b[2Jk400"}, r"a field is missing or wrong: '\\x1b\[2Jk400' holds the character"),
        ({"dataset__split": 7}, "'7' is not a text"),
        ({"list__sha256": "a\nb"}, "holds the character"),
        ({"software": {"zarr\x07": "3"}}, "holds the character"),
    ],
)
def test_store_json_is_held_to_bounds(store, fields, said):
    change(store / "store.json", **fields)
    lies_about_the_list = "list has" in said
    refused(store, said, READERS[1:] if lies_about_the_list else READERS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not a number of JSON"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e400}', "1e400 is too large a number"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        ("\udcff", "is not JSON"),
        (" " * ((1 << 20) + 1), "more than the 1048576 that are read"),
    ],
)
@pytest.mark.parametrize("name", ["store.json", f"{SHARD}/zarr.json", f"{SHARD}/displacement/zarr.json"])
def test_json_that_is_deep_or_huge_or_has_no_numbers_is_refused(store, name, text, said):
    (store / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(store, said)


# --- zarr.json --------------------------------------------------------------------------------------------------------

INSIDE = "codecs__0__configuration"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"shape": [10**15, 6, 2]}, "is no size"),
        ({"shape": [-1, 6, 2]}, "shape"),
        ({"shape": [2**80, 6, 2]}, "is no size"),
        ({"shape": [True, 6, 2]}, "True is no size"),
        ({"shape": []}, "shape after the first axis|is missing or wrong"),
        ({"shape": [4] * 100_000}, "shape after the first axis"),
        ({f"{INSIDE}__chunk_shape": [2**32, 6, 2]}, "length of a file by that of a chunk"),
        ({f"{INSIDE}__chunk_shape": [2**32, 6, 2], "chunk_grid__configuration__chunk_shape": [2**32, 6, 2]},
         rf"chunks of 4294967296 rows, 103079215104 bytes.*no more are taken than .* and {MOST_CHUNK_BYTES} bytes"),
        ({f"{INSIDE}__chunk_shape": [0, 6, 2]}, "is missing or wrong"),
        ({"chunk_grid__configuration__chunk_shape": [2**40 * 4096, 6, 2]}, "is no size|length of a file|files of"),
        ({"data_type": "object"}, "data_type is 'object'"),
        ({"data_type": "string"}, "data_type is 'string'"),
        ({"data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**40}}}, "data_type is"),
        ({"data_type": "r8000000000"}, "data_type is 'r8000000000'"),
        ({"fill_value": "NaN"}, "fill_value is 'NaN'"),
        ({"fill_value": [0] * 100}, "fill_value is"),
        ({"storage_transformers": [{"name": "x"}]}, "storage_transformers is"),
        ({f"{INSIDE}__codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}, {"name": "crc32c"}]},
         r"codecs of a chunk is \['bytes', 'numcodecs.pickle', 'crc32c'\]"),
        ({f"{INSIDE}__codecs__1__name": "zstd"}, "codecs of a chunk is"),
        ({f"{INSIDE}__index_codecs": []}, "codecs of the index is"),
        ({f"{INSIDE}__index_location": "start"}, "index_location is 'start'"),
        ({"codecs": [{"name": "vlen-utf8"}]}, "is missing or wrong|codecs is"),
        ({"codecs": {"a": 1}}, "is missing or wrong"),
        ({"codecs": None}, "is missing or wrong"),
        ({"chunk_key_encoding": {"name": "v2"}}, "chunk_key_encoding is"),
        ({"attributes__unit_px": 1e300}, r"attribute unit_px is 1e\+300"),
        ({"attributes": []}, "attributes is not a mapping"),
        ({"node_type": "group"}, "is not the metadata of a zarr v3 array"),
        ({"zarr_format": 2}, "is not the metadata of a zarr v3 array"),
    ],
)  # fmt: skip
def test_an_array_s_metadata_is_held_against_its_spec(store, fields, said):
    change(store / SHARD / "displacement" / "zarr.json", **fields)
    refused(store, said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attributes__num_points": 10**15}, "its counts of videos, start rows, points and cuts are"),
        ({"attributes__num_points": -1}, "its counts"),
        ({"attributes__num_starts": 2**40}, "its counts"),
        ({"attributes__num_starts": "12"}, "its counts"),
        ({"attributes__num_starts": 12.0}, "its counts"),
        (
            {"attributes__num_videos": 4},
            "attribute id has 5 entries, num_videos is 4|has 5 rows, by the shard's counts 4",
        ),
        ({"attributes__num_videos": 10**6}, "attribute id has 5 entries|has 5 rows, by the shard's counts 1000000"),
        ({"attributes__num_cuts": None}, "its counts"),
        ({"attributes__version": [1] * 1000}, "this software reads"),
        ({"attributes": []}, "attributes is not a mapping"),
    ],
)
def test_counts_are_held_to_bounds_and_to_the_arrays(store, fields, said):
    change(store / SHARD / "zarr.json", **fields)
    refused(store, said)


def test_counts_that_agree_with_metadata_but_not_with_the_files(store):
    """A hundred million rows that every zarr.json speaks of; the files have a few."""
    shard, count = store / SHARD, 90_000_000
    change(shard / "zarr.json", attributes__num_starts=count)
    recipe = TrackStore(store).info.recipe
    for name, spec in array_specs(recipe).items():
        if spec.axis in ("start", "start_offset"):
            length = spec.length(0, count, 0, 0)
            change(shard / name / "zarr.json", shape=[length, *spec.inner])
    refused(store, "must rise from 0 to 90000000|its files have|has .* bytes")


def test_consolidated_metadata_is_not_listened_to(store):
    """zarr would take an array's metadata from its group's, past what was checked."""
    other = json.loads((store / SHARD / "valid" / "zarr.json").read_text())
    other["shape"][0] *= 1000
    change(
        store / SHARD / "zarr.json",
        consolidated_metadata={"kind": "inline", "must_understand": False, "metadata": {"valid": other}},
    )
    for read in READERS:
        read(store)
    assert validate_store(store) == []


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["../../etc/passwd", "b", "c", "d", "e"], r"attribute path of video 0, '\.\./\.\./etc/passwd', is not below"),
        (["a", "/etc/passwd", "c", "d", "e"], "attribute path of video 1, '/etc/passwd', is not below"),
        (["a", "b/../c", "c", "d", "e"], r"video 1, 'b/\.\./c', is not below"),
        (["a", "b", "c", "d", "a/"], "video 4, 'a/', is not in its shortest form"),
        (["a", "b", "./c", "d", "e"], r"video 2, '\./c', is not in its shortest form"),
        (["a\nb", "c", "d", "e", "f"], r"video 0, 'a\\nb', holds the character '\\n'"),
        (["a", "b", "c", "d", "\x1b[2J"], r"holds the character '\\x1b'"),
        (["a", "b", "c", "d", "\ud800"], r"holds the character '\\ud800'"),
        (["a", "b", "c", "", "e"], "video 3, '', is empty"),
        (["a" * 5000, "b", "c", "d", "e"], "is longer than 4096 bytes"),
        (["a", "b", "c", "d"], "has 4 entries, num_videos is 5"),
        (["a", "b", "c", "d", 5], "not a list of texts"),
        ("abcde", "not a list of texts"),
        (None, "not a list of texts"),
    ],
)
def test_paths_of_a_store_stay_below_the_root(store, texts, said):
    change(store / SHARD / "video" / "zarr.json", attributes__path=texts)
    refused(store, said)


# --- links and other files --------------------------------------------------------------------------------------------


def link_away(path: Path, folder: Path):
    path.rename(folder / "away")
    path.symlink_to(folder / "away")


@pytest.mark.parametrize(
    "name", ["store.json", "shards", SHARD, f"{SHARD}/start", f"{SHARD}/hog", f"{SHARD}/hog/c", f"{SHARD}/hog/c/0/0/0",
             f"{SHARD}/hog/zarr.json", f"{SHARD}/zarr.json", f"{SHARD}/video/index/c/0"],
)  # fmt: skip
def test_a_store_has_no_links(store, tmp_path, name):
    link_away(store / name, tmp_path)
    refused(store, "is a symbolic link|Too many levels")


@pytest.mark.parametrize("name", [f"{SHARD}/hog/c/0/0/0", f"{SHARD}/hog/zarr.json", f"{SHARD}/zarr.json", "store.json"])
def test_a_pipe_in_a_store_is_not_waited_for(store, name):
    (store / name).unlink()
    os.mkfifo(store / name)
    refused(store, "is a pipe")


def test_the_store_itself_may_be_a_link(store, tmp_path):
    (tmp_path / "linked").symlink_to(store)
    for read in READERS:
        read(tmp_path / "linked")


def test_shards_with_other_names_are_none(store):
    for name in ("0000000.zarr", "٠٠٠٠١.zarr", "00001.zarr.zarr", "12345678901234567890.zarr"):
        (store / "shards" / name).mkdir()
    assert TrackStore(store).complete_shards == [0]


# --- what arrays hold -------------------------------------------------------------------------------------------------


def overwrite(store, name, values):
    """Other values in an array, with sound checksums."""
    zarr.open_array(store / SHARD / name, mode="r+")[:] = values


@pytest.mark.parametrize("name", ["video/first_start", "start/first_point", "video/first_cut"])
@pytest.mark.parametrize("how", ["negative", "falls", "beyond", "late"])
def test_offsets_that_do_not_rise_through_the_arrays_are_refused(store, name, how):
    offsets = zarr.open_array(store / SHARD / name)[:]
    if how == "negative":
        offsets[0] = -5
    elif how == "falls":
        offsets[1] = offsets[-1] + 7
    elif how == "beyond":
        offsets[-1] = 2**62
    else:
        offsets[0] += 1
    overwrite(store, name, offsets)
    # training has no use for cuts: masks and targets follow from `valid`
    refused(store, "rise from 0|contradicts|fill value", READERS[: 1 if name == "video/first_cut" else 2])


@pytest.mark.parametrize(
    ("name", "value"),
    [("frame_size", 2**31 - 1), ("frame_size", 0), ("frame_size", -7), ("grid_size", 2**31 - 1), ("grid_size", 0),
     ("source_size", 2**31 - 1), ("num_frames", 2**31 - 1), ("num_frames", -3), ("num_frames", 0)],
)  # fmt: skip
def test_sizes_that_contradict_each_other_are_refused(store, name, value):
    """None is taken for the length of anything before that."""
    values = zarr.open_array(store / SHARD / "video" / name)[:]
    values[1] = value
    overwrite(store, f"video/{name}", values)
    plain_builds_on_it = name in ("frame_size", "grid_size")
    refused(store, "contradict|frame_size|grid_size|source_size|num_frames|sizes|first_start",
            READERS if plain_builds_on_it else READERS[1:])  # fmt: skip


# --- chunks -----------------------------------------------------------------------------------------------------------

SPEC = ArraySpec("a", "int16", "point", -32768, (3, 2))


def one_chunk(path, rows=7):
    """An array of one chunk; its file and the chunk's frame."""
    codecs = [BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"), Crc32cCodec()]
    array = zarr.create_array(path, shape=(rows, 3, 2), chunks=(rows, 3, 2), shards=(rows, 3, 2), dtype="int16",
                              fill_value=-32768, compressors=codecs)  # fmt: skip
    array[:] = np.arange(6 * rows).reshape(rows, 3, 2)
    file = stores.only_file(path)
    data = file.read_bytes()
    offset, length = np.frombuffer(data[-20:-4], "<u8").tolist()
    return file, data[offset : offset + length - 4]


def put(file, frame):
    """The frame, with sound checksums."""
    chunk = fuzz_inputs.with_crc(frame)
    file.write_bytes(chunk + fuzz_inputs.with_crc(np.array([0, len(chunk)], "<u8").tobytes()))


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("place", [4, 12])
@pytest.mark.parametrize("value", [0, 1, 83, 85, 2**31 - 1, 2**31, 2**32 - 1])
def test_frames_of_blosc_that_lie_about_sizes_are_refused(tmp_path, place, value):
    """Bytes that they make, and bytes that they have: blosc itself believes both."""
    file, frame = one_chunk(tmp_path / "a")
    put(file, frame)
    assert ArrayReader(tmp_path / "a", SPEC, OpenFiles()).read(0, 7)[6, 2, 1] == 41
    put(file, frame[:place] + value.to_bytes(4, "little") + frame[place + 4 :])
    before = peak_mb()
    with pytest.raises(StoreError, match=r"a\[0:7\]"):
        ArrayReader(tmp_path / "a", SPEC, OpenFiles()).read(0, 7)
    assert peak_mb() - before < 200


def test_a_decompression_bomb_is_refused_by_both_readers(store):
    """A frame of a few kilobytes that makes two gigabytes, in the place of a chunk, with sound checksums."""
    file = stores.only_file(store / SHARD / "start/frame")
    zeros = numcodecs.blosc.Blosc(cname="zstd", clevel=1).encode(bytes(64 << 20))
    assert len(zeros) < 100_000
    frame = zeros[:4] + (2**31 - 17).to_bytes(4, "little") + zeros[8:]
    for bomb in (zeros, frame):
        put(file, bomb)
        before = peak_mb()
        refused(store, "start/frame.*(must hold|cannot be read)")
        assert peak_mb() - before < 500
        assert any("must hold" in problem for problem in validate_store(store))


def test_a_file_that_says_to_make_far_more_than_it_has(tmp_path):
    """A million chunks in one array; each lies at the same few bytes."""
    file, frame = one_chunk(tmp_path / "a", rows=4096)
    chunk = fuzz_inputs.with_crc(frame)
    count = 200_000
    index = np.tile(np.array([0, len(chunk)], "<u8"), count)
    file.write_bytes(chunk + fuzz_inputs.with_crc(index.tobytes()))
    fields = json.loads((tmp_path / "a/zarr.json").read_text())
    fields["shape"][0] = 4096 * count
    fields["chunk_grid"]["configuration"]["chunk_shape"][0] = 4096 * count
    (tmp_path / "a/zarr.json").write_text(json.dumps(fields))
    reader = ArrayReader(tmp_path / "a", SPEC, OpenFiles())
    assert file.stat().st_size * MOST_EXPANSION > 4096 * count * 12, "within bounds: it is read chunk by chunk"
    assert len(reader.read(0, 10)) == 10
    wide = ArraySpec("a", "int16", "point", -32768, (3000, 2))
    fields["shape"] = [4096 * count, 3000, 2]
    for holder in (fields["chunk_grid"]["configuration"], fields["codecs"][0]["configuration"]):
        holder["chunk_shape"] = [holder["chunk_shape"][0], 3000, 2]
    (tmp_path / "a/zarr.json").write_text(json.dumps(fields))
    (tmp_path / "a/c/0/0/0").write_bytes(fuzz_inputs.with_crc(bytes(16 * count)))
    reader = ArrayReader(tmp_path / "a", wide, OpenFiles())
    with pytest.raises(StoreError, match=r"c/0/0/0: has 3200004 bytes, and says that it makes \d{13} of them"):
        reader.read(0, 10)


def test_chunks_larger_than_any_start_row_are_refused_where_rows_are_read(store):
    """The grids say how many points a row has; a chunk of many rows would be decoded for each of them."""
    reader = TrackReader(store)
    shard = ShardReader(reader._store.shard_path(0), reader.info.recipe)
    shard.largest_row = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.reading.shard_reader.MOST_CHUNK_ROWS", 10)
        with pytest.raises(StoreError, match=r"hog/zarr\.json: chunks of \d+ rows, the largest start row has 1"):
            shard.read("hog", 0, 1)
    assert reader.rows(reader.videos[0], [0], hog=True)[0] is not None
    assert reader._shards[0].largest_row == max(
        video.frame_size[0] // 8 * (video.frame_size[1] // 8) for video in reader.videos
    )


# --- failures and partial files ---------------------------------------------------------------------------------------

FAILURE = Failure(index=3, id="a", path="a.mp4", stage="decode", error="E", message="m", attempts=1)


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"a": NaN}', "null", *(FAILURE.to_line().replace(*other) for other in [
        (": 3", ": true"), (": 3", ": -1"), (": 3", ": 1e9"), (": 3", ": 1" + "0" * 30), ('"m"', '["m"]'),
        ("{", '{"b": 1, ')])],
)  # fmt: skip
def test_failures_that_are_none_are_refused(line):
    with pytest.raises(ValueError, match=r"f:3: ") as error:
        Failure.from_line(line, "f:3")
    assert len(str(error.value)) < 500


def test_a_failure_is_one_line_on_any_terminal():
    odd = Failure(index=1, id="\x9b2J", path="\u2028", stage="s", error="E", message="\ud800\x7f\x85\n", attempts=1)
    line = odd.to_line()
    assert line.isprintable()
    assert Failure.from_line(line.encode().decode(), "f") == odd


def test_files_of_failures_that_are_none_are_refused(tmp_path):
    file = failures_path(tmp_path, 0)
    file.parent.mkdir()
    os.mkfifo(file)
    with pytest.raises(OSError, match="is a pipe"):
        read_failures(tmp_path, 0)
    file.unlink()
    file.write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_failures(tmp_path, 0)


META = VideoMeta(index=4, id="a", path="a/b.mp4", num_frames=9, fps=25.0, frame_size=(40, 64), source_size=(40, 64),
                 grid_size=(5, 8), num_starts=2, cuts=(3,))  # fmt: skip


def partial_file(path, meta=META):
    with PartialWriter(path) as writer:
        for n in range(2):
            writer.append({"start/frame": np.array([n], np.int32), "valid": np.ones((40, 7), np.uint8)})
        writer.finish(meta)
    return path


def rewrite(path, changed, packing=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in (members | changed).items():
            archive.writestr(name, data)


def in_blosc(data):
    return numcodecs.blosc.Blosc(cname="zstd", clevel=1).encode(data)


def npy(header, data=b"", version=b"\x01\x00"):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (in_blosc(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000, 7)}")), "an .npy file of"),
        (in_blosc(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n.")), "of object"),
        (in_blosc(npy("{'descr': '|u1', 'fortran_order': True, 'shape': (80, 7)}", bytes(560))), "an .npy file of"),
        (in_blosc(npy("{'descr': '<i4', 'fortran_order': False, 'shape': (80, 7)}", bytes(2240))), "rows are of uint8"),
        (in_blosc(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (80, 1)}", bytes(80))), "rows are of uint8"),
        (in_blosc(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (9, 7)}", bytes(63))), "holds 9 rows"),
        (in_blosc(npy("{'descr': '|u1'", b"")), "valid: "),
        (in_blosc(npy("{}", b"", b"\x02\x00")), "of another version"),
        (in_blosc(b"cos\nsystem\n(S'true'\ntR."), "valid: "),
        (b"", "a block of 0 bytes"),
        (in_blosc(bytes(1000))[:4] + b"\xff\xff\xff\x7f" + in_blosc(bytes(1000))[8:], "says that it makes 2147483647"),
        (in_blosc(bytes(1000)) + b"x", "coded bytes, its header says"),
    ],
)  # fmt: skip
def test_blocks_of_partial_files_are_arrays_of_the_recipe(good_store, tmp_path, member, said):
    recipe = TrackStore(good_store).info.recipe
    path = partial_file(tmp_path / "p.tracks")
    assert sum(len(block) for block in PartialFile(path, recipe).blocks("valid")) == 80
    rewrite(path, {"valid/000000": member})
    with pytest.raises(PartialError, match=said):
        list(PartialFile(path, recipe).blocks("valid"))


@pytest.mark.parametrize(
    "fields",
    [{"num_starts": -1}, {"num_starts": 2.0}, {"num_starts": True}, {"index": "4"}, {"path": "../b"}, {"path": "a\nb"},
     {"id": ""}, {"cuts": 3}, {"cuts": ["x"]}, {"grid_size": [5]}, {"grid_size": 5}, {"fps": "x"},
     {"num_frames": 2**40}, {"more": 1}],
)  # fmt: skip
def test_a_partial_file_s_video_is_one(tmp_path, fields):
    path = partial_file(tmp_path / "p.tracks")
    with zipfile.ZipFile(path) as archive:
        sound = json.loads(archive.read("video.json"))
    rewrite(path, {"video.json": json.dumps(sound | fields)})
    with pytest.raises(PartialError, match="is damaged"):
        PartialFile(path)


def test_packed_and_piped_partial_files_are_refused(tmp_path):
    path = partial_file(tmp_path / "p.tracks")
    rewrite(path, {"video.json": b"[" + b" " * (1 << 28) + b"]"}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    before = peak_mb()
    with pytest.raises(PartialError, match=r"'video\.json' is packed"):
        PartialFile(path)
    assert peak_mb() - before < 100
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PartialError, match="is a pipe"):
        PartialFile(path)
