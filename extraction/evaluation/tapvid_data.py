"""TAP-Vid's own pickle files: DAVIS, RGB-Stacking, Kinetics (`*_of_0010.pkl`) and RoboTAP.

A file is a dictionary (DAVIS, RoboTAP) or a list (RGB-Stacking, Kinetics) of videos; a video is a dictionary of

    video      T frames: uint8 (T, height, width, 3), or the bytes of T JPEG or PNG pictures
    points     (N, T, 2): x and y as shares of the frame's width and height
    occluded   bool (N, T)

TAP-Vid's coordinates are raster coordinates: (0, 0) is the top-left *corner* of the frame, (1, 1) its bottom-right one.
Pixel centres are at integers here, so that x = X * width - 0.5. The co-tracker package's loader takes X * (width - 1):
X - 0.5 px less, from half a pixel more at the left edge to half a pixel less at the right one, so that a point that is
followed exactly is found up to a pixel off where it crosses the frame. The official convention is the only one here.

TAP-Vid's script for the Kinetics files takes half a pixel of the source off before it divides. If the annotations were
raster coordinates before that, these files are 0.1 to 0.4 px of the 256 x 256 frame off. TAP-Vid's own reader leaves
that as it is, and so does this one.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_specs.video import Frame
from extraction.evaluation.annotated_video import AnnotatedVideo
from extraction.evaluation.array_pickles import load_arrays

_PUBLISHED = "TAP-Vid's files are at https://github.com/google-deepmind/tapnet/tree/main/tapnet/tapvid"
_LEAST_SIDE = 16
# Annotated points may be a little outside; pixels taken for shares are far outside.
_LEAST_SHARE, _LARGEST_SHARE = -0.5, 1.5


class TapVidDataError(ValueError):
    """A file that is not TAP-Vid's, or damaged; the message names the file, the video and what is wrong."""


def read_tapvid(file: Path) -> Iterator[AnnotatedVideo]:
    """The videos of a TAP-Vid file in its order, decoded one by one, at the size that they are kept at.

    Raises TapVidDataError, ArrayPickleError (nothing but arrays is unpickled) or OSError.
    """
    if not file.exists():
        raise TapVidDataError(f"{file}: no such file; {_PUBLISHED}")
    content = load_arrays(file)
    if isinstance(content, Mapping):
        videos = [(str(name), video) for name, video in content.items()]
    elif isinstance(content, (list, tuple)):
        videos = [(str(number), video) for number, video in enumerate(content)]
    else:
        raise TapVidDataError(f"{file}: holds a {type(content).__name__}, not a list or dictionary of videos")
    if not videos:
        raise TapVidDataError(f"{file}: holds no video; fetch it again. {_PUBLISHED}")
    for name, video in videos:
        yield _annotated(name, video, f"{file}: video {name}")


def _annotated(name: str, video: Any, where: str) -> AnnotatedVideo:
    missing = [key for key in ("video", "points", "occluded") if not isinstance(video, Mapping) or key not in video]
    if missing:
        raise TapVidDataError(f"{where}: has no {', '.join(missing)}; is the file one of TAP-Vid's? {_PUBLISHED}")
    frames = _frames(video["video"], where)
    points, occluded = video["points"], video["occluded"]
    if not isinstance(points, np.ndarray) or points.ndim != 3 or points.shape[2] != 2 or points.dtype.kind not in "fiu":
        raise TapVidDataError(f"{where}: points are {_described(points)}, must be numbers (N, T, 2)")
    if not isinstance(occluded, np.ndarray) or occluded.dtype.kind not in "biu":
        raise TapVidDataError(f"{where}: occluded is {_described(occluded)}, must be bool (N, T)")
    if not points.shape[:2] == occluded.shape == (len(points), len(frames)):
        raise TapVidDataError(
            f"{where}: {len(frames)} frames, points {points.shape} and occluded {occluded.shape} do not go together"
        )
    visible, shares = occluded == 0, points.astype(np.float64)
    seen = shares[visible]
    if not np.all((seen >= _LEAST_SHARE) & (seen <= _LARGEST_SHARE)):
        low, high = (np.min(seen), np.max(seen)) if np.all(np.isfinite(seen)) else (np.nan, np.nan)
        raise TapVidDataError(
            f"{where}: visible points from {low:g} to {high:g}; must be shares of the frame's width and height, 0 ... 1"
        )
    height, width = frames[0].shape[:2]
    return AnnotatedVideo(name, frames, shares * np.array([width, height]) - 0.5, visible)


def _frames(video: Any, where: str) -> list[Frame]:
    if not isinstance(video, (np.ndarray, list, tuple)) or getattr(video, "ndim", 1) == 0 or len(video) == 0:
        raise TapVidDataError(f"{where}: frames are {_described(video)}, must be uint8 (T, height, width, 3) or JPEGs")
    frames = [
        _decoded(frame, f"{where}, frame {t}") if isinstance(frame, bytes) else frame for t, frame in enumerate(video)
    ]
    for t, frame in enumerate(frames):
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise TapVidDataError(f"{where}, frame {t}: is {_described(frame)}, must be RGB uint8 (height, width, 3)")
        if frame.shape != frames[0].shape:
            raise TapVidDataError(f"{where}, frame {t}: is {frame.shape}, the first one is {frames[0].shape}")
    if min(frames[0].shape[:2]) < _LEAST_SIDE:
        raise TapVidDataError(f"{where}: frames of {frames[0].shape[:2]}; {_LEAST_SIDE} px is the least to track in")
    return frames


def _decoded(picture: bytes, where: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TapVidDataError(f"{where}: not a whole JPEG or PNG picture ({error}); fetch the file again") from error


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"a {type(value).__name__}"
