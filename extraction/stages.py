"""Where a video's time goes, and where it failed."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Stage = Callable[[str], AbstractContextManager[None]]
"""`with stage("flow"): ...` does its work under that name."""


def untimed(stage: str) -> AbstractContextManager[None]:
    """A `Stage` that keeps no time."""
    return nullcontext()


class StageTimer:
    """Adds up the seconds of each named stage; calling it is a `Stage`.

    `seconds`: by stage, without the stages inside it. `failed`: the innermost stage that an exception left, or None.
    `current`: the stage that was entered last; `changes`: how often one was entered or left.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: str | None = None
        self.current = "decode"
        self.changes = 0
        self._inner = [0.0]

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body of the `with` statement."""
        self._inner.append(0.0)
        self.current = stage
        self.changes += 1
        begun = time.perf_counter()
        try:
            yield
        except BaseException:
            self.failed = self.failed or stage
            raise
        finally:
            took = time.perf_counter() - begun
            self.changes += 1
            inner = self._inner.pop()
            self._inner[-1] += took
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took - inner
