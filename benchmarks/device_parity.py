"""How far a device's batched motion is from the CPU's, on rendered and on real pairs.

    python benchmarks/device_parity.py CLIP... --device cuda

Recipe mme-object-gpu, means over the pairs, px: the first pass; the second pass from the same rectified pair and
start; G over the grid; where things go, camera and residual together, on pixels that both measured; the share of pixels
that only one of the two finds visible. Rows: rendered scenes (`data_specs.scene`, 256 x 340) at 0.7, 2 and 6 px per
frame, then each clip. Then, on the rendered ones, each one's error of G against the truth. `--device cpu` runs the
plain torch version; without CUDA that is what there is to compare.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from pair_speed import pairs_of

from data_specs.geometry import apply_homography, grid_points
from data_specs.recipe import load_recipe
from data_specs.scene import Scene, random_scene
from extraction.motion.dense_flow import make_flow
from extraction.motion.flow_tracker import FlowTracker, PairMotion, TrackedFrame
from extraction.motion.gpu.batched_tvl1 import finest_scales
from extraction.motion.gpu.device import open_device, why_missing
from extraction.motion.gpu.two_pass import TwoPass, still_where_it_explains
from extraction.motion.rectification import expected_residual, rectify
from extraction.stages import untimed

RECIPE = load_recipe("mme-object-gpu").resolved(1)
SIZE = (256, 340)
Pair = tuple[TrackedFrame, TrackedFrame]


def whereto(motion: PairMotion) -> np.ndarray:
    """Where each pixel goes, camera included."""
    height, width = motion.measured.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return apply_homography(motion.camera.homography, np.stack([x, y], axis=-1) + motion.flow)


def second_pass_gap(pair: Pair, cpu: PairMotion, device: torch.device) -> float:
    """Mean difference of the second pass from the CPU's rectified pair and start."""
    a, b = (frame.gray.astype(np.float32) for frame in pair)
    b, _ = rectify(b, cpu.camera.homography)
    start = expected_residual(cpu.first_flow, cpu.camera.homography)
    expected = make_flow(RECIPE.flow).second(a, b, start, rectified=True)
    images = [torch.from_numpy(image)[None].to(device) for image in (a, b)]
    begun = still_where_it_explains(*images, torch.from_numpy(start).permute(2, 0, 1)[None].to(device))
    found = finest_scales()(*images, begun)[0].permute(1, 2, 0).cpu().numpy()
    return float(np.linalg.norm(found - expected, axis=-1).mean())


def compare(pairs: Sequence[Pair], device: torch.device) -> tuple[list[float], list[PairMotion], list[PairMotion]]:
    """The figures of a row, and both motions of each pair."""
    tracker = FlowTracker(RECIPE, untimed)
    ours = TwoPass(RECIPE, device).pair_motions(pairs)
    theirs = [tracker.pair_motion(*pair) for pair in pairs]
    rows = []
    for pair, motion, cpu in zip(pairs, ours, theirs, strict=True):
        points = grid_points(motion.measured.shape, RECIPE.grid_stride)
        cameras = [apply_homography(m.camera.homography, points) for m in (motion, cpu)]
        both = motion.measured & cpu.measured
        rows.append([
            np.linalg.norm(motion.first_flow - cpu.first_flow, axis=-1).mean(),
            second_pass_gap(pair, cpu, device),
            np.linalg.norm(cameras[0] - cameras[1], axis=1).mean(),
            np.linalg.norm(whereto(motion) - whereto(cpu), axis=-1)[both].mean(),
            (motion.visible != cpu.visible).mean(),
        ])  # fmt: skip
    return [float(value) for value in np.mean(rows, axis=0)], ours, theirs


def camera_error(motion: PairMotion, scene: Scene) -> float:
    """Mean error of G over the grid, px."""
    points = grid_points(SIZE, RECIPE.grid_stride)
    truth = apply_homography(scene.homography(0, 1), points)
    return float(np.linalg.norm(apply_homography(motion.camera.homography, points) - truth, axis=1).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables as Markdown; returns 2 where the device is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pairs", type=int, default=3, help="of each row")
    options = parser.parse_args(arguments)
    missing = why_missing(options.device)
    if missing:
        print(missing, file=sys.stderr)
        return 2
    cv2.setNumThreads(1)
    device = open_device(options.device)
    print("| pairs | first pass | second pass | G | whole motion | visible |\n| --- | --- | --- | --- | --- | --- |")
    cameras = []
    for speed in (0.7, 2.0, 6.0):
        scenes = [random_scene(seed, speed, SIZE) for seed in range(options.pairs)]
        pairs = [(TrackedFrame(scene.render(0)), TrackedFrame(scene.render(1))) for scene in scenes]
        figures, ours, theirs = compare(pairs, device)
        print(f"| rendered, {speed} px | " + " | ".join(f"{value:.5f}" for value in figures) + " |", flush=True)
        errors = [[camera_error(m, s) for m, s in zip(motions, scenes, strict=True)] for motions in (theirs, ours)]
        cameras.append(f"| {speed} | {np.mean(errors[0]):.3f} | {np.mean(errors[1]):.3f} |")
    for clip in options.clips:
        figures, _, _ = compare([(TrackedFrame(a), TrackedFrame(b)) for a, b in pairs_of(clip, options.pairs)], device)
        print(f"| {Path(clip).name} | " + " | ".join(f"{value:.5f}" for value in figures) + " |", flush=True)
    print("\n| px per frame | G's error, CPU | G's error, batched |\n| --- | --- | --- |")
    print("\n".join(cameras))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
