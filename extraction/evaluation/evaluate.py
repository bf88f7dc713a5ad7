"""Point trackers against true tracks: one video's figures, a table of many."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from extraction.evaluation.annotated_video import AnnotatedVideo, raster_scale, sample_queries
from extraction.evaluation.point_tracker import PointTracker
from extraction.evaluation.tapvid_metrics import THRESHOLDS, QueryMode, TapVidMetrics, mean_metrics, tapvid_metrics


@dataclasses.dataclass(frozen=True)
class VideoFigures:
    """A tracker's `metrics` on one video, and of how many queries (`points`). None: there was nothing to evaluate."""

    video: str
    points: int
    metrics: TapVidMetrics | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A row of the table: one tracker, one way of asking, several videos."""

    tracker: str
    mode: QueryMode
    videos: tuple[VideoFigures, ...]

    @property
    def counted(self) -> list[TapVidMetrics]:
        """The metrics of the videos that have any."""
        return [video.metrics for video in self.videos if video.metrics is not None]

    @property
    def points(self) -> int:
        """Queries in these videos."""
        return sum(video.points for video in self.videos if video.metrics is not None)

    def to_json(self) -> dict[str, Any]:
        """Shares within 0 ... 1: the mean over videos, and each video's own, null where nothing was to be evaluated."""
        return {
            "tracker": self.tracker,
            "queries": self.mode,
            "videos": len(self.counted),
            "points": self.points,
            "mean": mean_metrics(self.counted).named(),
            "by_video": [
                {"video": v.video, "points": v.points, "metrics": v.metrics and v.metrics.named()} for v in self.videos
            ],
        }


def evaluate_video(tracker: PointTracker, video: AnnotatedVideo, mode: QueryMode) -> VideoFigures:
    """Ask the tracker for the video's points, and measure in pixels of 256 x 256, whatever the frames' size."""
    queries = sample_queries(video.positions, video.visible, mode)
    if not len(queries.points):
        return VideoFigures(video.name, 0, None)
    positions, visible = tracker.track(video.frames, queries.points, both_ways=mode == "strided")
    scale = raster_scale(video.size)
    metrics = tapvid_metrics(
        queries.frames,
        video.positions[queries.tracks] * scale,
        video.visible[queries.tracks],
        positions * scale,
        np.asarray(visible, dtype=np.bool_),
        mode,
    )
    return VideoFigures(video.name, len(queries.points), metrics)


def table(evaluations: Sequence[Evaluation]) -> str:
    """A Markdown table in per cent, as papers print it; a row for each evaluation, the mean over its videos."""
    heads = ["tracker", "queries", "videos", "points", *(f"δ {x}" for x in THRESHOLDS), "δ avg", "OA", "AJ"]
    rows = []
    for evaluation in evaluations:
        mean = mean_metrics(evaluation.counted)
        shares = [*mean.within, mean.average_within, mean.occlusion_accuracy, mean.average_jaccard]
        rows.append(
            [evaluation.tracker, evaluation.mode, f"{len(evaluation.counted):,}", f"{evaluation.points:,}"]
            + [f"{100 * share:.1f}" for share in shares]
        )
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    sides = [str.ljust, str.ljust, *[str.rjust] * (len(heads) - 2)]
    return "".join(
        "| " + " | ".join(pad(cell, width) for pad, cell, width in zip(sides, line, widths, strict=True)) + " |\n"
        for line in lines
    )
