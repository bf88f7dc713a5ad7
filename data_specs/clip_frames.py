"""How frames of a clip are read: those of `video.Video`, by index, as a view shows them.

The crop is made on the video's own frame, and interpolated once: a frame is not brought to the tracked size first. What
this module gives is where `View.to_view` says, the same picture as extraction saw.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from numpy.typing import NDArray

from data_specs.container import BrokenFrameError, RgbConverter
from data_specs.frame_access import FrameAccess, FrameCountError
from data_specs.frame_resampling import BoxResampler
from data_specs.geometry import tracked_size
from data_specs.video import (
    FrameSizeChangedError,
    VideoChangedError,
    VideoDecodeError,
    VideoError,
    VideoOpenError,
    check_file,
    check_whole,
)
from data_specs.view import View


class ClipFrames:
    """A video file, opened once for any number of clips; closes with `close` or at the end of a `with`.

    source_size: (height, width) of the upright frames in pixels, and num_frames, as the track store has them
    (`video/source_size`, `video/num_frames`). Without them, of a video that is in no store, both are found here, those
    that `Video` finds: they are attributes then. counted: the `num_frames` that the same file was found to have before,
    0 where it is not known; it spares a file whose packets do not tell it (AVI) being decoded to its end once more.
    short_side: as in the store's recipe; None leaves frames at their own size. file_bytes: size of the file that was
    extracted, 0 where it is not known. `frame_size` is the size of the tracked frame, in whose pixels views are given.

    Raises VideoOpenError here; while reading VideoDecodeError; and VideoChangedError, here or then, where the file is
    no longer the one that the store was extracted from. Without a store VideoDecodeError and VideoTruncatedError here,
    FrameSizeChangedError while reading. What is damaged elsewhere in the file does not show in frames that are whole.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        source_size: tuple[int, int] | None = None,
        num_frames: int | None = None,
        short_side: int | None = None,
        file_bytes: int = 0,
        counted: int = 0,
    ) -> None:
        if (source_size is None) != (num_frames is None):
            raise ValueError("source_size and num_frames are known together or not at all")
        self.path, self._in_store = Path(path), num_frames is not None
        check_file(path)
        if file_bytes and (size := self.path.stat().st_size) != file_bytes:
            raise VideoChangedError(
                path,
                f"the file has {size} bytes, the one that the track store was extracted from had {file_bytes}; extract "
                "the video again (extract-tracks --verify does), or bring the old file back",
            )
        try:
            self._access = FrameAccess(path, num_frames, counted)
        except (av.FFmpegError, BrokenFrameError) as error:
            reason = error.strerror if isinstance(error, av.FFmpegError) else str(error)
            raise VideoOpenError(path, f"cannot be opened as a video: {reason}") from error
        self._to_rgb = RgbConverter()
        self.num_frames = self._access.num_frames
        height, width = self._first_size() if source_size is None else source_size
        self.source_size = (int(height), int(width))
        self.frame_size = tracked_size(self.source_size, short_side) if short_side else self.source_size

    def __enter__(self) -> "ClipFrames":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and drop its packets."""
        self._access.close()

    def read(self, indices: Sequence[int], view: View) -> NDArray[np.uint8]:
        """The frames at `indices` in `view`, RGB uint8 (len(indices), *view.size, 3).

        An index is the frame's place in the video, 0 ... num_frames - 1, else IndexError; indices can repeat and come
        in any order. ValueError where the view reaches beyond the tracked frame.
        """
        return self.read_clips([(indices, view)])[0]

    def read_clips(
        self, clips: Sequence[tuple[Sequence[int], View]], out: Sequence[NDArray[np.uint8]] | None = None
    ) -> Sequence[NDArray[np.uint8]]:
        """As `read`, for several clips of the video at once: each frame is decoded once for all of them.

        out: arrays of the clips' shapes to write to; without it they are new.
        """
        places: dict[int, list[tuple[int, int]]] = {}  # of each frame: (clip, where in the clip)
        for clip, (indices, _) in enumerate(clips):
            for number, index in enumerate(indices):
                if not 0 <= index < self.num_frames:
                    raise IndexError(f"{self.path}: frame {index} of a video of {self.num_frames} frames")
                places.setdefault(int(index), []).append((clip, number))
        resamplers = [self._resampler(view) for _, view in clips]
        read = [np.empty((len(indices), *view.size, 3), np.uint8) for indices, view in clips] if out is None else out
        try:
            for index, picture in self._access.frames(places):
                rows, size = self._to_rgb(picture)
                self._check_size(size)
                drawn: dict[int, NDArray[np.uint8]] = {}
                for clip, number in places[index]:
                    if clip in drawn:
                        read[clip][number] = drawn[clip]
                    else:
                        drawn[clip] = read[clip][number]
                        resamplers[clip](rows, drawn[clip])
        except (BrokenFrameError, FrameCountError) as error:
            raise self._unreadable(error) from error
        return read

    def _first_size(self) -> tuple[int, int]:
        """Size of the upright first frame; the file is looked at as a whole too."""
        access = self._access
        if not self.num_frames:
            raise VideoOpenError(self.path, "holds no frame")
        packets = max(access.header.packets - access.header.discarded, 1)
        check_whole(self.path, access.header, self.num_frames, packets, lambda: access.begins)
        try:
            sizes = [self._to_rgb(picture)[1] for _, picture in access.frames([0])]
        except (BrokenFrameError, FrameCountError) as error:
            raise self._unreadable(error) from error
        return sizes[-1]

    def _unreadable(self, error: BrokenFrameError | FrameCountError) -> VideoError:
        if isinstance(error, BrokenFrameError):
            return VideoDecodeError(self.path, str(error))
        if not self._in_store:
            return VideoDecodeError(self.path, f"its packets are of {self.num_frames} frames, it gives {error.found}")
        return VideoChangedError(
            self.path,
            f"the file holds {error.found} frames, the track store was extracted from {self.num_frames}; "
            "extract the video again, or bring the old file back",
        )

    def _check_size(self, size: tuple[int, int]) -> None:
        if size == self.source_size:
            return
        found, first = (f"{height}x{width}" for height, width in (size, self.source_size))
        if not self._in_store:
            raise FrameSizeChangedError(self.path, f"a frame is {found} (height x width), the first one {first}")
        raise VideoChangedError(
            self.path,
            f"the file's frames are {found} (height x width), the track store was extracted from {first}; extract the "
            "video again, or bring the old file back",
        )

    def _resampler(self, view: View) -> BoxResampler:
        height, width = self.frame_size
        if view.top + view.height > height or view.left + view.width > width:
            raise ValueError(f"{self.path}: {view} reaches beyond the tracked frame of {height}x{width}")
        down, right = self.source_size[0] / height, self.source_size[1] / width
        box = (view.top * down, view.left * right, view.height * down, view.width * right)
        return BoxResampler(self.source_size, box, view.size, view.flip)
