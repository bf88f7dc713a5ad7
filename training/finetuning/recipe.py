"""Fine-tuning recipes: which clips of a labelled video a classifier sees, how it is trained, and how it is tested.

A recipe is a YAML file of the fields of `FinetuneRecipe`; it may name another one under `extends` and change some of
its fields. A linear probe is a recipe too, one that freezes the encoder. The resolved recipe is kept in every
checkpoint.
"""

import dataclasses
import re
from typing import Any, Literal

import jsonargparse

from data_specs.yaml_recipes import RecipeError, checked_fields, recipe_fields, shipped_names

__all__ = ["FinetuneRecipe", "RecipeError", "finetune_recipe_names", "load_finetune_recipe"]

Sampling = Literal["dense", "segment"]
FrameOrder = Literal["given", "shuffled", "single"]
Optimizer = Literal["adamw", "sgd"]
HeadNorm = Literal["none", "batch"]

_PACKAGE = "training.finetuning"
_TUPLES = ("crop_area", "crop_aspect", "betas")  # JSON has lists
# timm asserts on a section that it does not know, and takes some malformed ones for others
_RAND_AUGMENT = re.compile(r"rand(-m\d{1,2}|-n[1-9]|-p(0|1|0\.\d+)|-mstd\d{1,3}(\.\d+)?|-mmax\d{1,2}|-inc[01])*")
_LARGEST = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """What a classifier sees, how it is trained and tested. Lengths in pixels of the view, times in frames."""

    name: str
    """Name of the recipe."""

    frames: int = 16
    """T, frames of a clip."""
    sampling: Sampling = "dense"
    """`dense`: frames `clip_stride` apart, from a start drawn anew each time; `segment`: one of each of T equal parts
    of the video (Wang et al., Temporal Segment Networks, ECCV 2016), so that every clip spans all of it."""
    clip_stride: int | None = None
    """Of dense clips, frames of the video from one frame to the next; null takes the data set's own (4; SSv2 3)."""
    frame_order: FrameOrder = "given"
    """Controls for what a classifier takes from the order of the frames: `shuffled` puts a clip's frames in random
    order; `single` shows one of them, drawn at random, T times. In training and in the test alike."""
    tubelet: int = 2
    """Frames of the clip in one token."""
    patch: int = 16
    """Side of a token's square patch."""
    input_size: int = 224
    """Side of the square view that the model sees."""

    crop_area: tuple[float, float] = (0.08, 1.0)
    """RandomResizedCrop: area of the crop as a share of the frame's, drawn from this range (Szegedy et al. 2015)."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the crop, drawn from this range, uniformly in its logarithm."""
    jitter: tuple[int, int] | None = None
    """In place of crop_area and crop_aspect: a square crop of input_size of the frame whose short side was resized to
    a length drawn from this range (Simonyan & Zisserman 2015; SlowFast's and SVT's scale jitter: 256 to 320)."""
    flip: bool | None = None
    """Flip half of the clips; null takes the data set's own (yes; SSv2, whose labels name sides, no)."""
    rand_augment: str | None = None
    """RandAugment as timm spells it: `rand-m9-mstd0.5-inc1` is magnitude 9 with noise of deviation 0.5, operations that
    grow with the magnitude, two for each clip. The same for all frames of a clip. null: none."""
    random_erase: float = 0.0
    """Chance that a rectangle of a clip, the same in all frames, becomes noise (Zhong et al. 2020), before mixing."""
    clips_per_video: int = 1
    """Clips taken of a video each time it is opened (repeated sampling, Hoffer et al., CVPR 2020)."""

    mixup: float = 0.0
    """α of mixup's Beta distribution; 0: none (Zhang et al. 2018)."""
    cutmix: float = 0.0
    """α of cutmix's Beta distribution; 0: none (Yun et al. 2019)."""
    mixup_prob: float = 1.0
    """Chance that a batch is mixed at all."""
    mixup_switch_prob: float = 0.5
    """Where both are on, chance that a batch is mixed by cutmix."""
    label_smoothing: float = 0.0
    """Share of a label that goes evenly to all classes (Szegedy et al. 2016)."""

    drop_path: float = 0.0
    """Chance that the last block is passed by; rises linearly with depth from 0 at the first (Huang et al. 2016)."""
    head_dropout: float = 0.0
    """Share of the features that is dropped before the head."""
    head_std: float = 2e-5
    """Deviation of the head's first weights. VideoMAE's 0.02 times 0.001 is for encoders that have learnt: a fresh one
    gets hardly any gradient through it, and in a short run may learn nothing; take 0.02 there."""
    head_norm: HeadNorm = "none"
    """`batch`: features are standardised by a batch norm without weights before the head (MAE's linear probe)."""
    freeze_encoder: bool = False
    """Train the head alone: a linear probe."""

    optimizer: Optimizer = "adamw"
    base_lr: float = 1e-3
    """Learning rate for a batch of 256 videos, scaled by the batch. VideoMAE's and MME's code count videos there: a
    second clip of each changes nothing."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine, for a batch of 256."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adamw."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    """Factor of the learning rate from one layer to the one before it (BEiT); 1: all layers learn alike."""
    clip_grad: float | None = None
    """Largest norm of the gradient; null leaves it as it is."""
    batch_size: int = 128
    """Clips of one step where --batch-size is not given."""
    epochs: int = 100
    """Epochs where neither --epochs nor --steps is given: times that each video is opened."""
    warmup_epochs: int = 5
    """Epochs of linear warm-up; of a shorter run no more than a tenth, or than their share of `epochs`."""

    test_clips: int = 5
    """Clips of a video in the test, evenly spread over it."""
    test_crops: int = 3
    """Views of each of them, along the longer side of the frame; 1 is the centre."""

    def __post_init__(self) -> None:
        problems = self._out_of_range()
        if self.frames % self.tubelet:
            problems.append(f"frames is {self.frames}, must be a multiple of tubelet, {self.tubelet}")
        if self.input_size % self.patch:
            problems.append(f"input_size is {self.input_size}, must be a multiple of patch, {self.patch}")
        if self.batch_size % self.clips_per_video:
            problems.append(
                f"batch_size is {self.batch_size}, must be a multiple of clips_per_video, {self.clips_per_video}"
            )
        for name, most in (("crop_area", 1.0), ("crop_aspect", 100.0)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                problems.append(f"{name} is [{low}, {high}], must be [low, high] above 0 and up to {most:g}")
        if self.jitter is not None and not self.input_size <= self.jitter[0] <= self.jitter[1] <= _LARGEST:
            problems.append(
                f"jitter is {list(self.jitter)}, must be [low, high] of input_size, {self.input_size}, or more"
            )
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            problems.append(
                f"rand_augment is {self.rand_augment[:100]!a}, must be as rand-m9-mstd0.5-inc1: m magnitude, "
                "n operations, p chance of each, mstd noise, mmax largest magnitude, inc 0 or 1"
            )
        problems += self._without_effect()
        if problems:
            raise RecipeError(f"recipe {self.name}: " + "; ".join(problems))

    def _out_of_range(self) -> list[str]:
        """Numbers that no recipe can have."""
        counts = ("frames", "clip_stride", "tubelet", "patch", "input_size", "clips_per_video", "batch_size", "epochs")
        least = dict.fromkeys((*counts, "test_clips", "test_crops"), 1) | {"warmup_epochs": 0}
        found = [
            f"{name} is {value}, must be {low} or more, at most {_LARGEST}"
            for name, low in least.items()
            if (value := getattr(self, name)) is not None and not low <= value <= _LARGEST
        ]
        found += [
            f"{name} is {value}, must lie within 0 to 1"
            for name in ("random_erase", "mixup_prob", "mixup_switch_prob")
            if not 0 <= (value := getattr(self, name)) <= 1
        ]
        below_one = ("label_smoothing", "drop_path", "head_dropout", "momentum")
        found += [
            f"{name} is {value}, must be 0 or more and less than 1"
            for name in below_one
            if not 0 <= (value := getattr(self, name)) < 1
        ]
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas is {list(self.betas)}, each must be 0 or more and less than 1")
        found += [
            f"{name} is {value}, must be 0 or more"
            for name in ("mixup", "cutmix", "min_lr", "weight_decay")
            if not (value := getattr(self, name)) >= 0
        ]
        found += [
            f"{name} is {value}, must be more than 0"
            for name in ("base_lr", "head_std")
            if not (value := getattr(self, name)) > 0
        ]
        if not 0 < self.layer_decay <= 1:
            found.append(f"layer_decay is {self.layer_decay}, must be more than 0 and up to 1")
        if self.clip_grad is not None and not self.clip_grad > 0:
            found.append(f"clip_grad is {self.clip_grad}, must be more than 0; null leaves the gradient as it is")
        return found

    def _without_effect(self) -> list[str]:
        """Options that ask for something which nothing else in the recipe has."""
        idle = [
            (self.sampling == "segment", ("clip_stride",), "segment sampling has no stride"),
            (self.jitter is not None, ("crop_area", "crop_aspect"), "jitter takes their place"),
            (self.freeze_encoder, ("layer_decay", "drop_path", "head_std"), "the encoder is frozen"),
            (self.optimizer == "sgd", ("betas",), "sgd has a momentum"),
            (self.optimizer == "adamw", ("momentum",), "adamw has betas"),
            (not (self.mixup or self.cutmix), ("mixup_prob",), "neither mixup nor cutmix is on"),
            (not (self.mixup and self.cutmix), ("mixup_switch_prob",), "only one of mixup and cutmix is on"),
        ]
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return [
            f"{', '.join(given)}: {why}"
            for applies, names, why in idle
            if applies and (given := [name for name in names if getattr(self, name) != defaults[name]])
        ]

    @property
    def mixes(self) -> bool:
        """Whether clips of a batch are mixed."""
        return bool(self.mixup or self.cutmix)

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """(t, h, w): tokens of a clip along time, height and width. Token n is at (t, h, w) in row-major order."""
        side = self.input_size // self.patch
        return self.frames // self.tubelet, side, side

    def resolved(self, *, clip_stride: int, flip: bool) -> "FinetuneRecipe":
        """The recipe with these where it leaves them to the data set."""
        dense = self.sampling == "dense"
        return dataclasses.replace(
            self,
            clip_stride=clip_stride if dense and self.clip_stride is None else self.clip_stride,
            flip=flip if self.flip is None else self.flip,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any], where: str) -> "FinetuneRecipe":
        """Check types and values of `fields`; `where` names their source in an error."""
        try:
            checked = checked_fields(cls, fields)
            pairs = {name: tuple(checked[name]) for name in _TUPLES}
            jitter = checked["jitter"]
            return cls(**{**checked, **pairs, "jitter": None if jitter is None else tuple(jitter)})
        except (jsonargparse.ArgumentError, RecipeError, TypeError, AttributeError) as error:
            raise RecipeError(f"{where}: {error}") from error


def finetune_recipe_names() -> list[str]:
    """Names of the fine-tuning recipes that ship with the project."""
    return shipped_names(_PACKAGE)


def load_finetune_recipe(name_or_file: str) -> FinetuneRecipe:
    """Load a shipped recipe by name (`mme-ssv2`, `svt-linear`, …) or a YAML file by path; raises RecipeError."""
    return FinetuneRecipe.from_json(recipe_fields(name_or_file, _PACKAGE), where=f"recipe {name_or_file}")
