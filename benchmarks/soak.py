"""Ten thousand tiny videos through extract-tracks: the driver's cost per video, memory over time, the resume scan.

    python benchmarks/soak.py --out soak

Renders a few dozen clips of 7 to 12 frames and 16 px or more, gives each many names (hard links: paths, ids and work
of their own, little disk), and runs `extract-tracks` on them with its Ray workers, in a process of its own, as a user
does. A second process of the same command on the finished store is the resume scan. `--out` gets `memory.csv`,
`memory.png`, `soak.json`; what is measured:

- driver CPU per video: CPU seconds of the driver's process, all threads, from the first job handed out to the last
  result, by videos. Assembling shards is the workers' work, looking at its result the driver's.
- idle per video: (workers x wall clock - seconds that workers spent in jobs) / videos: what workers waited, for the
  driver, for Ray, and for workers that were starting; by the workers, it is the wall clock beyond their work.
- resume scan: from the begin of the first look at the store's shards to the end of the last, and the whole process.

Times of a shared machine come and go; CPU seconds less so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from process_memory import MemorySampler, Sample, cpu_by_kind, write_csv

from data_specs.demo_clips import write_clip
from data_specs.scene import random_scene
from training.reading.track_reader import TrackReader

REPOSITORY = Path(__file__).parent.parent
CLIPS = 36
_MIB = 1 << 20


def make_videos(root: Path, count: int) -> Path:
    """Fill the folder `root` with `count` videos, names of CLIPS different ones, and return their list."""
    kinds = []
    for number in range(min(CLIPS, count)):
        size = (16 + 2 * (number % 4), 24 + 4 * (number % 3))
        clip = root / f"clip{number:02d}.avi"
        write_clip(clip, random_scene(number, 0.7, size), 7 + number % 6)
        kinds.append(clip)
    paths = []
    for number in range(count):
        path = root / f"{number // 1000:03d}" / f"{number:06d}.avi"
        path.parent.mkdir(exist_ok=True)
        path.hardlink_to(kinds[number % len(kinds)])
        paths.append(path.relative_to(root))
    listed = root / "list.txt"
    listed.write_text("".join(f"{path} {number % 400}\n" for number, path in enumerate(paths)), encoding="utf-8")
    return listed


def extract(
    root: Path, store: Path, shards: int, workers: int, seconds: float, more: Sequence[str]
) -> tuple[dict[str, Any], list[Sample]]:
    """Run extract-tracks on the folder's list; returns the driver's record and samples of all its processes."""
    record = store.with_suffix(".json")
    command = [
        sys.executable, str(Path(__file__).with_name("driver_phases.py")), str(record), str(time.monotonic()),
        "--dataset", str(root / "list.txt"), "--root", str(root), "--shards", str(shards), "--out", str(store),
        "--workers", str(workers), *more,
    ]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    sampler = MemorySampler(process.pid, seconds)
    process.wait()
    samples = sampler.stop()
    if not record.exists():
        raise SystemExit(f"extract-tracks ended with status {process.returncode}")
    fields: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return fields | {"exited": time.monotonic()}, samples


def phase(record: dict[str, Any], name: str) -> dict[str, float]:
    """Wall and CPU seconds of all calls of a phase, and the wall clock from the first's begin to the last's end."""
    calls = [call for call in record["calls"] if call["phase"] == name]
    return {
        "wall": sum(call["wall"] for call in calls),
        "cpu": sum(call["cpu"] for call in calls),
        "span": max(c["at"] + c["wall"] for c in calls) - min(c["at"] for c in calls) if calls else 0.0,
    }


def run_figures(record: dict[str, Any], samples: Sequence[Sample], workers: int) -> dict[str, float]:
    """The figures of the run that did the work."""
    run, summary = phase(record, "run"), record["summary"]
    videos = summary["done"] + summary["failed"]
    cpu = cpu_by_kind(samples)
    spent = summary["worker_seconds"]
    return {
        "videos": videos,
        "done": summary["done"],
        "shards": summary["shards"],
        "process, s": record["exited"] - record["begun"],
        "imports, s": record["imports"]["wall"],
        "kernels, s": phase(record, "compile_kernels")["wall"],
        "run, s": run["wall"],
        "driver CPU in the run, s": run["cpu"],
        "driver CPU per video, ms": 1e3 * run["cpu"] / videos,
        "wall clock per video, ms": 1e3 * run["wall"] / videos,
        "worker seconds in jobs, per video, ms": 1e3 * spent / videos,
        "of them assembling, per shard, ms": 1e3 * summary["seconds"].get("assemble", 0.0) / max(summary["shards"], 1),
        "workers' idle per video, ms": 1e3 * (workers * run["wall"] - spent) / videos,
        "wall clock per video beyond the workers' work, ms": 1e3 * (run["wall"] - spent / workers) / videos,
        "worker CPU per video, ms": 1e3 * cpu.get("worker", 0.0) / videos,
        "Ray's own CPU per video, ms": 1e3 * cpu.get("ray", 0.0) / videos,
        "worker processes": len({s.pid for s in samples if s.kind == "worker"}),
    }


def growth(record: dict[str, Any], samples: Sequence[Sample], workers: int) -> dict[str, float]:
    """Memory at its most, and how it grows in the run's second half, by least squares, process by process.

    Of each process the first third is left out, which is its start, and so is a worker that was there only briefly.
    """
    done_at = np.array(record["done_at"])
    begun = done_at[len(done_at) // 2]
    found: dict[str, float] = {}
    for kind, unit in (("driver", "video"), ("worker", "job")):
        of_kind = [s for s in samples if s.kind == kind]
        found[f"{kind} USS at most, MiB"] = max((s.uss for s in of_kind), default=0) / _MIB
        found[f"{kind} RSS at most, MiB"] = max((s.rss for s in of_kind), default=0) / _MIB
        found[f"{kind} open files at most"] = max((s.open_files for s in of_kind), default=0)
        chosen = [s for s in of_kind if begun <= s.at <= done_at[-1]]
        pids = sorted({s.pid for s in chosen})
        slopes = []
        for pid in pids:
            own = [s for s in chosen if s.pid == pid]
            own = own[len(own) // 3 :]
            done = np.searchsorted(done_at, [s.at for s in own]).astype(float)
            if np.ptp(done) > len(done_at) / 20:
                slopes.append(float(np.polyfit(done, [s.uss for s in own], 1)[0]))
        if slopes:  # of so many workers each does its part of the videos
            share = workers if kind == "worker" else 1
            found[f"{kind} grows, kB per {unit}"] = share * float(np.mean(slopes)) / 1e3
    return found


def scan_figures(record: dict[str, Any]) -> dict[str, float]:
    """The figures of a run that found everything done."""
    plan = phase(record, "plan_shards")
    return {
        "process, s": record["exited"] - record["begun"],
        "process CPU, s": record["cpu"],
        "imports, s": record["imports"]["wall"],
        "list, s": phase(record, "load_videos")["wall"],
        "digest and versions, s": phase(record, "store_info")["wall"],
        "looks at the shards, s": plan["wall"],
        "from the first look to the last, s": plan["span"],
    }


def store_figures(store: Path) -> dict[str, float]:
    """Files, folders and bytes of a finished store, and what a trainer needs to open it."""
    files = [f for f in store.rglob("*") if f.is_file()]
    folders = sum(f.is_dir() for f in store.rglob("*"))
    begun = time.perf_counter()
    reader = TrackReader(store)
    opened = time.perf_counter() - begun
    shards = max(reader.info.num_shards - len(reader.missing_shards), 1)
    return {
        "files": len(files),
        "folders": folders,
        "files per shard": sum("shards" in f.parts for f in files) / shards,
        "bytes": sum(f.stat().st_size for f in files),
        "videos": len(reader.videos),
        "failed": len(reader.failed),
        "opened by a trainer, s": opened,
        "left in partial/": sum(1 for _ in (store / "partial").rglob("*")),
    }


def draw(path: Path, record: dict[str, Any], samples: Sequence[Sample]) -> None:
    """USS of the driver and of each worker over time, and the videos done."""
    import matplotlib as mpl  # noqa: PLC0415 (only here)

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(10, 6.5), height_ratios=(3, 1))
    for kind, colour in (("driver", "tab:red"), ("worker", "tab:blue")):
        for number, pid in enumerate(sorted({s.pid for s in samples if s.kind == kind})):
            own = [s for s in samples if s.pid == pid and s.kind == kind]
            times = [s.at - record["begun"] for s in own]
            label = kind if number == 0 else None
            above.plot(
                times, [s.uss / _MIB for s in own], color=colour, lw=1, label=label and f"{label}, its own (USS)"
            )
            above.plot(
                times, [s.rss / _MIB for s in own], color=colour, lw=0.5, ls=":", label=label and f"{label}, RSS"
            )
    above.set(ylabel="MiB", ylim=(0, None), title="Memory of extract-tracks, one line for each process")
    above.legend(loc="lower right")
    done = np.array(record["done_at"]) - record["begun"]
    below.plot(done, np.arange(1, len(done) + 1), color="black", lw=1)
    below.set(ylabel="videos done", xlabel="s", ylim=(0, None))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def table(title: str, figures: dict[str, float]) -> str:
    """A Markdown table of figures."""
    lines = [f"| {title} | |", "| --- | --- |"]
    for name, value in figures.items():
        shown = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines) + "\n"


def soak(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Make the videos in `folder`, extract them there, scan, count; writes the CSV and the plot to options.out."""
    options.out.mkdir(parents=True, exist_ok=True)
    make_videos(folder, options.videos)
    store = folder / "soak.tracks"
    workers = options.workers or os.cpu_count() or 1
    arguments = (folder, store, options.shards, workers, options.sample_seconds, options.more)
    record, samples = extract(*arguments)
    write_csv(options.out / "memory.csv", samples, record["begun"])
    draw(options.out / "memory.png", record, samples)
    again, _ = extract(*arguments)
    figures = {
        f"run, {workers} workers": run_figures(record, samples, workers),
        "memory": growth(record, samples, workers),
        "the same command again": scan_figures(again),
        "store": store_figures(store),
    }
    (options.out / "soak.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=512)
    parser.add_argument("--workers", type=int, default=0, help="0: one on each core")
    parser.add_argument("--sample-seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV, the plot and the figures")
    parser.add_argument(
        "--folder", type=Path, help="where videos and store are made, and stay; default: a temporary one"
    )
    parser.add_argument("more", nargs="*", help="after --: further options of extract-tracks, e.g. --flow dis")
    return parser


def main() -> None:
    """Run the soak and print its figures."""
    options = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for title, figures in soak(folder, options).items():
            print(table(title, figures))


if __name__ == "__main__":
    main()
