"""The multi-view test: a classifier's accuracy on whole videos, several clips and crops of each.

As VideoMAE's released code does it (`merge` and `compute_video` in engine_for_finetuning.py, which MME's fine-tuning
builds on): the softmax of each view's logits is averaged over a video's views, and the class of the largest mean is the
prediction. Averaging logits instead is another rule, and can give another class.
"""

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from data_specs.durable import replacing, write_file
from training.distributed import Group
from training.finetuning.confusion_figure import draw_confusion
from training.finetuning.video_outputs import MOST_VIEWS, TestingError, video_outputs
from training.task import Precision

TOP_K = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestResult:
    """What a test found for V videos and C classes; what could not be read counts neither as right nor as wrong."""

    __test__ = False  # for pytest: this is none of its classes

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    """(V,)"""
    probabilities: NDArray[np.float32]
    """(V, C), each video's mean over its views."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Id and reason of each video that could not be read; they are in none of the above."""
    views: int = 1
    """Views of each video: clips times crops."""

    @functools.cached_property
    def ranks(self) -> NDArray[np.int64]:
        """(V,), how many classes come before the true one, most probable first; of equal ones the first comes first."""
        own = np.take_along_axis(self.probabilities, self.labels[:, None], axis=1)
        before = np.arange(self.probabilities.shape[1]) < self.labels[:, None]
        ahead = (self.probabilities > own) | ((self.probabilities == own) & before)
        return np.asarray(ahead.sum(axis=1), dtype=np.int64)

    @functools.cached_property
    def predicted(self) -> NDArray[np.int64]:
        """(V,), the most probable class of each video."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def top1(self) -> float:
        """Share of the videos whose class is the most probable, 0…1."""
        return float((self.ranks < 1).mean())

    @property
    def top5(self) -> float:
        """Share of the videos whose class is among the five most probable (of all, where there are fewer), 0…1."""
        return float((self.ranks < TOP_K).mean())

    @functools.cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(C, C), the number of videos by true and predicted class."""
        classes = self.probabilities.shape[1]
        counts = np.bincount(self.labels * classes + self.predicted, minlength=classes * classes)
        return counts.reshape(classes, classes)

    @property
    def mean_class_accuracy(self) -> float:
        """The mean over the classes that have a video of the share of theirs that is right, 0…1."""
        of_class = self.confusion.sum(axis=1)
        right = np.diagonal(self.confusion)[of_class > 0]
        return float((right / of_class[of_class > 0]).mean())


def test(
    model: nn.Module,
    views: Iterable[Mapping[str, Any]],
    group: Group,
    precision: Precision = "fp32",
    *,
    most_views: int = MOST_VIEWS,
) -> TestResult:
    """Test a model on videos; every rank must call it, and gets the whole result.

    model: from frames as `normalise_frames` gives them, float32 (N, 3, T, H, W), to logits (N, C).
    views: this rank's videos, as for `video_outputs`. most_views: of one forward pass.

    Raises TestingError, on every rank, where no video could be read, a logit is not finite, or a label is no class.
    """
    found = video_outputs(model, _probabilities, views, group, precision, most_views)
    classes = found.values.shape[1]
    wrong = np.flatnonzero((found.labels < 0) | (found.labels >= classes))
    if len(wrong):
        raise TestingError(
            f"the model tells {classes} classes apart, and video {found.ids[wrong[0]]} has the label "
            f"{found.labels[wrong[0]]} ({len(wrong)} such videos); give the list that goes with the model"
        )
    return TestResult(
        ids=found.ids, labels=found.labels, probabilities=found.values, skipped=found.skipped, views=found.views
    )


test.__test__ = False  # type: ignore[attr-defined]  # for pytest: this is none of its functions


def _probabilities(logits: Tensor) -> Tensor:
    return logits.float().softmax(dim=-1)


def write_test(
    run: Path, result: TestResult, classes: Sequence[str], facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write what a test found into the folder `run`; each file is there whole or not at all. For one process.

    test.json        accuracies (shares, 0…1), counts, the videos that could not be read and why, then `facts`
    predictions.csv  a line for each video: id, true and predicted class, the probability of both, and `rank`, the place
                     of the true class, from 1
    probabilities.npy  float32 (V, C), in the order of predictions.csv
    confusion.csv    counts of videos, a row for each true class and a column for each predicted one
    confusion.png    the same as a picture

    classes: their names by number. facts: what else there is to say of the test, in values of JSON.
    Returns what is in test.json. Raises OSError where a file cannot be written, ValueError where names are too few.
    """
    if len(classes) != result.probabilities.shape[1]:
        raise ValueError(f"{len(classes)} names for {result.probabilities.shape[1]} classes")
    content: dict[str, Any] = {
        "top1": result.top1,
        "top5": result.top5,
        "mean_class_accuracy": result.mean_class_accuracy,
        "videos": len(result.ids),
        "classes": len(classes),
        "views": result.views,
        "skipped": [{"id": name, "reason": reason} for name, reason in result.skipped],
        **(facts or {}),
    }
    columns = ["id", "true", "predicted", "probability", "true_probability", "rank"]
    lines = [
        [name, classes[true], classes[predicted], f"{own[predicted]:.6f}", f"{own[true]:.6f}", rank + 1]
        for name, true, predicted, own, rank in zip(
            result.ids, result.labels, result.predicted, result.probabilities, result.ranks, strict=True
        )
    ]
    write_file(run / "predictions.csv", _csv([columns, *lines]))
    rows = [[name, *counts] for name, counts in zip(classes, result.confusion.tolist(), strict=True)]
    write_file(run / "confusion.csv", _csv([["true \\ predicted", *classes], *rows]))
    with replacing(run / "probabilities.npy") as temporary, temporary.open("wb") as file:
        np.save(file, result.probabilities, allow_pickle=False)
    draw_confusion(run / "confusion.png", result.confusion, classes)
    # last, so that where it is, the others are
    write_file(run / "test.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return content


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
