"""How many processes the machine has room for."""

import os


def usable_cores() -> int:
    """Cores that this process may run on; all of the machine's where the system does not say which."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
