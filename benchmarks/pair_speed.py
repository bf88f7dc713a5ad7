"""Time of the two-pass flow of real pairs, method against reference, in one run and one thread.

    python benchmarks/pair_speed.py CLIP... --methods reference mme-object:tvl1 mme-object:tvl1-fast --pairs 4

Of each clip as it is tracked (short side 256), so many pairs of neighbouring frames, spread evenly, each measured by
every method before the next, `--repeats` times, the least time counting. The table has the mean over the pairs of
everything from two grey frames to the filtered residual flow, and its parts by stage in ms; × is how many times as
fast as the first method of the list. SURF points of a frame serve the pairs on either side of it, so one frame's are
counted for each pair. K400: core-hours for 72 million pairs of 256 x 340 (240,000 videos of 300 frames), in proportion
to pixels.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from motion_methods import make_methods

from data_specs.video import Video
from extraction.motion.flow_tracker import TrackedFrame
from extraction.stages import StageTimer

K400_PAIRS, K400_PIXELS = 72e6, 256 * 340


def pairs_of(clip: str, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of neighbouring frames, spread evenly over the clip."""
    total = sum(1 for _ in Video(clip, short_side=256))
    starts = sorted({round((i + 0.5) * (total - 1) / count) for i in range(count)})
    frames = list(islice(Video(clip, short_side=256), starts[-1] + 2))
    return [(frames[start], frames[start + 1]) for start in starts if start + 1 < len(frames)]


def measure(methods: Sequence, pairs: Sequence, repeats: int) -> dict[str, list[tuple[dict[str, float], int]]]:
    """By method's name, for each pair: milliseconds by stage and in all, and the pair's pixels."""
    results: dict[str, list[tuple[dict[str, float], int]]] = {method.name: [] for method in methods}
    for number, (a, b) in enumerate([pairs[0], *pairs]):  # once for the compilers
        for method in methods:
            best: dict[str, float] = {}
            for _ in range(repeats if number else 1):
                timer = StageTimer()
                tracker = method.make(timer)
                frame_a, frame_b = TrackedFrame(a), TrackedFrame(b)
                if method.name != "reference" and "surf" in tracker._recipe.camera_features:
                    frame_a.features("surf")  # it was frame b of the pair before
                elif method.name == "reference":
                    tracker._features(frame_a)
                begun = time.perf_counter()
                tracker.pair_motion(frame_a, frame_b)
                took = 1e3 * (time.perf_counter() - begun)
                if not best or took < best["all"]:
                    best = {**{stage: 1e3 * seconds for stage, seconds in timer.seconds.items()}, "all": took}
            if number:
                results[method.name].append((best, a.shape[0] * a.shape[1]))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--methods", nargs="+", default=["reference", "mme-object:tvl1", "mme-object:tvl1-fast"])
    parser.add_argument("--pairs", type=int, default=4, help="of each clip")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    methods = make_methods(options.methods)
    every = [pair for clip in options.clips for pair in pairs_of(clip, options.pairs)]
    results = measure(methods, every, options.repeats)
    sizes = ", ".join(sorted({f"{a.shape[0]}×{a.shape[1]}" for a, _ in every}))
    print(f"{len(every)} pairs of {', '.join(Path(clip).name for clip in options.clips)} ({sizes})\n")
    print("| method | ms per pair | × | K400 core-hours | by stage |\n| --- | --- | --- | --- | --- |")
    slowest = np.mean([times["all"] for times, _ in results[methods[0].name]])
    for method in methods:
        of_pairs = results[method.name]
        mean = float(np.mean([times["all"] for times, _ in of_pairs]))
        per_pixel = sum(times["all"] for times, _ in of_pairs) / sum(pixels for _, pixels in of_pairs)
        hours = per_pixel * K400_PIXELS * K400_PAIRS / 3.6e6
        stages = sorted({name for times, _ in of_pairs for name in times} - {"all"})
        by_stage = ", ".join(f"{name} {np.mean([t.get(name, 0) for t, _ in of_pairs]):.2f}" for name in stages)
        print(f"| {method.name} | {mean:.1f} | {slowest / mean:.1f} | {hours:,.0f} | {by_stage} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
