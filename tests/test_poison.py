"""Videos that take their process with them, workers without memory, nodes that leave: tries are counted, and end."""

import ctypes
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, store_bytes

from data_specs.track_store import TrackStore
from data_specs.validate import validate_store
from extraction import cli, jobs, tries

MOST_ENDED = 3
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


def arguments(clips, store, *more, listing=None, executor="local"):
    return [
        "--dataset", str(listing or clips / "list.txt"), "--root", str(clips), "--shards", "2", "--out", str(store),
        "--flow", "dis", "--executor", executor, *map(str, more),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    store = tmp_path_factory.mktemp("undisturbed") / "s"
    assert cli.main(arguments(clips, store)) == 0
    return store


def crash():
    """As native code does."""
    ctypes.string_at(0)


def kill_oneself():
    """As the kernel does when memory is short, or Slurm when time is over: nothing is said."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_with_poison(end, name, command, seen):
    """The command, in this process, whose video `name` ends it; it leaves a line in `seen` for each that it begins."""
    original = jobs._extract

    def begin(job, *more):
        with seen.open("a") as file:
            file.write(f"{Path(job.entry.path).name}\n")
        if job.entry.path.endswith(name):
            end()
        return original(job, *more)

    jobs._extract = begin
    tries.MAX_ENDED = MOST_ENDED
    os._exit(cli.main(command))


@pytest.fixture(scope="module")
def server():
    """Processes for runs that may die, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["extraction.cli", "test_poison"])
    return context


def poisoned_run(server, *what):
    process = server.Process(target=run_with_poison, args=what)
    process.start()
    process.join(120)
    return process.exitcode


def failures(store):
    lines = [line for file in sorted((store / "failures").iterdir()) for line in file.read_text().splitlines()]
    return {record["path"]: record for record in map(json.loads, lines)}


def test_a_video_that_crashes_the_run_is_given_up_after_its_tries(server, clips, undisturbed, tmp_path):
    """With --executor local there is nobody to look on: the file that counts the tries is all there is."""
    store, seen = tmp_path / "s", tmp_path / "seen"
    command = arguments(clips, store, "--max-tries", 2)
    what = (crash, "b.avi", command, seen)
    assert [poisoned_run(server, *what) for _ in range(2)] == [-signal.SIGSEGV] * 2
    begun = seen.read_text().split()
    assert begun.count("b.avi") == 2
    assert len(begun) == len(set(begun)) + 1, "nothing else was begun twice"
    assert poisoned_run(server, *what) == 1
    assert seen.read_text().split().count("b.avi") == 2
    (failure,) = failures(store).values()
    assert (failure["path"], failure["stage"], failure["attempts"]) == ("sub folder/b.avi", "worker", 2)
    assert re.search("Segmentation fault", failure["message"])
    assert validate_store(store) == []
    assert sorted(path for _, shard in TrackStore(store).shards() for path in shard.paths) == [
        "a.avi", "c.avi", "d.avi", "e.avi",
    ]  # fmt: skip
    # better decoders come: it is tried again when that is asked for
    assert cli.main(command) == 1
    assert cli.main([*command, "--retry-failed"]) == 0
    assert store_bytes(store) == store_bytes(undisturbed)


def test_a_video_with_which_runs_are_killed_is_given_up_in_the_end(server, clips, tmp_path, monkeypatch):
    """SIGKILL says nothing, and may be no video's fault; what was at work goes last, and not for ever."""
    listing, store, seen = tmp_path / "list.txt", tmp_path / "s", tmp_path / "seen"
    listing.write_text("a.avi\nd.avi\nc.avi\n")
    command = arguments(clips, store, listing=listing)
    statuses = []
    while not statuses or statuses[-1] == -signal.SIGKILL:
        statuses.append(poisoned_run(server, kill_oneself, "a.avi", command, seen))
        assert len(statuses) < 20
    begun = seen.read_text().split()
    assert begun[0] == "a.avi"
    assert sorted(begun[1:3]) == ["c.avi", "d.avi"], "the second run does the others first"
    assert begun.count("a.avi") == len(statuses) - 1 == MOST_ENDED
    assert statuses[-1] == 1
    (failure,) = failures(store).values()
    assert (failure["path"], failure["stage"], failure["attempts"]) == ("a.avi", "worker", MOST_ENDED)


# --- a worker's memory, on Ray ----------------------------------------------------------------------------------------


def group_without_memory():
    """A memory cgroup of version 1 that can be limited; None where this process may not make one."""
    group = MEMORY_GROUPS / f"motion-targets-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1200 << 20))
    except OSError:
        return None
    return group


@pytest.fixture
def memory_group():
    group = group_without_memory()
    if group is None:
        pytest.skip("only root can limit a process's memory here (cgroup version 1)")
    yield group
    deadline = time.monotonic() + 30
    while True:
        try:
            group.rmdir()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_worker_that_needs_too_much_memory(clips, undisturbed, tmp_path, memory_group):
    """The kernel ends the worker; after its tries the video is recorded, and all others are done."""
    driver = f"""
import sys
from pathlib import Path
import extraction.ray_runner as runner
import extraction.jobs

def run_job(job):
    if isinstance(job, extraction.jobs.VideoJob) and job.entry.path == "e.avi":
        import os
        (Path({str(memory_group)!r}) / "cgroup.procs").write_text(str(os.getpid()))
        hoard = []
        while True:
            hoard.append(b"x" * (64 << 20))
    return extraction.jobs.run_job(job)

runner.run_job = run_job
from extraction.cli import main
sys.exit(main({arguments(clips, tmp_path / "s", "--workers", 2, "--max-tries", 2, executor="ray")!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", driver], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 1, run.stderr
    assert "e.avi: worker lost, try 2 of 2" in run.stderr
    (failure,) = failures(tmp_path / "s").values()
    assert (failure["path"], failure["stage"], failure["attempts"]) == ("e.avi", "worker", 2)
    assert validate_store(tmp_path / "s") == []
    again = arguments(clips, tmp_path / "s")
    assert cli.main([*again, "--retry-failed"]) == 0
    assert store_bytes(tmp_path / "s") == store_bytes(undisturbed)


# --- nodes ------------------------------------------------------------------------------------------------------------


def held_driver(folder, command, look_seconds=10.0):
    """A program for `command` on Ray whose workers tell that they are at a video (begun.NODE), and end it once they may
    (go), so that what happens to their node happens in the middle of it, however fast they are.
    """
    return f"""
import os, sys, time
from pathlib import Path
import extraction.ray_runner as runner
import extraction.jobs

def run_job(job):
    if isinstance(job, extraction.jobs.VideoJob):
        (Path({str(folder)!r}) / f"begun.{{os.getppid()}}").touch()
        while not (Path({str(folder)!r}) / "go").exists():
            time.sleep(0.01)
    return extraction.jobs.run_job(job)

runner.run_job = run_job
runner._LOOK_SECONDS = {look_seconds}
from extraction.cli import main
sys.exit(main({command!r}))
"""


def wait_until_begun(run, folder, nodes):
    """Returns once workers of so many nodes are at a video."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("begun.*"))) < nodes:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_ray_without_nodes_is_not_waited_for(clips, undisturbed, tmp_path):
    """The raylet of the only node is killed, as the kernel may do; Ray itself would wait for another one for ever."""
    store = tmp_path / "s"
    driver = held_driver(tmp_path, arguments(clips, store, "--workers", 1, executor="ray"), look_seconds=1.0)
    quick = {"RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "500",
             "RAY_health_check_failure_threshold": "2"}  # fmt: skip
    environment = {**os.environ, **quick, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen([sys.executable, "-c", driver], env=environment, stderr=subprocess.PIPE, text=True) as run:
        wait_until_begun(run, tmp_path, nodes=1)
        (raylet,) = [p for p in psutil.Process(run.pid).children() if p.name() == "raylet"]
        raylet.kill()
        _, said = run.communicate(timeout=240)
    assert run.returncode == 1, said
    assert "no node of the Ray cluster is alive any more; the same command goes on from here" in said
    assert cli.main(arguments(clips, store)) == 0
    assert store_bytes(store) == store_bytes(undisturbed)


def test_a_node_that_leaves_in_the_middle(clips, undisturbed, tmp_path):
    """Its video is done by the other; nothing is recorded as failed."""
    from ray.cluster_utils import Cluster

    store, options = tmp_path / "s", {"object_store_memory": 80 << 20}
    driver = held_driver(tmp_path, arguments(clips, store, "--workers", 2, executor="ray"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **options})
    try:
        node = cluster.add_node(num_cpus=1, **options)
        cluster.wait_for_nodes()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": cluster.address}
        with subprocess.Popen(
            [sys.executable, "-c", driver], env=environment, stderr=subprocess.PIPE, text=True
        ) as run:
            wait_until_begun(run, tmp_path, nodes=2)
            cluster.remove_node(node, allow_graceful=False)
            (tmp_path / "go").touch()
            _, said = run.communicate(timeout=240)
        assert run.returncode == 0, said
        assert "worker lost, try 1 of 3" in said
    finally:
        cluster.shutdown()
    assert store_bytes(store) == store_bytes(undisturbed)
