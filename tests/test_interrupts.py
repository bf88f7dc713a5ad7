"""The loader's workers outlive the trainer's signals, and nothing else: they end with it, and never hold it up."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY
from stand_in_training import Clips, train_stand_in

from training import checkpoint

# a trainer that is killed, or fails, while a worker of its loader is at work
TRAINER = """
import multiprocessing, os, signal, sys, time
from training.interrupts import ignore_in_worker
from training.step_batches import StepBatches

def work(connection):
    ignore_in_worker()
    connection.send(os.getpid())
    time.sleep(600)

class Loader:
    # as a DataLoader: the worker lives as long as the iterator, which a traceback holds
    def __iter__(self):
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        self.worker = context.Process(target=work, args=(theirs,), daemon=True)
        self.worker.start()
        print(ours.recv(), flush=True)
        return self

    def __next__(self):
        raise RuntimeError("a worker found bad bytes")

if __name__ == "__main__":
    import torch
    with StepBatches(Loader(), 1, torch.device("cpu")) as batches:
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        batches.take()
"""


@pytest.mark.parametrize(("end", "status"), [("killed", -signal.SIGKILL), ("fails", 1)])
def test_a_worker_ends_with_its_trainer(tmp_path, end, status):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # every process that it started has its output open: the pipes end with the last of them
    process = subprocess.Popen(
        [sys.executable, str(script), end], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, said
    assert ("a worker found bad bytes" in said) is (end == "fails")


def test_a_worker_outlives_the_signals(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import time\nfrom training.interrupts import ignore_in_worker\n"
        "ignore_in_worker()\nprint('ready', flush=True)\ntime.sleep(0.5)\nprint('done', flush=True)\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.01)
    assert process.communicate(timeout=60)[0] == "done\n"
    assert process.returncode == 0


def test_a_signal_that_comes_before_the_first_batch_is_not_lost(tmp_path, monkeypatch):
    batch = Clips.batch

    def first(clips, numbers):
        if 0 in numbers:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(clips, numbers)

    monkeypatch.setattr(Clips, "batch", first)
    assert train_stand_in(tmp_path, steps=4)[0] == "interrupted"
    assert checkpoint.load(checkpoint.latest(tmp_path))["step"] == 1
