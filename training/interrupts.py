"""A loader's worker outlives the signals that its trainer is sent."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from multiprocessing import forkserver

from data_specs.interrupts import SIGNALS, Interrupts


def start_server(interrupts: Interrupts) -> None:
    """Start the server that forks loaders' workers, so that it outlives the signals too; before the first loader."""
    with interrupts.inherited():
        forkserver.ensure_running()


def ignore_in_worker() -> None:
    """Let a loader's worker outlive the signals, and Ctrl-C; it ends with its trainer, also with one that is killed.

    Slurm sends signals to every process of a job, and the step under way still needs its clips. To be called in the
    DataLoader's worker_init_fn, for PyTorch's workers begin by taking SIGTERM as their end.
    """
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # PyTorch's workers look whether their parent is there; under forkserver that is the server, which lives on as long
    # as they do
    if (trainer := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(trainer.sentinel,), name="end-with-trainer", daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
