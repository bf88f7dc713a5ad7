"""Videos that are in no track store: what is found in the file is what `Video` finds, and bad files are as bad."""

import av
import numpy as np
import pytest
from videos import cut_off, overwrite, sliding_frames, turn_by_metadata, write_video

from data_specs.clip_frames import ClipFrames
from data_specs.container import decode_frames
from data_specs.frame_access import FrameAccess
from data_specs.video import (
    FrameSizeChangedError,
    Video,
    VideoDecodeError,
    VideoError,
    VideoOpenError,
    VideoTruncatedError,
)
from data_specs.view import View


def read_whole(path):
    """All frames of a video that no store knows."""
    with ClipFrames(path) as opened:
        height, width = opened.source_size
        view = View(top=0, left=0, height=height, width=width, size=opened.source_size)
        return opened.read(range(opened.num_frames), view)


def remuxed(source, target, keep):
    """A copy of a file's video with the packets of these numbers."""
    with av.open(str(source)) as whole, av.open(str(target), "w") as part:
        stream = part.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(p for p in whole.demux(whole.streams.video[0]) if p.size):
            if keep(number, packet):
                packet.stream = stream
                part.mux(packet)
    return target


def test_the_short_side_and_the_size_of_a_rotated_video(tmp_path):
    path = write_video(tmp_path / "v.mp4", sliding_frames(6, 48, 80), "libx264", "yuv420p")
    turn_by_metadata(path)
    with ClipFrames(path, short_side=24) as opened:
        assert (opened.source_size, opened.frame_size, opened.num_frames) == ((80, 48), (40, 24), 6)


def test_half_of_what_is_known_is_refused(tmp_path):
    path = write_video(tmp_path / "v.mkv", sliding_frames(3, 48, 80))
    with pytest.raises(ValueError, match="together"):
        ClipFrames(path, num_frames=3)


def test_a_video_that_begins_between_key_frames_is_counted(tmp_path):
    """Its packets promise frames that the decoder cannot make: those shown before the first key frame."""
    options = {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3:b-pyramid=normal:scenecut=0"}
    whole = write_video(tmp_path / "whole.mkv", sliding_frames(120, 48, 80), "libx264", "yuv420p", options)
    with av.open(str(whole)) as container:
        packets = [(p.is_keyframe, p.pts) for p in container.demux(container.streams.video[0]) if p.size]
    second = [number for number, (is_key, _) in enumerate(packets) if is_key][1]
    leading = sum(pts < packets[second][1] for _, pts in packets[second:])
    assert leading, "or there is nothing to test"
    path = remuxed(whole, tmp_path / "v.mkv", lambda number, packet: number >= second)
    truth = np.stack(list(decode_frames(path)))
    assert len(truth) < len(packets) - second
    np.testing.assert_array_equal(read_whole(path), truth)


@pytest.mark.parametrize(("name", "codec", "pixels"), [("v.avi", "libx264", "yuv420p"), ("v.mkv", "mjpeg", "yuvj420p")])
def test_a_change_of_size_midway(tmp_path, name, codec, pixels):
    frames = [*sliding_frames(12, 64, 96), *sliding_frames(12, 48, 80)]
    path = write_video(tmp_path / name, frames, codec, pixels)
    with pytest.raises(FrameSizeChangedError, match=r"48x80.*64x96"):
        read_whole(path)


@pytest.mark.parametrize("name", ["v.mkv", "v.mp4"])
def test_a_file_that_was_cut_off(tmp_path, name):
    frames = sliding_frames(60, 64, 96)
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    whole = write_video(tmp_path / f"whole.{name[2:]}", frames, "libx264", "yuv420p", {"g": "10"}, **options)
    path = cut_off(whole, tmp_path / name, 0.5)
    with pytest.raises(VideoError):
        list(Video(path, None))
    with pytest.raises((VideoTruncatedError, VideoDecodeError)):
        ClipFrames(path)


def test_holes_and_what_is_not_a_video(tmp_path):
    whole = write_video(tmp_path / "v.mp4", sliding_frames(60, 64, 96), "libx264", "yuv420p", movflags="faststart")
    with pytest.raises(VideoDecodeError):
        read_whole(overwrite(whole, tmp_path / "hole.mp4", 0.5, 0.6))
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    for name in ("text.mp4", "none.mp4", "empty.mp4", "."):
        with pytest.raises(VideoOpenError):
            ClipFrames(tmp_path / name)


def test_packets_that_promise_too_much(tmp_path, monkeypatch):
    """A decoder that leaves a frame out: neither its place nor those behind it are taken by others."""
    path = write_video(tmp_path / "v.mp4", sliding_frames(20, 48, 80), "libx264", "yuv420p", {"g": "20", "bf": "0"})
    decode = FrameAccess._decode

    def without_one(self, first, last, needed):
        yield from (picture for picture in decode(self, first, last, needed) if round(picture.time * 25) != 12)

    monkeypatch.setattr(FrameAccess, "_decode", without_one)
    with pytest.raises(VideoDecodeError, match="its packets are of 20 frames, it gives 19"):
        read_whole(path)
