"""Video files read with FFmpeg's own demuxer and decoders (PyAV), where decord is not enough.

decord scales every frame to the size of the first one and counts only the packets that are there; neither a change of
size nor a file that was cut off shows in its frames. And it decodes ahead without a bound: hundreds of frames, which is
gigabytes where frames are large.
"""

import dataclasses
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Stream
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ContainerHeader:
    """What the container announces of its video stream; zeros where it announces nothing."""

    frames: float
    """Number of frames: the index's own count, else duration times average frame rate."""
    frames_counted: bool
    """Whether `frames` is the index's own count, as in .mp4 and .mov."""
    seconds: float
    """Duration of the stream, else of the whole file, sound included."""
    packets: int
    """Packets of the stream that are there."""
    discarded: int
    """Those of them that an edit list leaves out: they are not part of the video."""
    sizes: tuple[tuple[int, int], ...]
    """The sizes (height, width) of the key frames, in order of appearance, each once."""


def read_header(path: str | Path) -> ContainerHeader:
    """Read the header and all packets, and decode the key frames, at which alone H.264, H.265 and MJPEG change size."""
    frames = seconds = 0.0
    counted = False
    packets = discarded = 0
    sizes: dict[tuple[int, int], None] = {}
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None or stream.time_base is None:
                return ContainerHeader(0, False, 0, 0, 0, ())
            frames, counted, seconds = announced(container, cast(VideoStream, stream))
            if stream.codec_context is not None:
                stream.codec_context.skip_frame = "NONKEY"
            for packet in container.demux(stream):
                if packet.size:
                    packets += 1
                    discarded += packet.is_discard
                if stream.codec_context is not None and (packet.is_keyframe or not packet.size):
                    for frame in cast(list[av.VideoFrame], packet.decode()):
                        sizes[(frame.height, frame.width)] = None
    except av.FFmpegError as error:
        # Whether the file can be used is the decoder's to say; what was read until here still counts.
        logger.debug("%s: reading the container stopped: %s", path, error)
    return ContainerHeader(frames, counted, seconds, packets, discarded, tuple(sizes))


def announced(container: InputContainer, stream: VideoStream) -> tuple[float, bool, float]:
    """`frames`, `frames_counted` and `seconds` of a ContainerHeader."""
    # AVI counts ticks of its clock, which need not be frames
    counted = bool(stream.frames) and "mp4" in container.format.name
    seconds = _seconds(stream, container.duration)
    return float(stream.frames or seconds * float(stream.average_rate or 0)), counted, seconds


def _seconds(stream: Stream, container_duration: int | None) -> float:
    """The stream's duration; Matroska has it in a tag, `HH:MM:SS.fraction`, if at all."""
    if stream.duration and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip())
    if tag:
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    return container_duration / av.time_base if container_duration else 0.0


class BrokenFrameError(Exception):
    """The decoder could not make a whole frame."""


def decode_frames(path: str | Path) -> Iterator[NDArray[np.uint8]]:
    """The frames in presentation order, upright, RGB uint8 (height, width, 3): the pixels that decord gives, one at a
    time. Raises BrokenFrameError where a packet or a frame is damaged.
    """
    to_rgb = RgbConverter()
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            for frame in container.decode(stream) if stream is not None else ():
                picture = cast(av.VideoFrame, frame)
                if picture.is_corrupt:
                    raise BrokenFrameError("a frame is damaged")
                rows, (height, width) = to_rgb(picture)
                yield rows[:, : 3 * width].reshape(height, width, 3)
    except av.FFmpegError as error:
        raise BrokenFrameError(error.strerror) from error


class RgbConverter:
    """Turns decoded pictures into upright RGB, with decord's pixels.

    Odd sizes apart, at which the two may place subsampled colour a fraction of a pixel differently.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()  # keeps its tables from picture to picture

    def __call__(self, picture: av.VideoFrame) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Rows, uint8 (height, at least 3 * width), contiguous, and the upright size (height, width). What lies behind
        the width is padding.
        """
        # bicubic is what decord's filter takes; it matters where subsampled colour meets an odd size
        rgb = self._reformatter.reformat(picture, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        plane = rgb.planes[0]
        rows: NDArray[np.uint8] = np.frombuffer(memoryview(plane), np.uint8).reshape(rgb.height, plane.line_size)
        quarter_turns = round(picture.rotation / 90) % 4
        if not quarter_turns:
            return rows, (rgb.height, rgb.width)
        turned = np.rot90(rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3), quarter_turns)
        height, width = turned.shape[:2]
        return np.ascontiguousarray(turned).reshape(height, 3 * width), (height, width)
