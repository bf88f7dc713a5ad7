"""What the size of a data set costs besides the motion itself: lists, planning, metadata, files. For docs/scaling.md.

    python benchmarks/scaling.py lists --videos 240000 1000000 2000000
    python benchmarks/scaling.py stores --shards 480 120 --videos-per-shard 500 2000
    python benchmarks/scaling.py layout --videos 240000 --videos-per-shard 500
    python benchmarks/scaling.py waiting --workers 128 1024 4096

lists: makes lists of so many K400-like lines, and takes each through loading, digest and the plan of a new store, each
size and format in a process of its own. stores: writes complete stores of that many shards, each of that many videos
of one start row with six points, whose metadata are all there, and times the scan of a finished store (`plan_shards`)
and a trainer's opening of it (`TrackReader`). layout: counts, from the rules by which shards are written, the files,
folders and bytes of a store of 300-frame videos of 256 x 340. waiting: what the driver pays for each result when
so many calls are out; one process answers all of them.

Seconds are CPU seconds unless they are called wall clock. Memory is what a fresh process's own (USS) grows by.
"""

import argparse
import dataclasses
import gc
import math
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from data_specs.dataset import VideoList, load_videos
from data_specs.recipe import Recipe, load_recipe
from data_specs.schema import VideoMeta, array_specs
from extraction.commit import begin_store
from extraction.plan import plan_shards, store_info
from extraction.shard_writer import chunk_lengths, write_shard

COMPRESSED = 0.55
"""Compressed bytes over plain bytes, docs/methods.md."""
FRAMES, SIZE = 300, (256, 340)
"""A K400 video: 240,000 of them have 72 million pairs."""


def listed_path(number: int) -> str:
    """A path as long as those of Kinetics: class folder, YouTube id, seconds."""
    return f"train/class number {number % 400:03d}/{number:011x}_{number % 300:06d}_{number % 300 + 10:06d}.mp4"


def write_list(path: Path, videos: int, list_format: str) -> None:
    """A list of so many videos: `path_label`, `paths`, or `csv` with a column for the path."""
    with path.open("w", encoding="utf-8") as file:
        if list_format == "csv":
            file.write("path,label\n")
        for number in range(videos):
            label = {"path_label": f" {number % 400}", "csv": f",{number % 400}", "paths": ""}[list_format]
            file.write(f"{listed_path(number)}{label}\n")


class Stopwatch:
    """CPU seconds, wall clock, and the growth of this process's own memory, step by step."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def __call__(self, step: str, work: Callable[[], Any]) -> Any:
        """Do `work`, note what it took; what it returns is still held when its memory is looked at."""
        gc.collect()
        before, begun, cpu = psutil.Process().memory_full_info().uss, time.perf_counter(), time.process_time()
        result = work()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - begun
        gc.collect()
        grown = psutil.Process().memory_full_info().uss - before
        self.found |= {f"{step}, s": cpu, f"{step}, wall clock s": wall, f"{step}, MB": grown / 1e6}
        return result


def list_figures(folder: str, videos: int, list_format: str) -> dict[str, float]:
    """Take a list through what extract-tracks does with it before the first video."""
    watch, root = Stopwatch(), Path(folder)
    listed = root / f"{videos}.{list_format}"
    write_list(listed, videos, list_format)
    recipe = load_recipe("mme-object").resolved(4)
    loaded: VideoList = watch("load", lambda: load_videos(str(listed), folder))
    assert len(loaded.entries) == videos
    watch("digest", lambda: loaded.digest)
    shards = max(1, videos // 500)
    info = store_info(loaded, recipe, shards)
    begin_store(root / f"{listed.name}.tracks", info)
    plan = (root / f"{listed.name}.tracks", loaded, shards, range(shards))
    plans = watch("plan", lambda: plan_shards(*plan, retry_failed=False))
    assert sum(len(p.todo) for p in plans) == videos
    watch("pickle of a shard's entries", lambda: pickle.dumps(plans[0].entries))
    return {"list, MB": listed.stat().st_size / 1e6, **watch.found, "high-water mark, MB": peak_mb()}


def peak_mb() -> float:
    """The most that this process has had resident."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


@dataclasses.dataclass(frozen=True)
class OneRowVideo:
    """A video of seven 16 x 24 frames: one start row of six points, at rest. A source for `write_shard`."""

    meta: VideoMeta
    recipe: Recipe

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """The array's rows; see `shard_writer.VideoSource`."""
        spec = array_specs(self.recipe)[name]
        rows = np.zeros((1 if spec.axis == "start" else self.meta.points_per_start, *spec.inner), spec.dtype)
        if name == "camera/homography":
            rows[:] = np.eye(3)
        yield rows


def write_store(store: Path, videos: VideoList, shards: int, recipe: Recipe) -> None:
    """A complete store of the list, every video a `OneRowVideo`."""
    info = store_info(videos, recipe, shards)
    begin_store(store, info)
    size, frames = (16, 24), recipe.length + 1
    for shard in range(shards):
        sources = [
            OneRowVideo(VideoMeta(e.index, e.id, e.path, frames, 25.0, size, size, (2, 3), 1), recipe)
            for e in videos.shard(shard, shards)
        ]
        write_shard(store / "shards" / f"{shard:05d}.zarr", shard, sources, recipe, info.software)


def store_figures(folder: str, shards: int, videos_per_shard: int) -> dict[str, float]:
    """Write a store, scan it as extract-tracks does, open it as a trainer does."""
    root, watch = Path(folder), Stopwatch()
    listed, store = root / f"{shards}x{videos_per_shard}.txt", root / f"{shards}x{videos_per_shard}.tracks"
    write_list(listed, shards * videos_per_shard, "path_label")
    videos = load_videos(str(listed), folder)
    recipe = load_recipe("mme-object").resolved(4)
    watch("write", lambda: write_store(store, videos, shards, recipe))
    plans = watch("scan", lambda: plan_shards(store, videos, shards, range(shards), retry_failed=False))
    assert not any(plan.needs_assembly for plan in plans)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        opened = fresh.submit(trainer_figures, str(store)).result()
    assert opened.pop("videos") == shards * videos_per_shard
    attributes = (store / "shards" / "00000.zarr" / "video" / "zarr.json").stat().st_size
    kept = [f for f in (store / "shards").rglob("*")]
    return {
        "files per shard": sum(f.is_file() for f in kept) / shards,
        "folders per shard": sum(f.is_dir() for f in kept) / shards,
        "ids and paths, bytes per video": attributes / videos_per_shard,
        **{name: value for name, value in watch.found.items() if not name.endswith("MB")},
        **opened,
    }


def trainer_figures(store: str) -> dict[str, float]:
    """Open a store in this process as a trainer does, and pickle the reader as for a DataLoader's worker."""
    from training.reading.track_reader import TrackReader  # noqa: PLC0415 (its imports are not part of the growth)

    watch = Stopwatch()
    reader = watch("open", lambda: TrackReader(store))
    sent = watch("pickle", lambda: pickle.dumps(reader))
    return {"videos": len(reader.videos), **watch.found, "sent to each worker, MB": len(sent) / 1e6}


def layout_figures(recipe: Recipe, videos: int, videos_per_shard: int) -> dict[str, float]:
    """Files, folders and bytes of a store of videos of FRAMES frames of SIZE, by the rules that write it."""
    shards = math.ceil(videos / videos_per_shard)
    assert recipe.start_stride is not None
    starts = len(range(0, FRAMES - recipe.span, recipe.start_stride)) * videos_per_shard
    points = (SIZE[0] // recipe.grid_stride) * (SIZE[1] // recipe.grid_stride)
    files, folders, plain = shard_layout(recipe, videos_per_shard, starts, points)
    return {
        "shards": shards,
        "start rows": starts * shards,
        "files per shard": files,
        "folders per shard": folders,
        "inodes": shards * (files + folders),
        "bytes per shard, GB": COMPRESSED * plain / 1e9,
        "bytes, TB": COMPRESSED * plain * shards / 1e12,
        "list, MB": videos * (len(listed_path(videos)) + 4) / 1e6,
    }


def shard_layout(recipe: Recipe, videos: int, starts: int, points_per_start: int) -> tuple[int, int, float]:
    """(files, folders, plain bytes) of a shard without cuts, its own folder counted."""
    files, folders, plain = 1, 1, 0.0  # the root's zarr.json
    groups = set()
    for name, spec in array_specs(recipe).items():
        length = spec.length(videos, starts, starts * points_per_start, 0)
        rows, per_file = chunk_lengths(spec, length, points_per_start)
        chunk_files = math.ceil(length / (rows * per_file))
        # c/3/0/0: below c, a folder for each index but the last
        files += 1 + chunk_files
        folders += 1 + (1 if chunk_files else 0) + chunk_files * len(spec.inner)
        plain += length * np.dtype(spec.dtype).itemsize * math.prod(spec.inner)
        groups.add(name.rpartition("/")[0])
    groups.discard("")
    return files + len(groups), folders + len(groups), plain


def waiting_figures(calls: int, results: int = 200) -> dict[str, float]:
    """CPU and wall clock for each result that is waited for among so many calls, and for the call in its place."""
    import ray  # noqa: PLC0415 (seconds to import, and for this alone)

    class Answer:
        def now(self) -> None:
            """Nothing."""

    ray.init(address="local", num_cpus=1, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    answer = ray.remote(Answer).remote()
    ray.get(answer.now.remote())
    out = dict.fromkeys(answer.now.remote() for _ in range(calls))
    begun, cpu = time.perf_counter(), time.process_time()
    for _ in range(results):
        (ready,), _ = ray.wait(list(out), num_returns=1)
        del out[ready]
        ray.get(ready)
        out[answer.now.remote()] = None
    cpu, wall = time.process_time() - cpu, time.perf_counter() - begun
    ray.shutdown()
    return {"CPU, ms": 1e3 * cpu / results, "wall clock, ms": 1e3 * wall / results}


def show(columns: dict[str, dict[str, float]]) -> None:
    """A Markdown table with a column for each set of figures."""
    print("| | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for name in next(iter(columns.values())):
        cells = []
        for figures in columns.values():
            value = figures[name]
            cells.append(f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    lists = parts.add_parser("lists")
    lists.add_argument("--videos", type=int, nargs="+", default=[240_000])
    lists.add_argument("--formats", nargs="+", default=["path_label"], choices=["path_label", "csv", "paths"])
    stores = parts.add_parser("stores")
    stores.add_argument("--shards", type=int, nargs="+", default=[480])
    stores.add_argument("--videos-per-shard", type=int, nargs="+", default=[500])
    layout = parts.add_parser("layout")
    layout.add_argument("--recipe", default="mme-object")
    layout.add_argument("--videos", type=int, nargs="+", default=[240_000])
    layout.add_argument("--videos-per-shard", type=int, nargs="+", default=[500])
    waiting = parts.add_parser("waiting")
    waiting.add_argument("--workers", type=int, nargs="+", default=[128, 1024, 4096])
    options = parser.parse_args()
    columns: dict[str, dict[str, float]] = {}
    if options.part == "layout":
        recipe = load_recipe(options.recipe).resolved(4)
        for videos in options.videos:
            for per_shard in options.videos_per_shard:
                columns[f"{videos:,} / {per_shard}"] = layout_figures(recipe, videos, per_shard)
        return show(columns)
    if options.part == "waiting":
        return show({f"{workers:,}": waiting_figures(workers) for workers in options.workers})
    for first in options.videos if options.part == "lists" else options.shards:
        for second in options.formats if options.part == "lists" else options.videos_per_shard:
            work = list_figures if options.part == "lists" else store_figures
            with (
                tempfile.TemporaryDirectory() as folder,
                ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh,
            ):
                columns[f"{first:,} {second}"] = fresh.submit(work, folder, first, second).result()
    return show(columns)


if __name__ == "__main__":
    main()
