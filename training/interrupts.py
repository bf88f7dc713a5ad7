"""SIGTERM and SIGUSR1 ask the trainer to save and go; Slurm sends them before it ends or requeues a job."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupts:
    """While open, the two signals only set a flag, however often they come; a save under way is not disturbed."""

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the last signal that came."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    @contextmanager
    def inherited(self) -> Iterator[None]:
        """Processes that are started in here ignore the signals until they say otherwise.

        That is for the server that forks a loader's workers; the workers themselves call `ignore_in_worker`. A signal
        that comes to this process in the meantime, some milliseconds, is lost.
        """
        own = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in own.items():
                signal.signal(number, handler)


def ignore_in_worker() -> None:
    """Let a loader's worker outlive the signals, and Ctrl-C; it ends with its trainer, also with one that is killed.

    Slurm sends signals to every process of a job, and the step under way still needs its clips. To be called in the
    DataLoader's worker_init_fn, for PyTorch's workers begin by taking SIGTERM as their end.
    """
    for number in (*_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # PyTorch's workers look whether their parent is there; under forkserver that is the server, which lives on as long
    # as they do
    if (trainer := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(trainer.sentinel,), name="end-with-trainer", daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
