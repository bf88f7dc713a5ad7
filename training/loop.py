"""The training loop: clips, an optimisation step, a line in the log; now and then a picture and a checkpoint."""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any, Literal

import torch

from data_specs.interrupts import Interrupts
from training import checkpoint
from training.distributed import Group, barrier, gather_objects
from training.interrupts import start_server
from training.optim import CosineLRScheduler, load_optimizer_state
from training.random_states import random_states, restore_random_states, seed_rank
from training.run_log import RunLog
from training.step import StepInput, StepResult, distributed, optimise
from training.step_batches import Batch, StepBatches
from training.task import Settings, Task

logger = logging.getLogger(__name__)

Outcome = Literal["done", "interrupted"]


def train(
    task: Task,
    settings: Settings,
    group: Group,
    run: Path,
    optimizer: torch.optim.Optimizer,
    schedule: CosineLRScheduler,
    resume: dict[str, Any] | None = None,
) -> Outcome:
    """Train until `settings.steps` or a signal (SIGTERM, SIGUSR1); checkpoints and logs go to `run`.

    The model is on the group's device already. resume: a checkpoint to go on from, of fewer steps. On the CPU a run
    that was interrupted and resumed has the losses of one that was not, to the bit. Every rank calls this; rank 0
    writes.
    Raises StoppedError where the run cannot go on; what went wrong is in no checkpoint.
    """
    scaler = torch.amp.GradScaler(group.device.type, enabled=settings.precision == "fp16")
    step = position = 0
    if resume is not None:
        task.model.load_state_dict(resume["model"])
        load_optimizer_state(optimizer, resume["optimizer"])
        if resume["scaler"]:  # that of another precision is empty, and this run's begins anew
            scaler.load_state_dict(resume["scaler"])
        step, position = int(resume["step"]), int(resume["data"]["position"])
    if step >= settings.steps:
        raise ValueError(f"nothing to do: {step} of {settings.steps} steps are done")
    model = distributed(task.model, group).train()

    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        loader, ahead = task.loader(position), group.device.type == "cuda"
        if getattr(loader, "num_workers", 0):
            start_server(interrupts)
        batches = stack.enter_context(StepBatches(loader, settings.accumulate, group.device, ahead=ahead))
        begun = time.perf_counter()
        micro_batches, waited = batches.take()
        _begin_randomness(settings.seed, step, group, resume)  # only now: a loader that starts draws from PyTorch's
        log = stack.enter_context(RunLog(run, step=step, steps=settings.steps)) if group.is_main else None

        while True:
            schedule.step_update(step)
            drawn = group.is_main and task.draw is not None and bool(settings.figure_every)
            given = StepInput(
                number=step + 1,
                micro_batches=micro_batches,
                waited=waited,
                signalled=lambda: interrupts.received is not None,
                keep=drawn and (step + 1) % settings.figure_every == 0,
            )
            result = optimise(task, model, optimizer, scaler, given, group, settings.precision)
            step, position = step + 1, position + settings.batch_size

            line = _line(result, step, position / task.clips_per_epoch, optimizer, time.perf_counter() - begun)
            _report(log, line, result, micro_batches)
            if result.picture is not None and task.draw is not None and log is not None:
                picture = task.draw(step, *result.picture)
                if picture is not None:
                    log.picture("predictions", picture, step)
            if settings.validate_every and step % settings.validate_every == 0 and not result.signalled:
                _validate(task, log, step)
            if result.signalled or step == settings.steps or step % settings.save_every == 0:
                states = gather_objects(random_states())
                if log is not None:
                    log.sync()
                    state = {
                        "kind": task.kind,
                        "step": step,
                        "model": task.model.state_dict(),
                        "model_config": task.model_config,
                        "recipe": task.recipe,
                        "origin": task.origin,
                        "optimizer": optimizer.state_dict(),
                        "scaler": scaler.state_dict(),
                        "schedule": {"steps": settings.steps, "warmup_steps": schedule.warmup_t},
                        "random": states,
                        "data": {**task.data, "position": position},
                    }
                    logger.info("saved %s", checkpoint.save(run, state, settings.keep))
                barrier()  # a rank that ended early would be taken for a failure, and the others killed
            if step == settings.steps:
                return "done"
            if result.signalled:
                return "interrupted"
            begun = time.perf_counter()
            micro_batches, waited = batches.take()


def _begin_randomness(seed: int, step: int, group: Group, resume: dict[str, Any] | None) -> None:
    """Each rank's own random numbers: those of the checkpoint, or new ones where it knows no such rank."""
    if resume is not None and group.rank < len(resume["random"]):
        restore_random_states(resume["random"][group.rank])
    else:
        seed_rank(seed, step, group.rank)


def _line(
    result: StepResult, step: int, epoch: float, optimizer: torch.optim.Optimizer, seconds: float
) -> dict[str, Any]:
    """A line of log.jsonl (training.run_log says what it has)."""
    return {
        "step": step,
        "epoch": round(epoch, 6),
        "loss": result.loss,
        **result.losses,
        **{f"{head}_trivial": value for head, value in result.trivial.items()},
        "lr": max(float(group["lr"]) for group in optimizer.param_groups),
        "grad_norm": result.grad_norm,
        "clips": result.clips,
        "skipped": result.skipped,
        "clips_per_s": result.clips / seconds,
        "wait_share": min(result.waited / seconds, 1.0),
        "seconds": seconds,
    }


def _validate(task: Task, log: RunLog | None, step: int) -> None:
    """Write what validation finds; the training goes on as if there had been none. Every rank must call it."""
    if task.validate is None:
        return
    states = random_states()  # a loader that starts draws from PyTorch's
    task.model.eval()
    found = task.validate()
    task.model.train()
    restore_random_states(states)
    if log is not None:
        log.write_validation({"step": step, **found})


def _report(log: RunLog | None, line: dict[str, Any], result: StepResult, micro_batches: list[Batch]) -> None:
    """Write a step's line, and which clips of any rank were left out; every rank must call it."""
    if result.skipped:
        own = [(str(clip.id), str(clip.reason)) for batch in micro_batches for clip in batch["skipped"]]
        skipped = [clip for rank in gather_objects(own) for clip in rank]
        if log is not None:
            log.write_skipped(line["step"], skipped)
    if log is not None:
        log.write(line)
