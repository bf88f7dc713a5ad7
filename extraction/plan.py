"""What a run has to do: which videos of which shards, and about how many bytes they will take."""

import dataclasses
import importlib.metadata
import logging
import platform
from collections.abc import Sequence
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np

from data_specs.container import read_header
from data_specs.dataset import VideoEntry, VideoList
from data_specs.failures import Failure, read_failures
from data_specs.geometry import grid_size, start_frames, tracked_size
from data_specs.recipe import Recipe
from data_specs.schema import array_specs
from data_specs.track_store import StoreInfo
from data_specs.video import VideoError
from data_specs.video_files import video_path
from extraction.commit import ShardFolder
from extraction.motion.cotracker3.weights import network_versions
from extraction.motion.gpu.device import device_versions
from extraction.tries import NO_TRIES, Tries, read_tries

logger = logging.getLogger(__name__)

# Compressed bytes over plain bytes; docs/methods.md has the measurement. Only an estimate hangs on it.
_COMPRESSION = 0.55
_SAMPLE = 20


@dataclasses.dataclass(frozen=True)
class Todo:
    """A video to extract: its place in the shard, how often it failed before, and the tries that were lost since."""

    place: int
    entry: VideoEntry
    attempts: int
    tries: Tries = NO_TRIES


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """One shard: its videos in list order, those to extract, how many have failed, and whether it is in place."""

    shard: int
    entries: tuple[VideoEntry, ...]
    todo: tuple[Todo, ...]
    failed: int
    complete: bool
    recovered: int = 0
    """Videos that have been extracted since the shard was complete, but are not in it yet."""
    damage: tuple[str, ...] = ()
    """What is wrong with a complete shard, by the names and sizes of its files."""
    verify: bool = False
    """Whether a complete shard is to be read back."""
    leftovers: bool = False
    """Whether a run that was killed left files that are not needed any more."""

    @property
    def needs_assembly(self) -> bool:
        """Whether the shard has to be written once its videos are done."""
        return not self.complete or bool(self.todo) or bool(self.recovered) or bool(self.damage)

    @property
    def needs_check(self) -> bool:
        """Whether it is to be found out which of a complete shard's videos are damaged."""
        return self.verify or bool(self.damage)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.needs_assembly and not self.needs_check and not self.leftovers


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the videos to do come to, judged by a sample of them."""

    sampled: int
    frames: float
    stored_bytes: float


def software_versions(device: str = "cpu", tracker: str = "flow") -> dict[str, str]:
    """Versions of everything that can change a store's bytes, the processor that kernels are compiled for, and the
    device that does the work if it is not that.
    """
    packages = {
        "motion-targets": "motion-targets",
        "av": "av",
        "decord": "decord2",
        "numba": "numba",
        "numcodecs": "numcodecs",
        "numpy": "numpy",
        "opencv": "opencv-contrib-python-headless",
        "zarr": "zarr",
    }
    versions = {name: importlib.metadata.version(package) for name, package in packages.items()}
    return {
        **versions,
        "python": platform.python_version(),
        "processor": _processor(),
        **device_versions(device),
        **(network_versions() if tracker == "cotracker3" else {}),
    }


def _processor() -> str:
    return str(numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name())


def store_info(
    videos: VideoList, recipe: Recipe, num_shards: int, device: str = "cpu", *, weights_sha256: str | None = None
) -> StoreInfo:
    """What store.json says of a store of these videos. weights_sha256: of the tracker's weights, if it has any."""
    return StoreInfo(
        dataset=videos.dataset,
        split=videos.split,
        recipe=recipe,
        list_sha256=videos.digest,
        num_videos=len(videos.entries),
        num_shards=num_shards,
        software=software_versions(device, recipe.tracker),
        clip_stride=videos.clip_stride,
        flip=videos.flip,
        weights_sha256=weights_sha256,
    )


def plan_shards(
    store: Path, videos: VideoList, num_shards: int, shards: Sequence[int], *, retry_failed: bool, verify: bool = False
) -> list[ShardPlan]:
    """Look at what the store holds already. Done videos are never done again; failed ones with `retry_failed`.

    verify: complete shards are to be read back.
    """
    return [_plan_shard(store, shard, videos.shard(shard, num_shards), retry_failed, verify) for shard in shards]


def _plan_shard(
    store: Path, shard: int, entries: tuple[VideoEntry, ...], retry_failed: bool, verify: bool
) -> ShardPlan:
    folder = ShardFolder(store, shard)
    complete, damage = folder.is_complete, []
    listed: dict[int, Failure] = {}
    if complete:
        damage = list(folder.problems())
        try:
            listed = {failure.index: failure for failure in read_failures(store, shard)}
        except (OSError, ValueError) as error:
            damage.append(str(error))
    partial = folder.partial_names()
    todo, failed, recovered = [], 0, 0
    for place, entry in enumerate(entries):
        if partial and folder.tracks_path(place).name in partial:
            recovered += complete
            continue
        if complete and entry.index not in listed:
            continue
        failure = folder.read_failed(place) if folder.failed_path(place).name in partial else None
        failure = failure or listed.get(entry.index)
        failed += failure is not None
        if failure is None or retry_failed:
            tries = read_tries(folder.tries_path(place)) if folder.tries_path(place).name in partial else NO_TRIES
            todo.append(Todo(place, entry, failure.attempts if failure else 0, tries))
    return ShardPlan(
        shard,
        entries,
        tuple(todo),
        failed,
        complete,
        recovered,
        tuple(damage),
        verify=complete and verify,
        leftovers=complete and bool(partial),
    )


def parse_shards(text: str | None, num_shards: int) -> list[int]:
    """`0,3-5` to [0, 3, 4, 5]; None to all shards. Raises ValueError for anything outside 0 ... num_shards - 1."""
    if text is None:
        return list(range(num_shards))
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"--only-shards {text}: {part!r} is neither a number nor a range such as 3-5")
        low, high = int(first), int(last) if dash else int(first)
        if low > high or high >= num_shards:
            raise ValueError(f"--only-shards {text}: {part!r} is not within 0-{num_shards - 1}")
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def parse_part(text: str, num_shards: int) -> list[int]:
    """`1/4` to every fourth shard from 1 on: [1, 5, 9, ...]. Raises ValueError for what is not I/N with I < N."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise ValueError(f"--part {text}: give I/N, part I of N counted from 0, such as 0/4")
    if int(number) >= int(count):
        raise ValueError(f"--part {text}: the parts of {count} are 0/{count} to {int(count) - 1}/{count}")
    return list(range(int(number), num_shards, int(count)))


def estimate(plans: Sequence[ShardPlan], root: Path, recipe: Recipe, *, follow_links: bool = False) -> Estimate:
    """Frames and stored bytes of the videos to do, by opening a sample of them. Unreadable ones count as nothing."""
    todo = [item.entry for plan in plans for item in plan.todo]
    if not todo:
        return Estimate(0, 0, 0)
    sample = [todo[i] for i in np.linspace(0, len(todo) - 1, min(_SAMPLE, len(todo))).astype(int)]
    frames = stored = 0.0
    for entry in sample:
        try:
            header = read_header(video_path(root, entry.path, follow_links=follow_links))
        except VideoError:
            continue
        if header.frames and header.sizes:
            frames += header.frames
            stored += _plain_bytes(int(header.frames), header.sizes[0], recipe) * _COMPRESSION
    scale = len(todo) / len(sample)
    return Estimate(len(sample), frames * scale, stored * scale)


def _plain_bytes(num_frames: int, source_size: tuple[int, int], recipe: Recipe) -> int:
    assert recipe.start_stride is not None
    times = (num_frames, recipe.length, recipe.frame_step, recipe.start_stride)
    starts = len(start_frames(*times, keep_short=recipe.keep_short))
    rows, columns = grid_size(tracked_size(source_size, recipe.short_side), recipe.grid_stride)
    per_point = sum(
        int(np.prod(spec.inner)) * np.dtype(spec.dtype).itemsize
        for spec in array_specs(recipe).values()
        if spec.axis == "point"
    )
    return starts * rows * columns * per_point
