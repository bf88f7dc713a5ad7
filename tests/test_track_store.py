"""The store against its spec: read by zarr alone and by tensorstore, damaged on purpose, and validated."""

import json
import re
import shutil

import numpy as np
import pytest
import tensorstore
import zarr
from conftest import REPOSITORY
from stores import seal_again

from data_specs.geometry import grid_points
from data_specs.schema import array_specs
from data_specs.track_store import StoreError, TrackStore
from data_specs.validate import validate_store
from data_specs.video import Video
from extraction.cli import main
from extraction.flow_descriptors import describe_flow
from extraction.hog import gradient_map, window_histograms
from extraction.motion.flow_tracker import FlowTracker, TrackedFrame
from extraction.stages import untimed


@pytest.fixture(scope="module")
def good_store(clips, tmp_path_factory):
    """Two shards of small clips of several sizes, with a video that failed, and every array that there is."""
    store = tmp_path_factory.mktemp("store") / "s"
    names = (clips / "list.txt").read_text()
    listing = store.parent / "list.txt"
    listing.write_text(names + "missing.avi\n")
    recipe = store.parent / "everything.yaml"
    recipe.write_text("extends: mme-object\nname: everything\ndescriptors: [flow, hof, mbh]\n")
    status = main(
        ["--dataset", str(listing), "--root", str(clips), "--shards", "2", "--out", str(store), "--flow", "dis",
         "--recipe", str(recipe), "--executor", "local"]
    )  # fmt: skip
    assert status == 1
    return store


@pytest.fixture
def store(good_store, tmp_path):
    return shutil.copytree(good_store, tmp_path / "s")


def test_a_good_store_has_no_problems(good_store):
    assert validate_store(good_store) == []
    assert sorted(p.name for p in good_store.iterdir()) == ["failures", "locks", "partial", "shards", "store.json"]
    assert not list((good_store / "partial").iterdir())


def test_the_spec_s_example_reads_the_store_with_zarr_alone(good_store):
    text = (REPOSITORY / "data_specs" / "track_store.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert "data_specs" not in code
    names = {"STORE": good_store}
    exec(code, names)
    shard = TrackStore(good_store).shard(0)
    row = shard.read_row(0, 0)
    np.testing.assert_allclose(names["positions"], row.positions, atol=1e-12)
    np.testing.assert_array_equal(names["valid"], row.valid)
    np.testing.assert_allclose(names["compensated"], row.compensated, atol=1e-9)
    assert np.abs(row.displacements).max() > 0.5


def test_every_array_is_as_the_spec_says(good_store):
    """The table of track_store.md, the schema in code and the files agree on names, types and shapes."""
    table = dict(
        (name, (dtype, shape))
        for names, dtype, shape in re.findall(
            r"^\| (`[^|]*`) \| (\w+) \(([^)]*)\)", (REPOSITORY / "data_specs" / "track_store.md").read_text(), re.M
        )
        for name in re.findall(r"`([^`]+)`", names)
    )
    store = TrackStore(good_store)
    specs = array_specs(store.info.recipe)
    of_trackers = {"visibility", "confidence"}  # test_tracked_store.py has a store of these
    assert table.keys() == specs.keys() | of_trackers
    for _, shard in store.shards():
        sizes = {
            "V": shard.num_videos, "S": shard.num_starts, "P": shard.num_points, "L": 6, "9·C": 9,
            "V + 1": shard.num_videos + 1, "K": shard.num_cuts, "S + 1": shard.num_starts + 1, "L + 1": 7,
            "2": 2, "3": 3, "8": 8, "9": 9,
        }  # fmt: skip
        for name in specs:
            dtype, shape = table[name]
            array = shard.array(name)
            assert array.dtype == dtype
            assert array.shape == tuple(sizes[size.strip()] for size in shape.split(",")), name


def test_tensorstore_reads_the_same_values(good_store):
    for _, shard in TrackStore(good_store).shards():
        for name in array_specs(shard.recipe):
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(shard.path / name)}}
            theirs = tensorstore.open(spec, read=True).result().read().result()
            np.testing.assert_array_equal(theirs, shard.read(name, 0, shard.array(name).shape[0]))


def test_rows_and_points_are_where_the_offsets_say(good_store, clips):
    """Videos of several sizes in one shard: each one's points are its own grid's, its HOG that of its own frames."""
    store = TrackStore(good_store)
    sizes = set()
    for _, shard in store.shards():
        assert list(shard.ids) == list(shard.paths)
        for video, meta in enumerate(shard.metas):
            sizes.add(meta.frame_size)
            frames = list(Video(clips / meta.path, 256))
            assert (meta.num_frames, meta.frame_size) == (len(frames), frames[0].shape[:2])
            rows = [shard.read_row(video, number) for number in shard.rows(video)]
            assert [row.frame for row in rows] == list(range(0, meta.num_frames - 6, 4))
            for row in rows:
                np.testing.assert_array_equal(row.positions[:, 0], grid_points(meta.frame_size, 8))
                gradients = gradient_map(frames[row.frame + 2], 1)
                expected = window_histograms(gradients, row.positions[:, 2], row.valid[:, 2], 8)
                # half a level of the square root, and positions rounded to 1/64 px
                scale = row.hog.max()
                assert np.abs(row.hog[:, 2] - expected).max() < 0.01 * scale + np.sqrt(expected.max() * scale) / 254
    assert len(sizes) == 4


def test_descriptors_are_those_of_the_flow_between_the_row_s_first_two_frames(good_store, clips):
    """Written, read back, and held against the same flow, measured again: values, units, the row's own scale."""
    store = TrackStore(good_store)
    shard, video = store.find("b.avi")
    frames = [TrackedFrame(frame) for frame in Video(clips / "sub folder/b.avi", 256)]
    recipe = shard.recipe
    for number in shard.rows(video):
        row = shard.read_row(video, number)
        motion = FlowTracker(recipe, untimed).pair_motion(frames[row.frame], frames[row.frame + 1])
        expected = describe_flow(motion.flow, motion.measured, 8, recipe.descriptors, recipe.hof_still_px)
        np.testing.assert_array_equal(row.cell_measured, expected.measured)
        assert 0.3 < expected.measured.mean() < 1
        assert row.hof.shape == (8 * 11, 9)
        np.testing.assert_allclose(row.flow, expected.flow, atol=1 / 128)
        for ours, theirs in [(row.hof, expected.hof), (row.mbh, expected.mbh)]:
            # half a level of the square root: |error| <= sqrt(value * scale) / 254 and a little
            scale = theirs.max()
            assert (np.abs(ours - theirs) <= np.sqrt(theirs * scale) / 254 + scale / 254**2).all()
            assert scale > 1
    without = shard.read_row(video, shard.rows(video)[0], descriptors=False)
    assert without.flow is without.hof is without.mbh is without.cell_measured is None


def test_a_descriptor_of_a_cell_that_was_not_measured_is_a_problem(store):
    rewrite(store, 0, "cell_measured", lambda measured: measured.__setitem__(slice(None), 0))
    problems = "\n".join(validate_store(store))
    for name in ("flow", "hof", "mbh"):
        assert f"{name} is not 0 where its cell is not measured" in problems


def test_a_chunk_is_one_start_row_where_sizes_agree(clips, tmp_path):
    (tmp_path / "l.txt").write_text("a.avi\nd.avi\n")
    main(["--dataset", str(tmp_path / "l.txt"), "--root", str(clips), "--shards", "1", "--out", str(tmp_path / "s"),
          "--flow", "dis", "--executor", "local"])  # fmt: skip
    shard = TrackStore(tmp_path / "s").shard(0)
    assert shard.array("displacement").chunks == ((72 // 8) * (104 // 8), 6, 2)
    assert shard.array("hog").chunks[0] == shard.array("valid").chunks[0] == 117


def test_opening_what_is_not_a_store_says_so(tmp_path, store):
    with pytest.raises(StoreError, match=r"is not a track store: .*store\.json: No such file"):
        TrackStore(tmp_path / "nothing")
    text = (store / "store.json").read_text()
    for change, problem in [
        (text.replace('"version": 1', '"version": 2'), "version 2; this software reads version 1"),
        (text.replace("motion-targets/track-store", "other"), "is not a track store's"),
        (text[:-30], "is not JSON"),
        (text.replace('"length": 6', '"length": "six"'), "length"),
        (text.replace('"sha256"', '"sha"'), "a field is missing or wrong: 'sha256'"),
    ]:
        (store / "store.json").write_text(change)
        with pytest.raises(StoreError, match=re.escape(problem)):
            TrackStore(store)


def rewrite(store, shard, name, change):
    """Change an array's values in place."""
    array = zarr.open_array(store / "shards" / f"{shard:05d}.zarr" / name, mode="r+")
    values = array[:]
    change(values)
    array[:] = values


def test_the_validator_reports_every_problem_with_its_place(store):
    """One problem of each kind, all at once where they do not hide each other."""

    def lost_and_found(valid):
        valid[5, 2:4] = 0
        valid[5, 4:] = 1

    rewrite(store, 0, "valid", lost_and_found)
    rewrite(store, 0, "start/frame", lambda frames: frames.__setitem__(1, 5))
    rewrite(store, 0, "camera/estimated", lambda e: e.__setitem__((0, 3), 0))
    rewrite(store, 1, "displacement", lambda d: d.__setitem__((0, 0), [-64 * 40, 0]))
    rewrite(store, 1, "video/grid_size", lambda g: g.__setitem__((1, 0), 3))
    problems = "\n".join(validate_store(store))
    for expected in [
        r"00000\.zarr: video 0 \(a\.avi\), start rows 0:2: start at frames \[0, 5\], must be \[0, 4\]",
        r"00000\.zarr: video 0 .*: camera/homography is not the identity where it was not estimated",
        r"00000\.zarr: video 0 .*: valid comes back after it was lost",
        r"00000\.zarr: video 0 .*: a displacement is not 0 where its step is not valid",
        r"00000\.zarr: video 0 .*: a histogram is not 0 where its point is not valid",
        r"00001\.zarr: video 0 .*: point 0 is valid at step 1 at \[-36\.5, 3\.5\], outside the frame",
        r"00001\.zarr: video 1 .*: grid_size is \(3, \d+\), must be",
    ]:
        assert re.search(expected, problems), (expected, problems)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("displacement", -32768, r"displacement\[7\]: holds the fill value"),
        ("valid", 255, r"valid\[7\]: holds the fill value"),
        ("hog", 255, r"hog\[7\]: holds the fill value"),
        ("flow", -32768, r"flow\[7\]: holds the fill value"),
        ("mbh", 255, r"mbh\[7\]: holds the fill value"),
        ("cell_measured", 2, "cell_measured holds 2, must be 0 or 1"),
        ("start/hof_scale", -1, r"start/hof_scale holds -1\.0, must be 0 or more"),
        ("valid", 3, "valid holds 3, must be 0 or 1"),
    ],
)
def test_values_that_cannot_occur_are_reported(store, name, value, problem):
    rewrite(store, 0, name, lambda values: values.__setitem__(7, value))
    assert re.search(problem, "\n".join(validate_store(store)))


@pytest.mark.parametrize(
    "name", ["displacement", "valid", "hog", "hof", "camera/homography", "start/frame", "video/fps"]
)
def test_a_missing_file_is_not_taken_for_zeros(store, name):
    files = [f for f in (store / "shards" / "00001.zarr" / name / "c").rglob("*") if f.is_file()]
    assert len(files) == 1
    files[0].unlink()
    problems = validate_store(store)
    assert any("holds the fill value: it was not written" in p and name in p for p in problems), problems


@pytest.mark.parametrize("name", ["displacement", "valid", "hog", "mbh", "camera/homography", "start/first_point"])
def test_a_flipped_bit_is_found(store, name):
    (file,) = [f for f in (store / "shards" / "00000.zarr" / name / "c").rglob("*") if f.is_file()]
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    problems = validate_store(store)
    assert any(name in p and "cannot be read" in p for p in problems), problems


def test_one_unreadable_array_does_not_hide_another(store):
    for name in ("displacement", "valid", "hog", "video/fps", "start/first_point"):
        (file,) = [f for f in (store / "shards" / "00000.zarr" / name / "c").rglob("*") if f.is_file()]
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 1
        file.write_bytes(data)
    problems = "\n".join(validate_store(store))
    assert "video/fps" in problems
    assert "start/first_point" in problems
    for name in ("video/fps", "start/first_point"):
        rewrite_from(store, name)
    problems = "\n".join(validate_store(store))
    for name in ("displacement", "valid", "hog"):
        assert f"00000.zarr/{name}[" in problems


def rewrite_from(store, name):
    """Mend one array of shard 0: flip its bit back."""
    (file,) = [f for f in (store / "shards" / "00000.zarr" / name / "c").rglob("*") if f.is_file()]
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("text", ['{"zarr_format": 3, "node_ty', "[]", "{}"])
@pytest.mark.parametrize("file", ["hog/zarr.json", "zarr.json", "video/zarr.json"])
def test_damaged_metadata_is_a_problem_with_a_place(store, file, text):
    (store / "shards" / "00000.zarr" / file).write_text(text)
    problems = validate_store(store)
    assert problems
    assert all("00000.zarr" in problem for problem in problems)


def test_missing_and_changed_metadata_is_found(store):
    root = store / "shards" / "00000.zarr"
    (root / "valid" / "zarr.json").unlink()
    metadata = json.loads((root / "hog" / "zarr.json").read_text())
    metadata["fill_value"] = 0
    (root / "hog" / "zarr.json").write_text(json.dumps(metadata))
    problems = "\n".join(validate_store(store))
    assert re.search(r"00000\.zarr/valid/zarr\.json: is missing", problems)
    assert re.search(r"00000\.zarr/hog/zarr\.json: is not what was written", problems)
    seal_again(root)  # as by a writer that gets them wrong
    problems = "\n".join(validate_store(store))
    assert re.search(r"00000\.zarr/valid: no such array", problems)
    assert re.search(r"00000\.zarr/hog: fill value is 0, must be 255", problems)


def test_a_shard_without_its_counts_is_not_complete(store):
    root = store / "shards" / "00000.zarr" / "zarr.json"
    metadata = json.loads(root.read_text())
    metadata["attributes"] = {}
    root.write_text(json.dumps(metadata))
    assert re.search(r"00000\.zarr: format None, version None", "\n".join(validate_store(store)))


def test_videos_must_be_those_of_the_list(store):
    (store / "failures" / "00001.jsonl").unlink()
    assert re.search(r"00001\.zarr: .*places missing \[5\]", "\n".join(validate_store(store)))


def test_the_list_s_digest_is_recomputed(store):
    group = zarr.open_group(store / "shards" / "00000.zarr" / "video", mode="r+")
    paths = list(group.attrs["path"])
    group.update_attributes({"path": ["other.avi", *paths[1:]]})
    seal_again(store / "shards" / "00000.zarr")
    assert "list.sha256 is" in "\n".join(validate_store(store))


def test_reading_a_foreign_row_is_refused(good_store):
    shard = TrackStore(good_store).shard(0)
    with pytest.raises(IndexError, match="start row 0 is not video 1's"):
        shard.read_row(1, 0)
