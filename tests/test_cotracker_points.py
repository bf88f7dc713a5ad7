"""CoTracker3 in evaluate-tracks, by the stand-in for its network."""

import json

import numpy as np
import pytest
import torch
from cotracker_stand_in import stand_in_model, use_stand_in, write_weights

from data_specs.scene import Scene, Texture, moving
from extraction.evaluation import cli
from extraction.evaluation.cotracker_points import CoTrackerPoints
from extraction.motion.cotracker3 import package
from extraction.motion.cotracker3.network import CoTracker3
from extraction.motion.cotracker3.weights import find_weights
from extraction.motion.gpu.device import DeviceError

SIZE = (88, 136)
QUERIES = np.array([[0, 40.0, 30.5], [3, 61.25, 44.0], [5, 70.0, 20.0], [2, 99.5, 66.0]])


@pytest.fixture(scope="module")
def scene():
    return Scene(size=SIZE, background=Texture(3, shortest=9), camera=moving((1.5, 0.75)))


def points(*, together=False):
    return CoTrackerPoints(CoTracker3(stand_in_model(), torch.device("cpu")), together=together)


@pytest.mark.parametrize("together", [False, True])
def test_points_given_in_any_frame_are_followed_both_ways(scene, together):
    positions, visible = points(together=together).track(scene.frames(6), QUERIES)
    assert positions.shape == (4, 6, 2)
    for (t, x, y), of_query, seen in zip(QUERIES, positions, visible, strict=True):
        true = [scene.homography(t, u) @ [x, y, 1] for u in range(6)]
        error = np.linalg.norm(of_query - np.array(true)[:, :2], axis=-1)
        assert error[int(t)] == 0
        assert seen[int(t)]
        assert np.median(error) < 0.6
        assert error.max() < 2.0, "the motion is 8 px"


def test_a_query_by_itself_does_not_know_the_others(scene):
    frames, asked = scene.frames(5), []
    tracker = points()
    inner = tracker._network.track
    tracker._network.track = lambda features, places, queries: asked.append(queries) or inner(features, places, queries)
    tracker.track(frames, QUERIES[:2])
    assert [tuple(q.shape) for q in asked] == [(1, 1 + 64 + 25, 3)] * 2
    local = asked[1][0, 1:65]
    assert (local[:, 0] == 0).all(), "support lies in the first frame"
    around = (asked[1][0, 0, 1:] - local[:, 1:]).abs().amax(0)
    torch.testing.assert_close(around, torch.tensor([25 - 50 / 64] * 2))


def test_forward_only_says_nothing_of_the_frames_before(scene):
    _, visible = points(together=True).track(scene.frames(6), QUERIES, both_ways=False)
    for (t, *_), seen in zip(QUERIES, visible, strict=True):
        assert not seen[: int(t)].any()
        assert seen[int(t) :].any()


def test_frames_that_cannot_be_written_to_are_taken_without_a_word(scene, recwarn):
    """Pillow's are."""
    frames = scene.frames(3)
    for frame in frames:
        frame.setflags(write=False)
    points(together=True).track(frames, QUERIES[:1])
    assert not recwarn.list


def test_a_device_without_room_is_said(scene):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")

    tracker = points()
    tracker._network.track = full
    with pytest.raises(DeviceError, match="out of memory over 1 windows of 3 frames and 90 points"):
        tracker.track(scene.frames(3), QUERIES[:1])


def test_the_command_takes_weights_and_says_what_is_missing(tmp_path, capsys, monkeypatch):
    use_stand_in(monkeypatch)
    package.open_network.cache_clear()
    given = ["--data", "rendered", "--videos", "1"]
    weights = str(write_weights(tmp_path / "w.pth"))
    out = tmp_path / "figures.json"
    assert (
        cli.main(["--tracker", "cotracker3-joint", "still", "--checkpoint", weights, "--json", str(out), *given]) == 0
    )
    by_name = {row["tracker"]: row for row in json.loads(out.read_text())}
    assert by_name["cotracker3-joint"]["weights_sha256"] == find_weights(weights).sha256
    assert "weights_sha256" not in by_name["still"]
    assert by_name["still"]["data"] == ["rendered"]
    assert by_name["still"]["size"] is None
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines()[2:]}
    average = {name: float(line.split("|")[-4]) for name, line in rows.items()}
    assert average["cotracker3-joint"] > average["still"] + 20
    assert cli.main(["--tracker", "cotracker3", *given]) == 2
    assert "--checkpoint FILE" in capsys.readouterr().err
    assert cli.main(["--tracker", "dis", "--checkpoint", weights, *given]) == 2
    assert "none of dis has weights" in capsys.readouterr().err
    assert cli.main(["--tracker", "dis", "still", "--device", "cuda", *given]) == 2
    assert "--device cuda: dis, still measure on the CPU" in capsys.readouterr().err
    package.open_network.cache_clear()
