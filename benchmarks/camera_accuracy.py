"""The camera's homography from our SURF, mahotas' and OpenCV's SIFT: how exact, how fast, in one run.

    python benchmarks/camera_accuracy.py --scenes 6

Rendered scenes (`data_specs.scene`) of 256 x 340: a camera that pans, turns, zooms and tilts over three moving discs,
noise. First table: minimum over many repeats, one thread, on the first scene; × is against mahotas; RANSAC's pairs
include the corners. Second table, by speed in px per frame: points of a frame; matched pairs whose first point is
truly seen in the second frame, the share of them that is more than 2 px from the truth, and the median distance of
the others; then the mean over the grid of |G^ x - G x| from matched points alone, with corners carried by the flow
DIS, and from those corners alone: mean and, in brackets, largest over the scenes. mahotas, which nothing else uses, is
installed with the project's `dev` packages.
"""

import argparse
from collections.abc import Callable

import cv2
import mahotas.features.surf as mahotas_surf
import numpy as np
from numpy.typing import NDArray
from timing import shortest_ms

from data_specs.geometry import apply_homography, grid_points
from data_specs.recipe import load_recipe
from data_specs.scene import Scene, random_scene
from extraction.camera import Features, Points, carry_corners, detect_features, estimate_camera, match_features
from extraction.motion.dense_flow import make_flow

SIZE = (256, 340)
REPEATS = 30
RECIPE = load_recipe("mme-object")
Detector = Callable[[NDArray[np.uint8]], Features]


def mahotas_features(gray: NDArray[np.uint8]) -> Features:
    """mahotas' SURF: y before x, then scale, response, and so on, then 64 descriptor entries."""
    found = mahotas_surf.surf(gray, max_points=500)
    return Features(found[:, 1::-1].astype(np.float32), found[:, 6:].astype(np.float32))


DETECTORS: dict[str, Detector] = {
    "mahotas SURF": mahotas_features,
    "OpenCV SIFT": lambda gray: detect_features(gray, "sift"),
    "our SURF": lambda gray: detect_features(gray, "surf"),
}


def brute_force(a: Features, b: Features) -> object:
    """OpenCV's matcher."""
    return cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(a.descriptors, b.descriptors)


def plain_ransac(pairs: list[tuple[Points, Points]]) -> object:
    """OpenCV's RANSAC, of the same threshold and number of iterations."""
    in_a, in_b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return cv2.findHomography(in_a, in_b, cv2.RANSAC, RECIPE.ransac_px, maxIters=1000, confidence=0.999)


def grays(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The scene's first two frames."""
    a, b = (np.asarray(cv2.cvtColor(scene.render(t), cv2.COLOR_RGB2GRAY), dtype=np.uint8) for t in (0, 1))
    return a, b


def print_times() -> None:
    """The first table."""
    a, b = grays(random_scene(0, 2.0, SIZE))
    flow = make_flow("dis").first(a.astype(np.float32), b.astype(np.float32))
    print("| ms | detect and describe | × | match | BFMatcher | RANSAC | OpenCV's plain RANSAC |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    slowest = None
    for name, detect in DETECTORS.items():
        features_a, features_b = detect(a), detect(b)
        pairs = [match_features(features_a, features_b), carry_corners(a, flow)]
        detecting = shortest_ms(lambda detect=detect: detect(a), REPEATS)
        slowest = slowest or detecting
        figures = [
            f"{detecting:.2f}",
            f"{slowest / detecting:.1f}",
            f"{shortest_ms(lambda f=(features_a, features_b): match_features(*f), REPEATS):.2f}",
            f"{shortest_ms(lambda f=(features_a, features_b): brute_force(*f), REPEATS):.2f}",
            f"{shortest_ms(lambda p=pairs: estimate_camera(p, SIZE, RECIPE), REPEATS):.2f}",
            f"{shortest_ms(lambda p=pairs: plain_ransac(p), REPEATS):.2f}",
        ]
        print(f"| {name} | " + " | ".join(figures) + " |", flush=True)
    print(f"\nCorners, the flow given: {shortest_ms(lambda: carry_corners(a, flow), REPEATS):.2f} ms.\n")


def evaluate(scene: Scene, detect: Detector) -> dict[str, float]:
    """The second table's figures for one scene."""
    a, b = grays(scene)
    truth = scene.homography(0, 1)
    found = detect(a)
    matched = match_features(found, detect(b))
    corners = carry_corners(a, make_flow("dis").first(a.astype(np.float32), b.astype(np.float32)))
    positions, visible = scene.track(matched[0].astype(np.float64), 0, 1)
    off = np.linalg.norm(positions[:, 1] - matched[1], axis=1)[visible[:, 1]]
    grid = grid_points(scene.size, 8)

    def error(pairs: list[tuple[Points, Points]]) -> float:
        estimate = estimate_camera(pairs, scene.size, RECIPE).homography
        return float(np.linalg.norm(apply_homography(estimate, grid) - apply_homography(truth, grid), axis=1).mean())

    return {
        "points": len(found.points),
        "pairs": len(off),
        "wrong": float((off > 2).mean()),
        "median px": float(np.median(off[off <= 2])),
        "alone": error([matched]),
        "with corners": error([matched, corners]),
        "corners alone": error([corners]),
    }


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--speeds", nargs="+", type=float, default=[0.7, 2.0, 6.0, 16.0])
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print_times()
    print("| features | px/frame | points | pairs | wrong | median px | alone | with corners | corners alone |")
    print("| --- |" + " --- |" * 8)
    for speed in options.speeds:
        for name, detect in DETECTORS.items():
            results = [evaluate(random_scene(seed, speed, SIZE), detect) for seed in range(options.scenes)]
            columns = {key: np.array([r[key] for r in results]) for key in results[0]}
            figures = [f"{columns[key].mean():.0f}" for key in ("points", "pairs")]
            figures += [f"{columns['wrong'].mean():.3f}", f"{columns['median px'].mean():.3f}"]
            figures += [
                f"{columns[key].mean():.3f} ({columns[key].max():.3f})"
                for key in ("alone", "with corners", "corners alone")
            ]
            print(f"| {name} | {speed} | " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    main()
