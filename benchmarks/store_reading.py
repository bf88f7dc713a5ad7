"""Time to read trajectories from a track store: zarr-python, tensorstore and training's own reader, in one run.

    extract-tracks --dataset list.txt --root DIR --shards 1 --flow dis --out some.tracks
    python benchmarks/store_reading.py some.tracks

A row: displacement, valid and homography, then also HOG, of start rows drawn at random from the store's first complete
shard, as they are stored; all three keep their arrays open. A clip: eight of a video's start rows, eight frames apart,
decoded, without the camera: the plain reader of data_specs, and training's. One process, files in the page cache.
Times are the least of many repeats of the same draws, the readers taking turns; the ratio is what counts. `CPU` is that
of all threads: a DataLoader has a worker for each core, and tensorstore decodes on several at once.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorstore
from numpy.typing import NDArray

from data_specs.track_store import TrackShard, TrackStore
from training.reading.shard_reader import ShardReader
from training.reading.track_reader import TrackReader

ROWS, CLIPS = 40, 10


def row_readers(shard: TrackShard, names: list[str]) -> dict[str, Callable[[list[dict[str, slice]]], list[Any]]]:
    """For each reader a function from rows' ranges in the arrays to their values, row by row."""
    arrays = {name: shard.array(name) for name in names}
    # room for the files' indexes of chunks, not for the data: no clip of a large store is read twice in a while
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 1 << 20}})
    opened = {
        name: tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(shard.path / name)}},
            read=True,
            context=context,
            recheck_cached_metadata=False,
            recheck_cached_data=False,
        ).result()
        for name in names
    }
    ours = ShardReader(shard.path, shard.recipe)

    def by_tensorstore(row: dict[str, slice]) -> list[NDArray[Any]]:
        asked = [opened[name][part].read() for name, part in row.items()]
        return [future.result() for future in asked]

    return {
        "zarr-python": lambda rows: [[np.asarray(arrays[name][part]) for name, part in row.items()] for row in rows],
        "tensorstore": lambda rows: [by_tensorstore(row) for row in rows],
        "ours": lambda rows: [[ours.read(name, part.start, part.stop) for name, part in row.items()] for row in rows],
    }


def clip_readers(store: TrackStore, reader: TrackReader, hog: bool) -> dict[str, Callable[[list[Any]], list[Any]]]:
    """The same for clips, (video, first frame) each: displacements without the camera, validity, HOG's codes."""
    shard = store.shard(store.complete_shards[0])
    stride = store.info.recipe.start_stride
    assert stride is not None

    def plain(clip: tuple[Any, int]) -> list[Any]:
        video, first = clip
        rows = [shard.rows(video.number)[f // stride] for f in range(first, first + 64, 8)]
        return [
            (row.compensated, row.valid)
            for row in (shard.read_row(video.number, r, hog=hog, descriptors=False) for r in rows)
        ]

    return {
        "zarr-python, TrackShard": lambda clips: [plain(clip) for clip in clips],
        "ours, TrackReader": lambda clips: [reader.rows(v, range(f, f + 64, 8), hog=hog) for v, f in clips],
    }


def least_ms(readers: dict[str, Callable[[Any], Any]], work: list[Any], repeats: int) -> dict[str, tuple[float, float]]:
    """For each reader the least time in ms for one piece of the work: wall clock, and CPU."""
    least = dict.fromkeys(readers, (math.inf, math.inf))
    for _ in range(repeats):
        for name, read in readers.items():
            begun = time.perf_counter(), time.process_time()
            read(work)
            taken = time.perf_counter() - begun[0], time.process_time() - begun[1]
            wall, cpu = (min(old, 1e3 * new / len(work)) for old, new in zip(least[name], taken, strict=True))
            least[name] = wall, cpu
    return least


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    store, rng = TrackStore(options.store), np.random.default_rng(0)
    number = store.complete_shards[0]
    shard, recipe = store.shard(number), store.info.recipe
    begun = time.perf_counter()
    reader = TrackReader(options.store)
    print(f"opened {len(reader.videos)} videos in {time.perf_counter() - begun:.2f} s\n")
    print("| what | reader | ms | CPU, ms | times ours | CPU, times ours |\n| --- | --- | --- | --- | --- | --- |")

    def report(what: str, times: dict[str, tuple[float, float]]) -> None:
        wall, cpu = list(times.values())[-1]
        for name, (ms, cpu_ms) in times.items():
            print(f"| {what} | {name} | {ms:.3f} | {cpu_ms:.3f} | {ms / wall:.1f} | {cpu_ms / cpu:.1f} |")

    rows = rng.integers(0, shard.num_starts, ROWS).tolist()
    long = [v for v in reader.videos if v.shard == number and v.num_starts * (recipe.start_stride or 1) > 64]
    draws = [(long[rng.integers(len(long))], 8 * int(rng.integers(0, 2))) for _ in range(CLIPS)] if long else []
    for hog in (False, True)[: 1 + recipe.hog]:
        names = ["displacement", "valid", *(["hog"] if hog else [])]
        work = []
        for row in rows:
            points = slice(int(shard.first_point[row]), int(shard.first_point[row + 1]))
            work.append({name: points for name in names} | {"camera/homography": slice(row, row + 1)})
        readers = row_readers(shard, [*names, "camera/homography"])
        values = {name: read(work) for name, read in readers.items()}
        for theirs in ("zarr-python", "tensorstore"):
            for a, b in zip(values[theirs], values["ours"], strict=True):
                assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        what = "HOG as well" if hog else "no HOG"
        report(f"a row, {what}", least_ms(readers, work, options.repeats))
        if draws:
            report(f"a clip, {what}", least_ms(clip_readers(store, reader, hog), draws, options.repeats))


if __name__ == "__main__":
    main()
