"""One video's frames in, its encoded start rows out. Knows nothing of Ray, and of no file.

Memory is bounded by the frames between a trajectory's first and last step, however long the video is.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from data_specs.encoding import encode_flow, encode_histograms, encode_positions, within_reach
from data_specs.geometry import grid_points, inside_frame
from data_specs.recipe import Recipe
from data_specs.schema import HOG_BINS
from data_specs.video import Frame
from extraction.cuts import ShotFrames
from extraction.flow_descriptors import nothing_measured
from extraction.hog import GradientMap, gradient_map, window_histograms
from extraction.motion.cotracker3.weights import Weights
from extraction.motion.flow_tracker import FlowTracker
from extraction.motion.gpu.device import BATCH, open_device
from extraction.motion.tracker import RowTracks, Tracker
from extraction.stages import Stage

EncodedRow = dict[str, NDArray[np.generic]]
"""One start row: the arrays of `schema.STREAMED` by name, (1, ...) for a start array, (N, ...) for a point array."""


def make_tracker(recipe: Recipe, stage: Stage, device: str = "cpu", weights: Weights | None = None) -> Tracker:
    """A tracker for one video. device: `cuda` and `cuda:N` measure the motion there, in batches.

    weights: of a tracker that is a network; they are read once in a process.
    """
    # torch takes seconds to import
    if recipe.tracker == "cotracker3":
        from extraction.motion.cotracker3.package import open_network  # noqa: PLC0415
        from extraction.motion.cotracker3.window_tracker import WindowTracker  # noqa: PLC0415

        if weights is None:
            raise ValueError(f"recipe {recipe.name}: tracker {recipe.tracker} needs weights")
        network = open_network(weights, device, recipe.refinements, recipe.precision, recipe.compiled)
        return WindowTracker(recipe, network, stage)
    if device == "cpu":
        return FlowTracker(recipe, stage)
    from extraction.motion.gpu.two_pass import TwoPass  # noqa: PLC0415

    measure = TwoPass(recipe, open_device(device)).pair_motions
    return FlowTracker(recipe, stage, batch=BATCH, measure_pairs=measure)


def process_video(
    frames: ShotFrames, recipe: Recipe, stage: Stage, device: str = "cpu", weights: Weights | None = None
) -> Iterator[EncodedRow]:
    """Yield the start rows of a video in order, encoded as the store keeps them.

    frames: all frames of the video at the tracked size, RGB uint8 (H, W, 3), taken one by one, and where a shot begins.
    recipe: with its start stride resolved. device, weights: see `make_tracker`.
    """
    yield from encode_rows(frames, make_tracker(recipe, stage, device, weights), recipe, stage)


def encode_rows(
    frames: Iterable[tuple[Frame, bool]], tracker: Tracker, recipe: Recipe, stage: Stage
) -> Iterator[EncodedRow]:
    """Yield the start rows that `tracker`, a new one, finds in a video, encoded as the store keeps them.

    frames: all frames of the video in order, RGB uint8 (H, W, 3), each with whether a shot begins with it.
    Raises ValueError, naming what, the point, the step and the frame, for a row that the recipe's store cannot hold.
    """
    window = _GradientWindow(recipe, tracker.lookback)
    for frame, begins_shot in frames:
        window.push(frame)
        for row in tracker.push(frame, begins_shot):
            yield _encode(row, window, recipe, stage)
    for row in tracker.finish():
        yield _encode(row, window, recipe, stage)


def _encode(row: RowTracks, window: "_GradientWindow", recipe: Recipe, stage: Stage) -> EncodedRow:
    is_tracked = recipe.tracker != "flow"
    if is_tracked:
        _check_estimates(row, recipe, window.frame_size)
        positions, reached = within_reach(row.positions)
        row = dataclasses.replace(row, positions=positions, valid=row.valid & reached)
    encoded: EncodedRow = {
        "start/frame": np.array([row.start], dtype=np.int32),
        "camera/homography": row.homographies[None].astype(np.float32),
        "camera/estimated": row.estimated[None].astype(np.uint8),
    }
    with stage("encode"):
        encoded["displacement"] = encode_positions(row.positions)
        encoded["valid"] = row.valid.astype(np.uint8)
        if is_tracked:
            encoded |= {name: values.astype(np.float16) for name, values in _estimates(row).items()}
    if recipe.hog:
        with stage("hog"):
            hog = window.histograms(row)
        with stage("encode"):
            encoded["hog"], scale = encode_histograms(hog)
        encoded["start/hog_scale"] = np.array([scale], dtype=np.float32)
    if recipe.descriptors:
        with stage("encode"):
            encoded |= _encode_descriptors(row, recipe)
    return encoded


def _estimates(row: RowTracks) -> dict[str, NDArray[np.float32]]:
    """What a tracker says of its positions, (N, L + 1) each; empty where it says nothing."""
    found = {"visibility": row.visibility, "confidence": row.confidence}
    return {name: values for name, values in found.items() if values is not None}


def _check_estimates(row: RowTracks, recipe: Recipe, frame_size: tuple[int, int]) -> None:
    """Raise ValueError for what the arrays of a tracker cannot hold."""
    where, estimates = f"tracker {recipe.tracker}, row at frame {row.start}", _estimates(row)
    if missing := [name for name in ("visibility", "confidence") if name not in estimates]:
        raise ValueError(f"{where}: gave no {' and no '.join(missing)}")
    checks: list[tuple[str, NDArray[np.floating], str, NDArray[np.bool_]]] = [
        ("position", row.positions, "finite", np.asarray(np.isfinite(row.positions).all(axis=-1))),
        *((name, values, "0 to 1", np.asarray((values >= 0) & (values <= 1))) for name, values in estimates.items()),
    ]
    for name, values, must, good in checks:
        if not good.all():
            point, k = (int(i) for i in np.argwhere(~good)[0])
            raise ValueError(
                f"{where}: the {name} of point {point} at step {k}, in frame {row.start + k * recipe.frame_step}, is "
                f"{values[point, k].tolist()}, must be {must}; {np.count_nonzero(~good)} of {good.size} are not"
            )
    grid = grid_points(frame_size, recipe.grid_stride)
    if not np.array_equal(row.positions[:, 0], grid):  # the store has steps alone, which begin there
        raise ValueError(f"{where}: its points do not begin at the grid's, {grid[0].tolist()} ... {grid[-1].tolist()}")


def _encode_descriptors(row: RowTracks, recipe: Recipe) -> EncodedRow:
    found = row.descriptors or nothing_measured(len(row.positions), recipe.descriptors)
    encoded: EncodedRow = {"cell_measured": found.measured.astype(np.uint8)}
    if found.flow is not None:
        encoded["flow"] = encode_flow(found.flow)
    for name, histograms in [("hof", found.hof), ("mbh", found.mbh)]:
        if histograms is not None:
            encoded[name], scale = encode_histograms(histograms)
            encoded[f"start/{name}_scale"] = np.array([scale], dtype=np.float32)
    return encoded


class _GradientWindow:
    """The last frames of the video and their gradients, which are computed when a row first asks for them."""

    def __init__(self, recipe: Recipe, lookback: int) -> None:
        self._recipe, self._lookback = recipe, lookback
        self._frames: dict[int, Frame] = {}
        self._gradients: dict[int, GradientMap] = {}
        self._count = 0
        self.frame_size = (0, 0)

    def push(self, frame: Frame) -> None:
        self.frame_size = (frame.shape[0], frame.shape[1])
        if not self._recipe.hog:
            return
        self._frames[self._count] = frame
        gone = self._count - self._lookback - 1
        self._frames.pop(gone, None)
        self._gradients.pop(gone, None)
        self._count += 1

    def histograms(self, row: RowTracks) -> NDArray[np.float32]:
        """HOG at steps 0 ... L - 1, float32 (N, L, 9 C); zeros where it is not measured.

        Along flow it is where the point is valid; elsewhere its position means nothing. A tracker estimates one
        always: it is measured wherever that is inside the frame. Past the end of a video that is kept short there is no
        frame to measure it in.
        """
        length, channels = self._recipe.length, self._recipe.hog_channels
        hog = np.empty((len(row.positions), length, HOG_BINS * channels), dtype=np.float32)
        for k in range(length):
            index = row.start + k * self._recipe.frame_step
            if self._recipe.keep_short and index >= self._count:
                hog[:, k:] = 0
                break
            if index not in self._gradients:
                self._gradients[index] = gradient_map(self._frames[index], channels)
            points, measured = row.positions[:, k], row.valid[:, k]
            if self._recipe.tracker != "flow":
                measured = inside_frame(points, self.frame_size)
            hog[:, k] = window_histograms(self._gradients[index], points, measured, self._recipe.hog_window)
        return hog
