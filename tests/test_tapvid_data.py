"""TAP-Vid's files: formats, coordinates, resizing, queries, and what is wrong with a bad one."""

import io
import os
import pickle
import sys
import types

import numpy as np
import pytest
from PIL import Image
from test_tapvid_metrics import PACKAGE

from extraction.evaluation.annotated_video import AnnotatedVideo, raster_scale, sample_queries
from extraction.evaluation.array_pickles import ArrayPickleError
from extraction.evaluation.tapvid_data import TapVidDataError, read_tapvid

HEIGHT, WIDTH, FRAMES, POINTS = 40, 60, 7, 3


def example(seed=0, size=(HEIGHT, WIDTH)):
    rng = np.random.default_rng(seed)
    return {
        "video": rng.integers(0, 256, (FRAMES, *size, 3), dtype=np.uint8),
        "points": rng.random((POINTS, FRAMES, 2)).astype(np.float32),
        "occluded": rng.random((POINTS, FRAMES)) < 0.3,
    }


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def encoded(frame, format="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, format, **options)
    return stream.getvalue()


def test_davis_and_robotap_are_dictionaries_and_the_others_lists(tmp_path):
    first, second = example(1), example(2, (48, 36))
    for content, names in [({"bear": first, "camel": second}, ["bear", "camel"]), ([first, second], ["0", "1"])]:
        videos = list(read_tapvid(write(tmp_path / "a.pkl", content)))
        assert [video.name for video in videos] == names
        assert [video.size for video in videos] == [(HEIGHT, WIDTH), (48, 36)]
        for video, source in zip(videos, (first, second), strict=True):
            np.testing.assert_array_equal(video.frames, source["video"])
            np.testing.assert_array_equal(video.visible, ~source["occluded"])
            assert video.positions.shape == (POINTS, FRAMES, 2)
            assert video.positions.dtype == np.float64


def test_pictures_may_be_encoded(tmp_path):
    source = example()
    pngs = [encoded(frame) for frame in source["video"]]
    objects = np.empty(FRAMES, object)
    objects[:] = pngs
    for frames in (pngs, tuple(pngs), np.array(pngs), objects, list(source["video"])):
        (video,) = read_tapvid(write(tmp_path / "0000_of_0010.pkl", [{**source, "video": frames}]))
        np.testing.assert_array_equal(video.frames, source["video"])
    smooth = np.broadcast_to(np.linspace(0, 255, WIDTH)[:, None], (HEIGHT, WIDTH, 3)).astype(np.uint8)
    jpegs = np.array([encoded(smooth + np.uint8(t), "JPEG", quality=95) for t in range(FRAMES - 1)] + [
        encoded(smooth[..., 0], "JPEG")  # a grey one
    ])  # fmt: skip
    assert jpegs.dtype.kind == "S"
    (video,) = read_tapvid(write(tmp_path / "0001_of_0010.pkl", [{**source, "video": jpegs}]))
    assert video.size == (HEIGHT, WIDTH)
    assert np.abs(video.frames[0].astype(int) - smooth).mean() < 2
    assert np.abs(video.frames[-1].astype(int) - smooth).mean() < 2


def test_coordinates_are_raster_coordinates(tmp_path):
    """(0, 0) is the corner of the frame, so that half a pixel further is the first pixel's centre: (0, 0) here."""
    source = example()
    source["occluded"][:] = False
    source["points"][0, :4] = [[0, 0], [1, 1], [0.5 / WIDTH, 0.5 / HEIGHT], [7.5 / WIDTH, 5.5 / HEIGHT]]
    (video,) = read_tapvid(write(tmp_path / "a.pkl", [source]))
    expected = [[-0.5, -0.5], [WIDTH - 0.5, HEIGHT - 0.5], [0, 0], [7, 5]]
    np.testing.assert_allclose(video.positions[0, :4], expected, atol=1e-5)


def test_resizing_takes_the_points_along():
    """A blob's centroid, measured in the resized picture, is where its point is said to be."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    centre = np.array([40.3, 12.8])
    blob = 255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 2.5**2))
    frame = np.repeat(np.rint(blob)[..., None], 3, axis=2).astype(np.uint8)
    video = AnnotatedVideo("blob", [frame], centre[None, None], np.ones((1, 1), bool))
    for size in [(96, 90), (256, 256), (30, 51)]:
        resized = video.resized(size)
        assert resized.size == size
        assert resized.frames[0].dtype == np.uint8
        weight = resized.frames[0][..., 0].astype(float)
        v, u = np.mgrid[: size[0], : size[1]]
        centroid = [(weight * u).sum() / weight.sum(), (weight * v).sum() / weight.sum()]
        np.testing.assert_allclose(resized.positions[0, 0], centroid, atol=0.03)
    assert video.resized((HEIGHT, WIDTH)) is video


def test_resized_frames_are_pillow_s_lanczos():
    """What TAP-Vid's readers track on: mediapy.resize_video is that."""
    frame = example()["video"][0]
    video = AnnotatedVideo("a", [frame], np.zeros((1, 1, 2)), np.ones((1, 1), bool)).resized((64, 48))
    np.testing.assert_array_equal(video.frames[0], Image.fromarray(frame).resize((48, 64), Image.Resampling.LANCZOS))


def test_distances_are_those_of_256():
    np.testing.assert_array_equal(raster_scale((128, 512)), [0.5, 2])


VISIBLE = np.array(
    [
        [0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ],
    dtype=bool,
)


def test_queries_by_hand():
    positions = np.random.default_rng(3).random((*VISIBLE.shape, 2)) * 100
    for mode, tracks, frames in [
        ("first", [0, 1, 3, 4], [2, 0, 11, 0]),
        ("strided", [1, 4, 0, 4, 0, 4], [0, 0, 5, 5, 10, 10]),
    ]:
        queries = sample_queries(positions, VISIBLE, mode)
        assert queries.tracks.tolist() == tracks
        assert queries.frames.tolist() == frames
        for (t, x, y), track, frame in zip(queries.points, tracks, frames, strict=True):
            assert (t, x, y) == (frame, *positions[track, frame])
    assert sample_queries(positions, VISIBLE & False, "strided").points.shape == (0, 3)
    assert sample_queries(positions, VISIBLE & False, "first").points.shape == (0, 3)
    with pytest.raises(ValueError, match="first or strided"):
        sample_queries(positions, VISIBLE, "last")


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_queries_are_the_co_tracker_package_s(mode, monkeypatch):
    if "mediapy" not in sys.modules:  # the module that they are in imports it; they do not use it
        monkeypatch.setitem(sys.modules, "mediapy", types.ModuleType("mediapy"))
    package = pytest.importorskip("cotracker.datasets.tap_vid_datasets", reason=PACKAGE)
    rng = np.random.default_rng(4)
    visible = rng.random((30, 23)) < 0.3
    positions = rng.random((30, 23, 2)) * 200
    theirs = getattr(package, f"sample_queries_{mode}")(~visible, positions, np.zeros((23, 4, 6, 3)))
    ours = sample_queries(positions, visible, mode)
    np.testing.assert_array_equal(ours.points[:, [0, 2, 1]], theirs["query_points"][0])
    np.testing.assert_array_equal(positions[ours.tracks], theirs["target_points"][0])
    np.testing.assert_array_equal(~visible[ours.tracks], theirs["occluded"][0])


def changed(**fields):
    return [{**example(), **fields}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no video"),
        (3, "holds a int"),
        ([7], "video 0: has no video, points, occluded"),
        ({"bear": {"video": 1}}, "video bear: has no points, occluded"),
        (changed(video=np.zeros((FRAMES, 40, 60, 3))), r"frame 0: is float64 \(40, 60, 3\)"),
        (changed(video=np.zeros((FRAMES, 40, 60), np.uint8)), r"must be RGB uint8"),
        (changed(video=np.zeros((FRAMES, 8, 60, 3), np.uint8)), "16 px is the least"),
        (changed(video=5), "frames are a int"),
        (changed(video=[]), "frames are a list"),
        (changed(video=[b"\xff\xd8nothing"] * FRAMES), "frame 0: not a whole JPEG or PNG picture"),
        (changed(video=[encoded(example()["video"][0])[:-900]] * FRAMES), "frame 0: not a whole JPEG or PNG picture"),
        (changed(video=[np.zeros((40, 60, 3), np.uint8), np.zeros((40, 62, 3), np.uint8)]), "frame 1: is"),
        (changed(points=example()["points"][:, :-1]), "do not go together"),
        (changed(points=example()["points"] * 100, occluded=np.zeros((POINTS, FRAMES), bool)), "must be shares"),
        (changed(points=example()["points"] * np.nan, occluded=np.zeros((POINTS, FRAMES), bool)), "must be shares"),
        (changed(points=[[1, 2]]), "points are a list"),
        (changed(points=np.array(["a"])), "points are <U1"),
        (changed(occluded=np.zeros((POINTS, FRAMES))), "occluded is float64"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, content, message):
    with pytest.raises(TapVidDataError, match=rf"davis\.pkl: .*{message}"):
        list(read_tapvid(write(tmp_path / "davis.pkl", content)))


def test_hidden_points_may_be_anywhere(tmp_path):
    source = example()
    source["points"][source["occluded"]] = np.nan
    (video,) = read_tapvid(write(tmp_path / "a.pkl", [source]))
    assert np.isfinite(video.positions[video.visible]).all()


def test_files_that_are_not_there_or_not_to_be_opened(tmp_path):
    with pytest.raises(TapVidDataError, match=r"no such file.*github"):
        list(read_tapvid(tmp_path / "davis.pkl"))

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    with pytest.raises(ArrayPickleError, match=r"davis\.pkl: asks for posix\.mkdir"):
        list(read_tapvid(write(tmp_path / "davis.pkl", {"bear": Hostile()})))
    assert not (tmp_path / "made").exists()
