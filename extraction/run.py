"""The driver: hands out the videos, assembles each shard as its last video is done, and counts what came of it."""

import contextlib
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from data_specs.failures import Failure
from data_specs.track_store import StoreInfo
from extraction.commit import ShardFolder, check_unchanged
from extraction.job_records import (
    CheckJob,
    CheckResult,
    Job,
    Result,
    ShardJob,
    ShardResult,
    VideoJob,
    VideoResult,
)
from extraction.jobs import run_job
from extraction.motion.cotracker3.weights import Weights
from extraction.plan import ShardPlan
from extraction.progress import Progress
from extraction.tries import Tries, count_lost, forgive

logger = logging.getLogger(__name__)

MAX_TRIES = 3
"""How often a video, or a shard, that takes its worker process with it is tried."""


class WorkerLostError(Exception):
    """The process that did a job is gone: killed, out of memory, or crashed in native code."""


class DamagedAgainError(OSError):
    """A video's partial file does not hold what was written to it, however often it is written."""


class VideosGoneError(OSError):
    """A shard cannot be mended, for the videos that it was made from are not there."""


class Executor(Protocol):
    """Runs jobs somewhere. `slots`: how many at a time. `stopping`: once that is true, no job is begun any more."""

    slots: int
    stopping: Callable[[], bool]

    @property
    def working(self) -> int:
        """How many jobs have been begun and are not finished."""

    def submit(self, job: Job) -> None:
        """Take a job; it runs as soon as there is room."""

    def next_result(self) -> tuple[Job, Result | WorkerLostError] | None:
        """Wait until any job is finished, or until none is at work and none will be (None): `stopping()` has come true.

        Errors that are not the video's own (a full disk) are raised.
        """

    def close(self) -> None:
        """Stop; jobs that still run are given up. May be called again."""


class LocalExecutor:
    """Runs jobs one after the other in this process."""

    slots = 1
    working = 0  # between two calls

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self.stopping: Callable[[], bool] = lambda: False

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What all jobs of a run have in common."""

    store: Path
    store_digest: str
    """See `commit.store_digest`."""
    root: Path
    info: StoreInfo
    stall_seconds: float
    max_tries: int = MAX_TRIES
    device: str = "cpu"
    weights: Weights | None = None
    compare_videos: bool = False
    """Whether a check of complete shards also looks for videos that have changed since they were extracted."""
    follow_links: bool = False

    def video_job(self, plan: ShardPlan, place: int, attempts: int) -> VideoJob:
        """The job of one video of the shard, which has failed so often before."""
        return VideoJob(
            store=self.store,
            shard=plan.shard,
            place=place,
            entry=plan.entries[place],
            root=self.root,
            recipe=self.info.recipe,
            attempts=attempts,
            store_digest=self.store_digest,
            stall_seconds=self.stall_seconds,
            device=self.device,
            weights=self.weights,
            follow_links=self.follow_links,
        )

    def shard_job(self, plan: ShardPlan) -> ShardJob:
        """The job of putting the shard together."""
        return ShardJob(
            store=self.store,
            shard=plan.shard,
            entries=plan.entries,
            recipe=self.info.recipe,
            software=self.info.software,
            settings_sha256=self.info.settings_sha256,
            store_digest=self.store_digest,
        )

    def check_job(self, plan: ShardPlan) -> CheckJob:
        """The job of finding out what of the shard is damaged."""
        root = self.root if self.compare_videos else None
        return CheckJob(store=self.store, shard=plan.shard, entries=plan.entries, root=root)


def run(
    plans: Sequence[ShardPlan],
    executor: Executor,
    settings: RunSettings,
    progress: Progress,
    stopping: Callable[[], bool] = lambda: False,
) -> RunSummary:
    """Do everything in `plans`; returns when its shards are complete or, once `stopping()`, when nothing is at work.

    Whatever ends it before that closes the executor; what was at work then counts as no try.
    """
    driver = _Driver(plans, executor, settings, progress)
    executor.stopping = stopping
    try:
        while driver.queue or driver.handed_out:
            if not stopping():
                driver.hand_out()
            elif not executor.working:
                break
            taken = executor.next_result()
            if taken is not None:
                driver.take(*taken, stopping())
    except BaseException as error:
        executor.close()
        driver.forgive()
        if isinstance(error, OSError):
            check_unchanged(settings.store, settings.store_digest)  # says more than that some file is not there
        raise
    if driver.unmended and not stopping():
        raise VideosGoneError("\n".join(driver.unmended))
    return driver.summary


class _Driver:
    """The state of a run: what is to do, what is being done, what each shard still waits for."""

    def __init__(
        self, plans: Sequence[ShardPlan], executor: Executor, settings: RunSettings, progress: Progress
    ) -> None:
        self.executor, self.settings, self.progress = executor, settings, progress
        self.summary = RunSummary()
        self.handed_out: dict[_Key, Job] = {}
        self._plans = {plan.shard: plan for plan in plans}
        self._left = {plan.shard: len(plan.todo) + plan.needs_check for plan in plans}
        self._lost: dict[_Key, int] = {}
        self.unmended: list[str] = []
        # shards that are finished go first: they free their partial files
        self.queue: deque[Job] = deque()
        for plan in plans:
            if plan.needs_check:
                self.queue.append(settings.check_job(plan))
            elif not plan.todo:
                self.queue.append(settings.shard_job(plan))
        todo = [(plan, item) for plan in plans for item in plan.todo]
        # last, those that were at work when a worker or a run was lost: whatever they do, the others are done then
        for plan, item in sorted(todo, key=lambda pair: (pair[1].tries.lost, pair[1].tries.ended)):
            job = settings.video_job(plan, item.place, item.attempts)
            if item.tries.are_spent(settings.max_tries):
                self._count(job, self._give_up(job, item.tries))
            else:
                self.queue.append(job)

    def hand_out(self) -> None:
        """Give the executor what it has room for, and a backlog that keeps it busy while a result is looked at."""
        while self.queue and len(self.handed_out) < 2 * self.executor.slots:
            job = self.queue.popleft()
            self.handed_out[_key(job)] = job
            self.executor.submit(job)

    def take(self, job: Job, result: Result | WorkerLostError, is_stopping: bool) -> None:
        """Look at what came of a job, and queue what follows from it."""
        del self.handed_out[_key(job)]
        if isinstance(result, WorkerLostError):
            if is_stopping and self._recorded(job) is None:
                self._forgive(job)  # its worker was sent the signal too
            elif isinstance(job, VideoJob):
                self._take_lost_video(job, result)
            else:
                self._take_lost(job, result)
            return
        match job, result:
            case VideoJob(), VideoResult():
                self._count(job, result)
            case CheckJob(), CheckResult():
                self._take_check(job, result)
            case ShardJob(), ShardResult():
                self._take_shard(job, result)
            case _:
                raise AssertionError(f"{type(result).__name__} of {type(job).__name__}")

    def forgive(self) -> None:
        """Take back the tries of what was at work, or about to be, when the run itself gave up."""
        for job in self.handed_out.values():
            self._forgive(job)

    def _forgive(self, job: Job) -> None:
        if isinstance(job, VideoJob):
            with contextlib.suppress(OSError):  # what ended the run may be the store
                forgive(self._folder(job).tries_path(job.place))

    def _folder(self, job: Job) -> ShardFolder:
        return ShardFolder(self.settings.store, job.shard)

    def _count(self, job: VideoJob, result: VideoResult) -> None:
        self.summary.add(result)
        self.progress.video_done(result)
        self._one_done(job.shard)

    def _one_done(self, shard: int) -> None:
        self._left[shard] -= 1
        if self._left[shard] == 0:
            self.queue.appendleft(self.settings.shard_job(self._plans[shard]))

    def _take_check(self, job: CheckJob, result: CheckResult) -> None:
        folder, plan = self._folder(job), self._plans[job.shard]
        for problem in result.problems:
            logger.warning("%s", problem)
        todo, partial = {item.place for item in plan.todo}, folder.partial_names()
        again = [p for p in result.damaged if p not in todo and folder.tracks_path(p).name not in partial]
        if (result.problems or plan.needs_assembly) and not self._are_gone(job.shard, again):
            logger.warning("shard %d is mended; %d of its videos are extracted again", job.shard, len(again))
            self._extract_again(job.shard, again)
            self._one_done(job.shard)

    def _extract_again(self, shard: int, places: Sequence[int]) -> None:
        self._left[shard] += len(places)
        self.progress.expect(len(places))
        plan = self._plans[shard]
        self.queue.extendleft(self.settings.video_job(plan, place, self._attempts(shard, place)) for place in places)

    def _are_gone(self, shard: int, places: Sequence[int]) -> bool:
        """Whether the shard is left as it is, rather than taking what is left of it for a list of failures."""
        root, entries = self.settings.root, self._plans[shard].entries
        if not places or any((root / entry.path).exists() for entry in entries):
            return False
        folder = ShardFolder(self.settings.store, shard)
        self.unmended.append(
            f"shard {shard} is damaged, and none of its videos is in {root}: bring them back, or a copy of the shard; "
            f"to give it up, remove {folder.complete_path} and {folder.partial_path}"
        )
        return True

    def _attempts(self, shard: int, place: int) -> int:
        """How often a video has failed since its shard was last complete, whatever came of it later."""
        failure = ShardFolder(self.settings.store, shard).read_failed(place)
        return failure.attempts if failure else 0

    def _take_shard(self, job: ShardJob, result: ShardResult) -> None:
        if result.damaged:
            times = self._lost[_key(job)] = self._lost.get(_key(job), 0) + 1
            if times > self.settings.max_tries:
                raise DamagedAgainError(
                    f"shard {job.shard}: what was written of its videos was damaged when it was read, {times} times in "
                    f"turn, of {self._plans[job.shard].entries[result.damaged[0]].path} and {len(result.damaged) - 1} "
                    "others at last: the storage is not to be relied on"
                )
            if not self._are_gone(job.shard, result.damaged):
                self._extract_again(job.shard, result.damaged)
            return
        self.summary.shards += 1
        self.summary.seconds["assemble"] = self.summary.seconds.get("assemble", 0.0) + result.seconds
        self.summary.worker_seconds += result.seconds
        self.progress.shard_done(job.shard, result)

    def _take_lost_video(self, job: VideoJob, error: WorkerLostError) -> None:
        failure = self._recorded(job)
        if failure is None:
            tries = count_lost(self._folder(job).tries_path(job.place))
            logger.warning(
                "%s: worker lost, try %d of %d: %s", job.entry.path, tries.lost, self.settings.max_tries, error
            )
            if not tries.are_spent(self.settings.max_tries):
                self.queue.append(job)
                return
            self._count(job, self._give_up(job, tries))
        else:
            self._count(job, VideoResult(failure=failure))

    def _give_up(self, job: VideoJob, tries: Tries) -> VideoResult:
        failure = job.failure("worker", WorkerLostError(str(tries)), tries=tries.lost + tries.ended)
        self._folder(job).write_failed(job.place, failure)
        return VideoResult(failure=failure)

    def _recorded(self, job: Job) -> Failure | None:
        """The failure that a lost worker wrote down before it ended itself over a video that stalled."""
        if not isinstance(job, VideoJob):
            return None
        failure = self._folder(job).read_failed(job.place)
        return failure if failure is not None and failure.attempts > job.attempts else None

    def _take_lost(self, job: ShardJob | CheckJob, error: WorkerLostError) -> None:
        what = "its assembly" if isinstance(job, ShardJob) else "the look for damage"
        lost = self._lost[_key(job)] = self._lost.get(_key(job), 0) + 1
        logger.warning(
            "shard %d: %s lost its worker, try %d of %d: %s", job.shard, what, lost, self.settings.max_tries, error
        )
        if lost >= self.settings.max_tries:
            raise WorkerLostError(f"shard {job.shard}: {what} lost its worker {lost} times: {error}")
        self.queue.appendleft(job)


_Key = tuple[type, int, int]


def _key(job: Job) -> _Key:
    return type(job), job.shard, job.place if isinstance(job, VideoJob) else 0
