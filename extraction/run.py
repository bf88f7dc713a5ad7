"""The driver: hands out the videos, assembles each shard as its last video is done, and counts what came of it."""

import dataclasses
import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from data_specs.failures import Failure
from data_specs.recipe import Recipe
from extraction.commit import ShardFolder
from extraction.jobs import Job, Result, ShardJob, ShardResult, VideoJob, VideoResult, run_job
from extraction.motion.cotracker3.weights import Weights
from extraction.plan import ShardPlan
from extraction.progress import Progress

logger = logging.getLogger(__name__)

MAX_TRIES = 3
"""How often a video that takes its worker process with it is tried in one run."""


class WorkerLostError(Exception):
    """The process that did a job is gone: killed, out of memory, or crashed in native code."""


class Executor(Protocol):
    """Runs jobs somewhere. `slots`: how many at a time."""

    slots: int

    def submit(self, job: Job) -> None:
        """Take a job; it runs as soon as there is room."""

    def next_result(self) -> tuple[Job, Result | WorkerLostError]:
        """Wait until any job is finished. Errors that are not the video's own (a full disk) are raised."""

    def close(self) -> None:
        """Stop; jobs that still run are given up."""


class LocalExecutor:
    """Runs jobs one after the other in this process."""

    slots = 1

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """See `Executor`."""
        self._jobs.append(job)

    def next_result(self) -> tuple[Job, Result | WorkerLostError]:
        """See `Executor`; the work is done here."""
        job = self._jobs.popleft()
        return job, run_job(job)

    def close(self) -> None:
        """See `Executor`."""
        self._jobs.clear()


@dataclasses.dataclass(kw_only=True)
class RunSummary:
    """What a run did: counts of this run, and the seconds of its workers by stage."""

    done: int = 0
    failed: int = 0
    frames: int = 0
    rows: int = 0
    shards: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    worker_seconds: float = 0.0

    def add(self, result: VideoResult) -> None:
        """Count a video."""
        self.failed += result.failure is not None
        self.done += result.failure is None
        self.frames += result.num_frames
        self.rows += result.num_rows
        self.worker_seconds += result.wall_seconds
        for stage, seconds in result.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def run(
    plans: Sequence[ShardPlan],
    executor: Executor,
    *,
    store: Path,
    root: Path,
    recipe: Recipe,
    software: dict[str, str],
    stall_seconds: float,
    progress: Progress,
    device: str = "cpu",
    weights: Weights | None = None,
    follow_links: bool = False,
) -> RunSummary:
    """Do everything in `plans`; returns when every shard in it is complete."""
    summary = RunSummary()
    by_shard = {plan.shard: plan for plan in plans}
    left = {plan.shard: len(plan.todo) for plan in plans if plan.needs_assembly}
    tries: dict[tuple[int, int], int] = {}

    def video_job(shard: int, place: int, attempts: int) -> VideoJob:
        entry = by_shard[shard].entries[place]
        return VideoJob(
            store=store,
            shard=shard,
            place=place,
            entry=entry,
            root=root,
            recipe=recipe,
            attempts=attempts,
            stall_seconds=stall_seconds,
            device=device,
            weights=weights,
            follow_links=follow_links,
        )

    def shard_job(shard: int) -> ShardJob:
        entries = by_shard[shard].entries
        return ShardJob(store=store, shard=shard, entries=entries, recipe=recipe, software=software)

    # shards that are finished go first: they free their partial files
    queue: deque[Job] = deque(shard_job(shard) for shard, count in left.items() if count == 0)
    queue.extend(video_job(plan.shard, item.place, item.attempts) for plan in plans for item in plan.todo)
    running = 0
    while queue or running:
        # a small backlog keeps the workers busy while the driver looks at a result
        while queue and running < 2 * executor.slots:
            executor.submit(queue.popleft())
            running += 1
        job, result = executor.next_result()
        running -= 1
        if isinstance(result, WorkerLostError):
            failure = _recorded(job, store)
            if failure is None:
                again = _lost(job, result, tries)
                if again is not None:
                    queue.appendleft(again)
                    continue
                assert isinstance(job, VideoJob)
                failure = job.failure("worker", result, tries=MAX_TRIES)
                ShardFolder(store, job.shard).write_failed(job.place, failure)
            result = VideoResult(failure=failure)
        if isinstance(job, VideoJob):
            assert isinstance(result, VideoResult)
            summary.add(result)
            progress.video_done(result)
            left[job.shard] -= 1
            if left[job.shard] == 0:
                queue.appendleft(shard_job(job.shard))
        else:
            assert isinstance(result, ShardResult)
            if result.damaged:
                left[job.shard] = len(result.damaged)
                queue.extendleft(video_job(job.shard, p, _attempts(job.shard, p, store)) for p in result.damaged)
                continue
            summary.shards += 1
            summary.seconds["assemble"] = summary.seconds.get("assemble", 0.0) + result.seconds
            summary.worker_seconds += result.seconds
            progress.shard_done(job.shard, result)
    return summary


def _attempts(shard: int, place: int, store: Path) -> int:
    """How often a video has failed since its shard was last complete, whatever came of it later."""
    failure = ShardFolder(store, shard).read_failed(place)
    return failure.attempts if failure else 0


def _recorded(job: Job, store: Path) -> Failure | None:
    """The failure that a lost worker wrote down before it ended itself over a video that stalled."""
    if isinstance(job, ShardJob):
        return None
    failure = ShardFolder(store, job.shard).read_failed(job.place)
    return failure if failure is not None and failure.attempts > job.attempts else None


def _lost(job: Job, error: WorkerLostError, tries: dict[tuple[int, int], int]) -> Job | None:
    """The job to do again after its worker was lost, or None for a video that has had its tries."""
    key = (job.shard, job.place if isinstance(job, VideoJob) else -1)
    tries[key] = tries.get(key, 0) + 1
    what = job.entry.path if isinstance(job, VideoJob) else f"shard {job.shard}"
    logger.warning("%s: worker lost, try %d of %d: %s", what, tries[key], MAX_TRIES, error)
    if tries[key] < MAX_TRIES:
        return job
    if isinstance(job, ShardJob):
        raise WorkerLostError(f"shard {job.shard}: its assembly lost its worker {MAX_TRIES} times: {error}")
    return None
