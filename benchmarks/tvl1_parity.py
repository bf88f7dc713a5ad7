"""TV-L1 with OpenCV's parameters against OpenCV's, on real pairs, and on other processors' instructions.

    python benchmarks/tvl1_parity.py CLIP... --pairs 4 --cpus haswell generic

For each clip: mean, median and largest difference of the two flows in px, and how many times as fast ours is, one
thread, one run. Then, with kernels compiled for each named processor (`NUMBA_CPU_NAME`; this machine must have its
instructions), the mean and the largest difference of preset `fast` from this machine's own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import llvmlite.binding
import numpy as np
from pair_speed import pairs_of

from extraction.motion.dense_flow import make_flow
from extraction.motion.tvl1 import OPENCV, TVL1


def grays(clips: Sequence[str], count: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Clip, a, b, grey float32."""
    return [
        (clip, *(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in pair))
        for clip in clips
        for pair in pairs_of(clip, count)
    ]


def refined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The fast preset's flow from a first pass by DIS."""
    method = make_flow("tvl1-fast")
    return method.second(a, b, method.first(a, b), rectified=False)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--cpus", nargs="*", default=["haswell", "generic"])
    parser.add_argument("--flows-to", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    pairs = grays(options.clips, options.pairs)
    if options.flows_to:
        np.savez(options.flows_to, *(refined(a, b) for _, a, b in pairs))
        return
    print("| clip | mean px | median px | largest px | × |\n| --- | --- | --- | --- | --- |")
    reference, ours = cv2.optflow.DualTVL1OpticalFlow_create(), TVL1(OPENCV)
    for clip in options.clips:
        differences, theirs_s, ours_s = [], 0.0, 0.0
        for _, a, b in (pair for pair in pairs if pair[0] == clip):
            ours(a, b)
            begun = time.perf_counter()
            flow = ours(a, b)
            ours_s += time.perf_counter() - begun
            begun = time.perf_counter()
            expected = reference.calc(a / 255, b / 255, None)
            theirs_s += time.perf_counter() - begun
            differences.append(np.linalg.norm(flow - expected, axis=-1))
        values = np.concatenate([difference.ravel() for difference in differences])
        figures = f"{values.mean():.4f} | {np.median(values):.5f} | {values.max():.2f} | {theirs_s / ours_s:.1f}"
        print(f"| {Path(clip).name} | {figures} |", flush=True)
    if not options.cpus:
        return
    print(
        f"\n| kernels for | mean px from {llvmlite.binding.get_host_cpu_name()}'s | largest px |\n| --- | --- | --- |"
    )
    native = [refined(a, b) for _, a, b in pairs]
    for cpu in options.cpus:
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/flows.npz"
            environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": folder}
            command = [sys.executable, __file__, *options.clips, "--pairs", str(options.pairs), "--flows-to", file]
            subprocess.run(command, check=True, env=environment)
            flows = np.load(file)
            gaps = [np.linalg.norm(flows[f"arr_{i}"] - flow, axis=-1) for i, flow in enumerate(native)]
        every = np.concatenate([gap.ravel() for gap in gaps])
        print(f"| {cpu} | {every.mean():.5f} | {every.max():.3f} |", flush=True)


if __name__ == "__main__":
    main()
