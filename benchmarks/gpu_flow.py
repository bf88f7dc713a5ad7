"""Speed of the batched two-pass flow on a device, and how far from what the device can do.

    python benchmarks/gpu_flow.py --device cuda --batches 1 8 32 64 128
    python benchmarks/gpu_flow.py --device cpu --height 72 --width 104 --batches 1 4 --repeats 2

Rendered pairs, by default 256 x 340. `measure` is everything between two grey batches on the device and their motion on
the device; `with transfers` begins and ends in the host's memory, as the tracker has it. A pair's least bytes and
operations are counted by `Work`; the device's two ceilings, a large copy and a large single-precision product, are
measured in the same run. The share of the roof is the time that the slower of the two would need over the time taken.
On CUDA a second table tries the kernel's tiles. `--device cpu` runs the plain torch version: it shows that the
benchmark works, no more.
"""

import argparse
import contextlib
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from data_specs.recipe import load_recipe
from data_specs.scene import random_scene
from extraction.motion.flow_tracker import TrackedFrame
from extraction.motion.gpu.batched_tvl1 import loops_for
from extraction.motion.gpu.device import open_device, why_missing
from extraction.motion.gpu.two_pass import TwoPass
from extraction.motion.tvl1 import CHECK, FAST, HALF, SMALLEST_SCALE, TVL1Options

K400_PAIRS = 72e6
_FLOAT = 4
# planes that one pass over the pixels reads and writes
_ITERATE_PLANES = 2 + 4 + 4 + 1 + 2 + 4  # flow, dual, linear, weight; new flow and dual
_LINEARISE_PLANES = 2 + 2 + 4  # both images and the flow; linear
_MEDIAN_PLANES = 4
# operations on a pixel by one iteration, a square root or quotient counted as one: 22 on u, twice 16 on p
_ITERATION_OPERATIONS = 54


@dataclasses.dataclass
class Work:
    """Least device-memory bytes and operations of TV-L1's loops over a pair, each plane read once for each launch, no
    overlap of tiles counted; `pixel_iterations` sums pixels times iterations. What is not counted (pyramids, camera,
    rectification) is part of the time all the same.
    """

    pixel_iterations: float = 0
    bytes: float = 0

    @property
    def operations(self) -> float:
        """Of the iterations alone."""
        return self.pixel_iterations * _ITERATION_OPERATIONS

    def add(self, options: TVL1Options, size: tuple[int, int], per_launch: int) -> None:
        """Count a solver's loops over images of that size."""
        for scale in range(options.scales):
            if scale and min(size) < SMALLEST_SCALE:
                break
            pixels = math.prod(size)
            launches = options.rounds * math.ceil(options.iterations / per_launch)
            planes = _LINEARISE_PLANES + options.rounds * _MEDIAN_PLANES + launches * _ITERATE_PLANES
            self.pixel_iterations += pixels * options.warps * options.rounds * options.iterations
            self.bytes += pixels * options.warps * planes * _FLOAT
            size = halved(size)


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Half of it, rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def pair_work(size: tuple[int, int], per_launch: int) -> Work:
    """Both passes of one pair, and the check backward."""
    work = Work()
    work.add(HALF, halved(size), per_launch)
    work.add(FAST, size, per_launch)
    work.add(CHECK, size, per_launch)
    return work


def seconds(device: torch.device, work: Callable[[], object], repeats: int) -> float:
    """The median time of one call, after a first one that compiles."""
    wait = torch.cuda.synchronize if device.type == "cuda" else contextlib.nullcontext
    work()
    taken = []
    for _ in range(repeats):
        wait()
        begun = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken))


def ceilings(device: torch.device, repeats: int) -> tuple[float, float]:
    """Bytes per second of a copy (read and written), and single-precision operations per second of a product."""
    count, side = (1 << 28, 8192) if device.type == "cuda" else (1 << 22, 512)
    source, target = torch.rand(count, device=device), torch.empty(count, device=device)
    copied = 2 * count * _FLOAT / seconds(device, lambda: target.copy_(source), repeats)
    left, right = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    return copied, 2 * side**3 / seconds(device, lambda: left @ right, repeats)


def tiles(device: torch.device, size: tuple[int, int], batch: int, repeats: int, copied: float) -> None:
    """Print how long 30 iterations take with other tiles."""
    from extraction.motion.gpu import kernels  # noqa: PLC0415 (there is no Triton where there is no CUDA)

    def planes(count: int) -> torch.Tensor:
        return torch.rand(batch, count, *size, device=device)

    flow, dual, linear, weight = planes(2), planes(4), planes(4), planes(1)[:, 0].contiguous()
    print("\n30 iterations; GB/s without what overlapping tiles read twice\n")
    print("| iterations per launch | strips | rows | ms per pair | GB/s | of a copy |")
    print("| --- | --- | --- | --- | --- | --- |")
    for per_launch, strips, rows in itertools.product((1, 2, 3, 4, 5, 6, 8), (4, 8, 16), (4, 8)):
        if strips * rows <= 2 * per_launch:
            continue

        def work(per_launch: int = per_launch, strips: int = strips, rows: int = rows) -> object:
            return kernels.iterate(
                flow, dual, linear, weight, 30, (0.045, 0.3, 0.83),
                per_launch=per_launch, strips=strips, rows=rows,
            )  # fmt: skip

        taken = seconds(device, work, repeats)
        rate = batch * math.prod(size) * math.ceil(30 / per_launch) * _ITERATE_PLANES * _FLOAT / taken
        print(
            f"| {per_launch} | {strips} | {rows} | {1e3 * taken / batch:.4f} | {rate / 1e9:.0f} | {rate / copied:.2f} |"
        )


def main(arguments: list[str] | None = None) -> int:
    """Print the tables as Markdown; returns 2 where the device is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=340)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    missing = why_missing(options.device)
    if missing:
        print(missing, file=sys.stderr)
        return 2
    device, size = open_device(options.device), (options.height, options.width)
    frames = [TrackedFrame(frame) for frame in random_scene(0, 2.0, size).frames(9)]
    solver = TwoPass(load_recipe("mme-object-gpu").resolved(4), device)
    per_launch = getattr(loops_for(device), "ITERATIONS_PER_LAUNCH", 1)
    work = pair_work(size, per_launch)
    copied, multiplied = ceilings(device, options.repeats)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, plain torch"
    least = max(work.bytes / copied, work.operations / multiplied)
    print(f"{name}, torch {torch.__version__}")
    print(f"copies {copied / 1e9:.0f} GB/s, multiplies {multiplied / 1e12:.2f} TFLOP/s")
    print(f"a pair of {size[0]} x {size[1]}: {work.pixel_iterations / 1e6:.1f} M pixel-iterations,")
    print(f"{work.bytes / 1e6:.0f} MB with {per_launch} iterations per launch, {work.operations / 1e9:.2f} GFLOP:")
    print(f"at least {1e3 * least:.3f} ms\n")
    print("| batch | measure, ms per pair | pairs/s | share of the roof | with transfers, pairs/s | K400, hours |")
    print("| --- | --- | --- | --- | --- | --- |")
    for batch in options.batches:
        pairs = [(frames[i % 8], frames[i % 8 + 1]) for i in range(batch)]
        a, b = (torch.from_numpy(np.stack([p[side].gray for p in pairs])).to(device).float() for side in (0, 1))
        measured = seconds(device, lambda a=a, b=b: solver.measure(a, b), options.repeats) / batch
        transferred = seconds(device, lambda pairs=pairs: solver.pair_motions(pairs), options.repeats) / batch
        print(
            f"| {batch} | {1e3 * measured:.3f} | {1 / measured:.0f} | {least / measured:.2f} | {1 / transferred:.0f} "
            f"| {K400_PAIRS * transferred / 3600:.1f} |"
        )
    if device.type == "cuda":
        tiles(device, size, options.batches[-1], options.repeats, copied)
    return 0


if __name__ == "__main__":
    sys.exit(main())
