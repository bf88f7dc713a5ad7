"""Workers on Ray: what they keep, what becomes of a job whose worker dies, and that nothing is lost or done twice."""

import collections
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from conftest import REPOSITORY
from ray.cluster_utils import Cluster

from extraction import ray_runner
from extraction.ray_runner import RayExecutor
from extraction.run import WorkerLostError

STORE = {"object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster():
    """A node of three cores and two GPUs that are not there: to Ray they are numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # of a machine that has fewer
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 2, **STORE})
        patch.setenv("RAY_ADDRESS", cluster.address)
        patch.setattr(ray_runner, "run_job", make_work())
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="class")
def pool(cluster):
    """Two workers. A test finds as many as the one before has left, which is to make no difference."""
    executor = RayExecutor(2)
    yield executor
    executor.close()


@pytest.fixture
def disconnected(cluster):
    """For a test that makes executors of its own: they are closed if it fails."""
    yield
    ray.shutdown()


def make_work():
    """The work; a function within a function goes to the workers by value.

    A job is its name, a folder, what to do, with what. Each run of it leaves a file called name.pid in the folder.
    """

    def wait_until(true):
        deadline = time.monotonic() + 60
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.01)

    def work(job):
        name, folder, what, *more = job
        (folder / f"{name}.{os.getpid()}").touch()
        if what == "meet":  # ends when so many of these are at work at the same time
            wait_until(lambda: len(list(folder.glob("meet*"))) >= more[0])
        if what == "wait":  # ends when there is such a file
            wait_until((folder / more[0]).exists)
        if what == "outlast":  # ends a while after so many processes have tried to start
            wait_until(lambda: len(list(folder.glob("tried*"))) >= more[0])
            time.sleep(1)
        if what == "full":
            raise OSError(28, "No space left on device")
        kept = sys.modules["extraction.jobs"].__dict__  # where a network would be kept: in some module
        kept["calls"] = kept.get("calls", 0) + 1
        return {
            "name": name,
            "pid": os.getpid(),
            "parent": os.getppid(),
            "calls": kept["calls"],
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }

    return work


def submit(executor, folder, *jobs):
    """Jobs of (name, what, with what)."""
    for name, *what in jobs:
        executor.submit((name, folder, *what))


def results(executor, count):
    """What came of so many jobs, by name."""
    found = {}
    for _ in range(count):
        (name, *_), result = executor.next_result()
        assert name not in found, "the same job twice"
        assert isinstance(result, WorkerLostError) or result["name"] == name, "another job's result"
        found[name] = result
    return found


def meet(executor, folder, count):
    """What jobs return that only so many workers can do, all at work at the same time."""
    folder = folder / f"meeting of {count}"
    folder.mkdir()
    submit(executor, folder, *((f"meet{i}", "meet", count) for i in range(count)))
    found = results(executor, count)
    assert len({result["pid"] for result in found.values()}) == count
    return list(found.values())


def runs(folder, name):
    """The processes that have run the job."""
    return [int(file.suffix[1:]) for file in folder.glob(f"{name}.*")]


def wait_until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(pid):
    """Whether a process is gone, or waits for no more than to be counted by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class TestPool:
    def test_more_jobs_than_slots(self, pool, tmp_path):
        """Two processes do all of them, and keep what their jobs leave there."""
        assert pool.slots == 2
        submit(pool, tmp_path, *((i, "return") for i in range(9)))
        found = results(pool, 9)
        assert found.keys() == set(range(9))
        calls = collections.defaultdict(list)
        for result in [*found.values(), *meet(pool, tmp_path, 2)]:
            calls[result["pid"]].append(result["calls"])
        assert len(calls) == 2
        for counted in calls.values():
            assert sorted(counted) == list(range(1, len(counted) + 1))

    def test_a_killed_worker_loses_its_job_and_nothing_else(self, pool, tmp_path):
        meet(pool, tmp_path, 2)
        submit(pool, tmp_path, ("victim", "wait", "never"), *((i, "return") for i in range(5)))
        wait_until(lambda: runs(tmp_path, "victim"))
        (pid,) = runs(tmp_path, "victim")
        os.kill(pid, signal.SIGKILL)
        found = results(pool, 6)
        assert isinstance(found.pop("victim"), WorkerLostError)
        assert found.keys() == set(range(5))
        assert [len(runs(tmp_path, name)) for name in ("victim", *range(5))] == [1] * 6, "each was run once"
        (tmp_path / "again").mkdir()
        assert pid not in {result["pid"] for result in meet(pool, tmp_path / "again", 2)}, "the pool is whole again"

    def test_a_worker_out_of_reach_is_ended(self, pool, tmp_path, monkeypatch):
        """Its process may be at the job still, and would do it beside the one that does it again."""
        meet(pool, tmp_path, 2)
        submit(pool, tmp_path, ("a", "wait", "never"))
        wait_until(lambda: runs(tmp_path, "a"))

        def unavailable(_):
            raise ray.exceptions.ActorUnavailableError("no connection", None)

        with monkeypatch.context() as patch:
            patch.setattr(ray, "wait", lambda calls, num_returns, timeout: (calls, []))
            patch.setattr(ray, "get", unavailable)
            assert isinstance(results(pool, 1)["a"], WorkerLostError)
        wait_until(lambda: ended(runs(tmp_path, "a")[0]))

    def test_an_error_that_is_not_the_video_s_is_raised_as_if_here(self, pool, tmp_path):
        """What is submitted already is done all the same, and not by the process in which it was raised."""
        submit(pool, tmp_path, ("a", "full"), *((i, "return") for i in range(3)))
        found, raised = {}, []
        for _ in range(4):
            try:
                found |= results(pool, 1)
            except OSError as error:
                raised.append(error)
        assert [(type(error), error.errno, error.strerror) for error in raised] == [
            (OSError, 28, "No space left on device")
        ]
        assert found.keys() == set(range(3))
        wait_until(lambda: ended(runs(tmp_path, "a")[0]))

    def test_close_leaves_no_process(self, pool, tmp_path):
        meet(pool, tmp_path, 2)
        submit(pool, tmp_path, *((f"job{i}", "wait", "never") for i in range(3)))
        wait_until(lambda: len(runs(tmp_path, "job*")) == 2)
        pool.close()
        wait_until(lambda: all(ended(pid) for pid in runs(tmp_path, "job*")))
        assert len(runs(tmp_path, "job*")) == 2


def test_a_worker_is_replaced_after_so_many_jobs(disconnected, tmp_path):
    executor = RayExecutor(1, jobs_per_worker=2)
    submit(executor, tmp_path, *((i, "return") for i in range(5)))
    found = [result for _, result in sorted(results(executor, 5).items())]
    pids = [result["pid"] for result in found]
    assert pids == [pids[0]] * 2 + [pids[2]] * 2 + [pids[4]]
    assert len(set(pids)) == 3
    assert [result["calls"] for result in found] == [1, 2, 1, 2, 1]
    wait_until(lambda: ended(pids[0]) and ended(pids[2]))


def test_sigterm_stays_with_the_handler_that_it_had(disconnected, tmp_path):
    """Ray's own would end this process. The job at work is finished meanwhile."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        executor = RayExecutor(1)
        submit(executor, tmp_path, ("job", "wait", "go"))
        os.kill(os.getpid(), signal.SIGTERM)
        (tmp_path / "go").touch()
        assert results(executor, 1)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_that_is_asked_to_end_while_its_workers_start(disconnected, tmp_path):
    """None of them is given a job then, and there is nothing to wait for."""
    executor = RayExecutor(2)
    submit(executor, tmp_path, *((i, "return") for i in range(3)))
    answers = itertools.chain([False], itertools.repeat(True))  # it comes while they are waited for
    executor.stopping = lambda: next(answers)
    assert executor.next_result() is None
    assert not runs(tmp_path, "*")


def test_workers_see_one_gpu_each_and_are_spread_over_them(disconnected, tmp_path):
    """Three of the four that are asked for have a core: no job waits for the fourth."""
    executor = RayExecutor(4, gpus=1, workers_per_gpu=3)
    assert executor.slots == 4
    seen = {result["pid"]: result["devices"] for result in meet(executor, tmp_path, 3)}
    assert sorted(seen.values()) in (["0", "0", "1"], ["0", "1", "1"])
    submit(executor, tmp_path, ("victim", "wait", "never"), *((i, "return") for i in range(7)))
    wait_until(lambda: runs(tmp_path, "victim"))
    (pid,) = runs(tmp_path, "victim")
    os.kill(pid, signal.SIGKILL)
    assert results(executor, 8).keys() == {"victim", *range(7)}
    (tmp_path / "again").mkdir()
    device = seen.pop(pid)
    after = {result["pid"]: result["devices"] for result in meet(executor, tmp_path / "again", 3)}
    assert after.items() > seen.items(), "those that live keep theirs"
    assert sorted(after.values()) == sorted([*seen.values(), device])


def test_no_more_workers_than_the_gpus_take(disconnected):
    assert RayExecutor(0, gpus=1, workers_per_gpu=1).slots == 2


def test_a_cluster_without_gpus_is_refused(disconnected, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ValueError, match="the Ray cluster has no GPU; start its nodes with --num-gpus"):
        RayExecutor(2, gpus=1)


def breakable(folder):
    """Work that no process can load while there is the file `broken`; each that tries leaves a file tried.pid."""
    work = make_work()

    def load():
        (folder / f"tried.{os.getpid()}").touch()
        if (folder / "broken").exists():
            raise ImportError("no module of that name")
        return work

    class Work:
        def __reduce__(self):
            return load, ()

    return Work()


def test_workers_that_cannot_start_stop_the_run(disconnected, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_runner, "run_job", breakable(tmp_path))
    (tmp_path / "broken").touch()
    executor = RayExecutor(1)
    submit(executor, tmp_path, ("a", "return"))
    with pytest.raises(WorkerLostError, match=r"(?s)3 workers in turn died as they started.*no module of that name"):
        results(executor, 1)
    assert len(runs(tmp_path, "tried")) == 3
    assert not runs(tmp_path, "a")


def test_a_worker_that_cannot_start_beside_another_is_started_later(disconnected, tmp_path, monkeypatch):
    """As where memory is short for a while: no reason to stop, no video's fault, and no use in trying at once."""
    monkeypatch.setattr(ray_runner, "run_job", breakable(tmp_path))
    monkeypatch.setattr(ray_runner, "_MAX_FAILED_STARTS", 1)
    executor = RayExecutor(2)
    meet(executor, tmp_path, 1)
    (tmp_path / "broken").touch()
    for tried in (2, 3):
        submit(executor, tmp_path, (f"a{tried}", "outlast", tried), (f"b{tried}", "return"))
        assert results(executor, 2).keys() == {f"a{tried}", f"b{tried}"}
        assert len(runs(tmp_path, "tried")) == tried
    (tmp_path / "broken").unlink()
    meet(executor, tmp_path, 2)


# the last on the cluster: for some seconds Ray takes the node for a living one
def test_a_node_that_dies_takes_one_job_with_it(disconnected, cluster, tmp_path):
    """Workers are spread over the nodes: left to itself, Ray would have both on this one, which has no GPUs."""
    node = cluster.add_node(num_cpus=3, **STORE)
    cluster.wait_for_nodes()
    executor = RayExecutor(2)
    assert len({result["parent"] for result in meet(executor, tmp_path, 2)}) == 2, "each under its own node's Ray"
    submit(executor, tmp_path, ("a", "wait", "open"), ("b", "wait", "open"))
    wait_until(lambda: runs(tmp_path, "a") and runs(tmp_path, "b"))
    cluster.remove_node(node, allow_graceful=False)
    ((lost, error),) = results(executor, 1).items()
    assert isinstance(error, WorkerLostError)
    (tmp_path / "open").touch()
    assert results(executor, 1).keys() == {"a", "b"} - {lost}


# a run on a Ray of its own, of a job that does not end
DRIVER = """
import os, signal, sys, time
from pathlib import Path
from extraction import ray_runner

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored

def run_job(folder):
    (folder / f"ray.{os.getppid()}").touch()
    (folder / f"worker.{os.getpid()}").touch()
    time.sleep(600)

ray_runner.run_job = run_job
executor = ray_runner.RayExecutor(1)
try:
    executor.submit(Path(sys.argv[1]))
    executor.next_result()
finally:
    executor.close()
"""


def test_ctrl_c_leaves_no_process(tmp_path):
    """A terminal sends it to every process."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    options = {"env": environment, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **options) as driver:
        try:
            wait_until(lambda: runs(tmp_path, "worker"))
            os.killpg(driver.pid, signal.SIGINT)
            _, said = driver.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
    assert "KeyboardInterrupt" in said
    wait_until(lambda: all(ended(pid) for name in ("ray", "worker") for pid in runs(tmp_path, name)))
