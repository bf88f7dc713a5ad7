"""What the study compares: its sizes, and its rows, each a pretraining recipe as changes of a shipped one."""

import dataclasses
from typing import Any, Literal

Group = Literal["pretraining", "ablation", "learning rate"]
TRACKS = {"extends": "mme-object", "name": "study", "flow": "tvl1-fast", "length": 8}
"""The store of all rows but trackmae's: HOG, the camera, eight steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is. Lengths in pixels, times in frames; clips lie evenly around the middle of the set's."""

    train: int
    val: int
    test: int
    height: int
    width: int
    set_frames: int
    input_size: int
    """Side of the view, which shows the frame's height."""
    model: str
    frames: int
    clip_stride: int
    patch: int
    grid_stride: int
    batch_size: int
    pretrain_steps: int
    finetune_steps: int
    base_lr: float
    """Of pretraining, for 256 clips."""
    finetune_lr: float
    """For 256 clips."""
    layer_decay: float
    """Of fine-tuning."""
    probed: int
    """Training clips that the linear probe is fitted to."""

    @property
    def tubelet_step(self) -> int:
        """Frames from one tubelet to the next."""
        return 2 * self.clip_stride


_SMALL = Size(
    train=2400, val=480, test=960, height=96, width=128, set_frames=23, input_size=48, model="vit_micro", frames=8,
    clip_stride=2, patch=8, grid_stride=8, batch_size=32, pretrain_steps=450, finetune_steps=240, base_lr=1.6e-2,
    finetune_lr=1.6e-2, layer_decay=1.0, probed=1200,
)  # fmt: skip
SIZES = {
    "small": _SMALL,
    "small-long": dataclasses.replace(_SMALL, pretrain_steps=2700, finetune_steps=1200),
    "medium": Size(
        train=24_000, val=1200, test=4800, height=96, width=128, set_frames=39, input_size=96, model="vit_tiny",
        frames=16, clip_stride=2, patch=16, grid_stride=8, batch_size=64, pretrain_steps=15_000, finetune_steps=3000,
        base_lr=2e-3, finetune_lr=4e-3, layer_decay=0.75, probed=12_000,
    ),
    "large": Size(
        train=120_000, val=2400, test=9600, height=224, width=288, set_frames=39, input_size=224, model="vit_small",
        frames=16, clip_stride=2, patch=16, grid_stride=8, batch_size=256, pretrain_steps=40_000, finetune_steps=8000,
        base_lr=6e-4, finetune_lr=1e-3, layer_decay=0.75, probed=24_000,
    ),
}  # fmt: skip
"""small: 107 minutes for all rows and three seeds on two cores (docs/study.md); small-long: some 20 for a row on one of
them. The others are for a GPU, and have not been run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One way to pretrain."""

    name: str
    group: Group
    what: str
    """In words, for the table."""
    changes: dict[str, Any] | None
    """Fields of a recipe of pretrain-motion over the study's common ones; None: no pretraining."""
    clip_tracks: bool = False
    """Whether its trajectories run through the clip (TrackMAE), from the other store."""
    lr_factor: float = 1.0
    """Of the study's learning rate of pretraining."""

    @property
    def has_curve(self) -> bool:
        """Whether earlier checkpoints are probed too."""
        return self.group == "pretraining" or self.name == BASE


def _of_base(name: str, what: str, **changes: Any) -> Row:
    return Row(name=name, group="ablation", what=what, changes={"extends": "mme-object", "heads": _HEADS, **changes})


def _at_rate(row: Row, factor: float) -> Row:
    return dataclasses.replace(
        row, name=f"{row.name}-lr-{factor:g}", group="learning rate", lr_factor=factor,
        what=f"{row.name} at {factor:g} times the learning rate",
    )  # fmt: skip


_DISPLACEMENT = {"weight": 1.0, "normalise": "none"}
_HOG = {"weight": 1.0, "normalise": "patch"}
_HEADS = {"displacement": _DISPLACEMENT, "trajectory_hog": _HOG}

BASE = "mme-px"
"""The row that the ablations change, and whose encoder the controls take: mme-object with displacements in pixels. A
patch norm leaves next to nothing of a rigid shape's motion, and so little for an ablation to take away."""

_COMPARED = (
    Row(name="none", group="pretraining", what="no pretraining", changes=None),
    Row(name="videomae", group="pretraining", what="pixels, 90 % masked", changes={"extends": "videomae"}),
    Row(name="maskfeat", group="pretraining", what="HOG of a tubelet's middle frame", changes={"extends": "maskfeat"}),
    Row(name="mme", group="pretraining", what="trajectories and HOG, as published", changes={"extends": "mme"}),
    Row(
        name="mme-object", group="pretraining", what="the same with a noise floor under the patch norm",
        changes={"extends": "mme-object"},
    ),
    Row(
        name="trackmae", group="pretraining", what="pixels and tracks by flow, masks by motion, 90 % masked",
        changes={"extends": "trackmae"}, clip_tracks=True,
    ),
    _of_base(BASE, "mme-object with displacements in pixels: speeds kept, L = 6"),
    _of_base(
        "mme-clip", "displacements standardised over the clip: speeds within it kept",
        heads={"displacement": {"weight": 1.0, "normalise": "clip", "floor": 0.1}, "trajectory_hog": _HOG},
    ),
    _of_base("camera-kept", "with the camera's part in the displacements", remove_camera=False),
    _of_base("length-4", "L = 4 steps", trajectory_length=4),
    _of_base("length-8", "L = 8 steps", trajectory_length=8),
    _of_base("no-hog", "displacements alone", heads={"displacement": _DISPLACEMENT}),
    _of_base("hog-only", "HOG along trajectories alone", heads={"trajectory_hog": _HOG}),
    _of_base("no-validity", "what was not measured counts as still", validity=False),
    _of_base("motion-masks", "tubes drawn by motion (TrackMAE's)", mask="motion-bins"),
    Row(
        name="trackmae-px", group="ablation", what="trackmae with displacements in pixels",
        changes={
            "extends": "trackmae",
            "heads": {"pixels": {"weight": 1.0, "normalise": "patch"}, "displacement": _DISPLACEMENT},
        }, clip_tracks=True,
    ),
)  # fmt: skip
DEFAULT_ROWS = tuple(each.name for each in _COMPARED)
"""Those that are computed where none are named: the others say whether one learning rate is fair to all."""
_AT_OTHER_RATES = ("videomae", "mme-object", BASE)
ROWS = _COMPARED + tuple(
    _at_rate(each, factor) for each in _COMPARED if each.name in _AT_OTHER_RATES for factor in (0.5, 2.0)
)


def row(name: str) -> Row:
    """The row of this name; ValueError names those there are."""
    for each in ROWS:
        if each.name == name:
            return each
    raise ValueError(f"no row {name}; there are {', '.join(each.name for each in ROWS)}")


def pretrain_recipe(row: Row, size: Size) -> dict[str, Any]:
    """The fields of the row's recipe for pretrain-motion."""
    assert row.changes is not None
    of_mme = row.changes["extends"] in ("mme", "mme-object")  # whose stores have more than MME's six steps
    return {
        "name": f"study-{row.name}",
        "frames": size.frames,
        "clip_stride": size.clip_stride,
        "patch": size.patch,
        "input_size": size.input_size,
        "crop_scales": [1.0],
        "flip": False,
        **({"trajectory_length": 6} if of_mme else {}),
        **row.changes,
    }


def track_recipes(size: Size) -> dict[str, dict[str, Any]]:
    """The fields of the recipes of extract-tracks, by the name of their store."""
    common = {**TRACKS, "grid_stride": size.grid_stride}
    clip = {"name": "study-clip", "length": size.frames // 2 - 1, "frame_step": size.tubelet_step, "hog": False}
    return {"tracks": common, "tracks-clip": {**common, **clip}}


def finetune_recipe(size: Size, *, frozen: bool, frame_order: str = "given") -> dict[str, Any]:
    """The fields of the recipe for finetune-motion, or where frozen for probe-motion: no augmentation but the start."""
    training = (
        {"layer_decay": size.layer_decay, "clip_grad": 1.0, "head_std": 0.02}
        if not frozen
        else {"freeze_encoder": True}
    )
    return {
        "name": f"study-{'probe' if frozen else 'finetune'}",
        "frames": size.frames,
        "clip_stride": size.clip_stride,
        "patch": size.patch,
        "input_size": size.input_size,
        "frame_order": frame_order,
        "jitter": [size.input_size, size.input_size],
        "flip": False,
        "base_lr": size.finetune_lr,
        "batch_size": size.batch_size,
        "warmup_epochs": 1,
        "test_clips": 1,
        "test_crops": 1,
        **training,
    }
