"""The soak and the scaling simulation: that they count what is there."""

import argparse
import csv
import json
import os
import threading
import time

import process_memory
import psutil
import pytest
import scaling
import soak
import zarr
from process_memory import Sample, cpu_by_kind

from data_specs.dataset import load_videos
from data_specs.recipe import load_recipe
from data_specs.track_store import TrackStore


@pytest.fixture(scope="module")
def soaked(tmp_path_factory):
    """Twelve videos in three shards: the folder, the figures, and what was written beside them."""
    folder, out = tmp_path_factory.mktemp("soak"), tmp_path_factory.mktemp("out")
    options = argparse.Namespace(
        videos=12, shards=3, workers=2, sample_seconds=0.1, out=out, folder=folder, more=["--flow", "dis"]
    )
    return folder, soak.soak(folder, options), out


def test_the_soak_s_counts_add_up(soaked):
    folder, figures, _ = soaked
    run = figures["run, 2 workers"]
    assert (run["videos"], run["done"], run["shards"]) == (12, 12, 3)
    metas = [meta for _, shard in TrackStore(folder / "soak.tracks").shards() for meta in shard.metas]
    # the clips have seven frames or more, in turn, and no two of the first twelve are alike in size and length
    assert sorted(m.index for m in metas) == list(range(12))
    assert {(m.path, m.num_frames) for m in metas} == {(f"000/{n:06d}.avi", 7 + n % 6) for n in range(12)}
    store = figures["store"]
    assert (store["videos"], store["failed"], store["left in partial/"]) == (12, 0, 0)
    assert store["files"] == 3 * store["files per shard"] + 2  # and store.json and locks


def test_the_soak_s_times_fit_into_each_other(soaked):
    _, figures, _ = soaked
    run, scan = figures["run, 2 workers"], figures["the same command again"]
    assert 0 < run["driver CPU in the run, s"] <= 2 * run["run, s"] < run["process, s"]
    in_jobs, idle = run["worker seconds in jobs, per video, ms"], run["workers' idle per video, ms"]
    assert in_jobs + idle == pytest.approx(2 * run["wall clock per video, ms"])
    assert 0 < scan["looks at the shards, s"] <= scan["from the first look to the last, s"] < scan["process, s"]


def test_a_second_run_finds_all_of_it_done(soaked):
    """The record is of the second command: it looked at the shards, and handed out nothing."""
    record = json.loads((soaked[0] / "soak.json").read_text())
    phases = [call["phase"] for call in record["calls"]]
    assert "plan_shards" in phases and "run" not in phases
    assert record["done_at"] == []


def test_memory_is_sampled_of_the_driver_and_its_workers(soaked):
    _, figures, out = soaked
    with (out / "memory.csv").open() as file:
        lines = list(csv.DictReader(file))
    kinds = {line["kind"] for line in lines}
    assert kinds == {"driver", "worker", "ray"}
    assert len({line["pid"] for line in lines if line["kind"] == "driver"}) == 1
    assert all(int(line["uss"]) > 0 and int(line["rss"]) > 0 for line in lines)
    most = max(int(line["uss"]) for line in lines if line["kind"] == "worker")
    assert figures["memory"]["worker USS at most, MiB"] == most / (1 << 20)
    assert (out / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_a_process_that_is_ending_is_not_sampled(monkeypatch):
    """For a moment it is still there, without memory."""
    info = psutil.Process.memory_full_info
    is_ending = threading.Event()
    is_ending.set()

    def memory_full_info(process):
        return info(process)._replace(uss=0, rss=0) if is_ending.is_set() else info(process)

    monkeypatch.setattr(psutil.Process, "memory_full_info", memory_full_info)
    sampler = process_memory.MemorySampler(os.getpid(), 0.01)
    time.sleep(0.2)
    assert sampler.samples == []
    is_ending.clear()
    deadline = time.monotonic() + 30
    while not sampler.samples:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert all(sampled.uss > 0 and sampled.rss > 0 for sampled in sampler.stop())


def sample(pid, at, kind, uss, cpu=0.0):
    return Sample(at, kind, pid, 2 * uss, uss, cpu, 3, 1)


def test_growth_is_that_of_the_second_half():
    """Done videos at 1 ... 100 s; the driver grows by 3 kB a second, two workers by 4 kB a second each."""
    record = {"done_at": [float(t) for t in range(1, 101)]}
    samples = [
        sample(pid, t + 0.5, kind, 10_000_000 + rate * t)
        for t in range(100)
        for pid, kind, rate in [(1, "driver", 3000), (2, "worker", 4000), (3, "worker", 4000)]
    ]
    found = soak.growth(record, samples, 2)
    assert found["driver grows, kB per video"] == pytest.approx(3)
    assert found["worker grows, kB per job"] == pytest.approx(8)  # each does half of the videos


def test_a_process_of_ray_s_that_becomes_a_worker_is_one():
    samples = [
        sample(1, 0, "driver", 5, 1.0),
        sample(2, 0, "ray", 5, 2.0),
        sample(2, 1, "worker", 5, 3.5),
        sample(2, 2, "ray", 5, 4.0),
        sample(3, 2, "ray", 5, 0.5),
    ]
    assert cpu_by_kind(samples) == {"driver": 1.0, "worker": 4.0, "ray": 0.5}


def test_the_csv_counts_from_the_begin(tmp_path):
    process_memory.write_csv(tmp_path / "m.csv", [sample(7, 12.5, "driver", 5)], 10.0)
    assert (tmp_path / "m.csv").read_text().split() == [
        "at,kind,pid,rss,uss,cpu_seconds,open_files,threads", "2.5,driver,7,10,5,0.0,3,1",
    ]  # fmt: skip


@pytest.mark.parametrize("list_format", ["path_label", "csv", "paths"])
def test_a_made_list_is_read_as_it_was_meant(tmp_path, list_format):
    scaling.write_list(tmp_path / "list.txt", 1000, list_format)
    entries = load_videos(str(tmp_path / "list.txt"), str(tmp_path)).entries
    assert [entry.path for entry in entries] == [scaling.listed_path(number) for number in range(1000)]


def test_the_layout_on_paper_is_that_of_a_written_shard(tmp_path, monkeypatch):
    """With files of 2 kB, so that arrays have several; zarr counts the bytes."""
    monkeypatch.setattr("extraction.shard_writer._ZARR_SHARD_BYTES", 2000)
    recipe = load_recipe("mme-object").resolved(4)
    scaling.write_list(tmp_path / "list.txt", 30, "path_label")
    scaling.write_store(tmp_path / "s", load_videos(str(tmp_path / "list.txt"), str(tmp_path)), 2, recipe)
    shard = tmp_path / "s" / "shards" / "00001.zarr"
    files, folders, plain = scaling.shard_layout(recipe, 15, 15, 6)
    found = list(shard.rglob("*"))
    assert files == sum(path.is_file() for path in found)
    assert folders == 1 + sum(path.is_dir() for path in found)
    assert plain == sum(
        array.nbytes for _, array in zarr.open_group(shard, mode="r").members(None) if hasattr(array, "nbytes")
    )
