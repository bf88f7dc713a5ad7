"""One optimisation step, whose loss is that of one large batch.

The step takes some micro-batches on each rank. A head's loss is its mean squared error over the valid targets of *all*
of them,

    loss = sum over heads of weight * (sum over ranks and micro-batches of squared errors) / (… of weights),

so that neither accumulation nor the number of ranks changes what is minimised, however the valid targets are spread:
the targets come first, their weights are summed over the ranks, then each micro-batch adds its share. A head without a
valid target in the whole batch adds 0.
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
from training.frames import normalise_frames
from training.losses import constant_error, moments, squared_errors
from training.optim import gradient_norm
from training.step_batches import Batch
from training.task import AUTOCAST, Precision, Predictions, Targets, Task

_NAMED = 8  # videos in a message


class StoppedError(RuntimeError):
    """A run that cannot go on: numbers that are not finite, or a step without a clip. Names step and videos."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimisation step gave, the same on every rank but for the picture."""

    losses: dict[str, float | None]
    """Mean squared error of each head; None without a valid target in the whole batch."""
    trivial: dict[str, float | None]
    """What the best constant would have: the mean of the step's targets, value by value."""
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
    picture: tuple[Batch, Predictions, Targets] | None
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
    heads = list(task.head_weights)
    with torch.no_grad():
        targets = [task.compute_targets(batch) for batch in batches]
        own_moments = {h: torch.zeros(3, task.head_sizes[h], dtype=torch.float64, device=group.device) for h in heads}
        for target in targets:
            for head in heads:
                own_moments[head] += moments(target[head])
    sizes = [3 * task.head_sizes[head] for head in heads]
    summed_moments = torch.split(sum_over_ranks(torch.cat([own_moments[head].flatten() for head in heads])), sizes)
    counts = torch.stack([of_head.view(3, -1)[0].sum() for of_head in summed_moments])
    constant = torch.stack([constant_error(of_head.view(3, -1)) for of_head in summed_moments])
    # DistributedDataParallel averages the ranks' gradients, so each rank's share of the loss is taken world_size times
    scale = torch.tensor([task.head_weights[h] * group.world_size for h in heads], device=group.device)
    factors = scale / counts.clamp(min=1).float()
    sums = torch.zeros_like(counts)
    first: Predictions = {}
    for number, (batch, target) in enumerate(zip(batches, targets, strict=True)):
        with _synchronised(model, last=number == len(targets) - 1):
            with torch.autocast(group.device.type, AUTOCAST[precision], enabled=precision != "fp32"):
                predictions = model(normalise_frames(batch["frames"]), batch["visible"], batch["predict"])
            predictions = {head: value.float() for head, value in predictions.items()}
            found = squared_errors(predictions, target)
            errors = torch.stack([found[head] for head in heads])
            scaler.scale((errors * factors).sum()).backward()  # type: ignore[no-untyped-call]
        sums += errors.detach()
        if given.keep and not first:
            first = {head: value.detach() for head, value in predictions.items()}
    if not batches:
        _take_part(task, model, group, scaler)
    scaler.unscale_(optimizer)
    norm = gradient_norm(task.model, task.clip_grad)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)

    clips = sum(len(batch["frames"]) for batch in batches)
    skipped = sum(len(batch["skipped"]) for batch in given.micro_batches)
    own = torch.tensor([clips, skipped, given.waited, given.signalled()], dtype=sums.dtype, device=group.device)
    summed = sum_over_ranks(torch.cat([own, sums]))
    # one wait for the device in a step. A bad number is found after the weights took it in, but those are never saved
    numbers = torch.cat([norm.double()[None], summed, constant, counts]).tolist()
    grad_norm, all_clips, all_skipped, waited, signals = numbers[:5]
    errors_of, constant_of, counted = (numbers[5 + i * len(heads) : 5 + (i + 1) * len(heads)] for i in range(3))
    if all_clips == 0:
        _stop_without_clips(given)
    losses = _means(heads, errors_of, counted)
    loss = sum(task.head_weights[head] * value for head, value in losses.items() if value is not None)
    overflow_is_skipped = scaler.is_enabled() and scaler.get_scale() >= 1
    if not math.isfinite(loss) or not (math.isfinite(grad_norm) or overflow_is_skipped):
        _stop(given, {"loss": loss, **losses, "grad_norm": grad_norm})
    return StepResult(
        losses=losses,
        trivial=_means(heads, constant_of, counted),
        loss=loss,
        grad_norm=grad_norm,
        clips=round(all_clips),
        skipped=round(all_skipped),
        waited=waited / group.world_size,
        signalled=signals > 0,
        picture=(batches[0], first, targets[0]) if given.keep and batches else None,
    )


def _means(heads: list[str], sums: list[float], counts: list[float]) -> dict[str, float | None]:
    return {head: total / count if count else None for head, total, count in zip(heads, sums, counts, strict=True)}


def _synchronised(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients are averaged over the ranks in the last micro-batch's backward pass only."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


def _take_part(task: Task, model: nn.Module, group: Group, scaler: torch.amp.GradScaler) -> None:
    """Give gradients of 0, on a rank without a clip: the others wait for it where gradients are averaged."""
    frames = torch.zeros((1, *task.clip_size, 3), dtype=torch.uint8, device=group.device)
    first, second = (torch.tensor([[token]], device=group.device) for token in (0, 1))
    predictions = model(normalise_frames(frames), first, second)
    nothing = torch.stack([prediction.float().sum() for prediction in predictions.values()]).sum() * 0
    scaler.scale(nothing).backward()  # type: ignore[no-untyped-call]


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
