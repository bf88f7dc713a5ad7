"""What a run needs, built from a store, its videos and a recipe: clips, model, targets, pictures."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import torch

from data_specs.dataset import DatasetError, DatasetSpec, dataset_names, load_spec, root_folder
from data_specs.track_store import TrackStore
from data_specs.video_files import check_links
from training.clip_tower import RANDOM, open_clip_tower
from training.distributed import Group
from training.interchange import load_encoder
from training.masked_prediction import MaskedPrediction
from training.model import MaskedVideoModel, ModelConfig
from training.reading.clips import ClipDataset, clip_loader
from training.recipe import PretrainRecipe
from training.snapshot import draw_predictions
from training.targets import compute_targets, head_sizes
from training.task import Precision, Task

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
    clip_weights: str | None = None
    """Of the tower whose features the head `clip` predicts: a file, `hub` or `random`."""
    precision: Precision = "fp32"
    """Of that tower; the model's own is the loop's affair."""
    follow_links: bool = False
    """Whether symbolic links below the root may lead out of it."""


def build_task(choices: Choices, group: Group) -> Task:
    """Open the store and build the model, on the group's device.

    Raises ValueError (StoreError, DatasetError, ClipWeightsError and so on) with the way out.
    """
    root = videos_root(choices.store, choices.root)
    dataset = ClipDataset(
        choices.store,
        root,
        choices.recipe,
        seed=choices.seed,
        clips_per_video=choices.clips_per_video,
        allow_incomplete=choices.allow_incomplete,
        follow_links=choices.follow_links,
    )
    check_links(root, dataset.reader.videos.paths, follow_links=choices.follow_links)
    recipe: PretrainRecipe = dataset.recipe  # with the data set's clip stride and flips
    info = dataset.reader.info
    config = ModelConfig(
        size=choices.model,
        heads=head_sizes(recipe, dataset.motion.steps, info.recipe.hog_channels),
        frames=recipe.frames,
        input_size=(recipe.input_size, recipe.input_size),
        tubelet=recipe.tubelet,
        patch=recipe.patch,
        decoder=recipe.decoder,
        decoder_depth=recipe.decoder_depth,
        checkpoint_activations=choices.checkpoint_activations,
    )
    opened = open_clip_tower(recipe, choices.clip_weights, choices.precision, group.device)
    tower, weights_digest = opened or (None, None)
    if weights_digest == RANDOM and group.is_main:
        logger.warning("the CLIP tower's weights are random: what the head clip learns from it means nothing")
    tubelets, steps = recipe.token_grid[0], info.recipe.length
    if recipe.anchoring == "clip" and recipe.reads_tracks and steps < tubelets - 1 and group.is_main:
        logger.warning("trajectories have %d steps: tubelets %d to %d have no motion", steps, steps, tubelets - 1)
    torch.manual_seed(choices.seed)
    model = MaskedVideoModel(config)
    origin = {}
    if choices.init is not None:
        report = load_encoder(model, choices.init)
        logger.info("%s", report)
        origin = report.origin
    micro_batch = choices.batch_size // (group.world_size * choices.accumulate)
    logger.info(
        "%d videos, %d that failed in extraction are left out; clips of %d frames, %s apart, %s",
        len(dataset.reader.videos), len(dataset.reader.failed), recipe.frames, recipe.clip_stride,
        "half of them mirrored" if recipe.flip else "none mirrored",
    )  # fmt: skip
    return Task(
        model=model.to(group.device),
        objective=MaskedPrediction(
            weights={name: head.weight for name, head in recipe.heads.items()},
            head_sizes=config.heads,
            compute_targets=lambda batch: compute_targets(batch, recipe, tower),
            clip_size=(recipe.frames, recipe.input_size, recipe.input_size),
        ),
        # how it is computed is no part of what it is
        model_config={**config.to_json(), "checkpoint_activations": False},
        recipe=recipe.to_json(),
        origin=origin,
        clip_grad=recipe.clip_grad,
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
            **({"clip_weights": weights_digest} if tower is not None else {}),
        },
        draw=lambda step, batch, predictions, targets: draw_predictions(
            choices.out / "figures" / f"step-{step:08d}.png", batch, recipe, predictions, targets
        ),
    )


def videos_root(store: Path, root: str | None) -> Path:
    """The folder of a store's videos: `root`, or what the shipped data set that the store names says.

    Raises DatasetError where neither is given or there is no such folder, StoreError for what is no store.
    """
    name = TrackStore(store).info.dataset
    spec = load_spec(name) if name in dataset_names() else DatasetSpec(name=name, lists={"train": ""})
    folder = root_folder(spec, root)
    if not folder.is_dir():
        raise DatasetError(
            f"data set {spec.name}: there is no folder {folder}; give that of its videos with --root DIR"
        )
    return folder


def store_digest(path: Path, videos: int) -> str:
    """SHA-256, in hex, of what the order and content of a store's clips follow from: list, recipe, complete shards."""
    store = TrackStore(path)
    info = store.info
    parts = [info.list_sha256, info.recipe.to_json(), info.num_shards, store.complete_shards, videos]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
