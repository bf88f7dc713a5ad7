"""What a run needs, built from a store, its videos and a recipe: clips, model, targets, pictures."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from data_specs.dataset import DatasetSpec, dataset_names, load_spec, root_folder
from data_specs.track_store import TrackStore
from training.clips import ClipDataset, clip_loader  # type: ignore[import-not-found]
from training.distributed import Group
from training.figure import Motion, draw_figure  # type: ignore[import-not-found]
from training.interchange import load_encoder  # type: ignore[import-not-found]
from training.losses import sums_and_counts  # type: ignore[import-not-found]
from training.model import MaskedVideoModel, ModelConfig  # type: ignore[import-not-found]
from training.recipe import PretrainRecipe
from training.step_batches import Batch
from training.targets import compute_targets, head_sizes  # type: ignore[import-not-found]
from training.task import Predictions, Task

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """What the command line says of clips and model."""

    store: Path
    root: str | None
    recipe: PretrainRecipe
    model: str
    out: Path
    batch_size: int
    """Clips of one optimisation step, over all ranks and micro-batches."""
    accumulate: int
    clips_per_video: int
    seed: int
    workers: int
    allow_incomplete: bool
    checkpoint_activations: bool
    init: Path | None


def build_task(choices: Choices, group: Group) -> Task:
    """Open the store and build the model, on the group's device.

    Raises ValueError (StoreError, DatasetError and so on) with the way out.
    """
    root = videos_root(choices.store, choices.root)
    dataset = ClipDataset(
        choices.store,
        root,
        choices.recipe,
        seed=choices.seed,
        clips_per_video=choices.clips_per_video,
        allow_incomplete=choices.allow_incomplete,
    )
    recipe: PretrainRecipe = dataset.recipe  # with the data set's clip stride and flips
    info = dataset.reader.info
    config = ModelConfig(
        size=choices.model,
        heads=head_sizes(recipe, dataset.steps, info.recipe.hog_channels),
        frames=recipe.frames,
        input_size=(recipe.input_size, recipe.input_size),
        tubelet=recipe.tubelet,
        patch=recipe.patch,
        decoder=recipe.decoder,
        decoder_depth=recipe.decoder_depth,
        checkpoint_activations=choices.checkpoint_activations,
    )
    torch.manual_seed(choices.seed)
    model = MaskedVideoModel(config)
    if choices.init is not None:
        logger.info("%s", load_encoder(model, choices.init))
    micro_batch = choices.batch_size // (group.world_size * choices.accumulate)
    logger.info(
        "%d videos, %d that failed in extraction are left out", len(dataset.reader.videos), len(dataset.reader.failed)
    )
    return Task(
        model=model.to(group.device),
        # how it is computed is no part of what it is
        model_config={**config.to_json(), "checkpoint_activations": False},
        recipe=recipe.to_json(),
        head_weights={name: head.weight for name, head in recipe.heads.items()},
        clip_grad=recipe.clip_grad,
        compute_targets=lambda batch: compute_targets(batch, recipe),
        sums_and_counts=sums_and_counts,
        loader=lambda position: clip_loader(
            dataset,
            batch_size=micro_batch,
            rank=group.rank,
            world_size=group.world_size,
            workers=choices.workers,
            position=position,
            pin_memory=group.device.type == "cuda",
        ),
        clips_per_epoch=dataset.clips_per_epoch,
        data={
            "store": store_digest(choices.store, len(dataset.reader.videos)),
            "seed": choices.seed,
            "batch_size": choices.batch_size,
            "clips_per_video": choices.clips_per_video,
        },
        draw=lambda step, batch, predictions, targets: draw(
            choices.out / "figures" / f"step-{step:08d}.png", batch, recipe, predictions, targets
        ),
    )


def videos_root(store: Path, root: str | None) -> Path:
    """The folder of a store's videos: `root`, or what the shipped data set that the store names says.

    Raises DatasetError where neither is given, StoreError for what is no store.
    """
    name = TrackStore(store).info.dataset
    spec = load_spec(name) if name in dataset_names() else DatasetSpec(name=name, lists={"train": ""})
    return root_folder(spec, root)


def store_digest(path: Path, videos: int) -> str:
    """SHA-256, in hex, of what the order and content of a store's clips follow from: list, recipe, complete shards."""
    store = TrackStore(path)
    info = store.info
    parts = [info.list_sha256, info.recipe.to_json(), info.num_shards, store.complete_shards, videos]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def draw(
    path: Path, batch: Batch, recipe: PretrainRecipe, predictions: Predictions, targets: dict[str, Any]
) -> NDArray[np.uint8]:
    """Draw what was shown, asked for and predicted to `path`, a PNG (MME figure 4); returns it as RGB (H, W, 3).

    Predictions get back the mean and scale that the normalisation took out of the *true* target, as in VideoMAE's and
    MME's pictures: under `patch` the picture shows a patch's mean motion and colour whether or not they were predicted.
    """
    motion = pixels = None
    if "displacement" in targets:
        target = targets["displacement"]
        valid = target.weights.expand(target.values.shape).amin(-1) > 0
        motion = Motion(
            true=target.denormalised(target.values),
            predicted=target.denormalised(predictions["displacement"]),
            valid=valid,
        )
    if "pixels" in targets:
        pixels = pasted(batch, targets["pixels"].denormalised(predictions["pixels"]), recipe)
    draw_figure(path, batch, recipe, motion=motion, pasted_pixels=pixels, labels=[clip.id for clip in batch["clip"]])
    return np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), dtype=np.uint8)


def pasted(batch: Batch, predicted: torch.Tensor, recipe: PretrainRecipe) -> torch.Tensor:
    """The frames, uint8 (B, T, H, W, 3), with `predicted` (B, Np, tubelet * row * column, 3), 0...1, in its patches."""
    frames: torch.Tensor = batch["frames"]
    b, (t, h, w), (q, p) = len(frames), recipe.token_grid, (recipe.tubelet, recipe.patch)
    tokens = frames.reshape(b, t, q, h, p, w, p, 3).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t * h * w, -1)
    index = batch["predict"][..., None].expand(-1, -1, tokens.shape[2])
    values = (255 * predicted.flatten(2)).round().clamp(0, 255).to(torch.uint8)
    whole = tokens.scatter(1, index, values)
    return whole.reshape(b, t, h, w, q, p, p, 3).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(frames.shape)
