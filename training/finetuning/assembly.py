"""What fine-tuning and probing need, built from labelled videos, a recipe and first weights."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_specs.dataset import spec_of
from data_specs.labels import LabelledVideos, load_labelled
from data_specs.video_files import check_links
from training.distributed import Group
from training.finetuning.classification import Classification
from training.finetuning.classifier import HEAD_STD, ClassifierConfig, VideoClassifier
from training.finetuning.erasing import ClipErasing
from training.finetuning.initial_weights import head_is_loaded, load_classifier
from training.finetuning.labelled_clips import LabelledClips
from training.finetuning.mixing import ClipMixing
from training.finetuning.recipe import FinetuneRecipe
from training.finetuning.testing import TestResult, test
from training.finetuning.video_outputs import TestingError
from training.finetuning.views import VideoViews, views_loader
from training.model import ModelConfig
from training.reading.clips import clip_loader
from training.step import StoppedError
from training.task import Precision, Task
from training.weight_files import Weights, read_weights

logger = logging.getLogger(__name__)

DEFAULT_SIZE = "vit_base"
_TEST_SPLIT = "test"
_HELD_OUT = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Videos:
    """Which labelled videos, as the command line names them."""

    dataset: str
    root: str | None = None
    split: str | None = None
    """For training; None is the data set's own."""
    list_file: str | None = None
    """In place of that split's list."""
    test_split: str | None = None
    """None is the one that belongs to the training's (`test2` to `train2`), else `test`, where the data set has it and
    there is no test_list."""
    test_list: str | None = None
    validation_split: str | None = None
    validation_list: str | None = None
    follow_links: bool = False

    def training(self) -> LabelledVideos:
        """The training videos; the classes of all the others are theirs. Raises DatasetError."""
        return self._checked(load_labelled(self.dataset, self.root, self.split, self.list_file))

    def test(self, classes: Sequence[str] | None) -> LabelledVideos | None:
        """The videos of the test, or None where there is no list of them. Raises DatasetError."""
        split = self.test_split
        if split is None:
            split = _TEST_SPLIT if self.test_list is not None else self._own_test_split()
        return self._of(split, self.test_list, classes, "--test-list")

    def validation(self, classes: Sequence[str] | None) -> LabelledVideos | None:
        """The videos of the validation, or None where none are named. Raises DatasetError."""
        return self._of(self.validation_split, self.validation_list, classes, "--validate-list")

    def _own_test_split(self) -> str | None:
        spec = spec_of(self.dataset)
        training = self.split or spec.split
        # UCF101's and HMDB51's splits are of the same videos: those of test1 are in train2
        belongs = training.replace("train", _TEST_SPLIT, 1) if training.startswith("train") else _TEST_SPLIT
        return next((split for split in (belongs, _TEST_SPLIT) if split in spec.lists), None)

    def _of(
        self, split: str | None, list_file: str | None, classes: Sequence[str] | None, option: str
    ) -> LabelledVideos | None:
        if split is None and list_file is None:
            return None
        split = split or "validation"
        return self._checked(load_labelled(self.dataset, self.root, split, list_file, classes, list_option=option))

    def _checked(self, labelled: LabelledVideos) -> LabelledVideos:
        paths = [entry.path for entry in labelled.videos.entries]
        check_links(labelled.videos.root, paths, follow_links=self.follow_links)
        return labelled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """A model, and where its weights come from."""

    model: VideoClassifier
    origin: dict[str, Any]
    has_head: bool
    """Whether the head is a trained one."""


def classifier_config(
    recipe: FinetuneRecipe, classes: Sequence[str], *, size: str, checkpoint_activations: bool = False
) -> ClassifierConfig:
    """The classifier that a recipe asks for. Raises ValueError for an unknown size, or fewer than two classes."""
    encoder = ModelConfig(
        size=size,
        frames=recipe.frames,
        input_size=(recipe.input_size, recipe.input_size),
        tubelet=recipe.tubelet,
        patch=recipe.patch,
        checkpoint_activations=checkpoint_activations,
    )
    return ClassifierConfig(
        encoder=encoder,
        classes=tuple(classes),
        pooling="tokens" if recipe.freeze_encoder else "pooled",
        frozen=recipe.freeze_encoder,
        drop_path=recipe.drop_path,
        head_dropout=recipe.head_dropout,
        head_norm=recipe.head_norm,
    )


def first_weights(init: Path | None) -> Weights | None:
    """What --init names; None without it. Raises InterchangeError, OSError."""
    return None if init is None else read_weights(init)


def size_of(asked: str | None, weights: Weights | None) -> str:
    """The encoder's size: the one asked for, else that of the checkpoint it begins from, else vit_base."""
    return asked or (weights.size if weights is not None else None) or DEFAULT_SIZE


def build_model(
    config: ClassifierConfig, weights: Weights | None, *, seed: int, group: Group, head_std: float = HEAD_STD
) -> Built:
    """A classifier on the group's device, its fresh weights drawn from the seed. Raises InterchangeError."""
    torch.manual_seed(seed)
    model = VideoClassifier(config, head_std)
    origin: dict[str, Any] = {}
    has_head = False
    if weights is not None:
        report = load_classifier(model, weights)
        origin, has_head = report.origin, head_is_loaded(report)
        logger.info("%s", report)
    return Built(model=model.to(group.device), origin=origin, has_head=has_head)


def build_task(
    built: Built,
    training: LabelledVideos,
    watched: LabelledVideos | None,
    recipe: FinetuneRecipe,
    group: Group,
    *,
    batch_size: int,
    accumulate: int,
    seed: int,
    workers: int,
    precision: Precision,
    follow_links: bool,
) -> Task:
    """The task of training a classifier. watched: what is validated on, one view of each video; None for nothing.

    batch_size: clips of one step, over all ranks and micro-batches. recipe: resolved for the data set.
    """
    config = built.model.config
    dataset = LabelledClips(training, recipe, seed=seed, follow_links=follow_links)
    if group.is_main:
        logger.info(
            "%d videos of %d classes; clips of %d frames, %s, %s", len(training.labels), len(training.classes),
            recipe.frames, "spread over the video" if recipe.sampling == "segment" else f"{recipe.clip_stride} apart",
            "half of them mirrored" if recipe.flip else "none mirrored",
        )  # fmt: skip
    mixing = ClipMixing(
        classes=len(config.classes),
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        label_smoothing=recipe.label_smoothing,
    )
    views = None
    if watched is not None:
        views = VideoViews(watched, recipe, clips=1, crops=1, follow_links=follow_links)

    def validate() -> dict[str, Any]:
        assert views is not None
        try:
            return validation_line(test_views(built.model, views, group, precision, workers=workers))
        except TestingError as error:
            raise StoppedError(f"the validation: {error}") from error

    return Task(
        kind="fine-tuning",
        model=built.model,
        objective=Classification(
            erasing=ClipErasing(recipe.random_erase),
            mixing=mixing,
            classes=len(config.classes),
            clip_size=(recipe.frames, recipe.input_size, recipe.input_size),
        ),
        model_config=config.to_json(),
        recipe=recipe.to_json(),
        origin=built.origin,
        clip_grad=recipe.clip_grad,
        loader=lambda position: clip_loader(
            dataset,
            batch_size=batch_size // (group.world_size * accumulate),
            rank=group.rank,
            world_size=group.world_size,
            workers=workers,
            position=position,
            pin_memory=group.device.type == "cuda",
        ),
        clips_per_epoch=dataset.clips_per_epoch,
        data={"videos": labels_digest(training), "seed": seed, "batch_size": batch_size},
        validate=None if views is None else validate,
    )


def test_views(
    model: VideoClassifier, views: VideoViews, group: Group, precision: Precision, *, workers: int
) -> TestResult:
    """Test a model on the views of a list's videos; every rank calls it. Raises TestingError."""
    loader = views_loader(views, rank=group.rank, world_size=group.world_size, workers=workers)
    return test(model, loader, group, precision)


test_views.__test__ = False  # type: ignore[attr-defined]  # for pytest: this is none of its functions


def validation_line(result: TestResult) -> dict[str, Any]:
    """What a line of validation.jsonl says."""
    return {
        "top1": result.top1,
        "top5": result.top5,
        "mean_class_accuracy": result.mean_class_accuracy,
        "videos": len(result.ids),
        "skipped": len(result.skipped),
        "views": result.views,
    }


def held_out(labelled: LabelledVideos) -> tuple[LabelledVideos, LabelledVideos]:
    """Training videos in two: without every fifth of each class, and those. Raises ValueError where none would be."""
    seen: dict[int, int] = {}
    apart: list[bool] = []
    for label in labelled.labels.tolist():
        seen[label] = seen.get(label, 0) + 1
        apart.append(seen[label] % _HELD_OUT == 0)
    if not any(apart):
        raise ValueError(
            f"no class has {_HELD_OUT} training videos, of which one could be held out; give others for the choice of "
            "the regularisation with --validate-list or --validate-split"
        )
    return _subset(labelled, [not own for own in apart]), _subset(labelled, apart)


def say_shared(training: LabelledVideos, test: LabelledVideos) -> None:
    """Warn of test videos that are trained on: an accuracy on them says little."""
    trained = {entry.path for entry in training.videos.entries}
    if shared := sum(entry.path in trained for entry in test.videos.entries):
        logger.warning("%d of the %d test videos are training videos too", shared, len(test.labels))


def labels_digest(labelled: LabelledVideos) -> str:
    """SHA-256, in hex, of what the clips' order and labels follow from: the list, its labels, the classes."""
    parts = [labelled.videos.digest, *map(str, labelled.labels.tolist()), *labelled.classes]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _subset(labelled: LabelledVideos, kept: Sequence[bool]) -> LabelledVideos:
    entries = tuple(entry for entry, own in zip(labelled.videos.entries, kept, strict=True) if own)
    return dataclasses.replace(
        labelled,
        videos=dataclasses.replace(labelled.videos, entries=entries),
        labels=labelled.labels[list(kept)],
    )
