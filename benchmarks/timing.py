"""How long one call takes."""

import math
import time
from collections.abc import Callable


def shortest_ms(work: Callable[[], object], repeats: int) -> float:
    """The least of many runs in ms; a first one, which compiles, is not counted."""
    work()
    least = math.inf
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - begun)
    return 1e3 * least
