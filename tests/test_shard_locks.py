"""A shard is one run's at a time; its lock goes with the process that holds it, however that ends."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from extraction.shard_locks import ShardLocks

HOLD = """
import sys, time
from pathlib import Path
from extraction.commit import ShardFolder
from extraction.shard_locks import ShardLocks
store = Path(sys.argv[1])
with ShardLocks(store) as locks:
    assert locks.take(3) is None
    ShardFolder(store, 3).begin()
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds shard 3 of the store."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_shard_that_another_process_holds_is_named_with_its_holder(tmp_path, holder):
    with ShardLocks(tmp_path) as locks:
        assert locks.take(3) == f"process {holder.pid} on {os.uname().nodename}"
        assert locks.take(2) is None
        assert locks.take(4) is None


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_goes_with_its_process(tmp_path, holder, end):
    holder.send_signal(end)
    holder.wait()
    with ShardLocks(tmp_path) as locks:
        assert locks.take(3) is None


def test_a_child_process_that_outlives_the_holder_does_not_keep_the_lock(tmp_path):
    """As Ray's daemons outlive a driver that is killed."""
    code = "import subprocess; print(subprocess.Popen(['sleep', '600'], close_fds=False).pid, flush=True)\n" + HOLD
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert parent.stdout.readline() == "held\n"
        parent.kill()
        parent.wait()
        os.kill(child, 0)
        with ShardLocks(tmp_path) as locks:
            assert locks.take(3) is None
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_file_system_without_locks_is_warned_of_once(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with ShardLocks(tmp_path) as locks:
        assert [locks.take(shard) for shard in range(3)] == [None] * 3
    assert caplog.text.count("see that no other run works on the same shards") == 1
