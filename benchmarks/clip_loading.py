"""What a clip costs the trainer's loader: with motion targets, without, and the way the released loaders do it.

    python benchmarks/clip_loading.py STORE --root DIR [--clips 24] [--rounds 3]

One thread, no worker processes: milliseconds of processor per clip, so that ratios hold for any number of workers.
Each clip is loaded in each of the ways in turn, `rounds` times; its time is the shortest. The released loaders' way
(VideoMAE and MME): decord decodes the sampled frames at full size, PIL crops and resizes each, frames become one
normalised float tensor; MME also unpickles all of the video's trajectories from one gzip file, takes the clip's and
resizes them.
"""

import argparse
import gzip
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.nn import functional

from data_specs.cpu_decord import decord
from training.clips import ClipDataset
from training.recipe import load_recipe


class ReleasedLoader:
    """The released loaders' way, for the same clips and views."""

    def __init__(self, dataset: ClipDataset, folder: Path, positions: list[int]) -> None:
        self.dataset, self.folder = dataset, folder
        self.chosen = {position: dataset[position]["clip"][0] for position in positions}
        for video in dataset.reader.videos:
            frames = [row * dataset.reader.info.recipe.start_stride for row in range(video.num_starts)]
            fields = dataset.reader.rows(video, frames, hog=False)
            steps = np.stack([field.displacement for field in fields]).astype(np.float32)  # (S, rows, columns, L, 2)
            # as theirs: one array of all steps, channels first, and one of types
            features = np.moveaxis(steps.reshape(*steps.shape[:3], -1), -1, 0)
            types = np.stack([field.valid[..., -1] for field in fields])
            with gzip.open(self.path(video.index), "wb") as file:
                pickle.dump({"traj_feat": features, "traj_type": types}, file)

    def path(self, index: int) -> Path:
        return self.folder / f"{index}.gz"

    def load(self, position: int, *, trajectories: bool) -> torch.Tensor:
        clip = self.dataset.stream[position]
        video = self.dataset.reader.videos[clip.video]
        chosen = self.chosen[position]
        view, recipe = chosen.view, self.dataset.recipe
        reader = decord.VideoReader(str(self.dataset.root / video.path), num_threads=1)
        times = chosen.start + recipe.clip_stride * np.arange(recipe.frames)
        frames = reader.get_batch(np.minimum(times, len(reader) - 1)).asnumpy()
        # crops are drawn in the video's own pixels there; this is the same crop
        up = video.source_size[0] / video.frame_size[0]
        box = [up * v for v in (view.left, view.top, view.left + view.width, view.top + view.height)]
        images = [
            Image.fromarray(f).crop(tuple(map(round, box))).resize(view.size[::-1], Image.BILINEAR) for f in frames
        ]
        stacked = torch.from_numpy(np.concatenate([np.asarray(i) for i in images], axis=2)).permute(2, 0, 1)
        tensor = stacked.contiguous().float().div(255).view(recipe.frames, 3, *view.size)
        tensor = (tensor - torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]) / torch.tensor(IMAGENET_DEFAULT_STD)[
            :, None, None
        ]
        if trajectories:
            with gzip.open(self.path(video.index), "rb") as file:
                stored = pickle.load(file)
            rows = np.minimum(
                times[:: recipe.tubelet] // self.dataset.reader.info.recipe.start_stride,
                stored["traj_feat"].shape[1] - 1,
            )
            field = np.concatenate([stored["traj_feat"][:, rows], stored["traj_type"][None, rows]])
            i, j, h, w = (round(v / 8) for v in (view.top, view.left, view.height, view.width))
            functional.interpolate(
                torch.from_numpy(field[:, :, i : i + h, j : j + w].astype(np.float32)),
                recipe.point_grid,
                mode="bilinear",
            )
        return tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--root", required=True)
    parser.add_argument("--recipe", default="mme-object")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    dataset = ClipDataset(options.store, options.root, load_recipe(options.recipe))
    pixels = ClipDataset(options.store, options.root, load_recipe("videomae"))
    with tempfile.TemporaryDirectory() as folder:
        positions = [p for p in range(options.clips) if not dataset[p]["skipped"]]
        released = ReleasedLoader(dataset, Path(folder), positions)
        ways: dict[str, Callable[[int], object]] = {
            f"ours, {options.recipe}": dataset.__getitem__,
            "ours, frames only": pixels.__getitem__,
            "released, frames only": lambda p: released.load(p, trajectories=False),
            "released, with trajectories": lambda p: released.load(p, trajectories=True),
        }
        least = {way: dict.fromkeys(positions, np.inf) for way in ways}
        for round_number in range(options.rounds):
            for position in positions:
                names = list(ways)
                for way in names[round_number % 4 :] + names[: round_number % 4]:
                    begun = time.perf_counter()
                    ways[way](position)
                    least[way][position] = min(least[way][position], time.perf_counter() - begun)
    mean = {way: 1e3 * float(np.mean(list(times.values()))) for way, times in least.items()}
    first = mean["ours, frames only"]
    print(f"{len(positions)} clips of {len(dataset.reader.videos)} videos, ms per clip on one thread")
    for way, ms in mean.items():
        print(f"  {way:28} {ms:7.1f} ms   {ms / first:5.2f} of ours without targets")
    with_targets = mean["released, with trajectories"] / mean[f"ours, {options.recipe}"]
    print(f"released with trajectories / ours with targets: {with_targets:.2f}")
    print(f"released without / ours without:                {mean['released, frames only'] / first:.2f}")


if __name__ == "__main__":
    main()
