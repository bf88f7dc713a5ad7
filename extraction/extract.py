"""Does what the command line comes to: locks shards, plans them, runs the plan on an executor."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jsonargparse

from data_specs.dataset import VideoList
from data_specs.track_store import StoreInfo
from extraction.commit import ShardFolder, store_digest
from extraction.kernels import compile_kernels
from extraction.motion.cotracker3.weights import Weights
from extraction.motion.gpu.device import device_count
from extraction.plan import ShardPlan, plan_shards
from extraction.progress import Progress
from extraction.run import Executor, LocalExecutor, RunSettings, RunSummary, run
from extraction.shard_locks import ShardLocks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extraction:
    """What the command line comes to."""

    options: jsonargparse.Namespace
    videos: VideoList
    info: StoreInfo
    store: Path
    device: str
    weights: Weights | None

    def plans(self, shards: Iterable[int]) -> list[ShardPlan]:
        """What there is to do in these shards."""
        options = self.options
        return plan_shards(
            self.store, self.videos, options.shards, sorted(shards), retry_failed=options.retry_failed,
            verify=options.verify,
        )  # fmt: skip


def extract(extraction: Extraction, shards: Sequence[int], stopping: Callable[[], bool]) -> list[ShardPlan] | None:
    """Do what is to do in the shards that no other run works on; returns how all are then, None if something is left.

    Those that another run works on are looked at again when the others are done.
    """
    plans = {plan.shard: plan for plan in extraction.plans(shards)}
    pending = {shard for shard, plan in plans.items() if not plan.is_done}
    if not pending:
        return list(plans.values())
    taken: set[int] = set()
    held: dict[int, str] = {}
    with ShardLocks(extraction.store) as locks:
        while pending and not stopping():
            found = {shard: locks.take(shard) for shard in sorted(pending)}
            held = {shard: holder for shard, holder in found.items() if holder is not None}
            if pending <= held.keys():
                break
            free = sorted(found.keys() - held.keys())
            pending -= set(free)
            taken |= set(free)
            _do_shards(extraction, free, stopping)  # plans anew: from now on nobody else changes these shards
    for shard, holder in held.items():
        logger.warning("shard %d is left to %s, which works on it", shard, holder)
    plans |= {plan.shard: plan for plan in extraction.plans(sorted(taken))}
    if held or (stopping() and not all(plans[shard].is_done for shard in taken | pending)):
        return None
    return list(plans.values())


def _do_shards(extraction: Extraction, shards: Sequence[int], stopping: Callable[[], bool]) -> None:
    """Do what is to do in shards that this run has locked."""
    for shard in shards:
        if ShardFolder(extraction.store, shard).roll_forward():
            logger.info("shard %d: finished a commit that had been cut short", shard)
    plans = extraction.plans(shards)
    to_do = [plan for plan in plans if plan.needs_assembly or plan.needs_check]
    for plan in to_do:
        ShardFolder(extraction.store, plan.shard).begin()
    if to_do:
        logger.info("%s", summarise(_run(extraction, to_do, stopping)))
    for plan in plans:
        folder = ShardFolder(extraction.store, plan.shard)
        if plan.complete and not plan.needs_assembly and folder.partial_names() and not stopping():
            folder.remove_partial()


def _run(extraction: Extraction, plans: list[ShardPlan], stopping: Callable[[], bool]) -> RunSummary:
    options, info, device = extraction.options, extraction.info, extraction.device
    if any(plan.todo for plan in plans):
        compile_kernels(info.recipe)
    executor: Executor
    if options.executor == "ray":
        from extraction.ray_runner import RayExecutor  # noqa: PLC0415 (seconds to import, and not always wanted)

        device, gpus = _shared_by_ray(device)
        executor = RayExecutor(options.workers, gpus, options.workers_per_gpu)
    else:
        executor = LocalExecutor()
    settings = RunSettings(
        store=extraction.store.absolute(),
        store_digest=store_digest(extraction.store),
        root=extraction.videos.root,
        info=info,
        stall_seconds=options.stall_seconds,
        max_tries=options.max_tries,
        device=device,
        weights=extraction.weights,
        compare_videos=options.verify,
        follow_links=options.follow_links,
    )
    progress = Progress(sum(len(plan.todo) for plan in plans))
    try:
        return run(plans, executor, settings, progress, stopping)
    finally:
        progress.close()
        executor.close()


def _shared_by_ray(device: str) -> tuple[str, int]:
    """The device's name in workers, to which Ray shows the one they are given, and how many this machine has."""
    if device == "cpu" or os.environ.get("RAY_ADDRESS"):
        return device, int(device != "cpu")
    count = device_count(device)
    kind, _, number = device.partition(":")
    if number:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(number)] if visible else number
    return kind, count


def summarise(summary: RunSummary) -> str:
    """What a run did and where its time went."""
    frames = max(summary.frames, 1)
    lines = [
        f"{summary.done} videos done, {summary.failed} failed, {summary.shards} shards written; "
        f"{summary.frames} frames, {summary.rows} start rows, "
        f"{summary.frames / max(summary.worker_seconds, 1e-9):.2f} frames/s for each worker",
    ]
    if summary.seconds:
        lines.append(
            "ms per frame by stage: "
            + ", ".join(
                f"{stage} {1e3 * seconds / frames:.2f}"
                for stage, seconds in sorted(summary.seconds.items(), key=lambda item: -item[1])
            )
        )
    return "\n".join(lines)
