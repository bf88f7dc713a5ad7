"""How a video becomes frames: the one place where extraction and training learn which frames it has, and their size.

Decided here, once:

- *Decoder.* decord (the `decord2` package), in RGB. Frame i is the i-th frame in presentation order. decord decodes
  ahead without a bound, so a video whose frames would not fit into half a gigabyte is read through PyAV instead, which
  gives the same pixels one frame at a time (odd sizes apart, at which the two interpolate subsampled colour
  differently).
- *Rotation.* Frames are turned upright by the container's rotation metadata; sizes are those of the upright frame.
- *Variable frame rate.* Time is counted in frames, never in seconds: timestamps play no part in which frames there
  are. `fps` is the container's average and is only recorded.
- *Size.* The short side becomes `short_side` (area averaging, half-pixel rule); smaller videos are left as they are,
  odd sizes too. Both axes are rounded on their own, see `geometry.tracked_size`.
- *Number of frames.* As many as can be decoded from start to end; frames that an edit list leaves out are not part of
  the video. A file that stops early or has holes is an error, not a shorter video (.mp4 and .mov count their frames;
  other containers know their duration, and of those a tenth must be missing to be noticed). So is one in which the
  decoder puts a neighbour in the place of a broken frame.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_specs.container import BrokenFrameError, ContainerHeader, decode_frames, read_header
from data_specs.cpu_decord import decord
from data_specs.geometry import tracked_size
from data_specs.untrusted_files import open_regular

logger = logging.getLogger(__name__)

Frame = NDArray[np.uint8]
"""RGB, uint8 (height, width, 3)."""

# The least count that decord takes for a limit and not for "no limit": any recovered frame is an error.
_NO_RECOVERED_FRAMES = 1e-9
# A file that holds less than this share of what its container's duration announces has been cut off. Some containers
# only know their longest stream, so sound that runs on for a little must not look like missing frames.
_WHOLE = 0.9
# A count in the index is exact but for a frame or two that the encoder packed with another or left empty.
_MISCOUNTED_FRAMES, _MISCOUNTED = 2, 0.01

# Up to this much decord may hold: all of the video's frames, as RGB and as YUV 4:2:0.
_MOST_AHEAD_BYTES = 512 << 20
_BYTES_AHEAD_PER_PIXEL = 4.5

_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")
"""How files begin from which FFmpeg goes on to others, wherever those lie: HLS, its own concat, DASH and IMF."""

_DECORD_ERRORS = (decord.DECORDError, decord.DECORDLimitReachedError)

decord.logging.set_level(decord.logging.QUIET)


class VideoError(Exception):
    """A video that cannot be used. `reason` says why, without the path, so that it is the same wherever it lies."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class VideoOpenError(VideoError):
    """Not there, not readable, or not a video."""


class VideoDecodeError(VideoError):
    """The decoder failed on a frame, or replaced one by its neighbour."""


class VideoTruncatedError(VideoError):
    """Fewer frames than the container announces."""


class FrameSizeChangedError(VideoError):
    """The frames do not all have one size."""


class VideoTooShortError(VideoError):
    """Fewer frames than one trajectory needs."""


class FrameTooSmallError(VideoError):
    """Frames smaller than one cell of the trajectory grid, or than flow can be measured on."""


class VideoChangedError(VideoError):
    """Another number of frames, or another size, than when its trajectories were extracted."""


def check_file(path: str | Path) -> None:
    """Raise VideoOpenError where there is no file, one that is no regular file, empty, or only names other files."""
    try:
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:  # a pipe would be waited for
            begin = file.read(16)
    except OSError as error:
        raise VideoOpenError(path, (error.strerror or "cannot be read").lower()) from error
    if not begin:
        raise VideoOpenError(path, "the file is empty")
    if begin.startswith(_PLAYLISTS):
        raise VideoOpenError(path, "is a playlist, which names other files, not a video")


class Video:
    """A video file, opened; iterate over it once for its frames at the tracked size.

    short_side: as in the recipe; None leaves the frames at their own size.
    Attributes: `source_size` and `frame_size` as (height, width) in pixels; `fps`, the container's average, 0
    where it has none; `announced_frames`, how many frames the file's packets should make; `decoded_frames`, how many
    have been taken so far.

    Raises VideoOpenError, VideoDecodeError or FrameSizeChangedError here; VideoDecodeError, VideoTruncatedError or
    FrameSizeChangedError while iterating.
    """

    def __init__(self, path: str | Path, short_side: int | None) -> None:
        self.path = Path(path)
        check_file(path)
        try:
            self._reader = decord.VideoReader(str(path), num_threads=1, fault_tol=_NO_RECOVERED_FRAMES)
        except (*_DECORD_ERRORS, RuntimeError, AssertionError) as error:
            raise VideoOpenError(path, f"cannot be opened as a video: {_decord_reason(error)}") from error
        fps = float(self._reader.get_avg_fps())
        self.fps = fps if np.isfinite(fps) and fps > 0 else 0.0
        self.announced_frames = len(self._reader)
        self._header = read_header(path)
        self._frames = self._choose_decoder()
        first = next(self._frames, None)
        if first is None:
            raise VideoOpenError(path, "holds no frame")
        self._first: Frame | None = first
        self.decoded_frames = 0
        self.source_size = (first.shape[0], first.shape[1])
        self.frame_size = tracked_size(self.source_size, short_side) if short_side else self.source_size

    def __iter__(self) -> Iterator[Frame]:
        """The frames from first to last, RGB uint8 (*frame_size, 3); decoded one at a time, in bounded memory."""
        if self._first is None:
            raise RuntimeError(f"{self.path}: a Video is read once; open it again")
        frames, self._first = chain([self._first], self._frames), None
        for frame in frames:
            if frame.shape[:2] != self.source_size:
                raise FrameSizeChangedError(
                    self.path, f"frame {self.decoded_frames} is {frame.shape[:2]}, the first one {self.source_size}"
                )
            self.decoded_frames += 1
            yield self._resized(frame)
        self._check_whole()

    def _choose_decoder(self) -> Iterator[Frame]:
        header = self._header
        if len(header.sizes) > 1:
            sizes = " and ".join(f"{height}x{width}" for height, width in header.sizes)
            raise FrameSizeChangedError(self.path, f"its frames change size midway: {sizes}")
        pixels = max((height * width for height, width in header.sizes), default=0)
        fits = 0 < pixels * self.announced_frames * _BYTES_AHEAD_PER_PIXEL <= _MOST_AHEAD_BYTES
        # decord puts neighbours in the places of frames that an edit list leaves out
        if fits and not header.discarded:
            return self._from_decord()
        self.announced_frames = max(header.packets - header.discarded, 1)
        return self._from_pyav()

    def _from_decord(self) -> Iterator[Frame]:
        while True:
            try:
                yield _rgb(self._reader.next(), self.path)
            except StopIteration:
                return
            except _DECORD_ERRORS as error:
                # Not the frame's number: the decoder runs ahead on a thread of its own, and by how much varies.
                raise VideoDecodeError(self.path, _decord_reason(error)) from error

    def _from_pyav(self) -> Iterator[Frame]:
        try:
            yield from decode_frames(self.path)
        except BrokenFrameError as error:
            raise VideoDecodeError(self.path, str(error)) from error

    def _resized(self, frame: Frame) -> Frame:
        if self.frame_size == self.source_size:
            return frame
        return np.asarray(cv2.resize(frame, self.frame_size[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def _check_whole(self) -> None:
        check_whole(self.path, self._header, self.decoded_frames, self.announced_frames, self._begins)

    def _begins(self) -> NDArray[np.float64]:
        return np.asarray(self._reader.get_frame_timestamp(range(len(self._reader))), dtype=np.float64)[:, 0]


def check_whole(
    path: str | Path,
    header: ContainerHeader,
    decoded: int,
    packets: int,
    begins: Callable[[], NDArray[np.float64]],
) -> None:
    """Raise VideoTruncatedError where the container announces more frames than the `decoded`.

    packets: how many frames the packets that are there should make. begins: their times in seconds, ascending.
    The packets alone do not tell: a file that was cut off looks like a shorter one by them; the container's own count
    or duration does not. A count may be a little off. A duration says less: variable frame rates make frames by
    duration too many, so time must be missing as well, at the end or as a hole.
    """
    announced = header.frames - header.discarded
    if header.frames_counted:
        truncated = decoded < announced - max(_MISCOUNTED_FRAMES, _MISCOUNTED * announced)
    elif decoded < _WHOLE * announced:
        times = begins()
        gaps = np.diff(times)
        usual_gap = float(np.median(gaps)) if len(gaps) else 0.0
        covered = times[-1] + usual_gap - times[0] if len(times) else 0.0
        hole = max((1 - _WHOLE) * header.seconds, 4 * usual_gap)
        truncated = covered < _WHOLE * header.seconds or bool((gaps > hole).any())
    else:
        truncated = False
    if truncated or decoded < _WHOLE * packets:
        raise VideoTruncatedError(
            path,
            f"the container announces {'' if header.frames_counted else 'about '}{announced:.0f} frames "
            f"({header.seconds:.1f} s), {decoded} could be decoded",
        )


def _rgb(array: "decord.ndarray.NDArray", path: str | Path) -> Frame:
    """decord's frame as uint8 (height, width, 3).

    For widths of 16, 32, 48, 96 and 144 decord 3.4 hands out its padded rows as if they were pixels of more than three
    channels; the true rows are the beginnings of those.
    """
    frame: Frame = array.asnumpy()
    height, width, channels = frame.shape
    if channels == 3:
        return frame
    if channels < 3:
        raise VideoDecodeError(path, f"the decoder gave {channels} channel(s) in place of RGB")
    return np.ascontiguousarray(frame.reshape(height, width * channels)[:, : width * 3]).reshape(height, width, 3)


def _decord_reason(error: BaseException) -> str:
    """The last cause in decord's message, without time stamps, paths and C++ positions: the same in every run."""
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "Error reading" in message:
        return "not a video file, or cut off before its index"
    causes = re.split(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: ", message)
    return re.sub(r"\[/[^\]]*\]\s*", "", causes[-1]).strip()
