"""Flow, camera and trajectories against the truth of rendered sequences, with the time that they take.

    python benchmarks/motion_accuracy.py --textures clip.mp4 other.mkv --methods reference mme-object:dis mme:dis
    python benchmarks/motion_accuracy.py --pairs sintel_pairs.txt --methods reference mme-object:dis

Each sequence is a plane seen by a camera that pans, turns, zooms and tilts, with four moving discs and sensor noise;
textures are frames of the clips given, or procedural. Methods: `reference` (OpenCV's DualTVL1 twice, SURF and corners,
RANSAC, see reference_recipe.py), or RECIPE or RECIPE:FLOW of this project. They take turns pair by pair, on one thread.

Two tables, all errors in px, a row for each method and range of *true* displacement in px per frame (of the pixel; of
the point, on average over its steps; of the pair's grid for camera and times), and one over everything:

1. End-point error of the first pass on visible pixels; of the residual flow, against G^-1 y - x of the method's own G,
   on pixels visible and measured by every method, and by itself ("own"); of the full flow G (x + r), which compares
   between methods; share of visible pixels measured; mean error of G over the grid; median times, and how many times
   as fast as the reference.
2. Trajectories, L = 6: end-point error in the image, on points valid in every method to the end and truly visible
   (the headline), on the method's own ("own"), on objects and background; the same without the camera; of the
   published integration of the method's first pass; false valid: steps valid but truly hidden or outside; missed:
   steps up to which a point is visible all along, but that are not valid.

With --pairs: a list of lines `image_a image_b flow`, relative to the list's folder; flow is .flo (Middlebury, Sintel)
or KITTI's 16-bit .png. Scores the flow, both passes with the camera left in, where the truth is known; outliers are
KITTI's, off by more than 3 px and 5 %.
"""

import argparse
import importlib.util
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numba
import numpy as np
from flow_files import list_pairs, read_pair
from motion_methods import Method, make_methods
from motion_report import Result, flow_table, pairs_table, to_json, track_table, write_plot, write_sheet
from motion_scores import (
    GRID_STRIDE,
    LENGTH,
    PairTruth,
    TrackTruth,
    integrate,
    score_flow,
    score_published,
    score_tracks,
)
from textured_scenes import read_pictures, sequence_speed, textured_scene

from data_specs.geometry import apply_homography, grid_points
from data_specs.scene import Scene
from data_specs.video import VideoError

QUICK = {"sequences": 3, "frames": LENGTH + 1, "size": [128, 184]}
FULL = {"sequences": 21, "frames": LENGTH + 2, "size": [256, 340]}


def score_sequence(scene: Scene, num_frames: int, methods: Sequence[Method], results: dict[str, Result]) -> None:
    """Add the scores of frames 0 ... num_frames - 1 of a scene to the methods' results."""
    frames = scene.frames(num_frames)
    points = grid_points(scene.size, GRID_STRIDE)
    motions: dict[str, list[Any]] = {method.name: [] for method in methods}
    for t, of_pair in enumerate(zip(*(method.motions(frames) for method in methods), strict=True)):
        truth = PairTruth.of(scene, t)
        common = truth.visible & np.logical_and.reduce([motion.measured & motion.visible for motion, _ in of_pair])
        speed = float(np.linalg.norm(apply_homography(truth.camera, points) - points, axis=1).mean())
        for method, (motion, times) in zip(methods, of_pair, strict=True):
            score_flow(results[method.name].figures, truth, motion, common)
            results[method.name].times.append((speed, times))
            motions[method.name].append(motion)
    for start in range(num_frames - LENGTH):
        truth_tracks = TrackTruth.of(scene, start)
        tracks = {m.name: integrate(motions[m.name][start : start + LENGTH], points, m.in_image) for m in methods}
        common = truth_tracks.tracks.valid.all(axis=1)
        common &= np.logical_and.reduce([own.valid[:, -1] for own in tracks.values()])
        for name, own in tracks.items():
            figures = results[name].figures
            score_tracks(figures, truth_tracks, own, common)
            flows = [motion.first_flow for motion in motions[name][start : start + LENGTH]]
            score_published(figures, truth_tracks, flows, common)


def score_pairs(list_file: str, methods: Sequence[Method]) -> dict[str, Result]:
    """The flow of the methods, camera included, on the pairs of a list; raises FlowFileError."""
    results = {method.name: Result() for method in methods}
    for number, files in enumerate(pairs := list_pairs(list_file)):
        _progress(f"pair {number + 1} of {len(pairs)}: {files[0]}")
        pair = read_pair(*files)
        speeds = np.linalg.norm(pair.flow[pair.known], axis=-1)
        for method in methods:
            ((motion, times),) = method.motions(pair.frames)
            errors = np.linalg.norm((motion.flow - pair.flow)[pair.known], axis=-1)
            figures = results[method.name].figures
            figures.add("flow", errors, speeds)
            figures.add("outliers", (errors > 3) & (errors > 0.05 * speeds), speeds)
            results[method.name].times.append((float(speeds.mean()) if len(speeds) else 0.0, times))
    return results


def score_scenes(options: argparse.Namespace, methods: Sequence[Method]) -> dict[str, Result]:
    """The figures of the rendered sequences; raises VideoError or ValueError for a bad texture clip."""
    pictures = read_pictures(options.textures)
    size = (options.size[0], options.size[1])
    speeds = [sequence_speed(number) for number in range(options.sequences)]
    scenes = [
        textured_scene(options.seed + number, speed, size, options.frames, pictures, options.noise)
        for number, speed in enumerate(speeds)
    ]
    if options.sheet:
        write_sheet(list(zip(scenes, speeds, strict=True)), options.frames, options.sheet)
    results = {method.name: Result() for method in methods}
    for number, scene in enumerate(scenes):
        _progress(f"sequence {number + 1} of {len(scenes)}: {speeds[number]:.1f} px per frame")
        score_sequence(scene, options.frames, methods, results)
    return results


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["reference", "mme-object:dis", "mme:dis"], metavar="METHOD")
    parser.add_argument("--textures", nargs="+", default=[], metavar="CLIP", help="videos; default: procedural")
    parser.add_argument("--sequences", type=int, help=f"default: {FULL['sequences']}")
    parser.add_argument("--frames", type=int, help=f"of a sequence, at least {LENGTH + 1}; default: {FULL['frames']}")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: 256 340")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=2.0, help="standard deviation in grey levels; default: 2")
    parser.add_argument("--quick", action="store_true", help="few small sequences, for a first look")
    parser.add_argument("--pairs", metavar="LIST", help="score flow on these files instead of rendered sequences")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE.png", help="error against time; needs the extra `bench`")
    parser.add_argument("--sheet", metavar="FILE.png", help="the rendered frames with their true tracks, to look at")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark: 0, or 2 for a usage error."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.sequences < 1 or options.frames < LENGTH + 1 or min(options.size) < 64 or options.noise < 0:
        parser.error(f"needs --sequences 1, --frames {LENGTH + 1}, --size 64 64, --noise 0 or more")
    if options.pairs and (options.plot or options.sheet):
        parser.error("--plot and --sheet are of rendered sequences, not of --pairs")
    # what would only be noticed after minutes
    for file in (options.json, options.plot, options.sheet):
        if file and not Path(file).absolute().parent.is_dir():
            parser.error(f"{file}: its folder does not exist")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'motion-targets[bench]'")
    cv2.setNumThreads(1)
    numba.set_num_threads(1)
    try:
        methods = make_methods(options.methods, first_pass_only=bool(options.pairs))
        results = score_pairs(options.pairs, methods) if options.pairs else score_scenes(options, methods)
    except (ValueError, VideoError) as error:
        print(error, file=sys.stderr)
        return 2
    print(pairs_table(results) if options.pairs else f"{flow_table(results)}\n\n{track_table(results)}")
    if options.json:
        versions = {"python": platform.python_version(), "opencv": cv2.__version__, "numpy": np.__version__}
        found = {"options": vars(options), "versions": versions, "methods": to_json(results)}
        Path(options.json).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.plot:
        write_plot(results, options.plot)
    return 0


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
