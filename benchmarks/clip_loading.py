"""What a clip costs the trainer's loader: with motion targets, without, and the way the released loaders do it.

    python benchmarks/clip_loading.py STORE --root DIR [--batches 3] [--batch-size 7] [--rounds 4]

No worker processes: what a clip takes of the wall clock and of the processor, so that ratios hold for any number of
workers. Each batch of clips is loaded in each of the ways in turn, `rounds` times; its time is the shortest. The
released loaders' way (VideoMAE and MME): decord decodes the sampled frames at full size, PIL crops and resizes each,
frames become one normalised float tensor; MME also unpickles all of the video's trajectories from one gzip file, takes
the clip's and resizes them.
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
from training.reading.clips import ClipDataset
from training.recipe import load_recipe

CLOCKS = {"wall clock": time.perf_counter, "processor": time.process_time}


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
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    dataset = ClipDataset(options.store, options.root, load_recipe(options.recipe))
    pixels = ClipDataset(options.store, options.root, load_recipe("videomae"))
    with tempfile.TemporaryDirectory() as folder:
        clips = range(options.batches * options.batch_size)
        positions = [p for p in clips if not dataset[p]["skipped"]]
        batches = [positions[first :: options.batches] for first in range(options.batches)]
        released = ReleasedLoader(dataset, Path(folder), positions)
        ways: dict[str, Callable[[list[int]], object]] = {
            f"ours, {options.recipe}": dataset.read_batch,
            "ours, frames only": pixels.read_batch,
            "released, frames only": lambda batch: [released.load(p, trajectories=False) for p in batch],
            "released, with trajectories": lambda batch: [released.load(p, trajectories=True) for p in batch],
        }
        least = {(way, clock): dict.fromkeys(range(len(batches)), np.inf) for way in ways for clock in CLOCKS}
        for round_number in range(options.rounds):
            for number, batch in enumerate(batches):
                names = list(ways)
                for way in names[round_number % 4 :] + names[: round_number % 4]:
                    begun = {name: clock() for name, clock in CLOCKS.items()}
                    ways[way](batch)
                    for name, clock in CLOCKS.items():
                        of_way = least[way, name]
                        of_way[number] = min(of_way[number], clock() - begun[name])
    mean = {key: 1e3 * sum(times.values()) / len(positions) for key, times in least.items()}
    print(f"{len(positions)} clips of {len(dataset.reader.videos)} videos, ms per clip, and their ratio to frames only")
    for way in ways:
        said = (f"{mean[way, c]:7.1f} ms of {c} {mean[way, c] / mean['ours, frames only', c]:5.2f}" for c in CLOCKS)
        print(f"  {way:28}", "   ".join(said))
    with_targets, without = (
        mean[theirs, "processor"] / mean[ours, "processor"]
        for theirs, ours in [
            ("released, with trajectories", f"ours, {options.recipe}"),
            ("released, frames only", "ours, frames only"),
        ]
    )
    print(f"released / ours, by the processor: {with_targets:.2f} with targets, {without:.2f} without")


if __name__ == "__main__":
    main()
