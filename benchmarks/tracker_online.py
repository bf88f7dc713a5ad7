"""What a training step costs with tracks from the store, and with CoTracker3 in it, as in TrackMAE's released code.

    python benchmarks/tracker_online.py STORE --root DIR --checkpoint FILE [--model vit_tiny] [--batch-size 2]

Both do the same optimisation step on the same clips; the second first runs the official package's predictor on every
second frame of the clips, as they are shown, with its built-in grid of 14 x 14 points, and up-samples the tracks. Steps
alternate; each way's time is its shortest. STORE is one of recipe `trackmae`.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from step_time import make_way, take_batches
from torch.nn import functional

from extraction.motion.cotracker3.weights import check_package, find_weights
from training.recipe import PretrainRecipe, load_recipe


class OnlineTracker:
    """The package's predictor on clips; what it gives takes the place of the store's displacements."""

    def __init__(self, weights: Path, recipe: PretrainRecipe, device: torch.device) -> None:
        from cotracker.predictor import CoTrackerPredictor  # noqa: PLC0415 (not a dependency)

        window = torch.load(weights, weights_only=True)["time_emb"].shape[1]
        self.predictor = CoTrackerPredictor(checkpoint=str(weights), offline=True, window_len=window).to(device)
        self.recipe = recipe

    @torch.no_grad()
    def __call__(self, batch: dict) -> dict:
        t, h, w = self.recipe.token_grid
        video = batch["frames"][:, :: self.recipe.tubelet].permute(0, 1, 4, 2, 3).float()
        # one clip after the other: with several the package's offline model fails, at a view of an expanded tensor
        tracks = torch.cat([self.predictor(clip[None], grid_size=h)[0] for clip in video])
        steps = torch.diff(tracks, dim=1).unflatten(2, (h, w))  # (B, t - 1, h, w, 2)
        fine = functional.interpolate(
            steps.flatten(0, 1).permute(0, 3, 1, 2), self.recipe.point_grid, mode="bilinear", align_corners=True
        )
        displacement, valid = torch.zeros_like(batch["displacement"]), torch.zeros_like(batch["displacement_valid"])
        displacement[:, : t - 1, :, :, 0] = fine.permute(0, 2, 3, 1).unflatten(0, (-1, t - 1))
        valid[:, : t - 1] = True
        return {**batch, "displacement": displacement, "displacement_valid": valid}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--root", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--recipe", default="trackmae")
    parser.add_argument("--model", default="vit_tiny")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    check_package()
    recipe = load_recipe(options.recipe)
    way = make_way(options, recipe, workers=0)
    batches = take_batches(way, 2)
    tracker = OnlineTracker(find_weights(options.checkpoint).path, recipe, way.group.device)
    stored = online = tracking = math.inf
    for number in range(options.steps + 1):
        batch = batches[number % 2]
        took = way.step(batch)
        begun = time.perf_counter()
        tracked = tracker(batch)
        tracked["displacement"].sum().item()  # the device is done
        on_its_own = time.perf_counter() - begun
        whole = on_its_own + way.step(tracked)
        if number:  # the first one warms up
            stored, online, tracking = min(stored, took), min(online, whole), min(tracking, on_its_own)
    clips = options.batch_size
    print(f"tracks from the store   {1e3 * stored / clips:9.1f} ms a clip")
    print(f"tracker in the step     {1e3 * online / clips:9.1f} ms a clip, the tracker's {1e3 * tracking / clips:.1f}")
    print(f"ratio                   {online / stored:9.1f}")


if __name__ == "__main__":
    main()
