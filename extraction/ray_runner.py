"""Jobs on Ray Core: the only module that imports Ray.

With `RAY_ADDRESS` set the jobs go to that cluster, otherwise to worker processes of this one, started and ended with
the run. A job writes its own files; what comes back is a small record.
"""

import logging
import math
import os
from typing import Any

import ray
import ray.exceptions

from extraction.jobs import Job, Result, VideoJob, run_job
from extraction.run import WorkerLostError

logger = logging.getLogger(__name__)

# Results are a few hundred bytes; the default store would take a third of the machine's memory.
_OBJECT_STORE_BYTES = 100 << 20
# A worker starts anew after so many videos: decoders leak a little.
_JOBS_PER_WORKER = 200


class RayExecutor:
    """An `Executor` on Ray. workers: how many jobs at a time; 0 for one on each core.

    gpus: this machine's CUDA devices to share out among the videos (with a cluster, more than 0 means the cluster's);
    each is used by `workers_per_gpu` videos at a time, so that it need not wait while one is decoded.
    """

    def __init__(self, workers: int, gpus: int = 0, workers_per_gpu: int = 4) -> None:
        os.environ.setdefault("RAY_task_oom_retries", "0")  # tries are counted by the driver, whatever killed them
        # the future default, in force already: workers see the devices that they are given
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
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
        self._task = ray.remote(num_cpus=1, max_retries=0, max_calls=_JOBS_PER_WORKER)(run_job)
        self._video_task = self._task
        if gpus:
            if not there.get("GPU"):
                raise ValueError("--device cuda: the Ray cluster has no GPU; start its nodes with --num-gpus")
            self._video_task = self._task.options(num_gpus=gpu_share(workers_per_gpu))
            self.slots = max(1, min(self.slots, int(there["GPU"]) * workers_per_gpu))
        self._running: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """See `Executor`."""
        task = self._video_task if isinstance(job, VideoJob) else self._task
        self._running[task.remote(job)] = job

    def next_result(self) -> tuple[Job, Result | WorkerLostError]:
        """See `Executor`."""
        ready, _ = ray.wait(list(self._running), num_returns=1)
        job = self._running.pop(ready[0])
        try:
            return job, ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # as if it had been raised here
        except ray.exceptions.RayError as error:
            return job, WorkerLostError(type(error).__name__)

    def close(self) -> None:
        """See `Executor`."""
        ray.shutdown()


def gpu_share(workers_per_gpu: int) -> float:
    """The part of a GPU that one of so many workers takes. Ray counts in ten-thousandths, and rounded up one worker
    would not fit.
    """
    return math.floor(10_000 / workers_per_gpu) / 10_000
