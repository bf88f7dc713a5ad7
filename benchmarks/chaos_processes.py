"""Processes of a chaos run: the drivers, what Ray starts for them, and what of that outlives them.

This process becomes a subreaper (Linux, prctl(2)): whatever a killed driver leaves behind becomes its child, so that
"its descendants" are exactly the processes that it started, and nothing else on the machine is ever signalled.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Adopt the orphans among this process's descendants. Raises OSError where the system cannot."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap(but: set[int]) -> None:
    """Let orphans that have ended go; `but`: pids that a Popen waits for."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if child.pid not in but and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def alive(process: psutil.Process) -> bool:
    """Whether it is there and not only waiting to be counted by its parent."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Driver:
    """One run of a command: its process, its log, and the processes below it."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log_path, self.begun = log, time.monotonic()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
            )
        self.pid = self.process.pid

    @property
    def status(self) -> int | None:
        """None while it runs; -N where signal N ended it."""
        return self.process.poll()

    @property
    def log(self) -> str:
        """What it and its workers have said so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float) -> bool:
        """Wait so long for its end; returns whether that came."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.status is not None

    def send(self, number: signal.Signals) -> None:
        """Send the driver, alone, a signal."""
        self.process.send_signal(number)

    def descendants(self, kind: str) -> list[psutil.Process]:
        """Its living processes of a kind: `worker` (with or without a video), `raylet` or `gcs_server`."""
        if self.status is not None:
            return []
        found = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    name = "worker" if title.startswith("ray::_Process") else Path(title.split(" ")[0]).name
                    if name == kind and alive(process):
                        found.append(process)
        return found


def end_everything() -> int:
    """SIGKILL to every descendant of this process; returns how many there were."""
    ended = 0
    while living := [p for p in psutil.Process().children(recursive=True) if alive(p)]:
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.kill()
                ended += 1
        time.sleep(0.05)
        reap(set())
    reap(set())
    return ended
