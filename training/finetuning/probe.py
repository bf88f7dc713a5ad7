"""probe-motion: a linear layer on a frozen encoder, and its accuracy: how much of the classes the features tell."""

import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

import jsonargparse

from data_specs.durable import write_file
from data_specs.interrupts import EXIT_INTERRUPTED
from data_specs.labels import LabelledVideos
from training.command import EXIT_DONE, begun, given_options, precision_of, run_command, workers_of
from training.distributed import Group, barrier
from training.finetuning import command
from training.finetuning.assembly import (
    Built,
    build_model,
    classifier_config,
    first_weights,
    held_out,
    say_shared,
    size_of,
)
from training.finetuning.features import Features, LinearClassifier, encode, fit_linear
from training.finetuning.final_test import LeaveError, leaving_at_a_signal, said, test_facts
from training.finetuning.recipe import FinetuneRecipe
from training.finetuning.testing import write_test
from training.finetuning.video_outputs import TestingError
from training.finetuning.views import VideoViews, views_loader
from training.step import StoppedError
from training.task import Precision

logger = logging.getLogger(__name__)

COMMAND = command.Command(
    name="probe-motion",
    description="Train a linear classifier of labelled videos on a frozen video transformer, then test it on several "
    "views of each.",
    recipes={"": "svt-linear"},
    freezes=True,
)
LINEAR = "linear.npz"
_HELD_OUT = "every fifth training video of each class"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Once:
    """What a probe on features that are computed once needs."""

    built: Built
    recipe: FinetuneRecipe
    training: LabelledVideos
    validation: LabelledVideos
    test: LabelledVideos
    validation_is: str
    """What the validation videos are, in words."""
    precision: Precision


def build_parser() -> jsonargparse.ArgumentParser:
    """The command line's options."""
    parser = command.build_parser(COMMAND)
    parser.add_argument(
        "--once", action="store_true",
        help="compute the features of each video once, on the test's views and without augmentation, and fit logistic "
        "regression to them in place of the recipe's epochs; its L2 is chosen on --validate-list or --validate-split, "
        f"or else on {_HELD_OUT}",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(argv)
    if options.once:
        return run_command(COMMAND.name, options, prepare_once, probe_once)
    return run_command(COMMAND.name, options, functools.partial(command.prepare, COMMAND), command.carry_out)


def prepare_once(options: jsonargparse.Namespace, group: Group) -> Once | None:
    """Load lists and encoder; None where the run's folder has the test already. Raises ValueError with the way out."""
    for name in ("test_only", "steps", "epochs", "lr", "validate_every"):
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} has no meaning with --once; leave one of them out")
    kept, newest = begun(options.out, resume=options.resume, kind="fine-tuning")
    if kept is not None:
        raise ValueError(f"--once keeps no checkpoints, and {newest} is one; take another --out")
    if (options.out / "test.json").exists():
        logger.info("%s is done", options.out)
        return None
    recipe, videos = command.recipe_of(COMMAND, options), command.videos_of(options)
    training = videos.training()
    test, validation = videos.test(training.classes), videos.validation(training.classes)
    if test is None:
        raise ValueError("--once has nothing to test on; name it with --test-list or --test-split")
    if group.is_main:
        say_shared(training, test)
    validation_is = options.validate_list or options.validate_split or _HELD_OUT
    if validation is None:
        training, validation = held_out(training)
    recipe = recipe.resolved(clip_stride=training.videos.clip_stride, flip=training.videos.flip)
    weights = first_weights(options.init)
    config = classifier_config(recipe, training.classes, size=size_of(options.model, weights))
    return Once(
        built=build_model(config, weights, seed=options.seed, group=group),
        recipe=recipe,
        training=training,
        validation=validation,
        test=test,
        validation_is=validation_is,
        precision=precision_of(options, group),
    )


def probe_once(given: Once, options: jsonargparse.Namespace, group: Group) -> int:
    """Compute features, fit, test, and write what is found; returns the exit status. Raises StoppedError, OSError."""
    views = VideoViews(given.test, given.recipe, follow_links=options.follow_links)
    facts = {
        "command": f"{COMMAND.name} --once",
        "step": None,
        **test_facts(given.built, given.recipe, views, given.precision, options, group),
    }
    if group.is_main:
        write_file(options.out / "run.json", json.dumps({"options": given_options(options), **facts}, indent=2) + "\n")
    try:
        with leaving_at_a_signal(workers_of(options)):
            training, validation, test = (
                _features(given, labelled, options, group)
                for labelled in (given.training, given.validation, given.test)
            )
            fitted = fit_linear(training, validation, len(given.training.classes))
    except TestingError as error:
        raise StoppedError(str(error)) from error
    except LeaveError:
        logger.info("interrupted; nothing is kept: the same command with --resume begins again")
        return EXIT_INTERRUPTED
    if group.is_main:
        facts["linear"] = _linear_facts(fitted, training, validation, given.validation_is)
        fitted.save(options.out / LINEAR)
        logger.info("%s", said(write_test(options.out, fitted.test(test), given.training.classes, facts)))
    barrier()
    return EXIT_DONE


def _features(given: Once, labelled: LabelledVideos, options: jsonargparse.Namespace, group: Group) -> Features:
    views = VideoViews(labelled, given.recipe, follow_links=options.follow_links)
    if group.is_main:
        logger.info("features of %d videos, %d views of each", len(views), views.clips * views.crops)
    loader = views_loader(views, rank=group.rank, world_size=group.world_size, workers=workers_of(options))
    return encode(given.built.model.encoder, loader, group, given.precision)


def _linear_facts(
    fitted: LinearClassifier, training: Features, validation: Features, validation_is: str
) -> dict[str, Any]:
    """What the classifier follows from, and what it was chosen by."""
    return {
        "training_videos": len(training.ids),
        "training_skipped": len(training.skipped),
        "validation": validation_is,
        "validation_videos": len(validation.ids),
        "validation_skipped": len(validation.skipped),
        "l2": fitted.l2,
        "validation_top1": {f"{l2:g}": top1 for l2, top1 in fitted.validation_top1.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
