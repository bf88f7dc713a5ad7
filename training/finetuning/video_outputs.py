"""What a model says of whole videos: its output for every view of a video, averaged, put together from all ranks.

Views never share a forward pass with those of another video, so that a video's output does not depend on its
neighbours, and so not on the number of processes either.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.distributed import Group, gather_objects
from training.frames import normalise_frames
from training.task import AUTOCAST, Precision

logger = logging.getLogger(__name__)

MOST_VIEWS = 16
"""Views of one forward pass, where nothing else is said."""
_SECONDS_BETWEEN_LINES = 30.0


class TestingError(ValueError):
    """Videos that cannot be tested, or a model whose numbers say nothing; the message says what to do."""

    __test__ = False  # for pytest: this is none of its classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoOutputs:
    """A model's outputs for V videos, in the order of their list."""

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    """(V,)"""
    values: NDArray[np.float32]
    """(V, D), the mean over the views of each video."""
    skipped: tuple[tuple[str, str], ...]
    """Id and reason of each video that could not be read; they are in none of the above."""
    views: int
    """Views of each video: clips times crops."""


def video_outputs(
    model: nn.Module,
    output: Callable[[Tensor], Tensor],
    views: Iterable[Mapping[str, Any]],
    group: Group,
    precision: Precision = "fp32",
    most_views: int = MOST_VIEWS,
) -> VideoOutputs:
    """The mean of `output(model(x))` over each video's views x; every rank must call it, and gets all of them.

    model: takes frames as `normalise_frames` gives them, float32 (N, 3, T, H, W); it is in evaluation mode meanwhile.
    output: from what the model gives to float32 (N, D).
    views: this rank's videos, those at rank, rank + world_size, … of the list, in list order. Each is a mapping of
    frames uint8 (views, T, H, W, 3), label and id; or has `skipped`, with an id and a reason, in place of them.
    most_views: of one forward pass.

    Raises TestingError, on every rank, where no video could be read, or where an output is not finite.
    """
    was_training = model.training
    model.eval()
    try:
        found = [_of_video(model, output, item, group, precision, most_views) for item in _told(views, group)]
    finally:
        model.train(was_training)
    return _together(gather_objects(found))


@dataclasses.dataclass(frozen=True)
class _Video:
    id: str
    label: int = -1
    views: int = 0
    values: NDArray[np.float32] | None = None
    reason: str = ""
    """Why it could not be read."""


def _of_video(
    model: nn.Module,
    output: Callable[[Tensor], Tensor],
    item: Mapping[str, Any],
    group: Group,
    precision: Precision,
    most_views: int,
) -> _Video:
    if (skipped := item.get("skipped")) is not None:
        return _Video(str(skipped.id), reason=str(skipped.reason))
    frames = torch.as_tensor(item["frames"])
    total: Tensor | None = None
    with torch.inference_mode():
        for chunk in torch.split(frames, most_views):
            video = normalise_frames(chunk.to(group.device, non_blocking=True))
            with torch.autocast(group.device.type, AUTOCAST[precision], enabled=precision != "fp32"):
                found = model(video)
            summed = output(found).double().sum(dim=0)
            total = summed if total is None else total + summed
    assert total is not None, "a video without views"
    mean = (total / len(frames)).cpu().numpy().astype(np.float32)
    return _Video(str(item["id"]), int(item["label"]), len(frames), mean)


def _together(of_ranks: Sequence[Sequence[_Video]]) -> VideoOutputs:
    """The videos of all ranks in list order: the i-th of rank r is video r + i * world_size."""
    world_size = len(of_ranks)
    total = sum(map(len, of_ranks))
    expected = [math.ceil((total - rank) / world_size) for rank in range(world_size)]
    if [len(own) for own in of_ranks] != expected:
        raise TestingError(
            f"the {world_size} processes had {', '.join(str(len(own)) for own in of_ranks)} videos, where "
            f"{', '.join(map(str, expected))} of {total} are theirs; start the test again on all of them"
        )
    videos = [of_ranks[place % world_size][place // world_size] for place in range(total)]
    read = [(video, video.values) for video in videos if video.values is not None]
    skipped = tuple((video.id, video.reason) for video in videos if video.values is None)
    if not read:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in skipped[:5])
        raise TestingError(f"no video could be read, of {total}{reasons}")
    broken = [video.id for video, values in read if not np.isfinite(values).all()]
    if broken:
        raise TestingError(
            f"the model's output is not finite for {len(broken)} of {len(read)} videos: {', '.join(broken[:5])}; "
            "test an earlier checkpoint, or with another --precision"
        )
    numbers = {video.views for video, _ in read}
    if len(numbers) > 1:
        raise TestingError(f"videos have different numbers of views: {', '.join(map(str, sorted(numbers)))}")
    return VideoOutputs(
        ids=tuple(video.id for video, _ in read),
        labels=np.array([video.label for video, _ in read], dtype=np.int64),
        values=np.stack([values for _, values in read]),
        skipped=skipped,
        views=numbers.pop(),
    )


def _told(views: Iterable[Mapping[str, Any]], group: Group) -> Iterable[Mapping[str, Any]]:
    """The items, while the first process says every half minute how far it is."""
    begun = said = time.monotonic()
    for number, item in enumerate(views, 1):
        yield item
        now = time.monotonic()
        if group.is_main and now - said >= _SECONDS_BETWEEN_LINES:
            said = now
            logger.info("%d videos done, %.1f a second", number * group.world_size,
                        number * group.world_size / (now - begun))  # fmt: skip
