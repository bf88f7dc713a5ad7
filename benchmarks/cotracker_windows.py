"""CoTracker3's windows, ours against the official package called window by window: how far apart, and how fast.

    python benchmarks/random_cotracker.py weights.pth
    extract-tracks --dataset LIST --root DIR --shards 2 --recipe trackmae --checkpoint weights.pth --out STORE
    python benchmarks/cotracker_windows.py STORE --root DIR --checkpoint weights.pth [--device cuda]

Takes start rows of the store's videos, spread over each. For each row the package's predictor is given the row's
frames and the row's points as queries; its tracks are compared with the store's, which are rounded to 1/64 px. Then a
stretch of a video is tracked by either: the predictor window by window, and ours, which computes each frame's features
once, in fp32, in bf16, and with --compile compiled as well. Times are of one window; ratios are of one run, in turn.
Positions are in pixels of the tracked frame.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_specs.recipe import Recipe
from data_specs.track_store import TrackStore
from data_specs.video import Frame, Video
from extraction.motion.cotracker3.network import CoTracker3
from extraction.motion.cotracker3.package import load_model
from extraction.motion.cotracker3.weights import check_package, find_weights
from extraction.motion.cotracker3.window_tracker import WindowTracker
from extraction.motion.gpu.device import open_device
from extraction.stages import untimed


class Official:
    """The package's predictor, one window at a time."""

    def __init__(self, weights: Path, recipe: Recipe, device: torch.device) -> None:
        from cotracker.predictor import CoTrackerPredictor  # noqa: PLC0415 (not a dependency)

        window = torch.load(weights, weights_only=True)["time_emb"].shape[1]
        self.predictor = CoTrackerPredictor(checkpoint=str(weights), offline=True, window_len=window).to(device)
        self.support, self.device = recipe.support_grid, device
        self.predictor.support_grid_size = recipe.support_grid

    @torch.inference_mode()
    def __call__(self, frames: list[Frame], grid: NDArray[np.float64]) -> NDArray[np.float32]:
        """Positions (N, T, 2) of points that are at `grid` (N, 2) in the first of the frames."""
        video = torch.from_numpy(np.stack(frames)).to(self.device).permute(0, 3, 1, 2).float()[None]
        points = torch.from_numpy(grid).float().to(self.device)
        queries = torch.cat([torch.zeros_like(points[:, :1]), points], dim=1)[None]
        if self.support:
            tracks, _ = self.predictor(video, queries=queries)
        else:  # `forward` always adds support points to queries
            tracks, _ = self.predictor._compute_sparse_tracks(video, queries)
        return tracks[0].permute(1, 0, 2).cpu().numpy()


def stretch_of(frames: list[Frame], recipe: Recipe, windows: int) -> list[Frame]:
    """As many frames as so many windows are in."""
    return frames[: recipe.span + (windows - 1) * recipe.start_stride + 1]


def ours(frames: list[Frame], recipe: Recipe, network: CoTracker3, windows: int | None) -> NDArray[np.float64]:
    """Positions (S, N, T, 2) of all rows of a stretch."""
    tracker = WindowTracker(recipe, network, untimed, windows)
    rows = [row for frame in frames for row in tracker.push(frame)] + tracker.finish()
    return np.stack([row.positions for row in rows])


def timed(work: Callable[[], NDArray], windows: int) -> tuple[float, NDArray]:
    begun = time.perf_counter()
    found = work()  # on the host by then: the device is done
    return (time.perf_counter() - begun) / windows, found


def compare_store(store: TrackStore, root: Path, official: Official, rows: int) -> None:
    """Print how far the store's positions are from the predictor's."""
    recipe = store.info.recipe
    for _, shard in store.shards():
        for number, meta in enumerate(shard.metas):
            frames = list(Video(root / meta.path, recipe.short_side))
            # behind a cut ours track nothing
            found = [shard.read_row(number, row, hog=False) for row in shard.rows(number)]
            own = [r for r in found if not any(r.frame < cut <= r.frame + recipe.span for cut in meta.cuts)]
            chosen = sorted(set(np.linspace(0, len(own) - 1, min(rows, len(own))).astype(int)))
            worst, moved = 0.0, 0.0
            for row in (own[i] for i in chosen):
                window = frames[row.frame : row.frame + recipe.span + 1 : recipe.frame_step]
                expected = official(window, row.positions[:, 0])
                worst = max(worst, float(np.abs(row.positions - expected).max()))
                moved = max(moved, float(np.linalg.norm(np.diff(expected, axis=1), axis=-1).max()))
            print(f"{meta.path}: {len(chosen)} rows, at most {worst:.4f} px apart; steps of up to {moved:.1f} px")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--rows", type=int, default=2, help="of each video, compared with the store")
    parser.add_argument("--video", help="of which windows are timed; default: the store's first")
    parser.add_argument("--windows", type=int, default=6, help="timed")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batch", type=int, help="windows at a time; default: what extraction takes on the device")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    check_package()
    torch.set_num_threads(1)
    device = open_device(options.device)
    weights = find_weights(options.checkpoint)
    store = TrackStore(options.store)
    if store.info.weights_sha256 != weights.sha256:
        raise SystemExit(f"{options.store} has weights {store.info.weights_sha256}, {weights.path} is {weights.sha256}")
    recipe = store.info.recipe
    official = Official(weights.path, recipe, device)
    compare_store(store, options.root, official, options.rows)
    shard, number = store.find(options.video or next(iter(store.shards()))[1].paths[0])
    video = Video(options.root / shard.metas[number].path, recipe.short_side)
    frames = stretch_of(list(video), recipe, options.windows)
    windows = (len(frames) - recipe.span - 1) // recipe.start_stride + 1
    recipe = dataclasses.replace(recipe, remove_camera=False)

    precisions = [("fp32", False), ("bf16", False)] + ([("fp32", True), ("bf16", True)] if options.compile else [])
    ways = {
        f"ours, {precision}{', compiled' if compiled else ''}": CoTracker3(
            load_model(weights.path), device, refinements=recipe.refinements, precision=precision, compiled=compiled
        )
        for precision, compiled in precisions
    }
    grid = ours(frames[: recipe.span + 1], recipe, ways["ours, fp32"], 1)[0, :, 0]
    for network in list(ways.values())[2:]:
        ours(frames, recipe, network, options.batch)  # compiles
    seconds: dict[str, list[float]] = {"official": [], **{name: [] for name in ways}}
    found: dict[str, NDArray] = {}

    def one_by_one() -> NDArray:
        starts = range(0, windows * recipe.start_stride, recipe.start_stride)
        return np.stack([official(frames[s : s + recipe.span + 1 : recipe.frame_step], grid) for s in starts])

    for _, (name, network) in itertools.product(range(options.repeats), [("official", None), *ways.items()]):
        work = one_by_one if network is None else lambda n=network: ours(frames, recipe, n, options.batch)
        took, found[name] = timed(work, windows)
        seconds[name].append(took)
    height, width = frames[0].shape[:2]
    print(
        f"\n{windows} windows of {recipe.length + 1} frames of {height}x{width}, {len(grid)} points, {options.device}"
    )
    print(f"{'':24}{'s per window':>14}{'official / it':>15}{'px, mean':>10}{'median':>9}{'99 %':>9}{'most':>9}")
    for name, times in seconds.items():
        off = np.linalg.norm(found[name] - found["official"], axis=-1)
        print(
            f"{name:24}{min(times):14.3f}{min(seconds['official']) / min(times):15.2f}{off.mean():10.4f}"
            f"{np.median(off):9.4f}{np.quantile(off, 0.99):9.4f}{off.max():9.4f}"
        )


if __name__ == "__main__":
    main()
