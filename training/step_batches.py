"""The micro-batches of each optimisation step, on the device, and how long the step had to wait for them."""

import contextlib
import multiprocessing
import queue
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import torch

Batch = dict[str, Any]
"""A collated batch: tensors (B, ...) and, under `clip` and `skipped`, lists."""
_SECONDS_TO_END = 10.0


class StepBatches:
    """Takes `accumulate` batches at a time from a loader and brings their tensors to the device.

    On request a thread does so one step ahead, on CUDA by a stream of its own, so that `take` waits only when data is
    really late.
    """

    def __init__(self, loader: Iterable[Batch], accumulate: int, device: torch.device, *, ahead: bool = False) -> None:
        """ahead: load one step ahead in a thread."""
        before = multiprocessing.active_children()
        self._batches: Iterator[Batch] = iter(loader)
        self._workers = [process for process in multiprocessing.active_children() if process not in before]
        self._accumulate, self._device = accumulate, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._stop = threading.Event()
        self._queue: queue.Queue[tuple[list[Batch], torch.cuda.Event | None] | BaseException] = queue.Queue(maxsize=1)
        self._thread: threading.Thread | None = None
        if ahead:
            self._thread = threading.Thread(target=self._run_ahead, name="step-batches", daemon=True)
            self._thread.start()

    def __enter__(self) -> "StepBatches":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if at is not None:
            traceback.clear_frames(at)  # they hold on to the loader's iterator
        self.close()

    def take(self) -> tuple[list[Batch], float]:
        """The next step's batches, and the seconds that it took to get them."""
        begun = time.perf_counter()
        if self._thread is None:
            batches, event = self._load()
        else:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            batches, event = item
        if event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(event)
            for batch in batches:
                for tensor in _tensors(batch):
                    tensor.record_stream(current)
        return batches, time.perf_counter() - begun

    def close(self) -> None:
        """End the thread and the loader's workers."""
        self._stop.set()
        deadline = time.monotonic() + _SECONDS_TO_END
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):  # it may be about to put a step that nobody takes
                self._queue.get(timeout=0.1)
        self._batches = iter(())  # the workers of a DataLoader's iterator end with it
        for worker in self._workers:  # those that do not would be waited for at exit, and take no other signal
            worker.kill()
            worker.join()

    def _load(self) -> tuple[list[Batch], torch.cuda.Event | None]:
        batches = [next(self._batches) for _ in range(self._accumulate)]
        if self._stream is None:
            return [_to_device(batch, self._device) for batch in batches], None
        with torch.cuda.stream(self._stream):
            moved = [_to_device(batch, self._device) for batch in batches]
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return moved, event

    def _run_ahead(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        try:
            while not self._stop.is_set():
                self._queue.put(self._load())
        except BaseException as error:  # noqa: BLE001 (raised where the batches are taken)
            self._queue.put(error)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [value for value in batch.values() if isinstance(value, torch.Tensor)]
