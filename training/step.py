"""One optimisation step, whose loss is that of one large batch.

The step takes some micro-batches on each rank. A loss is a mean of errors over what counts in *all* of them (in
pretraining a head's squared errors over its valid targets, in fine-tuning the clips' cross-entropies),

    loss = sum over losses of weight * (sum over ranks and micro-batches of errors) / (… of counts),

so that neither accumulation nor the number of ranks changes what is minimised, however what counts is spread: the
targets come first, their counts are summed over the ranks, then each micro-batch adds its share. A loss without
anything that counts in the whole batch adds 0.
"""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.distributed import Group, gather_objects, sum_over_ranks
from training.optim import gradient_norm
from training.step_batches import Batch
from training.task import AUTOCAST, Call, Precision, Predictions, Task

_NAMED = 8  # videos in a message


class StoppedError(RuntimeError):
    """A run that cannot go on: numbers that are not finite, or a step without a clip. Names step and videos."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimisation step gave, the same on every rank but for the picture."""

    losses: dict[str, float | None]
    """Each loss's mean error; None without anything that counts in the whole batch."""
    trivial: dict[str, float | None]
    """What the best constant for the step's targets would have."""
    loss: float
    """Their weighted sum, as it was minimised."""
    grad_norm: float
    """Before clipping."""
    clips: int
    skipped: int
    """Clips that could not be read."""
    waited: float
    """Seconds spent waiting for data, mean over the ranks."""
    signalled: bool
    """Whether any rank was told to save and go."""
    picture: tuple[Batch, Predictions, Any] | None
    """What a picture is drawn of, where it was asked for: this rank's first micro-batch that has clips."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepInput:
    """What one optimisation step takes, on this rank."""

    number: int
    """Of the step, from 1."""
    micro_batches: list[Batch]
    waited: float
    """Seconds that it waited for them."""
    signalled: Callable[[], bool]
    """Whether this rank was told to save and go; asked at the end of the step."""
    keep: bool = False
    """Whether predictions are wanted for a picture."""


def distributed(model: nn.Module, group: Group) -> nn.Module:
    """The model whose gradients are averaged over the ranks; the model itself where there is one."""
    if group.world_size == 1:
        return model
    devices = [group.device] if group.device.type == "cuda" else None
    # buffers are constants, the same on every rank; newer versions of PyTorch have another name for leaving them alone
    known = inspect.signature(DistributedDataParallel).parameters
    leave: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **leave)


def share_running_statistics(model: nn.Module, group: Group) -> None:
    """Give every rank the mean of the ranks' running statistics, of a model with batch norms; every rank must call it.

    Done after the step and not in the model's call, which ranks do not make equally often.
    """
    running = [
        statistic
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and group.world_size > 1
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]
    if running:
        for statistic, summed in zip(running, sum_over_ranks(torch.stack(running)), strict=True):
            statistic.copy_(summed / group.world_size)


def optimise(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    given: StepInput,
    group: Group,
    precision: Precision,
) -> StepResult:
    """Do one optimisation step; `model` is the task's, distributed. Every rank must call it.

    Micro-batches of which no clip could be read are passed over; a rank may have no others. Raises StoppedError, on
    every rank, where loss or gradient is not finite, or where no rank has a clip. With fp16 the scaler skips steps
    whose gradient overflows until its scale is below 1.
    """
    batches = [batch for batch in given.micro_batches if len(batch.get("frames", ()))]
    objective, names = task.objective, list(task.objective.weights)
    with torch.no_grad():
        targets = [objective.targets(batch) for batch in batches]
        counts, constant = objective.judge(sum_over_ranks(objective.moments(targets, group.device)))
    # DistributedDataParallel averages the ranks' gradients, so each rank's share of the loss is taken world_size times
    scale = torch.tensor([objective.weights[name] * group.world_size for name in names], device=group.device)
    factors = scale / counts.clamp(min=1).float()
    sums = torch.zeros_like(counts)
    first: Predictions = {}
    call = _in_precision(model, group.device, precision)
    for number, (batch, target) in enumerate(zip(batches, targets, strict=True)):
        with _synchronised(model, last=number == len(targets) - 1):
            errors, predictions = objective.errors(call, batch, target)
            scaler.scale((errors * factors).sum()).backward()  # type: ignore[no-untyped-call]
        sums += errors.detach()
        if given.keep and not first:
            first = {name: value.detach() for name, value in predictions.items()}
    if not batches:
        scaler.scale(objective.idle(model, group.device)).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    norm = gradient_norm(task.model, task.clip_grad)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    share_running_statistics(task.model, group)

    clips = sum(len(batch["frames"]) for batch in batches)
    skipped = sum(len(batch["skipped"]) for batch in given.micro_batches)
    own = torch.tensor([clips, skipped, given.waited, given.signalled()], dtype=sums.dtype, device=group.device)
    summed = sum_over_ranks(torch.cat([own, sums]))
    # one wait for the device in a step. A bad number is found after the weights took it in, but those are never saved
    numbers = torch.cat([norm.double()[None], summed, constant, counts]).tolist()
    grad_norm, all_clips, all_skipped, waited, signals = numbers[:5]
    errors_of, constant_of, counted = (numbers[5 + i * len(names) : 5 + (i + 1) * len(names)] for i in range(3))
    if all_clips == 0:
        _stop_without_clips(given)
    losses = _means(names, errors_of, counted)
    loss = sum(objective.weights[name] * value for name, value in losses.items() if value is not None)
    overflow_is_skipped = scaler.is_enabled() and scaler.get_scale() >= 1
    if not math.isfinite(loss) or not (math.isfinite(grad_norm) or overflow_is_skipped):
        _stop(given, {"loss": loss, **losses, "grad_norm": grad_norm})
    return StepResult(
        losses=losses,
        trivial=_means(names, constant_of, counted),
        loss=loss,
        grad_norm=grad_norm,
        clips=round(all_clips),
        skipped=round(all_skipped),
        waited=waited / group.world_size,
        signalled=signals > 0,
        picture=(batches[0], first, targets[0]) if given.keep and batches else None,
    )


def _means(names: list[str], sums: list[float], counts: list[float]) -> dict[str, float | None]:
    return {name: total / count if count else None for name, total, count in zip(names, sums, counts, strict=True)}


def _in_precision(model: nn.Module, device: torch.device, precision: Precision) -> Call:
    """The model, called under autocast; what is done with what it gives is not."""

    def call(*arguments: Any) -> Any:
        with torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "fp32"):
            return model(*arguments)

    return call


def _synchronised(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients are averaged over the ranks in the last micro-batch's backward pass only."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


def _stop_without_clips(given: StepInput) -> None:
    own = [f"{clip.id} ({clip.reason})" for batch in given.micro_batches for clip in batch["skipped"]]
    unread = list(dict.fromkeys(clip for rank in gather_objects(own) for clip in rank))
    more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
    raise StoppedError(
        f"step {given.number}: no clip could be read: {', '.join(unread[:_NAMED])}{more}. Mend these videos and go on "
        "with --resume, or begin again with larger batches, which hold others too"
    )


def _stop(given: StepInput, values: dict[str, float | None]) -> None:
    videos = [str(clip.id) for batch in given.micro_batches for clip in batch["clip"]]
    names = ", ".join(name for rank in gather_objects(videos) for name in rank)
    said = ", ".join(f"{name} {value:.6g}" for name, value in values.items() if value is not None)
    raise StoppedError(
        f"step {given.number}: stopped by numbers that are not finite: {said}. The batch's videos: {names}"
    )
