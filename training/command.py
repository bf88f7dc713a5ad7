"""What the commands that train have in common: how a run begins, goes on and ends, and what it says of itself."""

import contextlib
import dataclasses
import json
import logging
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import torch

from data_specs.cores import usable_cores
from data_specs.durable import write_file
from data_specs.interrupts import EXIT_INTERRUPTED
from data_specs.track_store import StoreError
from training import checkpoint
from training.checkpoint import CheckpointError
from training.distributed import Group, gather_objects, open_group
from training.loop import train
from training.optim import CosineLRScheduler, TrainingRecipe, make_schedule, warmup_of
from training.run_lock import only_trainer
from training.run_log import summary
from training.step import StoppedError
from training.task import Kind, Precision, Settings, Task

logger = logging.getLogger(__name__)

EXIT_DONE, EXIT_STOPPED, EXIT_USAGE = 0, 1, 2
_SOFTWARE = ("motion-targets", "torch", "timm", "torchvision", "numpy", "zarr", "decord2")
_Prepared = TypeVar("_Prepared")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run that can begin."""

    task: Task
    settings: Settings
    optimizer: torch.optim.Optimizer
    schedule: CosineLRScheduler
    resume: dict[str, Any] | None


def run_command(
    name: str,
    options: jsonargparse.Namespace,
    prepare: Callable[[jsonargparse.Namespace, Group], _Prepared | None],
    carry_out: Callable[[_Prepared, jsonargparse.Namespace, Group], int],
) -> int:
    """Prepare and carry out what a command line asks for, in each of the run's processes; returns the exit status.

    prepare: raises ValueError or OSError with the way out, having written nothing; None where nothing is to be done.
    carry_out: has the run's folder for itself; raises StoppedError, StoreError, OSError.
    """
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s", stream=sys.stderr)
    said = name if rank == 0 else f"{name}, rank {rank}"
    try:
        with contextlib.ExitStack() as stack:
            prepared, problem = None, None
            try:
                group = stack.enter_context(open_group(options.device))
            except ValueError as error:
                sys.stderr.write(f"{said}: {error}\n")
                return EXIT_USAGE
            try:
                prepared = prepare(options, group)
                if prepared is not None and group.is_main:
                    stack.enter_context(only_trainer(options.out))
            except (ValueError, OSError) as error:
                problem = str(error)
            # every process has looked at the folder by now, and all of them go on or none
            if problems := list(dict.fromkeys(found for found in gather_objects(problem) if found)):
                if group.is_main:
                    sys.stderr.write(f"{said}: {'; '.join(problems)}\n")
                return EXIT_USAGE
            return EXIT_DONE if prepared is None else carry_out(prepared, options, group)
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


def begun(out: Path, *, resume: bool, kind: Kind) -> tuple[dict[str, Any] | None, Path | None]:
    """The newest checkpoint of a run's folder and its file, or twice None where it has none.

    Raises ValueError for a folder that holds a run where `resume` does not say to go on with it, CheckpointError for
    one of another kind, or a checkpoint that cannot be read.
    """
    newest = checkpoint.latest(out)
    found = [name for name in ("run.json", "log.jsonl", "checkpoints", "test.json") if (out / name).exists()]
    if found and not resume:
        raise ValueError(
            f"--out {out} holds a run already ({', '.join(found)}); --resume goes on with it, or take another folder"
        )
    if newest is None:
        return None, None
    kept = checkpoint.load(newest)
    checkpoint.check_kind(kept, kind, newest)
    return kept, newest


def check_same(kept: dict[str, Any], task: Task, path: Path | None, *, recipe: dict[str, Any]) -> None:
    """Raise CheckpointError with every difference between what a checkpoint was trained on and what is asked for.

    recipe: the checkpoint's, in which options that are newer than it are what they are by default.
    """
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


def precision_of(options: jsonargparse.Namespace, group: Group) -> Precision:
    """The option's, or bf16 on CUDA and fp32 elsewhere."""
    chosen: Precision = options.precision or ("bf16" if group.device.type == "cuda" else "fp32")
    return chosen


def workers_of(options: jsonargparse.Namespace) -> int:
    """The option's, or cores of this machine for each of its processes, less the one that the process itself uses."""
    if options.workers is not None:
        return int(options.workers)
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def steps_of(options: jsonargparse.Namespace, task: Task, *, epochs: int, batch_size: int) -> int:
    """The option's, or those of the epochs, in which no video is seen less often than asked."""
    return int(options.steps or -(-(options.epochs or epochs) * task.clips_per_epoch // batch_size))


def make_run(
    options: jsonargparse.Namespace,
    task: Task,
    settings: Settings,
    optimizer: torch.optim.Optimizer,
    recipe: TrainingRecipe,
    *,
    min_lr: float,
    kept: dict[str, Any] | None,
    rate_batch: int | None = None,
) -> Run:
    """A run with the schedule that options and recipe ask for; kept: the checkpoint that it goes on from.

    rate_batch: the batch size that learning rates are scaled by, where it is not the number of clips.

    Raises ValueError for a warm-up that is not shorter than the run.
    """
    if options.compile:
        task.model.compile()
    steps, batch_size = settings.steps, settings.batch_size
    steps_per_epoch = task.clips_per_epoch / batch_size
    warmup = warmup_of(recipe, steps=steps, steps_per_epoch=steps_per_epoch, asked=options.warmup_steps)
    schedule = make_schedule(
        optimizer, steps=steps, warmup_steps=warmup, min_lr=min_lr, batch_size=rate_batch or batch_size
    )
    return Run(task=task, settings=settings, optimizer=optimizer, schedule=schedule, resume=kept)


def train_run(run: Run, options: jsonargparse.Namespace, group: Group) -> int:
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


def surroundings(group: Group) -> dict[str, Any]:
    """On what a run is computed: processes, device, software, in plain values."""
    device = torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else platform.machine()
    return {
        "processes": group.world_size,
        "device": f"{group.device.type}: {device}",
        "software": {"python": platform.python_version(), **{name: version(name) for name in _SOFTWARE}},
    }


def given_options(options: jsonargparse.Namespace) -> dict[str, Any]:
    """The command line's options, in plain values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _description(run: Run, options: jsonargparse.Namespace, group: Group) -> dict[str, Any]:
    """What run.json says: everything that the run follows from."""
    warmup, steps = run.schedule.warmup_t, run.settings.steps
    return {
        "options": given_options(options),
        "settings": {
            **dataclasses.asdict(run.settings),
            "warmup_steps": warmup,
            "epochs": steps * run.settings.batch_size / run.task.clips_per_epoch,
            "peak_lr": run.schedule.base_values[0],
        },
        "kind": run.task.kind,
        "from_step": 0 if run.resume is None else run.resume["step"],
        "recipe": run.task.recipe,
        "model": {**run.task.model_config, "parameters": sum(p.numel() for p in run.task.model.parameters())},
        "data": run.task.data,
        "origin": run.task.origin,
        **surroundings(group),
    }
