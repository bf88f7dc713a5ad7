"""Jobs on Ray Core: the only module that imports Ray.

With `RAY_ADDRESS` set the jobs go to that cluster, otherwise to worker processes of this one, started and ended with
the run. A job writes its own files; what comes back is a small record.

Workers are actors: processes that keep what their jobs leave in them (a tracker's network, compiled kernels) and, for
their whole life, their part of one GPU. A task's process may be given another GPU than the one that it has opened.
"""

import dataclasses
import logging
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from data_specs.interrupts import SIGNALS
from extraction.job_records import Job, Result
from extraction.jobs import run_job
from extraction.run import WorkerLostError

logger = logging.getLogger(__name__)

# Results are a few hundred bytes; the default store would take a third of the machine's memory.
_OBJECT_STORE_BYTES = 100 << 20
# So many workers in turn that die as they start stop the run, unless others are at work.
_MAX_FAILED_STARTS = 3
# Ray waits for ever for a node that could start a worker, also where the only one there was is gone.
_LOOK_SECONDS = 10.0


class _Process:
    """A worker process: does its jobs one after the other."""

    def __init__(self, do: Callable[[Job], Result]) -> None:
        self._do = do

    def started(self) -> None:
        """Returns once there is a process."""

    def run(self, job: Job) -> Result:
        return self._do(job)


@dataclasses.dataclass(eq=False)
class _Worker:
    """An actor, and how many jobs it has had."""

    actor: Any
    jobs: int = 0


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep this process's way with SIGTERM: Ray takes it for itself, in Python and below, to end at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class RayExecutor:
    """An `Executor` on Ray. workers: how many jobs at a time; 0 for one on each core.

    gpus: this machine's CUDA devices to share out among the workers (with a cluster, more than 0 means the cluster's);
    each is used by `workers_per_gpu` workers at a time, so that it need not wait while one decodes a video.
    jobs_per_worker: a worker is then replaced, in case a decoder leaks. None was seen to (docs/scaling.md), and a start
    costs two seconds.

    A worker is started when a job first needs it, and again when it has died. A job goes to a worker that has
    started, never to one that may have to wait for its room in the cluster for ever.
    """

    def __init__(self, workers: int, gpus: int = 0, workers_per_gpu: int = 4, jobs_per_worker: int = 2000) -> None:
        # the future default, in force already: workers see the devices that they are given
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with _own_handlers():
            if os.environ.get("RAY_ADDRESS"):
                ray.init(log_to_driver=True, logging_level=logging.WARNING)
            else:
                ray.init(
                    address="local",  # not a cluster that somebody started on this machine
                    num_cpus=workers or os.cpu_count() or 1,
                    num_gpus=gpus,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=True,
                    logging_level=logging.WARNING,
                )
        there = ray.cluster_resources()
        self.slots = workers or int(there.get("CPU", 1))
        share = 0.0
        if gpus:
            gpus = int(there.get("GPU", 0))
            if not gpus:
                raise ValueError("--device cuda: the Ray cluster has no GPU; start its nodes with --num-gpus")
            self.slots = max(1, min(self.slots, gpus * workers_per_gpu))
            # of several GPUs Ray fills up one before it takes the next; shares as large as they can be spread them
            share = gpu_share(min(workers_per_gpu, math.ceil(self.slots / gpus)))
        # no restarts and no retries by Ray: tries are counted by the driver, whatever killed the worker
        options = {"num_cpus": 1, "num_gpus": share, "max_restarts": 0, "max_task_retries": 0}
        self._actor_class = ray.remote(**options, scheduling_strategy="SPREAD")(_Process)
        self._jobs_per_worker = jobs_per_worker
        self._waiting: deque[Job] = deque()
        self._free: list[_Worker] = []
        self._calls: dict[Any, tuple[_Worker, Job | None]] = {}  # None: it is starting
        self._failed_starts = 0
        self.stopping: Callable[[], bool] = lambda: False

    @property
    def working(self) -> int:
        """See `Executor`."""
        return sum(job is not None for _, job in self._calls.values())

    def submit(self, job: Job) -> None:
        """See `Executor`."""
        self._waiting.append(job)
        self._hand_out()

    def next_result(self) -> tuple[Job, Result | WorkerLostError] | None:
        """See `Executor`. Raises WorkerLostError where workers cannot be started."""
        while self.working or not self.stopping():
            ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=_LOOK_SECONDS)
            if not ready:
                _check_nodes()
                continue
            worker, job = self._calls.pop(ready[0])
            result: Result | WorkerLostError
            try:
                result = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                ray.kill(worker.actor)  # whatever state that has left it in
                self._hand_out()
                raise error.cause from error  # as if it had been raised here
            except ray.exceptions.RayError as error:
                ray.kill(worker.actor)  # one that is only out of reach may still be at the job that is given out again
                result = WorkerLostError(type(error).__name__)
                if job is None:
                    self._count_failed_start(error)
            else:
                self._failed_starts = 0
                self._take_back(worker)
            self._hand_out()  # before the driver looks at the result
            if job is not None:
                return job, result
        return None

    def close(self) -> None:
        """See `Executor`."""
        ray.shutdown()

    def _hand_out(self) -> None:
        if self.stopping():
            return
        while self._waiting and self._free:
            worker, job = self._free.pop(), self._waiting.popleft()
            worker.jobs += 1
            self._calls[worker.actor.run.remote(job)] = worker, job
        starting = sum(job is None for _, job in self._calls.values())
        if self._failed_starts and starting < len(self._calls):
            return  # the jobs at work may be what leaves it no room: again after one of them
        room = self.slots - len(self._calls) - len(self._free)
        for _ in range(min(len(self._waiting) - starting, room)):
            worker = _Worker(self._actor_class.remote(run_job))
            self._calls[worker.actor.started.remote()] = worker, None

    def _take_back(self, worker: _Worker) -> None:
        if worker.jobs < self._jobs_per_worker:
            self._free.append(worker)
        else:
            ray.kill(worker.actor)

    def _count_failed_start(self, error: ray.exceptions.RayError) -> None:
        self._failed_starts += 1
        logger.warning("a worker died as it started: %s", error)
        if self._failed_starts >= _MAX_FAILED_STARTS and all(job is None for _, job in self._calls.values()):
            raise WorkerLostError(f"{self._failed_starts} workers in turn died as they started: {error}") from error


def _check_nodes() -> None:
    """Raise WorkerLostError where no node is left that could do anything."""
    if not any(node["Alive"] for node in ray.nodes()):
        raise WorkerLostError("no node of the Ray cluster is alive any more")


def gpu_share(workers_per_gpu: int) -> float:
    """The part of a GPU that one of so many workers takes. Ray counts in ten-thousandths, and rounded up one worker
    would not fit.
    """
    return math.floor(10_000 / workers_per_gpu) / 10_000
