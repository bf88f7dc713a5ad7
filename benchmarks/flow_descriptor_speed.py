"""Time of the flow's descriptors (flow, HOF, MBH) for one frame pair, beside that of DIS flow, in one run.

    python benchmarks/flow_descriptor_speed.py

A rendered pair of 256 x 340, cells of 8 px, one thread. Times are the least of many repeats; the ratios count.
"""

import argparse

import cv2
import numpy as np
from timing import shortest_ms

from data_specs.recipe import Descriptor
from data_specs.scene import random_scene
from extraction.flow_descriptors import describe_flow
from extraction.motion.dense_flow import make_flow, median_filter


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    frames = random_scene(0, 2.0, (256, 340)).frames(2)
    a, b = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in frames)
    method = make_flow("dis").first
    flow, measured = median_filter(method(a, b)), np.ones(a.shape, np.bool_)
    dis = shortest_ms(lambda: method(a, b), options.repeats)
    print("| descriptors | ms per pair | share of one DIS flow |")
    print("| --- | --- | --- |")
    chosen: list[tuple[Descriptor, ...]] = [("flow",), ("hof",), ("mbh",), ("flow", "hof", "mbh")]
    for kinds in chosen:
        took = shortest_ms(lambda k=kinds: describe_flow(flow, measured, 8, k, 0.4), options.repeats)
        print(f"| {', '.join(kinds)} | {took:.2f} | {took / dis:.3f} |")


if __name__ == "__main__":
    main()
