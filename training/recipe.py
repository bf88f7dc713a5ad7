"""Pretraining recipes: what a masked model is asked to predict, from what, and the papers' training settings.

A recipe is a YAML file of the fields of `PretrainRecipe`; it may name another one under `extends` and change some of
its fields. The resolved recipe is kept in every checkpoint.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

import jsonargparse

from data_specs.yaml_recipes import RecipeError, checked_fields, recipe_fields, shipped_names

__all__ = ["HeadOptions", "PretrainRecipe", "RecipeError", "load_recipe", "recipe_names"]

HeadName = Literal["displacement", "trajectory_hog", "pixels", "hog", "clip", "flow", "hof", "mbh"]
Normalisation = Literal["patch", "none", "clip", "patch-floor", "token"]
ClipModel = Literal["vit_base_patch16", "vit_large_patch14"]
Mask = Literal["tube", "random", "cube", "motion-bins", "motion-proportional", "motion-inverse"]

STORED_HEADS = ("displacement", "trajectory_hog", "flow", "hof", "mbh")
"""Heads whose targets are read from the track store; the others' are computed from the clip's own frames."""
TRAJECTORY_HEADS = ("displacement", "trajectory_hog")
IMAGE_HOG_CELL = 8
"""Side of a cell of the `hog` head in pixels of the view (MaskFeat's)."""
CLIP_TOWERS: dict[ClipModel, tuple[int, int]] = {"vit_base_patch16": (16, 768), "vit_large_patch14": (14, 1024)}
"""CLIP's vision towers: side of a patch in pixels, and channels of its feature."""
_ONLY_FOR: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("anchoring", "trajectory_length", "interpolate", "remove_camera", "merge", "validity"), TRAJECTORY_HEADS),
    (("hog_l2",), ("hog",)),
    (("clip_model",), ("clip",)),
)
"""Options that some heads alone use."""
MOTION_MASKS = ("motion-bins", "motion-proportional", "motion-inverse")
"""Masks drawn from how much each patch moves, which is read from the track store."""
_TUPLES = ("crop_scales", "betas", "high_motion_share")  # JSON has lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """How one target enters the loss."""

    weight: float = 1.0
    """Factor of the head's mean squared error in the loss."""
    normalise: Normalisation = "patch"
    """`patch`: standardised over each patch, as the papers do, which hides how fast things move; `none`: as it is, in
    pixels of the view (displacement, flow) or per pixel of the window (histograms); `clip`: standardised over all of
    the clip's; `patch-floor`: as `patch`, but divided by sqrt(variance + floor²), so that what is below the floor
    stays small. `clip` takes a floor too. Of the head `clip`, which takes neither of the patch's: `clip`: each channel
    over all of the clip's tokens, as TrackMAE's released code does; `token`: over the channels of each token."""
    floor: float = 0.0
    """Noise floor of `patch-floor` (which needs one) and `clip`, in the unit that `none` leaves the target in."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise RecipeError(f"a head's weight is {self.weight}, must be more than 0; leave the head out instead")
        if self.normalise == "patch-floor" and not self.floor > 0:
            raise RecipeError(f"normalise is patch-floor with floor {self.floor}, must be more than 0")
        if self.normalise in ("patch", "none", "token") and self.floor != 0:
            raise RecipeError(f"normalise is {self.normalise}, which has no floor; floor is {self.floor}")
        if self.floor < 0:
            raise RecipeError(f"floor is {self.floor}, must be 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """What is predicted, from what, and how it is trained. Lengths in pixels of the view, times in frames."""

    name: str
    """Name of the recipe."""
    heads: dict[HeadName, HeadOptions]
    """The targets, each with its weight and normalisation."""

    frames: int = 16
    """T, frames of a clip."""
    clip_stride: int | None = None
    """Frames of the video from one frame of a clip to the next; null takes the data set's own (4; SSv2 3)."""
    tubelet: int = 2
    """Frames of the clip in one token."""
    patch: int = 16
    """Side of a token's square patch."""
    input_size: int = 224
    """Side of the square view that the model sees."""
    crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """MultiScaleCrop: sides of the crop as shares of the frame's short side (MME table 14)."""
    flip: bool | None = None
    """Flip half of the clips; null takes the data set's own (yes; SSv2, whose labels name sides, no)."""
    shuffle_frames: bool = False
    """Put the clip's frames in random order (MME figure 3's control); targets are those of the frames shown."""

    anchoring: Literal["tubelet", "clip"] = "tubelet"
    """`tubelet`: a token's trajectories start in its tubelet's first frame, and it predicts all of their steps (MME).
    `clip`: all start in the clip's first frame, and the token of tubelet t predicts step t (TrackMAE)."""
    trajectory_length: int | None = None
    """Steps of a trajectory that are predicted (MME table 7); null takes all that the store has."""
    interpolate: bool = True
    """Predict motion at the store's frame step, finer than the clip's frames (MME table 6). False demands a store
    whose frame step is the clip's stride."""
    remove_camera: bool = True
    """Predict displacements without the camera's part. False needs a store whose positions are in the image."""
    points_per_side: int = 2
    """Trajectories along a patch's side: 2 gives MME's K = 4, 4 table 9's denser 16, 1 one in the patch's centre."""
    merge: Literal["none", "mean", "longest"] = "none"
    """Merge a patch's trajectories into one: their mean, or the one with the longest path (MME table 9)."""
    validity: bool = True
    """Leave out of the loss what was not measured. False takes it for points that stand still and have no shape, as
    published codes do with what is missing: for comparison alone."""
    hog_l2: bool = False
    """Give each histogram of the `hog` head unit length, as MaskFeat does and MME does not."""
    clip_model: ClipModel = "vit_base_patch16"
    """Tower of OpenAI's CLIP whose features of a tubelet's first frame the head `clip` predicts (TrackMAE)."""

    mask: Mask = "tube"
    """Shape of the masks: `tube`, `random`, `cube` (MME table 11), or tubes whose visible patches are drawn by how much
    they move (TrackMAE): `motion-bins`, from the half that moves more and from the rest; `motion-proportional` and
    `motion-inverse`, with a chance proportional to the motion or to its inverse. The motion is that of the recipe's
    anchoring, points, steps and remove_camera, whatever its heads are."""
    high_motion_share: tuple[float, float] = (0.5, 0.5)
    """ρ of `motion-bins`: share of the visible patches that is drawn from the half that moves more (TrackMAE: 0.5).
    Drawn for each clip from this range; [1, 1] shows what moves most, [0, 0] what moves least."""
    mask_ratio: float = 0.7
    """Share of the tokens that is masked."""
    drop_tokens: float = 0.0
    """Share of all tokens, visible and masked alike, that is neither shown nor predicted (MME table 16: 0.5)."""

    decoder: Literal["joint", "separate"] = "joint"
    """One decoder for all heads, or one for each (MME table 12)."""
    decoder_depth: int = 1
    """Blocks of a decoder."""

    epochs: int = 800
    """Epochs where neither --epochs nor --steps is given."""
    warmup_epochs: int = 40
    """Epochs of linear warm-up; of a shorter run no more than a tenth, or than their share of `epochs`."""
    base_lr: float = 1.5e-4
    """Learning rate for a batch of 256; scaled by the batch."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = None
    """Largest norm of the gradient; null leaves it as it is."""

    def __post_init__(self) -> None:
        problems = [
            f"{field} is {value}, must be {least} or more"
            for field, least in [
                ("frames", 1),
                ("clip_stride", 1),
                ("tubelet", 1),
                ("patch", 1),
                ("input_size", 1),
                ("trajectory_length", 1),
                ("points_per_side", 1),
                ("decoder_depth", 1),
                ("epochs", 1),
                ("warmup_epochs", 0),
            ]
            if (value := getattr(self, field)) is not None and value < least
        ]
        if not self.heads:
            problems.append("heads is empty: name at least one target")
        if self.frames % self.tubelet:
            problems.append(f"frames is {self.frames}, must be a multiple of tubelet, {self.tubelet}")
        if self.input_size % self.patch:
            problems.append(f"input_size is {self.input_size}, must be a multiple of patch, {self.patch}")
        if self.patch % self.points_per_side:
            problems.append(f"points_per_side is {self.points_per_side}, must divide patch, {self.patch}")
        if not 0 < self.mask_ratio < 1:
            problems.append(f"mask_ratio is {self.mask_ratio}, must lie between 0 and 1")
        if not (len(self.high_motion_share) == 2 and 0 <= self.high_motion_share[0] <= self.high_motion_share[1] <= 1):
            problems.append(f"high_motion_share is {list(self.high_motion_share)}, must be [low, high] within 0 to 1")
        if not 0 <= self.drop_tokens < 1:
            problems.append(f"drop_tokens is {self.drop_tokens}, must be 0 or more and less than 1")
        if not self.crop_scales or not all(0 < scale <= 1 for scale in self.crop_scales):
            problems.append(f"crop_scales is {list(self.crop_scales)}, must name shares above 0 and up to 1")
        problems += self._of_heads()
        if not self.base_lr > 0:
            problems.append(f"base_lr is {self.base_lr}, must be more than 0")
        if self.clip_grad is not None and not self.clip_grad > 0:
            problems.append(f"clip_grad is {self.clip_grad}, must be more than 0; null leaves the gradient as it is")
        problems += self._without_effect()
        if problems:
            raise RecipeError(f"recipe {self.name}: " + "; ".join(problems))

    def _of_heads(self) -> list[str]:
        """Heads that cannot be computed or standardised as asked."""
        found = []
        if "hog" in self.heads and self.patch % IMAGE_HOG_CELL:
            found.append(f"patch is {self.patch}, with the head hog it must be a multiple of {IMAGE_HOG_CELL}")
        tower_patch, _ = CLIP_TOWERS[self.clip_model]
        if "clip" in self.heads and self.input_size % tower_patch:
            found.append(
                f"input_size is {self.input_size}, with clip_model {self.clip_model} it must be a multiple of "
                f"{tower_patch} too"
            )
        for name, head in self.heads.items():
            if name == "clip" and head.normalise in ("patch", "patch-floor"):
                found.append(
                    f"heads: clip is normalised by {head.normalise}, but a patch has one feature: take clip, token "
                    "or none"
                )
            if name != "clip" and head.normalise == "token":
                found.append(f"heads: {name} is normalised by token, which is for the channels of the head clip")
        return found

    def _without_effect(self) -> list[str]:
        """Options that ask for something which nothing else in the recipe has."""
        found = []
        for options, users in _ONLY_FOR:
            idle = [option for option in options if not self._uses(option, users, self.heads)]
            given = [option for option in idle if getattr(self, option) != _default(option)]
            if given:
                heads = ", ".join(self.heads)
                found.append(f"{', '.join(given)}: only {' and '.join(users)} would use that; the heads are {heads}")
        if self.high_motion_share != (0.5, 0.5) and self.mask != "motion-bins":
            found.append(f"high_motion_share: only mask motion-bins has a half that moves more; mask is {self.mask}")
        if self.anchoring == "clip" and self.trajectory_length is not None:
            found.append("trajectory_length: anchored at the clip, a token predicts one step")
        if self.anchoring == "clip" and self.shuffle_frames:
            found.append("shuffle_frames: anchored at the clip, trajectories run through its frames in their order")
        return found

    def _uses(self, option: str, users: tuple[str, ...], heads: Collection[str]) -> bool:
        """Whether an option of these users has an effect, with these heads."""
        # a mask may be drawn from trajectories too, but from each for itself
        by_mask = users == TRAJECTORY_HEADS and option not in ("merge", "validity") and self.has_motion_mask
        return by_mask or any(name in heads for name in users)

    def with_heads(self, names: Collection[str]) -> "PretrainRecipe":
        """The recipe with these of its heads alone; options that only the others use are as if they were not given.

        Raises RecipeError for a head that it has not, and for none.
        """
        unknown = [name for name in names if name not in self.heads]
        if unknown:
            raise RecipeError(
                f"recipe {self.name} has no head {', '.join(map(repr, unknown))}; it has {', '.join(self.heads)}"
            )
        return self.predicting({name: head for name, head in self.heads.items() if name in names})

    def predicting(self, heads: Mapping[HeadName, HeadOptions]) -> "PretrainRecipe":
        """The recipe with these heads in place of its own; options that nothing uses then are as if not given."""
        idle = [option for options, users in _ONLY_FOR for option in options if not self._uses(option, users, heads)]
        return dataclasses.replace(self, heads=dict(heads), **{option: _default(option) for option in idle})

    @property
    def stored_heads(self) -> list[str]:
        """The heads whose targets come from the track store."""
        return [name for name in self.heads if name in STORED_HEADS]

    @property
    def has_motion_mask(self) -> bool:
        """Whether the mask is drawn from how much each patch moves."""
        return self.mask in MOTION_MASKS

    @property
    def heads_need_displacements(self) -> bool:
        """Whether a target is computed from displacements."""
        return "displacement" in self.heads or ("trajectory_hog" in self.heads and self.merge == "longest")

    @property
    def reads_tracks(self) -> bool:
        """Whether anything is read from the track store beside its list of videos."""
        return self.has_motion_mask or bool(self.stored_heads)

    @property
    def trajectories(self) -> int:
        """K, trajectories of a patch: each of its points', or the one that they are merged into."""
        return 1 if self.merge != "none" else self.points_per_side**2

    @property
    def point_grid(self) -> tuple[int, int]:
        """(Gh, Gw): points of the view's grid along height and width."""
        _, height, width = self.token_grid
        return height * self.points_per_side, width * self.points_per_side

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """(t, h, w): tokens of a clip along time, height and width. Token n is at (t, h, w) in row-major order."""
        side = self.input_size // self.patch
        return self.frames // self.tubelet, side, side

    def resolved(self, *, clip_stride: int, flip: bool) -> "PretrainRecipe":
        """The recipe with these where it leaves them to the data set."""
        return dataclasses.replace(
            self,
            clip_stride=clip_stride if self.clip_stride is None else self.clip_stride,
            flip=flip if self.flip is None else self.flip,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**dataclasses.asdict(self), **{name: list(getattr(self, name)) for name in _TUPLES}}

    @classmethod
    def from_json(cls, fields: dict[str, Any], where: str) -> "PretrainRecipe":
        """Check types and values of `fields`; `where` names their source in an error."""
        try:
            heads = fields.get("heads", {})
            unknown = set(heads) - set(get_args(HeadName))
            if unknown:
                raise RecipeError(
                    f"heads: {', '.join(sorted(unknown))} unknown; there are {', '.join(get_args(HeadName))}"
                )
            options = {name: HeadOptions(**checked_fields(HeadOptions, head or {})) for name, head in heads.items()}
            rest = {name: value for name, value in fields.items() if name != "heads"}
            checked = checked_fields(cls, rest, skip={"heads"})
            return cls(heads=options, **{**checked, **{name: tuple(checked[name]) for name in _TUPLES}})
        except (jsonargparse.ArgumentError, RecipeError, TypeError, AttributeError) as error:
            raise RecipeError(f"{where}: {error}") from error


def _default(option: str) -> Any:
    """What an option is where a recipe does not name it."""
    return next(field.default for field in dataclasses.fields(PretrainRecipe) if field.name == option)


def recipe_names() -> list[str]:
    """Names of the pretraining recipes that ship with the project."""
    return shipped_names("training")


def load_recipe(name_or_file: str) -> PretrainRecipe:
    """Load a shipped recipe by name (`mme`, `videomae`, …) or a YAML file by path; raises RecipeError."""
    return PretrainRecipe.from_json(recipe_fields(name_or_file, "training"), where=f"recipe {name_or_file}")
