"""What finetune-motion and probe-motion have in common: options, what is built from them, training, and the test."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jsonargparse

from training.command import (
    EXIT_DONE,
    Run,
    begun,
    check_same,
    make_run,
    precision_of,
    steps_of,
    train_run,
    workers_of,
)
from training.distributed import Group
from training.finetuning.assembly import (
    Videos,
    build_model,
    build_task,
    classifier_config,
    first_weights,
    say_shared,
    size_of,
)
from training.finetuning.classifier import ClassifierConfig
from training.finetuning.final_test import FinalTest, run_test, tested_step, trained_split
from training.finetuning.recipe import FinetuneRecipe, finetune_recipe_names, load_finetune_recipe
from training.finetuning.views import VideoViews
from training.optim import make_optimizer
from training.run_options import EXIT_TEXT, add_length_options, add_model_option, add_run_options, check_numbers
from training.task import Settings, Task
from training.weight_files import Weights

logger = logging.getLogger(__name__)

OF_THE_TEST = ("test_clips", "test_crops")
"""Fields of a recipe that have no part in the training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What one of the two commands is."""

    name: str
    description: str
    recipes: dict[str, str]
    """The recipe that is taken where none is given, by data set; of any other under the empty name."""
    freezes: bool
    """Whether its recipes freeze the encoder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training that can begin, or nothing of one, and then a test, or none."""

    run: Run | None
    step: int | None
    """Steps that the model has been trained for, where no training begins; None for a model of --init."""
    test: FinalTest | None


def build_parser(command: Command) -> jsonargparse.ArgumentParser:
    """The options that both commands have."""
    module = f"training.finetuning.{command.name.split('-')[0]}"
    parser = jsonargparse.ArgumentParser(
        prog=command.name,
        description=f"{command.description} For several GPUs: torchrun --nproc_per_node=N -m {module} with the same "
        "options.",
        epilog=EXIT_TEXT,
    )
    add = parser.add_argument
    add(
        "--dataset", type=str, required=True, metavar="NAME|SPEC.yaml|LIST",
        help="a shipped data set (k400, ssv2, ucf101, hmdb51), a spec of another, or a list of `path label` lines",
    )  # fmt: skip
    add("--root", type=str | None, metavar="DIR", help="folder of the videos; default: the data set's")
    add("--split", type=str | None, metavar="NAME", help="the data set's split to train on; default: train")
    add("--list", type=str | None, metavar="FILE", help="the list to train on, in place of the split's")
    add("--test-split", type=str | None, metavar="NAME", help="the split to test on; default: test (test2 for train2)")
    add("--test-list", type=str | None, metavar="FILE", help="the list to test on; its classes are the training's")
    add("--validate-split", type=str | None, metavar="NAME", help="the split to validate on")
    add("--validate-list", type=str | None, metavar="FILE", help="the list to validate on")
    add(
        "--init", type=Path | None, metavar="RUN|DIR|FILE",
        help="weights to begin from: a run of pretrain-motion or one of its checkpoints, a Hugging Face folder, a file "
        "of VideoMAE's code; a fine-tuned one's head too, where its classes are these; default: fresh ones",
    )  # fmt: skip
    add_model_option(parser, None)
    add(
        "--recipe", type=str | None, metavar="NAME|FILE.yaml",
        help=f"how to train and test: {', '.join(finetune_recipe_names())}, or a recipe file; default: "
        + ", ".join(f"{recipe} for {name or 'any other'}" for name, recipe in command.recipes.items()),
    )  # fmt: skip
    add_run_options(
        parser, seed="of fresh weights, clips, views and mixing", out="folder of the run: checkpoints, logs, the test"
    )
    add_length_options(parser, batch_size=None)
    add(
        "--validate-every", type=int | None, metavar="N",
        help="steps from one validation to the next, on one view of each video of --validate-split or --validate-list, "
        "or else of the test's; default: none",
    )  # fmt: skip
    add("--test-clips", type=int | None, metavar="N", help="clips of each video in the test; default: the recipe's")
    add("--test-crops", type=int | None, metavar="N", help="crops of each clip in the test; default: the recipe's")
    add(
        "--test-only", action="store_true",
        help="test the run's newest checkpoint again, or a fine-tuned model that --init names; trains nothing",
    )  # fmt: skip
    return parser


def videos_of(options: jsonargparse.Namespace) -> Videos:
    """Which videos the options name."""
    return Videos(
        dataset=options.dataset,
        root=options.root,
        split=options.split,
        list_file=options.list,
        test_split=options.test_split,
        test_list=options.test_list,
        validation_split=options.validate_split,
        validation_list=options.validate_list,
        follow_links=options.follow_links,
    )


def recipe_of(command: Command, options: jsonargparse.Namespace, tested: Weights | None = None) -> FinetuneRecipe:
    """The recipe that the options name, with what they change in it. Raises RecipeError, ValueError.

    tested: a model that is only tested; where no recipe is named, the one that it was fine-tuned by, if it says so.
    """
    if options.recipe is None and tested is not None and tested.recipe and tested.training["kind"] == "fine-tuning":
        recipe = FinetuneRecipe.from_json(tested.recipe, where=str(tested.source))
    else:
        recipe = load_finetune_recipe(options.recipe or command.recipes.get(options.dataset) or command.recipes[""])
    if recipe.freeze_encoder != command.freezes:
        other = "finetune-motion" if command.freezes else "probe-motion"
        does = "does not freeze" if command.freezes else "freezes"
        raise ValueError(f"recipe {recipe.name} {does} the encoder, which is {other}'s; give another with --recipe")
    return _changed(recipe, options, ("clip_stride", "flip", *OF_THE_TEST))


def _changed(recipe: FinetuneRecipe, options: jsonargparse.Namespace, names: tuple[str, ...]) -> FinetuneRecipe:
    """The recipe with the options of these names in place of its fields, where they are given."""
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(recipe, **given)


def prepare(command: Command, options: jsonargparse.Namespace, group: Group) -> Prepared | None:
    """Build what the options ask for, and check it against the run's folder; None where all of it is done already.

    Raises ValueError with the way out; nothing has been written then.
    """
    if options.test_only:
        return _prepare_test(command, options, group)
    recipe = recipe_of(command, options)
    batch_size = options.batch_size or recipe.batch_size
    check_numbers(options, world_size=group.world_size, batch_size=batch_size, clips_per_video=recipe.clips_per_video)
    kept, newest = begun(options.out, resume=options.resume, kind="fine-tuning")
    videos = videos_of(options)
    training = videos.training()
    test, watched = videos.test(training.classes), videos.validation(training.classes)
    watched = test if watched is None else watched
    if options.validate_every is not None and watched is None:
        raise ValueError("--validate-every has no videos; name them with --validate-list or --validate-split")
    recipe = recipe.resolved(clip_stride=training.videos.clip_stride, flip=training.videos.flip)
    weights = first_weights(options.init) if kept is None else None
    of_kept = _kept_config(kept, newest)
    size = size_of(options.model, weights) if of_kept is None else options.model or of_kept.encoder.size
    config = classifier_config(
        recipe, training.classes, size=size, checkpoint_activations=options.checkpoint_activations
    )
    built = build_model(config, weights, seed=options.seed, group=group, head_std=recipe.head_std)
    if kept is not None:
        built = dataclasses.replace(built, origin=kept["origin"])
    precision = precision_of(options, group)
    task = build_task(
        built,
        training,
        watched if options.validate_every is not None else None,
        recipe,
        group,
        batch_size=batch_size,
        accumulate=options.accumulate,
        seed=options.seed,
        workers=workers_of(options),
        precision=precision,
        follow_links=options.follow_links,
    )
    if kept is not None:
        check_same(kept, task, newest, recipe=_trained_recipe(kept, task, newest))
    last = None
    if test is not None:
        if group.is_main:
            say_shared(training, test)
        views = VideoViews(test, recipe, follow_links=options.follow_links)
        last = FinalTest(command=command.name, built=built, recipe=recipe, views=views, precision=precision)
    elif group.is_main:
        logger.warning("there is nothing to test on: --test-list or --test-split names it")
    steps = steps_of(options, task, epochs=recipe.epochs, batch_size=batch_size)
    if kept is not None and (step := int(kept["step"])) >= steps:
        if last is None or tested_step(options.out) == step:
            logger.info("%s is done: %d steps; more are asked for by --steps or --epochs", options.out, step)
            return None
        built.model.load_state_dict(kept["model"])
        return Prepared(run=None, step=step, test=last)
    settings = Settings(
        steps=steps,
        batch_size=batch_size,
        accumulate=options.accumulate,
        precision=precision,
        seed=options.seed,
        save_every=options.save_every,
        keep=options.keep,
        validate_every=options.validate_every or 0,
    )
    opened = batch_size // recipe.clips_per_video  # videos of a step, which learning rates are scaled by
    optimizer = make_optimizer(
        built.model,
        recipe,
        batch_size=opened,
        base_lr=options.lr,
        kind=recipe.optimizer,
        momentum=recipe.momentum,
        layer_decay=recipe.layer_decay,
    )
    run = make_run(options, task, settings, optimizer, recipe, min_lr=recipe.min_lr, kept=kept, rate_batch=opened)
    return Prepared(run=run, step=None, test=last)


def carry_out(prepared: Prepared, options: jsonargparse.Namespace, group: Group) -> int:
    """Train, then test; returns the exit status. Raises StoppedError and OSError."""
    step = prepared.step
    if prepared.run is not None:
        if group.is_main:
            (options.out / "test.json").unlink(missing_ok=True)  # it would be of another step
        status = train_run(prepared.run, options, group)
        if status != EXIT_DONE:
            return status
        step = prepared.run.settings.steps
    return EXIT_DONE if prepared.test is None else run_test(prepared.test, options, group, step=step)


def _trained_recipe(kept: dict[str, Any], task: Task, path: Path | None) -> dict[str, Any]:
    """The recipe of a checkpoint; what it says of the test may be another."""
    recipe = FinetuneRecipe.from_json(kept["recipe"], where=f"checkpoint {path}").to_json()
    return {**recipe, **{name: task.recipe[name] for name in OF_THE_TEST}}


def _kept_config(kept: dict[str, Any] | None, path: Path | None) -> ClassifierConfig | None:
    return None if kept is None else ClassifierConfig.from_json(kept["model_config"], where=f"checkpoint {path}")


def _prepare_test(command: Command, options: jsonargparse.Namespace, group: Group) -> Prepared:
    """What --test-only needs: the run's newest checkpoint, or else a fine-tuned model of --init."""
    kept, newest = begun(options.out, resume=True, kind="fine-tuning")
    videos, where = videos_of(options), f"checkpoint {newest}"
    weights, of_kept = first_weights(options.init) if kept is None else None, _kept_config(kept, newest)
    if kept is not None and of_kept is not None:
        videos = dataclasses.replace(videos, split=videos.split or trained_split(options.out))
        recipe = _changed(FinetuneRecipe.from_json(kept["recipe"], where=where), options, OF_THE_TEST)
        test = videos.test(of_kept.classes)
    elif weights is not None:
        recipe, test = recipe_of(command, options, weights), videos.test(weights.classes)
    else:
        raise ValueError(f"--test-only: {options.out} has no checkpoint, and no --init names a fine-tuned model")
    if test is None:
        raise ValueError("--test-only has no videos; name them with --test-list or --test-split")
    recipe = recipe.resolved(clip_stride=test.videos.clip_stride, flip=test.videos.flip)
    config = of_kept or classifier_config(recipe, test.classes, size=size_of(options.model, weights))
    built = build_model(config, weights, seed=options.seed, group=group)
    if kept is not None:
        built.model.load_state_dict(kept["model"])
        built = dataclasses.replace(built, origin=kept["origin"], has_head=True)
    if not built.has_head:
        notes = "; ".join(built.origin["notes"]) or "it has none"
        raise ValueError(f"--test-only: {options.init} has no head for the {len(test.classes)} classes: {notes}")
    views = VideoViews(test, recipe, follow_links=options.follow_links)
    last = FinalTest(
        command=command.name, built=built, recipe=recipe, views=views, precision=precision_of(options, group)
    )
    return Prepared(run=None, step=None if kept is None else int(kept["step"]), test=last)
