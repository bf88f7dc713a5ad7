"""TAP-Vid's metrics (Doersch et al., TAP-Vid: A Benchmark for Tracking Any Point in a Video, NeurIPS 2022).

With thresholds of 1, 2, 4, 8 and 16 px of a 256 x 256 frame, over a video's evaluated points and frames:

    delta^x    share of the truly visible points that are predicted less than x px off, seen or not
    OA         share of the points whose predicted visibility is the true one
    Jaccard^x  true positives / (true positives + false positives + false negatives). A true positive is visible,
               predicted visible, and less than x px off; a false positive is predicted visible, and hidden or x px off
               or more; a false negative is visible, and predicted hidden or x px off or more
    delta_avg, AJ  the means of delta^x and Jaccard^x over the thresholds

A point's query frame is not evaluated; with queries `first` neither are the frames before it. A data set's figures are
the means of its videos' figures, each video counting once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

QueryMode = Literal["first", "strided"]

THRESHOLDS = (1, 2, 4, 8, 16)
"""Pixels of a 256 x 256 frame."""
RASTER = 256
"""Side of the frame in whose pixels distances are measured, whatever the size that was tracked."""


@dataclasses.dataclass(frozen=True)
class TapVidMetrics:
    """Shares within 0 ... 1. `within` (delta) and `jaccard` have one value for each of `THRESHOLDS`."""

    within: tuple[float, ...]
    occlusion_accuracy: float
    jaccard: tuple[float, ...]

    @property
    def average_within(self) -> float:
        """delta_avg."""
        return sum(self.within) / len(self.within)

    @property
    def average_jaccard(self) -> float:
        """AJ."""
        return sum(self.jaccard) / len(self.jaccard)

    def named(self) -> dict[str, float]:
        """Every figure by the name that TAP-Vid's own code gives it."""
        return {
            **{f"pts_within_{x}": value for x, value in zip(THRESHOLDS, self.within, strict=True)},
            "average_pts_within_thresh": self.average_within,
            "occlusion_accuracy": self.occlusion_accuracy,
            **{f"jaccard_{x}": value for x, value in zip(THRESHOLDS, self.jaccard, strict=True)},
            "average_jaccard": self.average_jaccard,
        }


def evaluated_frames(query_frames: NDArray[np.integer], num_frames: int, mode: QueryMode) -> NDArray[np.bool_]:
    """Which frames of each query count, bool (N, T): all but its own, and with `first` only those after it.

    query_frames: (N,), each within 0 ... num_frames - 1; else ValueError.
    """
    if mode not in ("first", "strided"):
        raise ValueError(f"query mode {mode!r}: must be first or strided")
    if np.any((query_frames < 0) | (query_frames >= num_frames)):
        raise ValueError(f"query frames must be within 0 ... {num_frames - 1}")
    frames = np.arange(num_frames)
    own = query_frames[:, None]
    return np.asarray(frames > own if mode == "first" else frames != own)


def tapvid_metrics(
    query_frames: NDArray[np.integer],
    true_positions: NDArray[np.floating],
    true_visible: NDArray[np.bool_],
    positions: NDArray[np.floating],
    visible: NDArray[np.bool_],
    mode: QueryMode,
) -> TapVidMetrics | None:
    """One video's metrics, or None where no point is visible in an evaluated frame: delta is of nothing then.

    query_frames: int (N,). true_positions, positions: (N, T, 2), x and y in pixels of a 256 x 256 frame; what is not
    finite is nowhere near. true_visible, visible: bool (N, T). Raises ValueError where the shapes do not go together.

    OA is over this video's own evaluated points. The function of TAP-Vid's that the co-tracker package carries takes a
    batch of videos and divides each one's hits by the points of all: the two agree for the batches of one that it is
    called with.
    """
    shape = true_visible.shape
    if not (
        len(shape) == 2
        and query_frames.shape == shape[:1]
        and visible.shape == shape
        and true_positions.shape == positions.shape == (*shape, 2)
    ):
        raise ValueError(
            f"query frames {query_frames.shape}, positions {true_positions.shape} and {positions.shape}, visibility "
            f"{shape} and {visible.shape}: must be (N,), (N, T, 2) twice and (N, T) twice"
        )
    counted = evaluated_frames(query_frames, shape[1], mode)
    true_points = np.count_nonzero(true_visible & counted)
    if true_points == 0:
        return None
    with np.errstate(invalid="ignore"):  # inf - inf
        squared = np.sum((positions.astype(np.float64) - true_positions) ** 2, axis=-1)
    within, jaccard = [], []
    for threshold in THRESHOLDS:
        near = squared < threshold**2  # strictly, as TAP-Vid has it; NaN is not
        correct = near & true_visible & counted
        true_positives = np.count_nonzero(correct & visible)
        false_positives = np.count_nonzero(visible & counted & ~correct)
        within.append(np.count_nonzero(correct) / true_points)
        # true positives and false negatives together are the truly visible points
        jaccard.append(true_positives / (true_points + false_positives))
    agreed = np.count_nonzero((visible == true_visible) & counted)
    return TapVidMetrics(tuple(within), agreed / np.count_nonzero(counted), tuple(jaccard))


def mean_metrics(videos: Sequence[TapVidMetrics]) -> TapVidMetrics:
    """The mean over one video or more, each counting once, however many points it has."""
    if not videos:
        raise ValueError("the mean over no video")
    count = len(videos)
    return TapVidMetrics(
        tuple(sum(values) / count for values in zip(*(video.within for video in videos), strict=True)),
        sum(video.occlusion_accuracy for video in videos) / count,
        tuple(sum(values) / count for values in zip(*(video.jaccard for video in videos), strict=True)),
    )
