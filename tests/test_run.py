"""The driver, with workers that are lost before or after they have done a job, and results in any order."""

import collections
import contextlib
import itertools
import json
import random

import pytest
from conftest import store_bytes

from data_specs.track_store import TrackStore
from extraction import cli
from extraction.commit import ShardFolder
from extraction.job_records import ShardJob, ShardResult, VideoJob, VideoResult
from extraction.jobs import run_job
from extraction.partial import PartialError
from extraction.run import LocalExecutor, WorkerLostError


def extract(clips, store, *more):
    arguments = ["--dataset", clips / "list.txt", "--root", clips, "--shards", 2, "--out", store, *more]
    return cli.main([str(a) for a in (*arguments, "--flow", "dis", "--executor", "local")])


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    store = tmp_path_factory.mktemp("run") / "s"
    assert extract(clips, store) == 0
    return store


class UnluckyExecutor(LocalExecutor):
    """Takes jobs as one that does three at a time, and does them in any order.

    lose: whether the job's worker is lost, `before` or `after` it has done the job, or not (None).
    """

    slots = 3

    def __init__(self, lose, seed=0):
        super().__init__()
        self.random, self.lose = random.Random(seed), lose
        self.given, self.lost = collections.Counter(), collections.Counter()

    def submit(self, job):
        super().submit(job)
        self.given[key(job)] += 1
        assert len(self._jobs) <= 2 * self.slots

    def next_result(self):
        self._jobs.rotate(self.random.randrange(len(self._jobs)))
        job = self._jobs.popleft()
        fate = self.lose(self, job)
        result = None if fate == "before" else run_job(job)
        if fate is None:
            return job, result
        self.lost[key(job)] += 1
        return job, WorkerLostError(fate)


def key(job):
    """(shard, place), or (shard, None) for the shard's assembly."""
    return job.shard, None if isinstance(job, ShardJob) else job.place


@pytest.fixture
def unlucky(monkeypatch):
    """Extracts with an executor that loses workers; returns the exit status and the executor."""

    def extract_with(lose, clips, store, *more, seed=0):
        executor = UnluckyExecutor(lose, seed)
        monkeypatch.setattr("extraction.extract.LocalExecutor", lambda: executor)
        return extract(clips, store, *more), executor

    return extract_with


@pytest.mark.parametrize("seed", range(3))
def test_losing_workers_loses_and_doubles_nothing(clips, undisturbed, tmp_path, unlucky, seed):
    def lose(executor, job):
        return executor.random.choice([None, "before", "after"]) if executor.lost[key(job)] < 2 else None

    status, executor = unlucky(lose, clips, tmp_path / "s", seed=seed)
    assert status == 0
    assert store_bytes(tmp_path / "s") == store_bytes(undisturbed)
    assert len(executor.given) == 5 + 2
    assert executor.lost.total() > 2
    for job, times in executor.given.items():
        assert times == 1 + executor.lost[job]


def test_a_video_that_loses_every_worker_is_recorded(clips, undisturbed, tmp_path, unlucky):
    status, executor = unlucky(lambda _, job: "before" if key(job) == (1, 1) else None, clips, tmp_path / "s")
    assert status == 1
    assert executor.given[1, 1] == 3
    (failure,) = [json.loads(line) for line in (tmp_path / "s/failures/00001.jsonl").read_text().splitlines()]
    assert (failure["path"], failure["stage"], failure["attempts"]) == ("d.avi", "worker", 3)
    assert TrackStore(tmp_path / "s").shard(1).paths == ["sub folder/b.avi"]
    assert store_bytes(tmp_path / "s/shards/00000.zarr") == store_bytes(undisturbed / "shards/00000.zarr")


def test_an_assembly_that_loses_every_worker_stops_the_run(clips, undisturbed, tmp_path, unlucky, capsys):
    status, _ = unlucky(lambda _, job: "before" if key(job) == (0, None) else None, clips, tmp_path / "s")
    assert status == 1
    assert "shard 0: its assembly lost its worker 3 times" in capsys.readouterr().err
    assert unlucky(lambda *_: None, clips, tmp_path / "s")[0] == 0
    assert store_bytes(tmp_path / "s") == store_bytes(undisturbed)


def test_an_old_failure_is_not_taken_for_that_of_a_lost_worker(clips, undisturbed, tmp_path, unlucky):
    """It failed in one run, was done in the next, its file was damaged, and its worker is lost as it is done again."""
    store, folder, links = tmp_path / "s", ShardFolder(tmp_path / "s", 0), "--follow-links"
    root = tmp_path / "root"
    root.mkdir()
    for path in ("sub folder", "c.avi", "d.avi", "e.avi", "list.txt"):
        (root / path).symlink_to(clips / path)
    assert unlucky(lambda _, job: "before" if key(job) == (0, None) else None, root, store, links)[0] == 1
    assert folder.read_failed(0).attempts == 1
    (root / "a.avi").symlink_to(clips / "a.avi")
    assert (
        unlucky(lambda _, job: "before" if key(job) == (0, None) else None, root, store, links, "--retry-failed")[0]
        == 1
    )
    tracks = folder.tracks_path(0)
    tracks.write_bytes(tracks.read_bytes()[:-100])
    status, executor = unlucky(
        lambda made, job: "before" if not made.lost and key(job) == (0, 0) else None, root, store, links
    )
    assert executor.lost == {(0, 0): 1}
    assert status == 0
    assert store_bytes(store) == store_bytes(undisturbed)


def test_partial_files_that_are_damaged_whenever_they_are_read_end_the_run(clips, tmp_path, monkeypatch, capsys):
    """Storage that loses what is written to it: the run says so, and does not write for ever."""
    times = collections.Counter()

    def damaged(path, *_):
        times[path] += 1
        raise PartialError(path, "a bit was flipped")

    monkeypatch.setattr("extraction.assembly.PartialFile", damaged)
    assert extract(clips, tmp_path / "s", "--only-shards", "1", "--max-tries", "2") == 1
    assert "shard 1: what was written of its videos was damaged when it was read, 3 times" in capsys.readouterr().err
    assert set(times.values()) == {3}


def test_a_run_that_is_asked_to_end_between_any_two_steps(clips, tmp_path, monkeypatch):
    """The signal comes when `stopping()` has been asked so often."""
    asked = itertools.count()

    @contextlib.contextmanager
    def stopping_after(times):
        yield lambda: next(asked) >= times

    results = {VideoJob: VideoResult(), ShardJob: ShardResult()}
    monkeypatch.setattr("extraction.run.run_job", lambda job: results[type(job)])
    for times in range(100):
        asked = itertools.count()
        monkeypatch.setattr(cli, "stopping_on_signals", lambda _, times=times: stopping_after(times))
        if extract(clips, tmp_path / "s") == 0:
            break
    assert 10 < times < 99
