"""Writes video files with PyAV: good ones, and ones that are broken in a known way."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

RATE = 25


def noise_frames(count: int, height: int, width: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Frames of smooth noise, RGB."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (count, height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return [np.kron(c, np.ones((8, 8, 1), np.uint8))[:height, :width] for c in coarse]


def sliding_frames(count: int, height: int, width: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Frames that an encoder predicts from one another, each unlike the others: a pattern that slides, RGB."""
    pattern = noise_frames(1, height, width, seed)[0]
    return [np.roll(pattern, (3 * i, 5 * i), axis=(0, 1)) for i in range(count)]


def write_video(
    path: Path,
    frames: list[NDArray[np.uint8]],
    codec: str = "ffv1",
    pixels: str = "bgr0",
    encoder_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write frames, losslessly by default. Frames of another size than the first go into the same stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.options = encoder_options or {}
        encoder = stream.codec_context
        for number, pixels_rgb in enumerate(frames):
            height, width = pixels_rgb.shape[:2]
            if (height, width) != (encoder.height, encoder.width):
                for packet in encoder.encode(None):
                    packet.stream = stream
                    container.mux(packet)
                encoder = av.CodecContext.create(codec, "w")
                encoder.width, encoder.height, encoder.pix_fmt = width, height, pixels
                encoder.time_base = Fraction(1, RATE)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_rgb), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            for packet in encoder.encode(frame):
                packet.stream = stream
                container.mux(packet)
        for packet in encoder.encode(None):
            packet.stream = stream
            container.mux(packet)
    return path


def leave_out_by_edit_list(whole: Path, path: Path, seconds: float) -> Path:
    """A copy of an .mp4 whose edit list leaves out its beginning; the packets are still there."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        shift = round(seconds / source.streams.video[0].time_base)
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    return path


def write_variable_rate(path: Path, frames: list[NDArray[np.uint8]]) -> Path:
    """The second half of the frames at long intervals, H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        half = len(frames) // 2
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = 33 * number if number < half else 33 * half + 120 * (number - half)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn_by_metadata(path: Path) -> None:
    """Set the display matrix of an .mp4's video track to a quarter turn clockwise, leaving the frames as they are."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    matrix = (
        header + 4 + 4 + 4 + 4 + 4 + 4 + 8 + 8
    )  # version, times, id, reserved, duration, reserved, layer ... volume
    one = 1 << 16
    turned = [0, one, 0, -one, 0, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turned)
    path.write_bytes(data)


def cut_off(source: Path, target: Path, share: float) -> Path:
    """The first part of a file, as a broken download leaves it."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def overwrite(source: Path, target: Path, first: float, last: float) -> Path:
    """A file with zeros between two places."""
    data = bytearray(source.read_bytes())
    low, high = int(len(data) * first), int(len(data) * last)
    data[low:high] = bytes(high - low)
    target.write_bytes(data)
    return target
