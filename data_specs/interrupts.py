"""SIGTERM and SIGUSR1 ask a run to keep what it has and go; Slurm sends them before it ends or requeues a job."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

EXIT_INTERRUPTED = 75
"""Status of a command that was interrupted and goes on when it is given again; sysexits.h's EX_TEMPFAIL."""


class Interrupts:
    """While open, the two signals only set a flag, however often they come; what is under way is not disturbed."""

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        """then: is called, once, when the first of them comes."""
        self._then = then
        self.received: str | None = None
        """Name of the last signal that came."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, signal.Signals(number).name
        if is_first and self._then is not None:
            self._then()

    @contextmanager
    def inherited(self) -> Iterator[None]:
        """Processes that are started in here ignore the signals until they say otherwise.

        That is for the server that forks a loader's workers; the workers themselves call `ignore_in_worker`. A signal
        that comes to this process in the meantime, some milliseconds, is lost.
        """
        own = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in own.items():
                signal.signal(number, handler)
