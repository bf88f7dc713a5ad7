"""What a video file says of itself, read with FFmpeg's own demuxer (PyAV), to hold the decoder's frames against.

decord scales every frame to the size of the first one and counts only the packets that are there; neither a change of
size nor a file that was cut off shows in its frames.
"""

import dataclasses
import logging
from pathlib import Path
from typing import cast

import av

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ContainerHeader:
    """What the container announces of its video stream; zeros where it announces nothing."""

    frames: float
    """Number of frames: the index's own count, else duration times average frame rate."""
    seconds: float
    """Duration of the stream, else of the whole file, sound included."""
    sizes: tuple[tuple[int, int], ...]
    """The sizes (height, width) of the key frames, in order of appearance, each once."""


def read_header(path: str | Path) -> ContainerHeader:
    """Read the header and decode the key frames, at which alone H.264, H.265 and MJPEG can change size."""
    frames = seconds = 0.0
    sizes: dict[tuple[int, int], None] = {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None or stream.time_base is None:
                return ContainerHeader(0, 0, ())
            if stream.duration:
                seconds = float(stream.duration * stream.time_base)
            elif container.duration:
                seconds = container.duration / av.time_base
            frames = float(stream.frames or seconds * float(stream.average_rate or 0))
            stream.codec_context.skip_frame = "NONKEY"
            for packet in container.demux(stream):
                if packet.is_keyframe or packet.dts is None:
                    for frame in cast(list[av.VideoFrame], packet.decode()):
                        sizes[(frame.height, frame.width)] = None
    except av.FFmpegError as error:
        # Whether the file can be used is the decoder's to say; what was read until here still counts.
        logger.debug("%s: reading the container stopped: %s", path, error)
    return ContainerHeader(frames, seconds, tuple(sizes))
