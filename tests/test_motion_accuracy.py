"""The benchmark's own test: the truth fed as a method scores nothing, known errors score what they are."""

import dataclasses
import json
import struct
import zlib

import cv2
import motion_accuracy
import numpy as np
import pytest
from flow_files import FlowFileError, list_pairs, read_flow
from motion_methods import PassTimes, make_method, make_methods
from motion_report import Result, flow_table, track_table
from motion_scores import BINS, Figures, PairTruth, Tracks, TrackTruth, integrate, score_flow, score_tracks
from textured_scenes import PictureTexture, _texels_per_pixel, sequence_speed, textured_scene

from data_specs.geometry import apply_homography, grid_points
from data_specs.recipe import load_recipe
from data_specs.scene import Scene, Texture, moving
from extraction.camera import CameraMotion
from extraction.motion.flow_tracker import FlowTracker, PairMotion
from extraction.stages import StageTimer

SIZE, FRAMES = (96, 132), 7


@pytest.fixture(scope="module")
def scene():
    return textured_scene(seed=3, speed=5.0, size=SIZE, frames=FRAMES, noise=0)


def true_motion(truth, homography=None):
    """What a perfect method with that estimate of G would measure."""
    homography = truth.camera if homography is None else homography
    residual = apply_homography(np.linalg.inv(homography), truth.positions) - truth.pixels
    first = truth.positions - truth.pixels
    return PairMotion(
        residual, np.ones(SIZE, dtype=bool), np.ones(SIZE, dtype=bool), CameraMotion(homography, True), first
    )


def flow_figures(truth, motion):
    figures = Figures()
    score_flow(figures, truth, motion, truth.visible)
    return lambda name: figures.mean(name, "all")


class Oracle:
    """A method that knows the scene."""

    name, in_image = "truth", True

    def __init__(self, scene):
        self.scene = scene

    def motions(self, frames):
        for t in range(len(frames) - 1):
            yield true_motion(PairTruth.of(self.scene, t)), PassTimes(1.0, 2.0, 3.0, 6.0)


def test_the_truth_as_a_method_scores_nothing(scene):
    result = Result()
    motion_accuracy.score_sequence(scene, FRAMES, [Oracle(scene)], {"truth": result})
    mean = result.figures.mean
    for name in ["first pass", "residual flow", "full flow", "camera", "missed"]:
        assert mean(name, "all") < (0.01 if name == "missed" else 1e-9), name
    assert mean("measured", "all") == mean("camera estimated", "all") == 1
    # the flow's samples mix object and background at the rims, so that only the background's tracks are exact
    assert mean("end point, background", "all") < 0.2
    assert mean("false valid", "all") > 0.02, "the scene hides points, and flow does not notice"
    assert mean("end point, published", "all") > 1
    row = next(line for line in flow_table({"truth": result}).splitlines() if "| all |" in line)
    assert row.split("|")[3].strip() == "0.000"
    assert "truth" in track_table({"truth": result})


def test_the_truth_of_a_pan_integrates_exactly():
    """Flow without rims samples exactly, so that the whole way from flow to end point has nothing to add."""
    pan = Scene(size=SIZE, background=Texture(1), camera=moving((2.5, -1.25)))
    result = Result()
    motion_accuracy.score_sequence(pan, FRAMES, [Oracle(pan)], {"truth": result})
    assert result.figures.count("end point", "all") > 50
    assert result.figures.mean("end point", "all") < 1e-9
    assert result.figures.mean("end point without camera", "all") < 1e-9
    assert result.figures.mean("false valid", "all") == result.figures.mean("missed", "all") == 0
    # the released code goes by whole pixels of the 8-bit flow: (2, -1) for (2.5, -1.25), from (3, 3) for (3.5, 3.5)
    published = np.hypot(6 * 0.5 + 0.5, 0.5 - 6 * 0.25)
    assert result.figures.mean("end point, published", "all") == pytest.approx(published)


def test_true_trajectories_score_nothing(scene):
    truth = TrackTruth.of(scene, 0)
    hidden_at_times = (truth.tracks.valid[:, 1:].any(axis=1) & ~truth.tracks.valid.all(axis=1)).sum()
    assert hidden_at_times > 5
    assert truth.on_object.sum() > 10
    figures = Figures()
    score_tracks(figures, truth, truth.tracks, truth.tracks.valid.all(axis=1))
    names = [name for name, label in figures._sums if label == "all"]
    assert len(names) == 14
    assert {name: figures.mean(name, "all") for name in names} == dict.fromkeys(names, 0)


def test_errors_of_known_size_score_that_size(scene):
    truth = PairTruth.of(scene, 1)
    perfect, off_by = true_motion(truth), np.array([3.0, 4.0])
    off = dataclasses.replace(perfect, first_flow=perfect.first_flow + off_by, flow=perfect.flow - off_by / 5)
    mean = flow_figures(truth, off)
    assert mean("first pass") == pytest.approx(5)
    assert mean("residual flow") == pytest.approx(1)
    assert mean("full flow") == pytest.approx(1, abs=0.1), "G changes lengths a little"
    # a wrong G by (3, 4) px, and a residual that makes up for it
    shifted = np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1.0]]) @ truth.camera
    mean = flow_figures(truth, true_motion(truth, shifted))
    assert mean("camera") == pytest.approx(5)
    assert mean("residual flow") == pytest.approx(0, abs=1e-9)
    assert mean("full flow") == pytest.approx(0, abs=1e-9)


def test_swapped_axes_and_a_reversed_camera_score_badly(scene):
    truth = PairTruth.of(scene, 1)
    swapped = dataclasses.replace(true_motion(truth), first_flow=(truth.positions - truth.pixels)[..., ::-1])
    assert flow_figures(truth, swapped)("first pass") > 2
    reversed_camera = dataclasses.replace(true_motion(truth), camera=CameraMotion(np.linalg.inv(truth.camera), True))
    assert flow_figures(truth, reversed_camera)("camera") > 5
    assert flow_figures(truth, reversed_camera)("residual flow") > 5
    assert flow_figures(truth, reversed_camera)("full flow") > 5


def test_pixels_count_in_the_bin_of_their_true_displacement():
    figures = Figures()
    figures.add("x", np.array([1.0, 2, 4, 8, 16, 32, 64]), np.array([0.0, 2, 2.1, 4, 8, 14, 30]))
    assert [figures.mean("x", label) for label in BINS] == [1.5, 12, 32, pytest.approx(127 / 7)]
    assert [figures.count("x", label) for label in BINS] == [2, 2, 1, 7]


def test_validity_is_counted_step_by_step():
    """Two steps of four points: hidden at the first; hidden at the second; never hidden; dropped for no reason."""
    visible = np.array([[1, 0, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=bool)
    valid = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]], dtype=bool)
    positions = np.tile(np.array([5.0, 9.0]), (4, 3, 1))
    still = np.tile(np.eye(3), (2, 1, 1))
    truth = TrackTruth(Tracks(positions, visible, still, True), np.array([True, False, True, False]))
    figures = Figures()
    score_tracks(figures, truth, Tracks(positions, valid, still, True), valid[:, -1])
    assert figures.mean("false valid", "all") == 1 / 5
    assert figures.mean("missed", "all") == 2 / 5


def test_end_points_with_and_without_the_camera():
    """A pan of (3, 4) per step and an object that moves by (1, 0) on top of it; the method has half of the pan."""
    pan, half = moving((3.0, 4.0))(1), moving((1.5, 2.0))(1)
    start = np.array([[20.0, 30.0]])
    steps = np.arange(3)[None, :, None]
    truth = TrackTruth(
        Tracks(start[:, None] + steps * [4.0, 4.0], np.ones((1, 3), bool), np.stack([pan] * 2), True), np.array([True])
    )
    for in_image, positions, end, without in [
        (True, start[:, None] + steps * [4.0, 4.0], 0, 5),  # (3, 4) is left of two times (3, 4)
        (True, start[:, None] + steps * [2.5, 2.0], 5, 0),
        (False, start[:, None] + steps * [1.0, 0.0], 5, 0),
        (False, start[:, None] + steps * [4.0, 4.0], np.hypot(3, 4), np.hypot(6, 8)),
    ]:
        tracks = Tracks(positions, np.ones((1, 3), bool), np.stack([half] * 2), in_image)
        figures = Figures()
        score_tracks(figures, truth, tracks, np.array([True]))
        assert figures.mean("end point, objects", "all") == pytest.approx(end), (in_image, positions)
        assert figures.mean("end point without camera, objects", "all") == pytest.approx(without)


@pytest.mark.parametrize("name", ["mme-object", "mme"])
def test_pairs_integrate_to_the_tracker_s_own_rows(scene, name):
    frames = scene.frames(FRAMES)
    recipe = dataclasses.replace(load_recipe(name).resolved(FRAMES), flow="dis")
    tracker = FlowTracker(recipe, StageTimer())
    (row,) = [row for frame in frames for row in tracker.push(frame)]
    method = make_method(f"{name}:dis")
    motions = [motion for motion, _ in method.motions(frames)]
    tracks = integrate(motions, grid_points(SIZE, 8), method.in_image)
    np.testing.assert_array_equal(tracks.valid, row.valid)
    np.testing.assert_array_equal(tracks.positions, row.positions)
    np.testing.assert_array_equal(tracks.homographies, row.homographies)


def test_the_reference_measures_a_pan():
    scene = Scene(size=(64, 88), background=Texture(5), camera=moving((1.5, -0.75)), noise=1.0)
    ((motion, times),) = make_method("reference").motions(scene.frames(2))
    inside = np.s_[8:-8, 8:-8]
    assert np.abs(motion.first_flow[inside] - [1.5, -0.75]).mean() < 0.1
    assert motion.camera.estimated
    assert np.abs(motion.camera.homography - scene.homography(0, 1)).max() < 0.3
    assert np.abs(motion.flow[inside]).mean() < 0.1
    assert min(times.first, times.camera, times.second) > 0
    assert times.first + times.camera + times.second == pytest.approx(times.total, rel=0.2)


def test_the_command_on_quick_sequences(tmp_path, capsys):
    out, plot, sheet = tmp_path / "out.json", tmp_path / "plot.png", tmp_path / "sheet.png"
    written = ["--json", str(out), "--plot", str(plot), "--sheet", str(sheet)]
    assert motion_accuracy.main(["--quick", "--methods", "mme-object:dis", "mme:dis", *written]) == 0
    assert capsys.readouterr().out.count("| mme-object:dis |") == 2 * len(BINS)
    found = json.loads(out.read_text())["methods"]
    slow, all_speeds = (found["mme-object:dis"][label] for label in ("≤ 2", "all"))
    for label in BINS:
        assert found["mme-object:dis"][label]["first pass"]["count"] > 5000, f"{label} is not filled"
        assert found["mme-object:dis"][label]["camera"]["count"] > 2
    assert 0 < slow["first pass"]["mean"] < 0.3
    assert 0 < slow["residual flow"]["mean"] < 0.3
    assert 0 < slow["camera"]["mean"] < 0.2
    assert 0 < slow["end point, background"]["mean"] < 0.5
    assert slow["end point, published"]["mean"] > 3 * slow["end point"]["mean"]
    assert 0 < all_speeds["false valid"]["mean"] < 0.3
    assert 0 <= all_speeds["missed"]["mean"] < 0.2
    assert 0.9 < all_speeds["measured"]["mean"] < 1
    assert all_speeds["ms"]["total"] > all_speeds["ms"]["first"] > 0
    assert all_speeds["times_as_fast"] is None
    assert cv2.imread(str(plot)).std() > 5
    assert cv2.imread(str(sheet)).shape == (3 * 128, 6 * 184, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mme:farneback"], "no flow is called farneback; there are tvl1"),
        (["--methods", "mmee:dis"], "mmee: unknown; shipped are"),
        (["--methods", "mme:dis", "mme:dis"], "named twice"),
        (["--methods", "mme:dis", "--textures", "none.mp4"], "none.mp4: no such file"),
        (["--methods", "mme:dis", "--pairs", "none.txt"], "none.txt: no such file"),
    ],
)
def test_usage_errors_say_what_is_wrong(arguments, message, capsys):
    assert motion_accuracy.main(["--quick", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_too_few_frames_are_refused(capsys):
    with pytest.raises(SystemExit):
        motion_accuracy.main(["--frames", "6"])
    assert "--frames 7" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        motion_accuracy.main(["--json", str(tmp_path / "none" / "out.json")])
    assert "its folder does not exist" in capsys.readouterr().err


def test_scenes_move_as_fast_as_they_say():
    speeds = [sequence_speed(number) for number in range(14)]
    for low, high in [(0.5, 2), (4, 8), (14, 20)]:
        assert sum(low <= speed <= high for speed in speeds) >= 4
    for number in (0, 1, 2):
        scene = textured_scene(number, speeds[number], (128, 184), 8)
        points = grid_points(scene.size, 8)
        moved = apply_homography(scene.homography(3, 4), points) - points
        assert np.linalg.norm(moved, axis=-1).mean() == pytest.approx(speeds[number], rel=0.1)
        assert len(scene.discs) >= 3
        layers = scene.layers(points, 3)
        flow = np.linalg.norm(np.diff(scene.track(points, 3, 1)[0], axis=1)[:, 0], axis=-1)
        for disc in set(layers) - {0}:
            assert 0.5 < flow[layers == disc].mean() / speeds[number] < 1.6
        assert len(set(layers)) >= 4


def test_picture_textures_are_sampled_exactly_and_mirrored():
    """A smooth picture at sub-pixel points against its formula; two thousandths of a pixel would show."""
    y, x = np.mgrid[0:40, 0:56].astype(float)

    def level(x, y):
        return 128 + 100 * np.cos(2 * np.pi * x / 55 * 2) * np.cos(2 * np.pi * y / 39 * 1.5)

    picture = np.repeat(level(x, y)[..., None], 3, axis=-1)
    texture = PictureTexture(picture, origin=(7.0, 5.0), blur=0)
    points = np.random.default_rng(0).uniform([0, 0], [55, 39], (200, 2))
    np.testing.assert_allclose(texture(points - [7, 5])[:, 1], level(*points.T), atol=0.04)
    np.testing.assert_allclose(texture(points * [-1, 1] - [7, 5])[:, 0], level(*points.T), atol=0.04)
    np.testing.assert_allclose(texture([110.0, 78.0] - points - [7, 5])[:, 2], level(*points.T), atol=0.04)


def test_minified_pictures_do_not_alias():
    """A chequerboard of single pixels, seen from farther away, is grey and not a moiré."""
    y, x = np.mgrid[0:200, 0:260]
    board = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, axis=-1)
    far = textured_scene(4, 18.0, SIZE, FRAMES, [[board]], noise=0)
    for t in range(FRAMES):
        assert far.render(t).std() < 30
    assert board.std() > 120


def test_blur_follows_the_smallest_view():
    about = {"about": (60.0, 40.0)}
    for motion, frames, expected in [
        (moving((3.0, -2.0), turn=0.1, **about), 5, 1),
        (moving(zoom=1.25, **about), 4, 1),
        (moving((1.0, 0.0), zoom=0.8, **about), 4, 1 / 0.8**3),
    ]:
        assert _texels_per_pixel(motion, SIZE, frames) == pytest.approx(expected)


def write_flo(path, flow):
    """Middlebury's format, by its description: PIEH, width, height, rows of u, v in float32, little-endian."""
    height, width, _ = flow.shape
    path.write_bytes(b"PIEH" + struct.pack("<ii", width, height) + flow.astype("<f4").tobytes())


def write_png16(path, rgb):
    """A PNG of three 16-bit channels, by the PNG specification: big-endian, filter 0 before each row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = rgb.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.fixture
def true_flow():
    flow = np.random.default_rng(1).uniform(-30, 30, (9, 14, 2)).astype(np.float32)
    flow[..., 1] *= 0.1
    known = np.ones((9, 14), dtype=bool)
    known[2, 5] = known[8, 13] = False
    return flow, known


def test_flo_files_read_as_they_were_written(tmp_path, true_flow):
    flow, known = true_flow
    write_flo(tmp_path / "a.flo", np.where(known[..., None], flow, np.float32(1.66e9)))
    read, read_known = read_flow(tmp_path / "a.flo")
    np.testing.assert_array_equal(read_known, known)
    np.testing.assert_array_equal(read[known], flow[known])
    assert (read[~known] == 0).all()


def test_kitti_flow_reads_as_it_was_written(tmp_path, true_flow):
    flow, known = true_flow
    coded = np.concatenate([np.rint(flow * 64) + 2**15, known[..., None]], axis=-1).astype(np.uint16)
    write_png16(tmp_path / "a.png", np.where(known[..., None], coded, 0))
    read, read_known = read_flow(tmp_path / "a.png")
    np.testing.assert_array_equal(read_known, known)
    np.testing.assert_allclose(read[known], flow[known], atol=0.5 / 64 + 1e-6)
    assert (read[~known] == 0).all()


def test_pairs_of_files_are_scored(tmp_path, capsys):
    """A pan with exact truth, half of it unknown and wrong there; the same truth with swapped axes."""
    scene = Scene(size=(72, 100), background=Texture(5), camera=moving((1.5, -0.75)))
    for t in (0, 1):
        cv2.imwrite(str(tmp_path / f"{t}.png"), scene.render(t)[..., ::-1])
    flow = scene.flow(0, 1).astype(np.float32)
    spoilt = flow.copy()
    spoilt[:, :50] = 2e9
    for name, values in [("good", flow), ("half", spoilt), ("swapped", flow[..., ::-1])]:
        write_flo(tmp_path / f"{name}.flo", values)
        (tmp_path / f"{name}.txt").write_text(f"# a pan\n\n0.png 1.png {name}.flo\n")
        arguments = ["--pairs", str(tmp_path / f"{name}.txt"), "--methods", "mme:dis", "--json", str(tmp_path / name)]
        assert motion_accuracy.main(arguments) == 0
    assert "| mme:dis | ≤ 2 |" in capsys.readouterr().out
    good, half, swapped = (
        json.loads((tmp_path / n).read_text())["methods"]["mme:dis"]["all"]["flow"] for n in ("good", "half", "swapped")
    )
    assert (good["count"], half["count"]) == (72 * 100, 72 * 50)
    assert good["mean"] < 0.2
    assert half["mean"] < 0.2
    assert swapped["mean"] > 2


def test_bad_pairs_are_named_all_at_once(tmp_path):
    (tmp_path / "list.txt").write_text("a.png b.png\na.png b.png c.flo\n")
    with pytest.raises(FlowFileError) as error:
        list_pairs(tmp_path / "list.txt")
    assert "line 1: 2 name(s)" in str(error.value)
    for name in ("a.png", "b.png", "c.flo"):
        assert f"line 2: {tmp_path / name}: no such file" in str(error.value)


def test_bad_flow_files_are_refused(tmp_path, true_flow, capsys):
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((9, 14, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((9, 15, 3), np.uint8))
    write_flo(tmp_path / "a.flo", true_flow[0])
    (tmp_path / "cut.flo").write_bytes((tmp_path / "a.flo").read_bytes()[:400])
    (tmp_path / "empty.flo").write_bytes(b"")
    for line, message in [
        ("image.png image.png cut.flo", "cut.flo: not a .flo file, or cut off"),
        ("image.png image.png empty.flo", "empty.flo: not a .flo file, or cut off"),
        ("image.png image.png image.png", "image.png: not KITTI's flow"),
        ("image.png wide.png a.flo", "wide.png: 9x15 (height x width)"),
        ("wide.png wide.png a.flo", "a.flo: 9x14 (height x width)"),
        ("a.flo image.png a.flo", "a.flo: not an image"),
        ("image.png image.png list.txt", "list.txt: flow is read from .flo"),
    ]:
        (tmp_path / "list.txt").write_text(line + "\n")
        assert motion_accuracy.main(["--pairs", str(tmp_path / "list.txt"), "--methods", "mme:dis"]) == 2, line
        assert message in capsys.readouterr().err


def test_first_passes_alone_leave_the_camera_in(scene):
    frames = scene.frames(2)
    for spec in ("mme:dis", "mme-object:dis"):
        (method,) = make_methods([spec], first_pass_only=True)
        ((motion, times),) = method.motions(frames)
        assert not motion.camera.estimated
        assert times.camera == 0
        ((both, _),) = make_method(spec).motions(frames)
        assert both.camera.estimated
        np.testing.assert_array_equal(motion.first_flow, both.first_flow)
