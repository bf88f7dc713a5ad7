"""pretrain-motion: a track store and its videos in, a pretrained video transformer out."""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jsonargparse

from training.assembly import Choices, build_task
from training.command import (
    Run,
    begun,
    check_same,
    make_run,
    precision_of,
    run_command,
    steps_of,
    train_run,
    workers_of,
)
from training.distributed import Group
from training.optim import make_optimizer
from training.recipe import PretrainRecipe, load_recipe, recipe_names
from training.run_options import EXIT_TEXT, add_length_options, add_model_option, add_run_options, check_numbers
from training.task import Settings

logger = logging.getLogger(__name__)


def build_parser() -> jsonargparse.ArgumentParser:
    """The command line's options."""
    parser = jsonargparse.ArgumentParser(
        prog="pretrain-motion",
        description="Pretrain a video transformer by masked motion encoding, on a track store and the videos that it "
        "was made from. For several GPUs: torchrun --nproc_per_node=N -m training.pretrain with the same options.",
        epilog=EXIT_TEXT,
    )  # fmt: skip
    add = parser.add_argument
    add("--store", type=Path, required=True, metavar="STORE", help="the track store, of extract-tracks")
    add(
        "--root", type=str | None, metavar="DIR",
        help="folder of the store's videos; without it, that of the shipped data set that the store names",
    )  # fmt: skip
    add(
        "--recipe", type=str, default="mme-object", metavar="NAME|FILE.yaml",
        help=f"what to predict: {', '.join(recipe_names())}, or a recipe file",
    )  # fmt: skip
    add(
        "--heads", type=str | None, metavar="HEAD[,HEAD]",
        help="train these of the recipe's targets alone: displacement, or pixels, or …; default: all of them",
    )  # fmt: skip
    add(
        "--clip-weights", type=str | None, metavar="FILE|hub",
        help="weights of the CLIP tower that the head clip needs: a file in timm's, OpenAI's or OpenCLIP's names, hub "
        "to fetch OpenAI's from the Hugging Face hub, random for trying",
    )  # fmt: skip
    add_model_option(parser, "vit_base")
    add(
        "--init", type=Path | None, metavar="DIR|FILE",
        help="weights to begin from: another run's, Hugging Face's or VideoMAE's",
    )  # fmt: skip
    add_run_options(
        parser, seed="of weights, clips, views and masks", out="folder of the run: checkpoints, logs, pictures"
    )
    add_length_options(parser, batch_size=32)
    add("--clips-per-video", type=int, default=1, metavar="N", help="clips of each opened video (repeated sampling)")
    add("--allow-incomplete", action="store_true", help="train on the complete shards of an unfinished store")
    add(
        "--figure-every", type=int | None, metavar="N",
        help="steps from one picture of predictions to the next, 0 for none; default: four in a run",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_command("pretrain-motion", build_parser().parse_args(argv), prepare, train_run)


def prepare(options: jsonargparse.Namespace, group: Group) -> Run | None:
    """Build what the options ask for, and check it against the run's folder; None where that run is done already.

    Raises ValueError with the way out; nothing has been written then.
    """
    check_numbers(
        options,
        world_size=group.world_size,
        batch_size=options.batch_size,
        clips_per_video=options.clips_per_video,
    )
    kept, newest = begun(options.out, resume=options.resume, kind="pretraining")
    recipe = load_recipe(options.recipe)
    if options.heads is not None:
        recipe = recipe.with_heads([name.strip() for name in options.heads.split(",")])
    precision = precision_of(options, group)
    given = {name: getattr(options, name) for name in ("clip_stride", "flip") if getattr(options, name) is not None}
    choices = Choices(
        store=options.store,
        root=options.root,
        recipe=dataclasses.replace(recipe, **given),
        model=options.model,
        out=options.out,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        clips_per_video=options.clips_per_video,
        seed=options.seed,
        workers=workers_of(options),
        allow_incomplete=options.allow_incomplete,
        checkpoint_activations=options.checkpoint_activations,
        init=options.init if kept is None else None,
        clip_weights=options.clip_weights,
        precision=precision,
        follow_links=options.follow_links,
    )
    task = build_task(choices, group)
    if kept is not None:
        task = dataclasses.replace(task, origin=kept["origin"])
        own = PretrainRecipe.from_json(kept["recipe"], where=f"checkpoint {newest}").to_json()
        check_same(kept, task, newest, recipe=own)
    steps = steps_of(options, task, epochs=recipe.epochs, batch_size=options.batch_size)
    if kept is not None and int(kept["step"]) >= steps:
        logger.info("%s is done: %d steps; more are asked for by --steps or --epochs", options.out, kept["step"])
        return None
    settings = Settings(
        steps=steps,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        precision=precision,
        seed=options.seed,
        save_every=options.save_every,
        keep=options.keep,
        figure_every=max(1, steps // 4) if options.figure_every is None else options.figure_every,
    )
    optimizer = make_optimizer(task.model, recipe, batch_size=options.batch_size, base_lr=options.lr)
    return make_run(options, task, settings, optimizer, recipe, min_lr=recipe.min_lr, kept=kept)


if __name__ == "__main__":
    sys.exit(main())
