"""Draws a store's trajectories over the video that they came from, to be looked at.

Left: positions in the image. Right: the same points moved by their camera-compensated displacements, which is what a
model is asked for; a still scene stays still there, whatever the camera does, where that was estimated. Colour runs
from blue at a trajectory's first step to yellow at its last; where it was lost there is a grey dot, and a tracker's
point that comes back goes on from where it does.
"""

import logging
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from data_specs.drawing import SUBPIXEL_BITS, draw_label, draw_trajectories, fixed_point
from data_specs.recipe import Recipe
from data_specs.track_store import StoreError, TrackRow, TrackShard
from data_specs.video import Frame, Video

logger = logging.getLogger(__name__)

_PANEL_WIDTH = {".png": 640, ".mp4": 640, ".gif": 320}  # a GIF has no prediction between frames
FORMATS = tuple(_PANEL_WIDTH)
_MOST_ENLARGED = 4
_LOST = (128, 128, 128)


def render(shard: TrackShard, video: int, file: Path, out: Path, start_frame: int | None = None) -> str:
    """Draw video number `video` of a shard, decoded from `file`, to `out` (.mp4, .gif or .png).

    A picture shows one start row, that of `start_frame` or one that moves more than most; for a film see
    `film_frames`. Returns a line that says what was drawn.
    Raises StoreError where the file's frames are not those that were tracked, ValueError for an unknown format.
    """
    if out.suffix not in FORMATS:
        raise ValueError(f"--out {out}: must end in one of {', '.join(FORMATS)}")
    meta = shard.metas[video]
    source = Video(file, shard.recipe.short_side)
    if source.frame_size != meta.frame_size:
        raise StoreError(f"{file}: frames are {source.frame_size}, those in the store are {meta.frame_size}")
    if source.announced_frames < meta.num_frames:
        raise StoreError(f"{file}: has {source.announced_frames} frames, the video in the store has {meta.num_frames}")
    rows = [shard.read_row(video, number, hog=False) for number in shard.rows(video)]
    if out.suffix == ".png":
        row = _choose(rows, start_frame)
        frame = next(frame for t, frame in enumerate(source) if t == row.frame)
        out.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(
            str(out),
            cv2.cvtColor(draw_row(frame, row, panel_width=_PANEL_WIDTH[out.suffix]), cv2.COLOR_RGB2BGR),
        ):
            raise OSError(f"{out}: cannot be written")
        return f"{out}: start row at frame {row.frame} of {meta.path}"
    out.parent.mkdir(parents=True, exist_ok=True)
    count = _write_film(film_frames(source, rows, shard.recipe, _PANEL_WIDTH[out.suffix]), out, meta.fps)
    return f"{out}: {count} frames of {meta.path}, {len(rows)} start rows"


def draw_row(frame: Frame, row: TrackRow, steps: int | None = None, panel_width: int = 640) -> Frame:
    """The two panels side by side, RGB: the first `steps` steps of the row's trajectories over `frame`.

    Each panel is enlarged by a whole number, to about `panel_width` pixels.
    """
    scale = int(np.clip(round(panel_width / frame.shape[1]), 1, _MOST_ENLARGED))
    steps = row.displacements.shape[1] if steps is None else steps
    start = row.positions[:, :1]
    compensated = np.concatenate([start, start + np.cumsum(row.compensated, axis=1)], axis=1)
    is_known = row.estimated.any() or row.positions_in == "stabilised"
    panels = []
    for positions, title in [
        (row.positions, "image"),
        (compensated, "without the camera" if is_known else "camera not estimated"),
    ]:
        panel = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        panel = np.ascontiguousarray((panel * 0.7).astype(np.uint8))
        _draw_tracks(panel, (positions + 0.5) * scale - 0.5, row.valid, steps)
        draw_label(panel, f"{title}, from frame {row.frame}")
        panels.append(panel)
    return np.concatenate(panels, axis=1)


def _draw_tracks(panel: Frame, positions: NDArray[np.float64], valid: NDArray[np.bool_], steps: int) -> None:
    begun = np.arange(positions.shape[1] - 1) < steps
    draw_trajectories(panel, positions, valid[:, :-1] & valid[:, 1:] & begun)
    lost = positions[:, :-1][valid[:, :-1] & ~valid[:, 1:] & begun]
    for point in fixed_point(lost, panel.shape[:2]):
        cv2.circle(panel, point, 1 << SUBPIXEL_BITS, _LOST, -1, cv2.LINE_AA, SUBPIXEL_BITS)


def _choose(rows: list[TrackRow], start_frame: int | None) -> TrackRow:
    if start_frame is None:
        # livelier than three in four; the liveliest is often a cut, where there is nothing to see
        liveliness = [float(np.abs(r.compensated[r.step_valid]).mean()) if r.step_valid.any() else 0.0 for r in rows]
        return rows[int(np.argsort(liveliness, kind="stable")[(len(rows) - 1) * 3 // 4])]
    chosen = [row for row in rows if row.frame == start_frame]
    if not chosen:
        frames = [row.frame for row in rows]
        raise ValueError(f"--frame {start_frame}: no start row begins there; they begin at {frames}")
    return chosen[0]


def film_frames(frames: Iterable[Frame], rows: list[TrackRow], recipe: Recipe, panel_width: int) -> Iterator[Frame]:
    """Every frame with the row that began last, as far as it has come; see `draw_row`.

    Where a row begins before the one before it has made a step, there would be nothing to see: each row that is shown
    is then shown to its end, and those that begin meanwhile are not.
    """
    frame_step, start_stride = recipe.frame_step, recipe.start_stride or 1
    every = 1 if start_stride > frame_step else recipe.span // start_stride + 1
    pending = list(reversed(rows[::every]))
    row = pending[-1]
    for t, frame in enumerate(frames):
        while pending and pending[-1].frame <= t:
            row = pending.pop()
        steps = min((t - row.frame) // frame_step, row.displacements.shape[1])
        yield draw_row(frame, row, steps, panel_width)


def _write_film(frames: Iterator[Frame], out: Path, fps: float) -> int:
    first = next(frames)
    height, width = (side - side % 2 for side in first.shape[:2])
    codec, pixels = ("gif", "rgb8") if out.suffix == ".gif" else ("libx264", "yuv420p")
    count = 0
    with av.open(str(out), "w") as container:
        rate = Fraction(fps or 25).limit_denominator(1000)
        stream = cast(av.VideoStream, container.add_stream(codec, rate=rate))
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for frame in chain([first], frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
            count += 1
        container.mux(stream.encode())
    return count
