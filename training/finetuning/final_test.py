"""The test at the end of fine-tuning or probing, or on its own, and all that its figures follow from."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonargparse

from data_specs.interrupts import EXIT_INTERRUPTED, Interrupts
from training.checkpoint import checkpoint_path
from training.command import EXIT_DONE, surroundings, workers_of
from training.distributed import Group, barrier
from training.finetuning.assembly import Built, labels_digest, test_views
from training.finetuning.recipe import FinetuneRecipe
from training.finetuning.testing import write_test
from training.finetuning.video_outputs import TestingError
from training.finetuning.views import VideoViews
from training.interrupts import start_server
from training.step import StoppedError
from training.task import Precision

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinalTest:
    """What is tested, and on what."""

    command: str
    built: Built
    recipe: FinetuneRecipe
    views: VideoViews
    precision: Precision


def run_test(given: FinalTest, options: jsonargparse.Namespace, group: Group, *, step: int | None) -> int:
    """Test the model and write what is found to the run's folder; returns the exit status, 75 after a signal.

    step: of the run's checkpoint that the model is; None for a model of --init. Every rank calls it. Raises
    StoppedError where nothing can be tested, OSError.
    """
    workers = workers_of(options)
    try:
        with leaving_at_a_signal(workers):
            if group.is_main:
                views = given.views.clips * given.views.crops
                logger.info("testing on %d videos, %d views of each", len(given.views), views)
            result = test_views(given.built.model, given.views, group, given.precision, workers=workers)
    except TestingError as error:
        raise StoppedError(f"the test: {error}") from error
    except LeaveError:
        again = "" if options.test_only else " with --resume"
        logger.info("interrupted in the test, which keeps nothing: the same command%s begins it again", again)
        return EXIT_INTERRUPTED
    if group.is_main:
        facts = {
            "command": given.command,
            "checkpoint": None if step is None else str(checkpoint_path(options.out, step)),
            "step": step,
            **test_facts(given.built, given.recipe, given.views, given.precision, options, group),
        }
        logger.info("%s", said(write_test(options.out, result, given.built.model.config.classes, facts)))
    barrier()  # a rank that ended early would be taken for a failure, and the others killed
    return EXIT_DONE


def test_facts(
    built: Built,
    recipe: FinetuneRecipe,
    views: VideoViews,
    precision: Precision,
    options: jsonargparse.Namespace,
    group: Group,
) -> dict[str, Any]:
    """What a test's figures follow from, beside what was found."""
    config = {name: value for name, value in built.model.config.to_json().items() if name != "classes"}
    videos = views.labelled.videos
    return {
        "origin": built.origin,
        "recipe": recipe.to_json(),
        "model": {**config, "parameters": sum(p.numel() for p in built.model.parameters())},
        "test_videos": {
            "dataset": videos.dataset,
            "split": videos.split,
            "list": options.test_list,
            "listed": len(videos.entries),
            "digest": labels_digest(views.labelled),
        },
        "clips": views.clips,
        "crops": views.crops,
        "precision": precision,
        **surroundings(group),
    }


test_facts.__test__ = False  # type: ignore[attr-defined]  # for pytest: this is none of its functions


def tested_step(run: Path) -> int | None:
    """The step that a run's test.json is of; None where there is none, or it says none."""
    step = _content(run / "test.json").get("step")
    return step if isinstance(step, int) else None


def trained_split(run: Path) -> str | None:
    """The --split that a run was trained with, by its run.json; None where it was none."""
    options = _content(run / "run.json").get("options")
    split = options.get("split") if isinstance(options, dict) else None
    return split if isinstance(split, str) else None


def _content(file: Path) -> dict[str, Any]:
    """What is in a file of JSON; nothing where it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def said(content: dict[str, Any]) -> str:
    """A line with what test.json has."""
    left_out = f", {len(content['skipped'])} could not be read" if content["skipped"] else ""
    return (
        f"top-1 {content['top1']:.2%}, top-5 {content['top5']:.2%}, mean over classes "
        f"{content['mean_class_accuracy']:.2%}: {content['videos']} videos, {content['views']} views of each{left_out}"
    )


class LeaveError(Exception):
    """A signal came."""


@contextlib.contextmanager
def leaving_at_a_signal(workers: int) -> Iterator[None]:
    """What is done in here is left, by a LeaveError, when one of the signals comes; loaders' workers outlive it."""
    with Interrupts(then=_leave) as interrupts:
        if workers:
            start_server(interrupts)
        yield


def _leave() -> None:
    raise LeaveError
