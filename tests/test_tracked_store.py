"""Stores of a tracker: visibility and confidence, points that come back, and what validates, draws and reads them."""

import dataclasses
import itertools
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import tensorstore
import zarr
from conftest import REPOSITORY
from stores import seal_again
from tracked_stores import TRACKMAE, Film, make_tracked_store

from data_specs.geometry import inside_frame
from data_specs.scene import Disc, Scene, Texture, moving, still
from data_specs.schema import array_specs
from data_specs.track_store import StoreError, TrackRow, TrackStore
from data_specs.validate import validate_store
from data_specs.video import Video
from data_specs.view import View
from extraction.commit import check_store
from extraction.hog import gradient_map, window_histograms
from extraction.inspect_cli import main as inspect
from extraction.kernels import compile_kernels
from extraction.motion.gpu.device import check_recipe
from extraction.render import draw_row, film_frames, render
from training.reading.clip_motion import ClipMotion
from training.reading.shard_reader import ShardReader
from training.reading.track_reader import TrackReader
from training.recipe import HeadOptions, PretrainRecipe

RECIPE = dataclasses.replace(
    TRACKMAE, name="short", length=5, frame_step=3, start_stride=4, grid_stride=8, hog=True, remove_camera=True
)
FLOW = {"tracker": "flow", "camera_features": ("surf", "corners")}
WEIGHTS = "c0ffee" * 10 + "0123"


def scene(size, camera, velocity, seed=0):
    """A disc that crosses the background's points and leaves them again."""
    centre = (size[1] * 0.3, size[0] * 0.5)
    disc = Disc(texture=Texture(3, shortest=6), centre=centre, radius=9, motion=moving(velocity))
    return Scene(size=size, background=Texture(2 + seed, shortest=8), camera=moving(camera), discs=(disc,), seed=seed)


FILMS = {
    "wide.avi": Film((scene((56, 88), (1.1, -0.3), (4.5, 0.6)), 30)),
    "tall.avi": Film((scene((96, 64), (-0.4, 1.3), (3.0, -1.0), 1), 22)),
    "cut.avi": Film((scene((56, 88), (1.1, -0.3), (4.5, 0.6)), 10), (scene((56, 88), (-1.6, 0.9), (0.5, 4.0), 5), 24)),
}


@pytest.fixture(scope="module")
def good_store(tmp_path_factory):
    return make_tracked_store(tmp_path_factory.mktemp("tracked"), FILMS, RECIPE, shards=2, weights_sha256=WEIGHTS)


@pytest.fixture
def store(good_store, tmp_path):
    return shutil.copytree(good_store, tmp_path / "s")


def rows_of(store):
    """(film, row of the store, the row's truth) of every row, by the plain reader."""
    for _, shard in TrackStore(store).shards():
        for video, meta in enumerate(shard.metas):
            for number in shard.rows(video):
                row = shard.read_row(video, number)
                yield FILMS[meta.path], row, FILMS[meta.path].row(row.frame, shard.recipe)


def test_rows_are_what_the_tracker_gave(good_store):
    assert validate_store(good_store) == []
    back = hidden = cut = 0
    for film, row, truth in rows_of(good_store):
        assert np.abs(row.positions - truth.positions).max() <= 1 / 128
        np.testing.assert_array_equal(row.valid, truth.valid)
        for ours, theirs in (row.visibility, truth.visibility), (row.confidence, truth.confidence):
            assert ours.dtype == np.float32
            assert np.abs(ours - theirs).max() <= 2**-12  # half a unit of float16 below 1
            assert len(np.unique(ours)) > 100
        np.testing.assert_allclose(row.homographies, truth.homographies, rtol=1e-6)
        back += int((np.diff(row.valid.astype(int), axis=1) > 0).sum())
        hidden += int((~row.valid & inside_frame(row.positions, film.size)).sum())
        cut += int(row.frame < 10 < row.frame + 15 and film.cuts == (10,))
    # what the other tests of this module lean on
    assert back > 20
    assert hidden > 200
    assert cut == 3


def test_positions_run_on_where_a_point_is_not_seen(good_store):
    """A background point behind the disc moves with the background: what is stored there is not 0."""
    checked = 0
    for film, row, truth in rows_of(good_store):
        unseen = ~row.step_valid & inside_frame(row.positions, film.size)[:, 1:]
        steps = np.diff(truth.positions, axis=1)[unseen]
        np.testing.assert_allclose(row.displacements[unseen], steps, atol=1 / 64)
        checked += int((np.abs(steps).max(axis=-1) > 1).sum())
    assert checked > 200


def test_histograms_are_measured_wherever_the_point_is_inside(good_store):
    dark, outside = 0, 0
    for film, row, truth in rows_of(good_store):
        name = next(name for name, other in FILMS.items() if other is film)
        frames = list(Video(good_store.parent / "videos" / name, 256))
        for k in range(RECIPE.length):
            inside = inside_frame(truth.positions[:, k], film.size)
            measured = window_histograms(gradient_map(frames[row.frame + 3 * k], 1), truth.positions[:, k], inside, 8)
            # half a level of the square root
            scale = row.hog.max()
            assert (np.abs(row.hog[:, k] - measured) <= np.sqrt(measured * scale) / 254 + scale / 254**2).all()
            dark += int((row.hog[:, k].sum(axis=-1) > 0)[inside & ~row.valid[:, k]].sum())
            outside += int((~inside).sum())
    assert min(dark, outside) > 50


def test_the_arrays_are_as_the_schema_says_and_tensorstore_reads_them(good_store):
    specs = array_specs(RECIPE)
    assert {"visibility", "confidence"} <= specs.keys()
    assert not {"visibility", "confidence"} & array_specs(dataclasses.replace(RECIPE, **FLOW)).keys()
    for _, shard in TrackStore(good_store).shards():
        reader = ShardReader(shard.path, shard.recipe)
        assert shard.array("valid").attrs["valid_returns"] is True
        for name in specs:
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(shard.path / name)}}
            theirs = tensorstore.open(spec, read=True).result().read().result()
            ours = shard.read(name, 0, shard.array(name).shape[0])
            np.testing.assert_array_equal(theirs, ours)
            np.testing.assert_array_equal(reader.read(name, 0, len(ours)), ours)
        for name in ("visibility", "confidence"):
            assert (specs[name].dtype, shard.array(name).dtype) == ("float16", np.float16)
            assert shard.array(name).shape == (shard.num_points, RECIPE.length + 1)
            assert np.isnan(shard.array(name).fill_value)


def rewrite(store, name, change, shard=0):
    """Change an array's values in place."""
    array = zarr.open_array(store / "shards" / f"{shard:05d}.zarr" / name, mode="r+")
    values = array[:]
    change(values)
    array[:] = values
    seal_again(store / "shards" / f"{shard:05d}.zarr")


def problems_of(store):
    return "\n".join(validate_store(store))


def first_where(store, wanted):
    """(point, step) of the first position of shard 0 for which `wanted(valid, product)` holds, beyond step 0."""
    shard = TrackStore(store).shard(0)
    valid, visibility, confidence = (
        shard.read(name, 0, shard.num_points) for name in ("valid", "visibility", "confidence")
    )
    found = np.argwhere(wanted(valid[:, 1:] == 1, (visibility * confidence)[:, 1:]))
    return int(found[0][0]), int(found[0][1]) + 1


@pytest.mark.parametrize("name", ["visibility", "confidence"])
@pytest.mark.parametrize("value", [-0.01, 1.001, np.inf])
def test_estimates_outside_0_to_1_are_reported(store, name, value):
    rewrite(store, name, lambda values: values.__setitem__((7, 2), value))
    assert re.search(rf"{name} of point 7 at step 2 is {np.float16(value)}, must be 0 to 1", problems_of(store))


def test_both_estimates_are_reported_at_once(store):
    for name in ("visibility", "confidence"):
        rewrite(store, name, lambda values: values.__setitem__((3, 1), 2))
    assert problems_of(store).count("of point 3 at step 1 is 2.0, must be 0 to 1") == 2


@pytest.mark.parametrize("name", ["visibility", "confidence"])
def test_an_estimate_that_was_not_written_is_reported(store, name):
    rewrite(store, name, lambda values: values.__setitem__((7, 2), np.nan))
    assert f"{name}[7]: holds the fill value: it was not written" in problems_of(store)
    with pytest.raises(StoreError, match=rf"{name}\[7\]: holds the fill value"):
        ShardReader(store / "shards" / "00000.zarr", RECIPE).read(name, 0, 8)


def test_a_point_that_is_not_seen_must_not_be_valid(store):
    point, k = first_where(store, lambda valid, product: valid)
    rewrite(store, "visibility", lambda values: values.__setitem__((point, k), 0.4))
    assert re.search(
        rf"point {point} at step {k}, visibility 0\.3999\d*, confidence [\d.]+, is valid, and visibility \* confidence "
        r"is not above visible_above, 0\.6",
        problems_of(store),
    )


def test_a_point_that_is_seen_must_be_valid(store):
    point, k = first_where(store, lambda valid, product: valid)
    rewrite(store, "valid", lambda values: values.__setitem__((point, k), 0))
    assert re.search(
        rf"point {point} at step {k}, visibility [\d.]+, confidence [\d.]+, is not valid, though visibility \* "
        r"confidence is above visible_above, 0\.6, it is inside the frame and no cut lies before it",
        problems_of(store),
    )


def test_another_threshold_is_another_rule(store):
    info = json.loads((store / "store.json").read_text())
    info["recipe"]["visible_above"] = 0.9
    (store / "store.json").write_text(json.dumps(info))
    assert re.search(r"is valid, and visibility \* confidence is not above visible_above, 0\.9", problems_of(store))


@pytest.mark.parametrize(("valid", "near", "far"), [(1, 0.8, 0.798), (0, 0.8003, 0.802)])
def test_float16_s_rounding_at_the_threshold_is_allowed_for(store, valid, near, far):
    """0.8 is stored as 0.79980; times 0.75 that is below 0.6, but may have been above. 0.80029 is the other way."""
    point, k = first_where(store, lambda valid, product: valid)
    for name, value in ("confidence", 0.75), ("valid", valid), ("visibility", near):
        rewrite(store, name, lambda values, value=value: values.__setitem__((point, k), value))
    assert (float(np.float16(near)) * 0.75 > 0.6) != valid
    assert validate_store(store) == []
    rewrite(store, "visibility", lambda values: values.__setitem__((point, k), far))
    assert f"point {point} at step {k}" in problems_of(store)


def test_half_a_unit_at_the_border_is_allowed_for(store):
    """A seen point is moved to x = 0: as it was before it was rounded, it may have been inside, or outside."""

    def move_to(x):
        def change(steps):
            begins = 3.5 + 8 * (point % 11)
            steps[point] = 0
            steps[point, 0, 0] = round((x - begins) * 64)

        return change

    shard = TrackStore(store).shard(0)
    assert shard.metas[0].grid_size == (7, 11)
    seen = np.flatnonzero((shard.read("valid", 0, 77) == 1).all(axis=1))
    point = int(seen[0])
    for x, valid, sound in [
        (0, 1, True), (0, 0, True), (1 / 64, 1, True), (1 / 64, 0, False), (-1 / 64, 0, True), (-1 / 64, 1, False),
    ]:  # fmt: skip
        rewrite(store, "displacement", move_to(x))
        rewrite(store, "valid", lambda values, valid=valid: values[point].__setitem__(slice(1, None), valid))
        rewrite(store, "hog", lambda values: values[point].__setitem__(slice(1, None), 0))
        problems = problems_of(store)
        assert (problems == "") == sound, (x, valid, problems)
        if not sound:
            expected = "outside the frame" if valid else "it is inside the frame"
            assert f"point {point} " in problems
            assert expected in problems


def test_nothing_is_valid_after_a_cut(store):
    """Row 1 of cut.avi begins in frame 4; its positions 2 to 5 are in frames 10 to 19, of the second shot."""
    shard, video = TrackStore(store).find("cut.avi")
    assert shard.path.name == "00000.zarr"
    first = int(shard.first_point[shard.rows(video)[1]])

    def seen_again(k):
        rewrite(store, "valid", lambda values: values.__setitem__((first + 5, k), 1))
        for name in ("visibility", "confidence"):
            rewrite(store, name, lambda values: values.__setitem__((first + 5, k), 1))

    seen_again(4)
    assert re.search(
        r"cut\.avi.*point \d+ at step 4, visibility 1\.0, confidence 1\.0, is valid after a cut", problems_of(store)
    )


def test_a_histogram_outside_the_frame_is_reported(store):
    shard = TrackStore(store).shard(0)
    row = shard.read_row(0, 0)
    point, k = np.argwhere(~inside_frame(row.positions[:, :-1], shard.metas[0].frame_size))[0].tolist()
    assert not row.hog[point, k].any()
    rewrite(store, "hog", lambda values: values.__setitem__((point, k, 3), 9))
    assert "a histogram is not 0 where its point is outside the frame" in problems_of(store)


def test_a_store_that_says_that_lost_points_stay_lost_is_reported(store):
    zarr.open_array(store / "shards" / "00001.zarr" / "valid", mode="r+").update_attributes({"valid_returns": False})
    seal_again(store / "shards" / "00001.zarr")
    assert "00001.zarr/valid: attribute valid_returns is False, must be True" in problems_of(store)
    with pytest.raises(StoreError, match="attribute valid_returns is False"):
        ShardReader(store / "shards" / "00001.zarr", RECIPE).array("valid")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda row: row.positions.__setitem__((3, 2, 1), np.nan),
            r"the position of point 3 at step 2, in frame 6, is \[[\d.]+, nan\], must be finite; 1 of 462 are not",
        ),
        (
            lambda row: row.visibility.__setitem__((8, 1), np.nan),
            "the visibility of point 8 at step 1, in frame 3, is nan, must be 0 to 1; 1 of 462 are not",
        ),
        (
            lambda row: row.confidence.__setitem__((slice(None), 5), 1.5),
            "the confidence of point 0 at step 5, in frame 15, is 1.5, must be 0 to 1; 77 of 462 are not",
        ),
        (
            lambda row: row.positions.__setitem__((3, 0), 0),
            r"its points do not begin at the grid's, \[3\.5, 3\.5\] \.\.\. \[83\.5, 51\.5\]",
        ),
    ],
)
def test_what_the_store_cannot_hold_is_refused_with_its_place(tmp_path, change, problem):
    def alter(row):
        change(row)
        return row

    with pytest.raises(ValueError, match="tracker cotracker3, row at frame 0: " + problem):
        make_tracked_store(tmp_path, {"wide.avi": FILMS["wide.avi"]}, RECIPE, alter=alter)


def test_a_tracker_without_estimates_is_refused(tmp_path):
    with pytest.raises(ValueError, match="row at frame 0: gave no visibility and no confidence"):
        make_tracked_store(
            tmp_path,
            {"wide.avi": FILMS["wide.avi"]},
            RECIPE,
            alter=lambda row: dataclasses.replace(row, visibility=None, confidence=None),
        )


def test_a_point_estimated_farther_away_than_a_step_can_say_is_followed_and_not_valid(tmp_path):
    """600 px right in one step, where it stays, seen by the tracker's word: 511.98 px, then the rest."""
    size = (40, 1400)
    film = Film((Scene(size=size, background=Texture(1, waves=3), camera=still), 16))

    def alter(row):
        row.positions[2, 2:] += [600.25, 1.5]
        return row

    store = make_tracked_store(tmp_path, {"strip.avi": film}, RECIPE, alter=alter)
    assert validate_store(store) == []
    row = TrackStore(store).shard(0).read_row(0, 0)
    begin = row.positions[2, 0]
    longest = 32767 / 64
    np.testing.assert_array_equal(
        row.positions[2] - begin, [[0, 0], [0, 0], [longest, 1.5], [600.25, 1.5], [600.25, 1.5], [600.25, 1.5]]
    )
    assert row.valid[2].tolist() == [True, True, False, True, True, True]
    assert row.valid[[0, 1, 3, 4]].all()


def test_weights_are_the_store_s(good_store, tmp_path, capsys):
    info = TrackStore(good_store).info
    assert info.weights_sha256 == WEIGHTS
    assert json.loads((good_store / "store.json").read_text())["weights"] == {"sha256": WEIGHTS}
    assert inspect([str(good_store)]) == 0
    said = capsys.readouterr().out
    assert f"weights      SHA-256 {WEIGHTS}\n" in said
    assert "recipe       short: tracker cotracker3, L 5" in said
    check_store(good_store, info)
    for other, named in ("beef" * 16, "beef" * 16), (None, "none"):
        expected = f"SHA-256 of the tracker's weights: the store has {WEIGHTS}, this run {named}"
        with pytest.raises(StoreError, match=expected):
            check_store(good_store, dataclasses.replace(info, weights_sha256=other))
    for broken, problem in ({"sha256": 5}, "'5' is not a text"), ({}, "'sha256'"), ("abc", "a field is missing"):
        store = shutil.copytree(good_store, tmp_path / f"s{len(str(broken))}")
        fields = json.loads((store / "store.json").read_text()) | {"weights": broken}
        (store / "store.json").write_text(json.dumps(fields))
        with pytest.raises(StoreError, match=problem):
            TrackStore(store)


def test_the_spec_s_example_reads_a_tracker_s_store(good_store):
    text = (REPOSITORY / "data_specs" / "track_store.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {"STORE": good_store}
    exec(code, names)
    row = TrackStore(good_store).shard(0).read_row(0, 0)
    np.testing.assert_allclose(names["positions"], row.positions, atol=1e-12)
    np.testing.assert_array_equal(names["valid"], row.valid)
    np.testing.assert_array_equal(names["visibility"], row.visibility)
    np.testing.assert_allclose(names["compensated"], row.compensated, atol=1e-9)
    types = re.search(r"^\| `visibility`, `confidence` \| (\w+) \(P, L \+ 1\)", text, re.M)
    assert types[1] == array_specs(RECIPE)["visibility"].dtype


def test_training_reads_a_tracker_s_rows(good_store):
    """A step counts where both its ends are valid, and is the scene's; a camera in the image is taken out of it."""
    reader = TrackReader(good_store)
    assert [v.path for v in reader.videos] == list(FILMS)
    counted = 0
    for video, remove_camera in itertools.product(reader.videos, (True, False)):
        film = FILMS[video.path]
        frames = [4 * row for row in range(video.num_starts)]
        for start, field in zip(frames, reader.rows(video, frames, hog=True, remove_camera=remove_camera), strict=True):
            truth = film.row(start, RECIPE)
            steps = (truth.valid[:, :-1] & truth.valid[:, 1:]).reshape(field.displacement.shape[:3])
            np.testing.assert_array_equal(field.valid[..., :-1] & field.valid[..., 1:], steps)
            assert not field.displacement[~steps].any()
            moved = np.diff(truth.positions, axis=1)
            if remove_camera:
                homes = [
                    cv2.perspectiveTransform(truth.positions[None, :, k + 1], np.linalg.inv(g))[0]
                    for k, g in enumerate(truth.homographies)
                ]
                moved = np.stack(homes, axis=1) - truth.positions[:, :-1]
            np.testing.assert_allclose(field.displacement[steps], moved.reshape(*steps.shape, 2)[steps], atol=0.02)
            counted += int(steps[..., 3:].sum())
    assert counted > 500


@pytest.mark.parametrize("flip", [False, True])
def test_a_clip_s_tokens_take_the_steps_of_trackmae(tmp_path, flip):
    """Token (t, h, w) has step t of the point tracked from its patch's centre, wherever both ends are seen."""
    film = Film((scene((80, 112), (0.3, -0.1), (1.4, 0.2)), 60))
    store = make_tracked_store(tmp_path, {"ball.avi": film}, TRACKMAE)
    assert validate_store(store) == []
    recipe = PretrainRecipe(
        name="test",
        heads={"displacement": HeadOptions()},
        input_size=64,
        points_per_side=1,
        anchoring="clip",
        remove_camera=False,
    )
    reader = TrackReader(store)
    (video,) = reader.videos
    motion = ClipMotion(reader, recipe)
    arrays = {name: values[0] for name, values in motion.empty(1).items()}
    view = View(top=16, left=32, height=64, width=64, size=(64, 64), flip=flip)  # its patches are cells of the grid
    motion.fill(arrays, video, list(range(0, 64, 4)), view)
    truth = film.row(0, TRACKMAE)
    steps = np.diff(truth.positions, axis=1).reshape(5, 7, 7, 2)[1:5, 2:6]
    seen = (truth.valid[:, :-1] & truth.valid[:, 1:]).reshape(5, 7, 7)[1:5, 2:6]
    comes_back = (~seen[..., :-1] & seen[..., 1:]).sum()
    assert comes_back > 2
    if flip:
        steps, seen = steps[:, ::-1] * [-1, 1], seen[:, ::-1]
    assert arrays["displacement"].shape == (8, 4, 4, 1, 2)
    for t in range(7):
        np.testing.assert_array_equal(arrays["displacement_valid"][t, ..., 0], seen[:, :, t])
        np.testing.assert_allclose(
            arrays["displacement"][t, ..., 0, :][seen[:, :, t]], steps[:, :, t][seen[:, :, t]], atol=1 / 64
        )
    assert not arrays["displacement_valid"][7].any()


def test_a_row_is_drawn_where_it_is_seen(good_store):
    """A line where both ends of a step are seen, a grey dot where a point is lost: also after it came back."""
    scale, length = 4, RECIPE.length
    x = np.array([10.0, 14, 18, 22, 26, 30])
    valid = np.array([[True, True, False, True, True, False]])
    row = TrackRow(
        frame=0,
        positions=np.stack([x, np.full(6, 20.0)], axis=-1)[None],
        valid=valid,
        homographies=np.tile(np.eye(3), (length, 1, 1)),
        estimated=np.zeros(length, np.bool_),
        positions_in="image",
        hog=None,
    )
    picture = draw_row(np.zeros((56, 88, 3), np.uint8), row, panel_width=scale * 88)
    for panel in np.split(picture.astype(int), 2, axis=1):
        line = panel[80:84, [round((middle + 0.5) * scale) for middle in (12, 16, 20, 24, 28)]].max(axis=(0, 2))
        assert (line > 60).tolist() == [True, False, False, True, False]
        dots = [panel[78:86, round((place + 0.5) * scale) - 4 :][:, :8].reshape(-1, 3) for place in x]
        assert [bool((np.abs(dot - 128).max(axis=1) < 9).any()) for dot in dots] == [
            False,
            True,
            False,
            False,
            True,
            False,
        ]


def test_a_film_shows_each_row_to_its_end_where_the_next_begins_before_a_step_is_over(tmp_path):
    films = {"wide.avi": FILMS["wide.avi"]}
    recipe = dataclasses.replace(RECIPE, length=2, frame_step=6, start_stride=4, hog=False)
    store = make_tracked_store(tmp_path, films, recipe)
    shard = TrackStore(store).shard(0)
    rows = [shard.read_row(0, number) for number in shard.rows(0)]
    assert [row.frame for row in rows] == [0, 4, 8, 12, 16]
    black = np.zeros((56, 88, 3), np.uint8)
    for t, picture in enumerate(film_frames([black] * 30, rows, recipe, 88)):
        begin = 0 if t < 16 else 16
        np.testing.assert_array_equal(picture, draw_row(black, rows[begin // 4], min((t - begin) // 6, 2), 88))
    out = tmp_path / "film.gif"
    render(shard, 0, tmp_path / "videos" / "wide.avi", out)
    assert sum(1 for _ in Video(out, 0)) == 30
    by_flow = dataclasses.replace(recipe, frame_step=1, length=6)
    for t, picture in enumerate(film_frames([black] * 30, rows, by_flow, 88)):
        begin = min(t // 4, 4)
        np.testing.assert_array_equal(picture, draw_row(black, rows[begin], min(t - 4 * begin, 2), 88))


def test_kernels_of_a_tracker_s_recipe_are_compiled_without_its_network(caplog):
    for recipe in (TRACKMAE, RECIPE, dataclasses.replace(RECIPE, camera_features=("tracks",), support_grid=3)):
        compile_kernels(recipe)


def test_a_tracker_runs_on_either_device():
    check_recipe(TRACKMAE, "cuda")
    with pytest.raises(ValueError, match="must be tvl1-pyramid"):
        check_recipe(dataclasses.replace(TRACKMAE, **FLOW), "cuda")
