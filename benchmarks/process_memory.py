"""Memory, open files and CPU seconds of a process and everything it has started, sampled over time."""

import csv
import dataclasses
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

WORKER_TITLE = "ray::_Process"
"""How Ray's processes that do the jobs of `extraction/ray_runner.py` begin their command line."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One process at one moment. `at`: `time.monotonic()`; bytes: resident, and of its own (unique set size)."""

    at: float
    kind: str
    """`driver`, `worker`, or `ray`: what else Ray has started."""
    pid: int
    rss: int
    uss: int
    cpu_seconds: float
    open_files: int
    threads: int


class MemorySampler:
    """Samples the tree below process `pid` every `seconds` until `stop`; `samples` grows meanwhile."""

    def __init__(self, pid: int, seconds: float) -> None:
        self._root, self._seconds = psutil.Process(pid), seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.samples: list[Sample] = []
        self._thread.start()

    def stop(self) -> list[Sample]:
        """End; returns the samples."""
        self._ended.set()
        self._thread.join()
        return self.samples

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                processes = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.samples += [s for process in processes if (s := self._sample(process)) is not None]

    def _sample(self, process: psutil.Process) -> Sample | None:
        try:
            with process.oneshot():
                kind = "driver" if process == self._root else "ray"
                if process.cmdline()[:1] and process.cmdline()[0].startswith(WORKER_TITLE):
                    kind = "worker"
                memory, times = process.memory_full_info(), process.cpu_times()
                if not memory.rss or not memory.uss:  # it is ending, and has given its memory back
                    return None
                return Sample(
                    time.monotonic(), kind, process.pid, memory.rss, memory.uss, times.user + times.system,
                    process.num_fds(), process.num_threads(),
                )  # fmt: skip
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
            return None


def cpu_by_kind(samples: Sequence[Sample]) -> dict[str, float]:
    """CPU seconds of all processes of a kind together, up to the last sample of each."""
    last: dict[int, float] = {}
    kinds: dict[int, str] = {}
    for sample in samples:
        last[sample.pid] = max(sample.cpu_seconds, last.get(sample.pid, 0.0))
        if kinds.get(sample.pid) != "worker":  # a worker is an idle process of Ray's before
            kinds[sample.pid] = sample.kind
    found: dict[str, float] = {}
    for pid, seconds in last.items():
        found[kinds[pid]] = found.get(kinds[pid], 0.0) + seconds
    return found


def write_csv(path: Path, samples: Sequence[Sample], begun: float) -> None:
    """One line for each sample; `at` in seconds since `begun`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Sample)])
        writer.writeheader()
        for sample in samples:
            writer.writerow({**dataclasses.asdict(sample), "at": round(sample.at - begun, 3)})
