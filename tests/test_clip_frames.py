"""Frames by index against the same video read from start to end; geometry against a rendered spot and Pillow."""

import av
import numpy as np
import pytest
from PIL import Image
from videos import (
    cut_off,
    leave_out_by_edit_list,
    noise_frames,
    overwrite,
    sliding_frames,
    turn_by_metadata,
    write_variable_rate,
    write_video,
)

from data_specs.clip_frames import ClipFrames
from data_specs.container import RgbConverter, decode_frames
from data_specs.frame_access import FrameAccess
from data_specs.video import Video, VideoChangedError, VideoDecodeError, VideoError, VideoOpenError
from data_specs.view import View


def whole_view(size):
    return View(top=0, left=0, height=size[0], width=size[1], size=size)


def opened(path, frames, short_side=None):
    return ClipFrames(path, source_size=frames[0].shape[:2], num_frames=len(frames), short_side=short_side)


def assert_same_frames(path, clips=8):
    """Each frame alone, and clips that begin anywhere, are those of Video; a whole view is copied pixel by pixel."""
    frames = list(Video(path, None))
    view = whole_view(frames[0].shape[:2])
    rng = np.random.default_rng(0)
    with opened(path, frames) as access:
        for index, frame in enumerate(frames):
            np.testing.assert_array_equal(access.read([index], view)[0], frame, err_msg=f"frame {index}")
        for _ in range(clips):
            indices = np.minimum(rng.integers(len(frames)) + rng.integers(1, 5) * np.arange(6), len(frames) - 1)
            np.testing.assert_array_equal(access.read(indices, view), [frames[i] for i in indices])
        backwards = range(len(frames))[::-3]
        np.testing.assert_array_equal(access.read(backwards, view), [frames[i] for i in backwards])
    with ClipFrames(path) as found:  # without a store
        assert (found.num_frames, found.source_size) == (len(frames), frames[0].shape[:2])
        np.testing.assert_array_equal(found.read(backwards, view), [frames[i] for i in backwards])
    return frames


X264_OPEN = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-pyramid=normal:scenecut=0"}
X264_REFRESH = {"x264-params": "intra-refresh=1:keyint=12:scenecut=0"}
X265 = {"x265-params": "log-level=none:keyint=12:min-keyint=12:bframes=3:b-pyramid=1:open-gop=1"}
BY_TIMESTAMP = [
    ("libx264", "yuv420p", "v.mp4", (48, 80), {"g": "15", "bf": "3"}),
    ("libx264", "yuv420p", "one_group.mkv", (48, 80), {"g": "250", "bf": "0"}),
    ("libx264", "yuv420p", "open.mp4", (48, 80), X264_OPEN),
    ("libx264", "yuv420p", "open.mkv", (48, 80), X264_OPEN),
    ("libx264", "yuv444p", "v.mov", (41, 67), {"g": "12"}),
    ("libx265", "yuv420p", "open.mp4", (64, 80), X265),
    ("libvpx-vp9", "yuv420p", "odd.webm", (41, 67), {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    ("libsvtav1", "yuv420p", "v.mkv", (64, 80), {"g": "12", "preset": "12", "svtav1-params": "lp=1"}),
    ("mjpeg", "yuvj420p", "v.avi", (56, 144), {}),
    ("ffv1", "bgr0", "v.mkv", (41, 96), {}),
]
COUNTED = [
    ("libx264", "yuv420p", "refresh.mp4", (48, 80), X264_REFRESH),
    ("libx264", "yuv420p", "v.avi", (48, 80), {"g": "12"}),
    ("mpeg4", "yuv420p", "v.avi", (48, 80), {"g": "12", "bf": "2"}),
    ("mpeg2video", "yuv420p", "v.mkv", (48, 80), {"g": "12", "bf": "2"}),
]


@pytest.mark.parametrize("case", BY_TIMESTAMP + COUNTED, ids=lambda case: f"{case[0]}-{case[2]}")
@pytest.mark.parametrize("large", [False, True])
def test_frames_by_index_are_those_of_the_video(tmp_path, monkeypatch, case, large):
    codec, pixels, name, size, options = case
    path = write_video(tmp_path / name, sliding_frames(40, *size), codec, pixels, options)
    if large:  # packets are not kept: the container is asked for them again
        monkeypatch.setattr("data_specs.frame_access._MOST_KEPT_BYTES", 0)
    if case in BY_TIMESTAMP:  # they do not need to be decoded from the start
        monkeypatch.setattr(FrameAccess, "_count", None)
        monkeypatch.setattr(FrameAccess, "_count_all", None)
    assert len(assert_same_frames(path, clips=2 if large else 8)) == 40


@pytest.mark.parametrize("width", [16, 32, 48, 96, 144])
def test_widths_at_which_decord_pads(tmp_path, width):
    assert_same_frames(write_video(tmp_path / "v.mp4", sliding_frames(9, 40, width), "libx264", "yuv420p"))


def test_variable_frame_rates_edit_lists_and_rotation(tmp_path):
    frames = sliding_frames(40, 48, 80)
    assert len(assert_same_frames(write_variable_rate(tmp_path / "variable.mkv", frames))) == 40
    whole = write_video(tmp_path / "v.mp4", frames, "libx264", "yuv420p")
    trimmed = leave_out_by_edit_list(whole, tmp_path / "trimmed.mp4", 0.6)
    assert 20 <= len(assert_same_frames(trimmed)) < 40
    turn_by_metadata(whole)
    assert assert_same_frames(whole)[0].shape == (80, 48, 3)


def test_large_frames_which_decord_does_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("data_specs.video._MOST_AHEAD_BYTES", 0)
    assert_same_frames(write_video(tmp_path / "v.mp4", sliding_frames(20, 48, 80), "libx264", "yuv420p"))


def test_timestamps_that_lie_are_noticed(tmp_path):
    """Two frames in a row with each other's timestamps; the decoder gives them in the order of their packets."""
    whole = write_video(tmp_path / "whole.mkv", sliding_frames(20, 48, 80), "libvpx-vp9", "yuv420p", {"cpu-used": "8"})
    with av.open(str(whole)) as source, av.open(str(tmp_path / "v.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.size]
        packets[10].pts, packets[11].pts = packets[11].pts, packets[10].pts
        for packet in packets:
            packet.stream, packet.dts = (
                stream,
                packet.dts - 100,
            )  # no container takes times to show before those to decode
            target.mux(packet)
    frames = list(decode_frames(tmp_path / "v.mkv"))
    view = whole_view((48, 80))
    with opened(tmp_path / "v.mkv", frames) as access:
        np.testing.assert_array_equal(access.read([11], view)[0], frames[11])
        np.testing.assert_array_equal(access.read(range(8, 14), view), frames[8:14])


SPOT, SOURCE = np.array([201.0, 143.0]), (259, 403)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("short_side", "view"),
    [
        (None, View(top=60, left=99, height=150, width=180, size=(224, 240))),  # enlarged
        (None, View(top=20, left=31, height=224, width=280, size=(224, 280))),  # copied
        (256, View(top=9, left=50, height=224, width=256, size=(200, 224))),  # crop edges between the source's pixels
        (
            128,
            View(top=16, left=37, height=96, width=112, size=(112, 120)),
        ),  # tracked smaller, view larger than tracked
        (100, View(top=0, left=0, height=100, width=155, size=(64, 80))),  # five times smaller
    ],
)
def test_things_are_where_the_view_says(tmp_path, flip, short_side, view):
    """The centre of a round spot, and its size, in a frame with different factors along x and y."""
    y, x = np.mgrid[: SOURCE[0], : SOURCE[1]]
    sigma = 6.0
    spot = 250 * np.exp(-((x - SPOT[0]) ** 2 + (y - SPOT[1]) ** 2) / (2 * sigma**2))
    path = write_video(tmp_path / "v.mkv", [np.rint(np.stack([spot] * 3, axis=-1)).astype(np.uint8)])
    view = View(**{**vars(view), "flip": flip})
    access = ClipFrames(path, source_size=SOURCE, num_frames=1, short_side=short_side)
    tracked = np.array(access.frame_size[::-1]) / np.array(SOURCE[::-1])
    expected = view.to_view((SPOT + 0.5) * tracked - 0.5)
    shown = access.read([0], view)[0].astype(float)
    assert shown.shape == (*view.size, 3)
    y, x = np.mgrid[: view.size[0], : view.size[1]]
    for channel in np.moveaxis(shown, -1, 0):
        centre = np.array([(channel * x).sum(), (channel * y).sum()]) / channel.sum()
        np.testing.assert_allclose(centre, expected, atol=0.02)
    factor = tracked * view.scale
    assert shown.sum() / spot.sum() / 3 == pytest.approx(factor.prod(), rel=0.01), "area grows by both factors"


@pytest.mark.parametrize("short_side", [None, 200, 128])
@pytest.mark.parametrize("flip", [False, True])
def test_the_interpolation_is_pillows(tmp_path, short_side, flip):
    frames = noise_frames(2, 260, 350)
    path = write_video(tmp_path / "v.mkv", frames)
    access = opened(path, frames, short_side)
    height, width = access.frame_size
    down, right = 260 / height, 350 / width
    for crop in [(0, 0, height, width), (9, 30, height - 20, width - 51), (height // 2, 5, 40, 71)]:
        view = View(top=crop[0], left=crop[1], height=crop[2], width=crop[3], size=(112, 144), flip=flip)
        box = (view.left * right, view.top * down, (view.left + view.width) * right, (view.top + view.height) * down)
        for shown, frame in zip(access.read([0, 1], view), frames, strict=True):
            pillow = np.asarray(Image.fromarray(frame).resize((144, 112), Image.Resampling.BILINEAR, box=box))
            difference = shown.astype(int) - (pillow[:, ::-1] if flip else pillow)
            assert np.abs(difference).max() <= 1, "each of the two rounds twice, to 8 bits"
            assert abs(difference.mean()) < 0.1


def test_several_clips_are_read_in_one_pass(tmp_path, monkeypatch):
    """Each frame is decoded and converted once, however often it is asked for."""
    path = write_video(tmp_path / "v.mp4", sliding_frames(40, 48, 80), "libx264", "yuv420p")
    frames = list(Video(path, None))
    clips = [
        ([8, 12, 16, 20], View(top=0, left=4, height=48, width=64, size=(32, 40))),
        ([16, 20, 20, 20], View(top=8, left=0, height=40, width=80, size=(48, 56), flip=True)),
        ([39, 3], View(top=8, left=0, height=40, width=80, size=(24, 16))),
    ]
    access = opened(path, frames)
    alone = [access.read(*clip) for clip in clips]
    converted = []
    convert = RgbConverter.__call__
    monkeypatch.setattr(
        RgbConverter, "__call__", lambda self, picture: converted.append(picture.pts) or convert(self, picture)
    )
    together = access.read_clips(clips)
    assert len(converted) == len(set(converted)) == len({8, 12, 16, 20, 39, 3})
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(together[1][1], together[1][3])


def test_a_file_that_is_not_the_recorded_one_is_an_error(tmp_path):
    """Both values, and what to do; also where frames have to be counted."""
    view = View(top=0, left=0, height=40, width=40, size=(32, 32))
    for name, codec in [("v.mp4", "libx264"), ("v.avi", "mpeg4")]:
        path = write_video(tmp_path / name, sliding_frames(20, 48, 80), codec, "yuv420p")
        for num_frames in (19, 21):
            with pytest.raises(
                VideoChangedError, match=rf"holds 20 frames.* from {num_frames}; extract the video again"
            ):
                ClipFrames(path, source_size=(48, 80), num_frames=num_frames, short_side=None).read([2], view)
        with pytest.raises(VideoChangedError, match=r"48x80.*80x48.*extract the video again"):
            ClipFrames(path, source_size=(80, 48), num_frames=20, short_side=None).read([2], view)
    assert issubclass(VideoChangedError, VideoError)


def test_damage_is_an_error(tmp_path):
    view = whole_view((64, 96))
    whole = write_video(tmp_path / "v.mp4", noise_frames(60, 64, 96), "libx264", "yuv420p", movflags="faststart")
    for broken in [overwrite(whole, tmp_path / "hole.mp4", 0.5, 0.6), cut_off(whole, tmp_path / "cut.mp4", 0.5)]:
        access = ClipFrames(broken, source_size=(64, 96), num_frames=60, short_side=None)
        with pytest.raises((VideoDecodeError, VideoChangedError)):
            access.read(range(60), view)
    (tmp_path / "text.mp4").write_text("hello")
    for name in ["text.mp4", "none.mp4", "."]:
        with pytest.raises(VideoOpenError):
            ClipFrames(tmp_path / name, source_size=(64, 96), num_frames=60, short_side=None)


@pytest.mark.parametrize(("codec", "name"), [("libx264", "v.mp4"), ("libx264", "v.avi"), ("mpeg4", "v.avi")])
def test_frames_that_the_decoder_patches_up_are_errors_until_the_next_key_frame(tmp_path, codec, name):
    """By timestamp and counted: a damaged frame is neither shown nor are those shown that are predicted from it."""
    frames = sliding_frames(60, 96, 144)
    path = write_video(tmp_path / name, frames, codec, "yuv420p", {"g": "20", "bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size, p.is_keyframe) for p in container.demux(container.streams.video[0]) if p.size]
    assert [n for n, packet in enumerate(packets) if packet[2]] == [0, 20, 40]
    data = bytearray(path.read_bytes())
    pos, size, _ = packets[30]
    data[pos + size // 2 : pos + size - 8] = bytes(255 - x for x in data[pos + size // 2 : pos + size - 8])
    path.write_bytes(data)
    view = whole_view((96, 144))
    with opened(path, frames) as access:
        for index in (30, 33, 39):
            with pytest.raises(VideoDecodeError, match=f"frame {index} is damaged"):
                access.read([index], view)
    for index in (5, 29, 40, 59):  # the rest of the video is as it was
        with opened(path, frames) as access:
            np.testing.assert_array_equal(access.read([index], view)[0], list(Video(path, None))[index])


def test_frames_and_crops_that_there_are_not(tmp_path):
    frames = noise_frames(5, 48, 80)
    access = opened(write_video(tmp_path / "v.mkv", frames), frames, 24)
    assert access.frame_size == (24, 40)
    inside = View(top=4, left=8, height=20, width=32, size=(16, 16))
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"frame {index} of a video of 5 frames"):
            access.read([0, index], inside)
    with pytest.raises(ValueError, match="beyond the tracked frame of 24x40"):
        access.read([0], View(top=5, left=8, height=20, width=32, size=(16, 16)))
    assert access.read([], inside).shape == (0, 16, 16, 3)
    access.close()
    with pytest.raises(ValueError, match="closed"):
        access.read([0], inside)
