"""End-point error of the trajectories and error of the homographies on rendered scenes, by speed and flow.

    python benchmarks/trajectory_error.py --flows dis tvl1 --scenes 4

Each scene has a camera that pans, turns, zooms and tilts, three moving discs and noise (`data_specs.scene`), 7 frames
of 136 x 184. Columns, all in pixels over six steps: mean end-point error of recipe mme-object, all points and those on
the discs; the error of the same points after the camera is removed; that of MME's released integration (8-bit flow,
whole pixels, no median) of the same flow in the same run; mean error of G over the grid; share of the points valid at
the last step that are truly hidden or outside (false valid), and of those truly visible that are invalid (missed).
"""

import argparse
import contextlib
import dataclasses
from itertools import pairwise

import cv2
import numpy as np
from published import integrate

from data_specs.geometry import apply_homography, compensated_displacements, grid_points
from data_specs.recipe import Recipe, load_recipe
from data_specs.scene import Scene, random_scene
from extraction.motion.flow_tracker import FlowTracker, TrackedFrame

LENGTH = 6


def evaluate(scene: Scene, recipe: Recipe) -> dict[str, float]:
    """The figures of one scene."""
    frames = scene.frames(LENGTH + 1)
    tracker = FlowTracker(recipe, lambda _: contextlib.nullcontext())
    (row,) = [row for frame in frames for row in tracker.push(frame)]
    points = grid_points(scene.size, recipe.grid_stride)
    truth, visible = scene.track(points, 0, LENGTH)
    cameras = np.stack([scene.homography(k, k + 1) for k in range(LENGTH)])
    both = row.valid[:, -1] & visible.all(axis=1)
    on_disc = scene.layers(points, 0) > 0
    end_point = np.linalg.norm(row.positions[:, -1] - truth[:, -1], axis=1)
    ours, theirs = (
        compensated_displacements(positions, homographies).sum(axis=1)
        for positions, homographies in [(row.positions, row.homographies), (truth, cameras)]
    )
    compensated = np.linalg.norm(ours - theirs, axis=1)
    plain = FlowTracker(dataclasses.replace(recipe, remove_camera=False), lambda _: contextlib.nullcontext())
    flows = [plain.pair_motion(a, b).flow for a, b in pairwise([TrackedFrame(frame) for frame in frames])]
    published = np.linalg.norm(integrate(flows, points)[:, -1] - truth[:, -1], axis=1)
    camera = [
        np.linalg.norm(apply_homography(a, points) - apply_homography(b, points), axis=1).mean()
        for a, b in zip(row.homographies, cameras, strict=True)
    ]
    return {
        "all": float(end_point[both].mean()),
        "discs": float(end_point[both & on_disc].mean()),
        "discs, no camera": float(compensated[both & on_disc].mean()),
        "published": float(published[both].mean()),
        "camera": float(np.mean(camera)),
        "false valid": float((row.valid[:, -1] & ~visible[:, -1]).sum() / max(row.valid[:, -1].sum(), 1)),
        "missed": float((~row.valid[:, -1] & visible.all(axis=1)).sum() / max(visible.all(axis=1).sum(), 1)),
    }


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", nargs="+", default=["dis", "tvl1"])
    parser.add_argument("--speeds", nargs="+", type=float, default=[0.7, 2.0, 6.0])
    parser.add_argument("--scenes", type=int, default=4)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    header_done = False
    for flow in options.flows:
        for speed in options.speeds:
            recipe = dataclasses.replace(load_recipe("mme-object").resolved(LENGTH + 1), flow=flow)
            results = [evaluate(random_scene(seed, speed), recipe) for seed in range(options.scenes)]
            if not header_done:
                print("| flow | px/frame | " + " | ".join(results[0]) + " |")
                print("| --- | --- |" + " --- |" * len(results[0]))
                header_done = True
            means = [np.mean([r[name] for r in results]) for name in results[0]]
            print(f"| {flow} | {speed} | " + " | ".join(f"{value:.3f}" for value in means) + " |", flush=True)


if __name__ == "__main__":
    main()
