"""How a run is asked to end: SIGTERM and SIGUSR1, some time before whoever sends them ends it by force."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from data_specs.interrupts import Interrupts

logger = logging.getLogger(__name__)

# Python drops what is raised in a destructor or a callback of native code; and cleaning up may hang as well.
_AGAIN_SECONDS = 30.0


class GraceOverError(BaseException):
    """The time is over that videos at work were given. As with Ctrl-C, no handler of a video's errors sees it."""


@contextmanager
def stopping_on_signals(grace_seconds: float) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether the run has been asked to end; GraceOverError is raised so much later.

    That is raised wherever the process then is, between two instructions of Python, and again where that was in vain.
    """

    def begin_grace() -> None:
        signal.setitimer(signal.ITIMER_REAL, max(grace_seconds, 1e-3), _AGAIN_SECONDS)
        logger.warning(
            "%s: no video is begun any more; those at work have %g s, then they are left to the next run",
            interrupts.received, grace_seconds,
        )  # fmt: skip

    def end_grace(number: int, frame: FrameType | None) -> None:
        raise GraceOverError

    before = signal.signal(signal.SIGALRM, end_grace)
    interrupts = Interrupts(begin_grace)  # the first signal may come while it is entered
    try:
        with interrupts:
            yield lambda: interrupts.received is not None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
