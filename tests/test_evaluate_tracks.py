"""evaluate-tracks: from videos to the table, and what it says where it cannot."""

import json
import os
import pickle

import numpy as np
import pytest
from test_docs import blocks

from data_specs.scene import Disc, Scene, Texture, moving
from extraction.evaluation import cli
from extraction.evaluation.evaluate import Evaluation, VideoFigures, evaluate_video, table
from extraction.evaluation.rendered import annotate_scene
from extraction.evaluation.tapvid_metrics import TapVidMetrics


def small_video(size=(64, 100), frames=8):
    disc = Disc(texture=Texture(1, shortest=4), centre=(30, 30), radius=14, motion=moving((3.0, 0.5)))
    scene = Scene(size=size, background=Texture(2), camera=moving((0.5, -0.4)), discs=(disc,), noise=1.0)
    return annotate_scene("small", scene, frames, 16, (0, 4))


class Truth:
    """Knows the video, and is off by so many px of its frames."""

    def __init__(self, video, off=(0.0, 0.0)):
        self.video, self.off = video, np.array(off)

    def track(self, frames, queries, *, both_ways=True):
        assert frames is self.video.frames
        t = queries[:, 0].astype(int)
        tracks = [
            int(np.flatnonzero((self.video.positions[:, frame] == point).all(axis=1))[0])
            for frame, point in zip(t, queries[:, 1:], strict=True)
        ]
        visible = self.video.visible[tracks].copy()
        if not both_ways:
            visible[np.arange(len(frames)) < t[:, None]] = False
        return self.video.positions[tracks] + self.off, visible


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_the_truth_scores_a_hundred_per_cent(mode):
    video = small_video()
    assert not video.visible.all()
    figures = evaluate_video(Truth(video), video, mode)
    assert set(figures.metrics.named().values()) == {1.0}
    queries = video.visible.any(axis=1).sum() if mode == "first" else video.visible[:, [0, 5]].sum()
    assert figures.points == queries


def test_distances_are_in_pixels_of_256():
    """1.5 px along x of frames 64 wide are 6 px, and 3 px along y of frames 128 high are 6 px."""
    video = small_video((128, 64))
    for off in [(1.5, 0), (0, 3)]:
        assert evaluate_video(Truth(video, off), video, "strided").metrics.within == (0, 0, 0, 1, 1)


def test_the_table_is_in_per_cent():
    metrics = TapVidMetrics((0.1, 0.2, 0.3, 0.4, 0.5), 0.75, (0, 0, 0, 0.123, 0.5))
    half = TapVidMetrics((0, 0, 0, 0, 0), 0.25, (0, 0, 0, 0, 0))
    videos = (VideoFigures("a", 1200, metrics), VideoFigures("b", 30, half), VideoFigures("c", 4, None))
    lines = table([Evaluation("tvl1-fast", "first", videos), Evaluation("dis", "strided", videos[:1])]).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:1] + lines[2:]] == [
        ["tracker", "queries", "videos", "points", "δ 1", "δ 2", "δ 4", "δ 8", "δ 16", "δ avg", "OA", "AJ"],
        ["tvl1-fast", "first", "2", "1,230", "5.0", "10.0", "15.0", "20.0", "25.0", "15.0", "50.0", "6.2"],
        ["dis", "strided", "1", "1,200", "10.0", "20.0", "30.0", "40.0", "50.0", "30.0", "75.0", "12.5"],
    ]
    assert len({len(line) for line in lines}) == 1


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    """Two rendered videos as TAP-Vid's DAVIS file has them, and one in which nothing can be evaluated."""
    path = tmp_path_factory.mktemp("davis") / "tapvid_davis.pkl"
    videos = {}
    for name, size in [("bear", (64, 100)), ("camel", (90, 60))]:
        video = small_video(size)
        height, width = size
        shares = (video.positions + 0.5) / [width, height]
        videos[name] = {
            "video": np.stack(video.frames), "points": shares.astype(np.float32), "occluded": ~video.visible
        }  # fmt: skip
    videos["nothing"] = {**videos["bear"], "occluded": np.ones_like(videos["bear"]["occluded"])}
    path.write_bytes(pickle.dumps(videos))
    return path


def rows(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]


def test_a_tap_vid_file_to_a_table(davis, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "new folder" / "figures.json"
    command = ["--data", str(davis), "--queries", "strided", "first", "--size", "96", "--json", str(out)]
    command += ["--tracker", "dis", "tvl1-fast"]
    assert cli.main(command) == 0
    printed = rows(capsys.readouterr().out)
    assert [row[:3] for row in printed] == [
        ["dis", "first", "2"],
        ["dis", "strided", "2"],
        ["tvl1-fast", "first", "2"],
        ["tvl1-fast", "strided", "2"],
    ]
    assert len([m for m in caplog.messages if "nothing, 8 frames of 96 x 96" in m and "left out" in m]) == 4
    written = json.loads(out.read_text())
    for row, record in zip(printed, written, strict=True):
        assert [row[0], row[1]] == [record["tracker"], record["queries"]]
        assert float(row[8]) == round(100 * record["mean"]["pts_within_16"], 1)
        assert float(row[-1]) == round(100 * record["mean"]["average_jaccard"], 1)
        assert [video["video"] for video in record["by_video"]] == ["bear", "camel", "nothing"]
        assert record["by_video"][2]["metrics"] is None
        own = [video["metrics"]["average_jaccard"] for video in record["by_video"][:2]]
        assert record["mean"]["average_jaccard"] == pytest.approx(np.mean(own))
        assert record["mean"]["pts_within_4"] > 0.8
        assert record["mean"]["average_jaccard"] > 0.5
    before = out.read_bytes()
    assert cli.main(command) == 0
    assert out.read_bytes() == before, "the same input gives the same figures"


def test_frames_can_be_left_as_they_are(davis, caplog):
    caplog.set_level("INFO")
    for options, size in [([], "256 x 256"), (["--size", "none"], "64 x 100"), (["--size", "96"], "96 x 96")]:
        caplog.clear()
        assert cli.main(["--tracker", "dis", "--data", str(davis), "--videos", "1", *options]) == 0
        assert [m for m in caplog.messages if f"bear, 8 frames of {size}" in m]


def test_shards_go_into_one_mean(davis, tmp_path, capsys):
    second = tmp_path / "second.pkl"
    second.write_bytes(davis.read_bytes())
    assert cli.main(["--tracker", "dis", "--data", str(davis), str(second), "--videos", "4", "--size", "none"]) == 0
    assert rows(capsys.readouterr().out)[0][2] == "3"


def test_rendered_scenes_need_nothing(capsys):
    """The commands of docs/evaluation.md that are to be run as they stand."""
    (commands,) = blocks("docs/evaluation.md", "sh")
    (words,) = [line.split() for line in commands.splitlines()]
    assert words[0] == "evaluate-tracks"
    assert cli.main(words[1:]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row[:3] == ["dis", "first", "1"]
    assert float(row[8]) > 90
    assert float(row[-1]) > 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tracker", "raft"], "--tracker raft: unknown; known are tvl1"),
        (["--tracker", "dis", "dis"], "--tracker dis dis: names one twice"),
        (["--queries", "last"], "--queries last: must be first or strided"),
        (["--size", "8"], "--size 8: must be none or a number of pixels, 16 or more"),
        (["--size", "256x256"], "--size 256x256"),
        (["--videos", "0"], "--videos is 0, must be 1 or more"),
        (["--data", "missing.pkl"], "--data missing.pkl: no such file; `--data rendered` needs none"),
        (["--data", "rendered", "x.pkl"], "do not go into one mean"),
        (["--data", "pipe.pkl"], "pipe.pkl: not a file"),
        (["--data", "."], ".: not a file"),
        (["--data", "text.pkl"], "text.pkl: not a whole pickle"),
        (["--data", "hidden.pkl"], "nothing to evaluate with queries first: in none of the 1 videos"),
        (["--json", "."], "--json .: is a folder"),
        (["--json", "text.pkl/figures.json"], "--json text.pkl/figures.json: cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said(davis, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pkl").write_text("points: none\n", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe.pkl")
    hidden = small_video((32, 48), 5)
    (tmp_path / "hidden.pkl").write_bytes(pickle.dumps([{
        "video": np.stack(hidden.frames), "points": hidden.positions / 48, "occluded": np.ones_like(hidden.visible)
    }]))  # fmt: skip
    defaults = {"--tracker": ["dis"], "--data": [str(davis)]}
    given = {**defaults, options[0]: options[1:]}
    assert cli.main([word for name, values in given.items() for word in (name, *values)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("evaluate-tracks: ")
    assert message in captured.err
    assert "|" not in captured.out


def test_it_can_be_interrupted(davis, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "evaluate_video", interrupted)
    assert cli.main(["--tracker", "dis", "--data", str(davis)]) == 1
    assert "interrupted" in capsys.readouterr().err
