"""Frames against PyAV, a second decoder; bad files made on the spot."""

import pickle
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from videos import (
    cut_off,
    leave_out_by_edit_list,
    noise_frames,
    overwrite,
    turn_by_metadata,
    write_variable_rate,
    write_video,
)

from data_specs.video import (
    FrameSizeChangedError,
    Video,
    VideoDecodeError,
    VideoError,
    VideoOpenError,
    VideoTruncatedError,
)


def read(path, short_side=None):
    return list(Video(path, short_side))


# decord 3.4 hands out padded rows at these widths of 16, 32, 48, 96 and 144
@pytest.mark.parametrize("width", [32, 48, 57, 96, 100, 144, 170, 176])
def test_frames_are_those_of_another_decoder(tmp_path, width):
    frames = noise_frames(5, 40, width)
    path = write_video(tmp_path / "v.mkv", frames)
    with av.open(str(path)) as container:
        others = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    video = Video(path, 256)
    ours = list(video)
    assert video.source_size == video.frame_size == (40, width)
    assert video.decoded_frames == len(ours) == 5
    assert video.fps == pytest.approx(25)
    for a, b, truth in zip(ours, others, frames, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, truth)


@pytest.mark.parametrize(
    ("codec", "pixels", "name", "size"),
    [
        ("libx264", "yuv420p", "v.mp4", (48, 80)),
        ("libx264", "yuv420p", "turned.mp4", (48, 80)),
        ("libx264", "yuv444p", "v.mkv", (50, 96)),
        ("mjpeg", "yuvj420p", "v.avi", (56, 144)),
        ("ffv1", "bgr0", "v.mkv", (41, 67)),
    ],
)
def test_large_videos_have_the_same_frames(tmp_path, monkeypatch, codec, pixels, name, size):
    """Videos that decord would hold in memory as a whole go through PyAV: the same pixels, the same checks.

    (Where an odd size meets subsampled colour the two interpolate it differently; one video has one decoder.)
    """
    path = write_video(tmp_path / name, noise_frames(30, *size), codec, pixels)
    if name == "turned.mp4":
        turn_by_metadata(path)
    usual = read(path, 40)
    monkeypatch.setattr("data_specs.video._MOST_AHEAD_BYTES", 0)
    monkeypatch.setattr("decord.VideoReader.next", None)
    large = read(path, 40)
    np.testing.assert_array_equal(np.stack(large), np.stack(usual))


def test_large_videos_are_checked_the_same_way(tmp_path, monkeypatch):
    monkeypatch.setattr("data_specs.video._MOST_AHEAD_BYTES", 0)
    whole = write_video(tmp_path / "v.mkv", noise_frames(60, 48, 80), "libx264", "yuv420p")
    with pytest.raises(VideoTruncatedError):
        read(cut_off(whole, tmp_path / "cut.mkv", 0.6))
    changing = write_video(
        tmp_path / "c.mkv", noise_frames(9, 64, 100) + noise_frames(9, 80, 132), "libx264", "yuv420p"
    )
    with pytest.raises(FrameSizeChangedError):
        read(changing)
    front = write_video(tmp_path / "v.mp4", noise_frames(60, 64, 96), "libx264", "yuv420p", movflags="faststart")
    with pytest.raises((VideoDecodeError, VideoTruncatedError)):
        read(overwrite(front, tmp_path / "hole.mp4", 0.5, 0.6))


def test_b_frames_come_in_presentation_order(tmp_path):
    frames = [np.full((48, 64, 3), 8 * i + 4, np.uint8) for i in range(30)]
    path = write_video(tmp_path / "v.mp4", frames, "libx264", "yuv420p")
    levels = [float(f.mean()) for f in read(path)]
    np.testing.assert_allclose(levels, [8 * i + 4 for i in range(30)], atol=2)


def test_rotation_metadata_is_applied(tmp_path):
    frames = noise_frames(4, 48, 80)
    path = write_video(tmp_path / "v.mp4", frames, "libx264", "yuv420p")
    upright = read(path)
    turn_by_metadata(path)
    video = Video(path, None)
    assert video.source_size == (80, 48)
    for turned, frame in zip(video, upright, strict=True):
        np.testing.assert_array_equal(turned, np.rot90(frame, -1))


def test_resizing_keeps_the_half_pixel_rule(tmp_path):
    """A linear ramp stays one: the value at x' is the ramp's at (x' + 0.5) * W / W' - 0.5; odd sizes on both axes."""
    ramp = np.stack([np.arange(321)[None] * 0.7 + np.arange(241)[:, None] * 0.1] * 3, axis=-1)
    path = write_video(tmp_path / "v.mkv", [np.rint(ramp).astype(np.uint8)])
    (frame,) = read(path, 101)
    height, width = frame.shape[:2]
    assert (height, width) == (101, 135)
    x = (np.arange(width) + 0.5) * 321 / width - 0.5
    y = (np.arange(height) + 0.5) * 241 / height - 0.5
    expected = x[None] * 0.7 + y[:, None] * 0.1
    difference = frame[1:-1, 1:-1, 0] - expected[1:-1, 1:-1]
    assert np.abs(difference).max() < 1.01, "rounding twice, to 8 bits"
    assert abs(difference.mean()) < 0.05, "half a pixel would be 0.35"


@pytest.mark.parametrize(("codec", "pixels", "name"), [("libx264", "yuv420p", "v.avi"), ("mjpeg", "yuvj420p", "v.mkv")])
def test_a_change_of_size_midway_is_an_error(tmp_path, codec, pixels, name):
    """decord scales every frame to the size of the first without a word."""
    frames = noise_frames(12, 64, 100) + noise_frames(12, 80, 132)
    path = write_video(tmp_path / name, frames, codec, pixels)
    with pytest.raises(FrameSizeChangedError, match="64x100 and 80x132"):
        read(path)


@pytest.mark.parametrize("name", ["v.mkv", "v.avi"])
def test_a_file_that_was_cut_off_is_an_error(tmp_path, name):
    """The frames that are left decode without a complaint; only the header knows of the others."""
    whole = write_video(tmp_path / name, noise_frames(60, 48, 80), "libx264", "yuv420p")
    assert len(read(whole)) == 60
    with pytest.raises(VideoTruncatedError, match=r"announces (about )?60 frames"):
        read(cut_off(whole, tmp_path / f"cut_{name}", 0.6))


def test_a_file_whose_index_counts_its_frames_may_not_miss_many(tmp_path):
    """The last 7 % of the bytes are missing: less than a tenth of the frames, and it is noticed."""
    whole = write_video(tmp_path / "v.mp4", noise_frames(60, 64, 96), "mjpeg", "yuvj420p", movflags="faststart")
    assert len(read(whole)) == 60
    with pytest.raises((VideoDecodeError, VideoTruncatedError)):
        read(cut_off(whole, tmp_path / "cut.mp4", 0.93))


def test_sound_that_runs_on_is_no_truncation(tmp_path):
    """Matroska states the file's duration, which is the sound's; the stream's own is in a tag."""
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=25), container.add_stream("pcm_s16le", rate=8000)
        video.height, video.width, video.pix_fmt = 48, 80, "yuv420p"
        for pixels in noise_frames(50, 48, 80):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * 4), np.int16), format="s16", layout="mono")
        samples.sample_rate = 8000
        container.mux(sound.encode(samples))
        container.mux(sound.encode())
    assert len(read(path)) == 50


def test_frames_that_an_edit_list_leaves_out_are_not_part_of_the_video(tmp_path):
    """Phones and `ffmpeg -ss -c copy` trim so; decord would put neighbours in the places of those frames."""
    whole = write_video(tmp_path / "whole.mp4", [np.full((48, 64, 3), 4 * i + 4, np.uint8) for i in range(60)],
                        "libx264", "yuv420p")  # fmt: skip
    path = leave_out_by_edit_list(whole, tmp_path / "v.mp4", 0.4)
    video = Video(path, None)
    levels = [float(frame.mean()) for frame in video]
    assert 40 <= len(levels) < 60
    assert video.decoded_frames == video.announced_frames
    np.testing.assert_allclose(np.diff(levels), 4, atol=1.5)
    assert levels[-1] == pytest.approx(4 * 59 + 4, abs=2)


def test_metadata_in_any_encoding_is_no_obstacle(tmp_path):
    path = write_video(tmp_path / "v.mkv", noise_frames(9, 48, 80))
    with av.open(str(path)) as source, av.open(str(tmp_path / "t.avi"), "w") as target:
        target.metadata["title"] = "Cafe"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    latin = (tmp_path / "t.avi").read_bytes()
    assert b"Cafe" in latin
    (tmp_path / "t.avi").write_bytes(latin.replace(b"Cafe", b"Caf\xe9"))
    assert len(read(tmp_path / "t.avi")) == 9


def test_a_cut_off_index_is_an_error(tmp_path):
    whole = write_video(tmp_path / "v.mp4", noise_frames(30, 48, 80), "libx264", "yuv420p")
    with pytest.raises(VideoOpenError, match="not a video file, or cut off before its index"):
        read(cut_off(whole, tmp_path / "cut.mp4", 0.7))


def test_a_cut_off_stream_behind_its_index_is_an_error(tmp_path):
    whole = write_video(tmp_path / "v.mp4", noise_frames(60, 64, 96), "libx264", "yuv420p", movflags="faststart")
    with pytest.raises((VideoDecodeError, VideoTruncatedError)):
        read(cut_off(whole, tmp_path / "cut.mp4", 0.5))


def test_a_hole_is_an_error(tmp_path):
    whole = write_video(tmp_path / "v.mp4", noise_frames(60, 64, 96), "libx264", "yuv420p", movflags="faststart")
    with pytest.raises((VideoDecodeError, VideoTruncatedError)):
        read(overwrite(whole, tmp_path / "hole.mp4", 0.5, 0.6))


def test_frames_that_the_decoder_made_up_are_an_error(tmp_path):
    """decord repeats the frame before one that it cannot decode: more frames than were really decoded."""
    whole = write_video(tmp_path / "v.avi", noise_frames(60, 64, 96), "mpeg2video", "yuv420p")
    data = bytearray(whole.read_bytes())
    for place in np.random.default_rng(1).integers(len(data) // 2, len(data) * 5 // 6, 20):
        data[place] ^= 0xFF
    (tmp_path / "flipped.avi").write_bytes(data)
    with pytest.raises(VideoDecodeError, match="recovered from nearest frames"):
        read(tmp_path / "flipped.avi")


def test_a_variable_frame_rate_is_no_truncation(tmp_path):
    """Long gaps between frames: fewer than duration times nominal rate, and all there."""
    assert len(read(write_variable_rate(tmp_path / "v.mkv", noise_frames(40, 48, 80)))) == 40


def test_what_is_not_a_video_is_an_error_that_says_so(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    for name, problem in [
        ("text.mp4", "not a video file"),
        ("empty.mp4", "the file is empty"),
        ("none.mp4", "no such file"),
        (".", "is a folder, not a file"),
    ]:
        with pytest.raises(VideoOpenError, match=problem) as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert str(tmp_path) not in error.value.reason, "a reason is the same wherever the video lies"


def test_errors_survive_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(VideoTruncatedError("a/b.mp4", "60 frames")))
    assert isinstance(error, VideoTruncatedError)
    assert isinstance(error, VideoError)
    assert str(error) == "a/b.mp4: 60 frames"


def test_a_video_is_read_once(tmp_path):
    video = Video(write_video(tmp_path / "v.mkv", noise_frames(3, 40, 56)), None)
    assert len(list(video)) == 3
    with pytest.raises(RuntimeError, match="open it again"):
        list(video)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists a process's libraries")
def test_decoding_brings_no_cuda_library_along():
    """decord would load all that torch has, NVBLAS with them, which then fails in the place of torch's own BLAS."""
    program = """
from pathlib import Path
import data_specs.video
maps = Path("/proc/self/maps").read_text()
assert "libdecord" in maps and "blas.so" not in maps.replace("openblas", ""), maps
assert "libcudart" not in maps and "libcublas" not in maps, maps
import torch
a = torch.rand(5, 40, 60)
print(float((torch.matmul(a, torch.eye(60)) - a).abs().max()))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "0.0\n"), result.stderr
