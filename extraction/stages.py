"""Where a video's time goes, and where it failed."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Stage = Callable[[str], AbstractContextManager[None]]
"""`with stage("flow"): ...` does its work under that name."""


class StageTimer:
    """Adds up the seconds of each named stage; calling it is a `Stage`.

    `seconds`: by stage, without the stages inside it. `failed`: the innermost stage that an exception left, or None.
    `current`: the stage that was entered last; `last_change`: when one was last entered or left (time.monotonic()).
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: str | None = None
        self.current = "decode"
        self.last_change = time.monotonic()
        self._inner = [0.0]

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body of the `with` statement."""
        self._inner.append(0.0)
        self.current, self.last_change = stage, time.monotonic()
        begun = time.perf_counter()
        try:
            yield
        except BaseException:
            self.failed = self.failed or stage
            raise
        finally:
            took = time.perf_counter() - begun
            self.last_change = time.monotonic()
            inner = self._inner.pop()
            self._inner[-1] += took
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took - inner
