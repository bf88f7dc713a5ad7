"""pretrain-motion: a track store and its videos in, a pretrained video transformer out."""

import contextlib
import dataclasses
import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch

from data_specs.durable import write_file
from data_specs.interrupts import EXIT_INTERRUPTED
from data_specs.track_store import StoreError
from training import checkpoint
from training.assembly import Choices, build_task
from training.checkpoint import CheckpointError
from training.distributed import Group, gather_objects, open_group
from training.loop import train
from training.optim import CosineLRScheduler, make_optimizer, make_schedule, warmup_of
from training.recipe import PretrainRecipe, load_recipe, recipe_names
from training.run_lock import only_trainer
from training.run_log import summary
from training.step import StoppedError
from training.task import Precision, Settings, Task

logger = logging.getLogger(__name__)

EXIT_DONE, EXIT_STOPPED, EXIT_USAGE = 0, 1, 2
_LARGEST_SEED = 2**63 - 1  # of PyTorch's generators
_SOFTWARE = ("motion-targets", "torch", "timm", "numpy", "zarr", "decord2")


def build_parser() -> jsonargparse.ArgumentParser:
    """The command line's options."""
    parser = jsonargparse.ArgumentParser(
        prog="pretrain-motion",
        description="Pretrain a video transformer by masked motion encoding, on a track store and the videos that it "
        "was made from. For several GPUs: torchrun --nproc_per_node=N -m training.pretrain with the same options.",
        epilog="Exit status: 0 done, 1 stopped (numbers that are not finite, a file that cannot be read or written), "
        "2 usage error, 75 interrupted by SIGTERM or SIGUSR1 after saving: the same command with --resume goes on.",
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
    add(
        "--model",
        type=str,
        default="vit_base",
        metavar="NAME",
        help="vit_tiny, vit_small, vit_base, vit_large, vit_huge",
    )
    add("--out", type=Path, required=True, metavar="RUN", help="folder of the run: checkpoints, logs, pictures")
    add("--epochs", type=int | None, metavar="N", help="times that each video is seen; default: the recipe's")
    add("--steps", type=int | None, metavar="N", help="optimisation steps, in place of --epochs")
    add("--batch-size", type=int, default=32, metavar="N", help="clips of one optimisation step, over all processes")
    add(
        "--accumulate", type=int, default=1, metavar="N",
        help="micro-batches that a process takes one after the other in a step; changes memory, not the result",
    )  # fmt: skip
    add(
        "--lr", type=float | None, metavar="X",
        help="base learning rate, for a batch of 256 clips, in place of the recipe's: the rate is X * batch size / 256",
    )  # fmt: skip
    add(
        "--warmup-steps", type=int | None, metavar="N",
        help="steps of linear warm-up; default: the recipe's epochs, but at most a tenth of the run",
    )  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of weights, clips, views and masks")
    add("--workers", type=int | None, metavar="N", help="processes that read clips, for each GPU; default: one a core")
    add(
        "--resume", action="store_true",
        help="go on from the run's newest checkpoint, also with more --steps; starts a run that has none yet",
    )  # fmt: skip
    add("--device", type=Literal["auto", "cpu", "cuda"], default="auto")
    add(
        "--precision", type=Precision | None,
        help="of the model's products: bf16 (default on CUDA), fp32 (default on the CPU), fp16 with a scaled loss",
    )  # fmt: skip
    add("--clips-per-video", type=int, default=1, metavar="N", help="clips of each opened video (repeated sampling)")
    add("--clip-stride", type=int | None, metavar="N", help="frames of the video from one of a clip's to the next")
    add("--flip", type=bool | None, metavar="true|false", help="flip half of the clips; default: the recipe's")
    add("--init", type=Path | None, metavar="DIR|FILE", help="weights to begin from: Hugging Face's or VideoMAE's")
    add(
        "--follow-links", action="store_true",
        help="take videos that symbolic links below the root lead to outside of it; without it they are skipped",
    )  # fmt: skip
    add("--allow-incomplete", action="store_true", help="train on the complete shards of an unfinished store")
    add("--compile", action="store_true", help="compile the model (torch.compile)")
    add("--checkpoint-activations", action="store_true", help="less memory for a third more time")
    add("--save-every", type=int, default=500, metavar="N", help="steps from one checkpoint to the next")
    add("--keep", type=int, default=3, metavar="N", help="checkpoints that stay")
    add(
        "--figure-every", type=int | None, metavar="N",
        help="steps from one picture of predictions to the next, 0 for none; default: four in a run",
    )  # fmt: skip
    return parser


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run that can begin."""

    task: Task
    settings: Settings
    optimizer: torch.optim.Optimizer
    schedule: CosineLRScheduler
    resume: dict[str, Any] | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(argv)
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s", stream=sys.stderr)
    said = "pretrain-motion" if rank == 0 else f"pretrain-motion, rank {rank}"
    try:
        with contextlib.ExitStack() as stack:
            run, problem = None, None
            try:
                group = stack.enter_context(open_group(options.device))
            except ValueError as error:
                sys.stderr.write(f"{said}: {error}\n")
                return EXIT_USAGE
            try:
                run = prepare(options, group)
                if run is not None and group.is_main:
                    stack.enter_context(only_trainer(options.out))
            except (ValueError, OSError) as error:
                problem = str(error)
            # every process has looked at the folder by now, and all of them go on or none
            if problems := list(dict.fromkeys(found for found in gather_objects(problem) if found)):
                if group.is_main:
                    sys.stderr.write(f"{said}: {'; '.join(problems)}\n")
                return EXIT_USAGE
            return EXIT_DONE if run is None else pretrain(run, options, group)
    except (StoppedError, StoreError, OSError, KeyboardInterrupt) as error:
        sys.stderr.write(f"{said}: {_explained(error, options.out)}\n")
        return EXIT_STOPPED


def _explained(error: BaseException, run: Path) -> str:
    """What ended a run, and the way out."""
    goes_on = "--resume goes on from the newest checkpoint"
    if isinstance(error, StoppedError):
        return f"{error}. Newest checkpoint: {checkpoint.latest(run) or 'none yet'}"
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {goes_on}"
    said = str(error).rpartition("StoreError: ")[2].strip()  # a worker's has its traceback before it
    return f"{said}; {goes_on} once that is mended"


def prepare(options: jsonargparse.Namespace, group: Group) -> Run | None:
    """Build what the options ask for, and check it against the run's folder; None where that run is done already.

    Raises ValueError with the way out; nothing has been written then.
    """
    _check_numbers(options, group.world_size)
    newest = checkpoint.latest(options.out)
    begun = [name for name in ("run.json", "log.jsonl", "checkpoints") if (options.out / name).exists()]
    if begun and not options.resume:
        raise ValueError(
            f"--out {options.out} holds a run already ({', '.join(begun)}); --resume goes on with it, or take another "
            "folder"
        )
    kept = checkpoint.load(newest) if newest is not None else None
    recipe = load_recipe(options.recipe)
    if options.heads is not None:
        recipe = recipe.with_heads([name.strip() for name in options.heads.split(",")])
    precision: Precision = options.precision or ("bf16" if group.device.type == "cuda" else "fp32")
    given = {name: getattr(options, name) for name in ("clip_stride", "flip") if getattr(options, name) is not None}
    workers = options.workers if options.workers is not None else _cores_each(group)
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
        workers=workers,
        allow_incomplete=options.allow_incomplete,
        checkpoint_activations=options.checkpoint_activations,
        init=options.init if kept is None else None,
        clip_weights=options.clip_weights,
        precision=precision,
        follow_links=options.follow_links,
    )
    task = build_task(choices, group)
    if kept is not None:
        checkpoint.check_kind(kept, task.kind, newest)
        _check_same(kept, task, newest)
    steps_per_epoch = task.clips_per_epoch / options.batch_size
    epochs = options.epochs or recipe.epochs
    steps = options.steps or -(-epochs * task.clips_per_epoch // options.batch_size)  # no video is seen less often
    if kept is not None and int(kept["step"]) >= steps:
        logger.info("%s is done: %d steps; more are asked for by --steps or --epochs", options.out, kept["step"])
        return None
    if options.compile:
        task.model.compile()
    optimizer = make_optimizer(task.model, recipe, batch_size=options.batch_size, base_lr=options.lr)
    warmup = warmup_of(recipe, steps=steps, steps_per_epoch=steps_per_epoch, asked=options.warmup_steps)
    return Run(
        task=task,
        settings=Settings(
            steps=steps,
            batch_size=options.batch_size,
            accumulate=options.accumulate,
            precision=precision,
            seed=options.seed,
            save_every=options.save_every,
            keep=options.keep,
            figure_every=max(1, steps // 4) if options.figure_every is None else options.figure_every,
        ),
        optimizer=optimizer,
        schedule=make_schedule(
            optimizer, steps=steps, warmup_steps=warmup, min_lr=recipe.min_lr, batch_size=options.batch_size
        ),
        resume=kept,
    )


def pretrain(run: Run, options: jsonargparse.Namespace, group: Group) -> int:
    """Train; returns the exit status. Raises StoppedError, StoreError and OSError."""
    step = int(run.resume["step"]) if run.resume is not None else 0
    if group.is_main:
        write_file(options.out / "run.json", json.dumps(_description(run, options, group), indent=2) + "\n")
        logger.info(
            "%s: steps %d to %d of %d clips each, %d epochs of %d clips",
            options.out, step + 1, run.settings.steps, run.settings.batch_size,
            -(-run.settings.steps * run.settings.batch_size // run.task.clips_per_epoch), run.task.clips_per_epoch,
        )  # fmt: skip
    outcome = train(run.task, run.settings, group, options.out, run.optimizer, run.schedule, run.resume)
    if outcome == "interrupted":
        logger.info("interrupted and saved; the same command with --resume goes on from here")
        return EXIT_INTERRUPTED
    if group.is_main:
        logger.info("done: %s", summary(options.out / "log.jsonl", run.task.objective.weights))
    return EXIT_DONE


def _check_numbers(options: jsonargparse.Namespace, world_size: int) -> None:
    problems = [
        f"--{name.replace('_', '-')} is {value}, must be {least} or more"
        for name, least in [
            ("epochs", 1), ("steps", 1), ("batch_size", 1), ("accumulate", 1), ("warmup_steps", 0), ("seed", 0),
            ("workers", 0), ("clips_per_video", 1), ("clip_stride", 1), ("save_every", 1), ("keep", 1),
            ("figure_every", 0),
        ]
        if (value := getattr(options, name)) is not None and value < least
    ]  # fmt: skip
    if options.seed > _LARGEST_SEED:
        problems.append(f"--seed is {options.seed}, must be {_LARGEST_SEED} or less")
    if options.epochs is not None and options.steps is not None:
        problems.append("--epochs and --steps both say how long: give one of them")
    if options.lr is not None and not 0 < options.lr < float("inf"):
        problems.append(f"--lr is {options.lr}, must be more than 0")
    if not problems and options.batch_size % (world_size * options.accumulate * options.clips_per_video):
        problems.append(
            f"--batch-size is {options.batch_size}, must be a multiple of {world_size} processes x "
            f"{options.accumulate} micro-batches x {options.clips_per_video} clips of a video"
        )
    if problems:
        raise ValueError("; ".join(problems))


def _check_same(kept: dict[str, Any], task: Task, path: Path | None) -> None:
    """Raise CheckpointError with every difference between what a checkpoint was trained on and what is asked for."""
    # options that are newer than the checkpoint were what they are by default
    recipe = PretrainRecipe.from_json(kept["recipe"], where=f"checkpoint {path}").to_json()
    problems = [
        *checkpoint.differences(kept["data"], task.data, "clips'"),
        *checkpoint.differences(recipe, task.recipe, "recipe's"),
        *checkpoint.differences(kept["model_config"], task.model_config, "model's"),
    ]
    if problems:
        raise CheckpointError(
            f"checkpoint {path} is of another run; give its options again, or take another --out\n  "
            + "\n  ".join(problems)
        )


def _cores_each(group: Group) -> int:
    """Cores of this machine for each of its processes, less the one that the process itself keeps busy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def _description(run: Run, options: jsonargparse.Namespace, group: Group) -> dict[str, Any]:
    """What run.json says: everything that the run follows from."""
    warmup, steps = run.schedule.warmup_t, run.settings.steps
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    device = torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else platform.machine()
    return {
        "options": given,
        "settings": {
            **dataclasses.asdict(run.settings),
            "warmup_steps": warmup,
            "epochs": steps * run.settings.batch_size / run.task.clips_per_epoch,
            "peak_lr": run.schedule.base_values[0],
        },
        "from_step": 0 if run.resume is None else run.resume["step"],
        "recipe": run.task.recipe,
        "model": {**run.task.model_config, "parameters": sum(p.numel() for p in run.task.model.parameters())},
        "data": run.task.data,
        "processes": group.world_size,
        "device": f"{group.device.type}: {device}",
        "software": {"python": platform.python_version(), **{name: version(name) for name in _SOFTWARE}},
    }


if __name__ == "__main__":
    sys.exit(main())
