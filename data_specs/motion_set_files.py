"""The controlled motion set as video files: rendered where they are missing, the same ones for the same settings.

ROOT/motion-set.json      the settings, written first
ROOT/train/000007.avi     clip 7 of the training split: Motion JPEG
ROOT/train.csv            its list, `path label`, written when its clips are there; val.csv and test.csv likewise
ROOT/classes.txt          the motions' names, by label
ROOT/dataset.yaml         the data set's spec, written last
"""

import dataclasses
import json
import logging
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import cv2
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from data_specs.cores import usable_cores
from data_specs.demo_clips import write_clip
from data_specs.durable import replacing, write_file
from data_specs.interrupts import Interrupts
from data_specs.motion_set import MOTIONS, SPLITS, Split, motion_clip, split_labels

logger = logging.getLogger(__name__)

SPEC_FILE = "dataset.yaml"
_SETTINGS_FILE = "motion-set.json"
_VERSION = 1
_LEAST_SIDE, _LEAST_FRAMES = 32, 3
_SPEC = """\
# The controlled motion set: {clips}, {height} x {width} pixels, {frames} frames, seed {seed}.
name: motion-set
lists: {{train: train.csv, val: val.csv, test: test.csv}}
classes: classes.txt
start_stride: 2
clip_stride: 2
# a mirror image has another label
flip: false
"""


class MotionSetError(ValueError):
    """Settings that cannot be rendered, or that a folder does not have; the message says the way out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionSetSettings:
    """What every pixel of the set follows from."""

    train: int = 2400
    """Clips of the training split."""
    val: int = 480
    test: int = 960
    height: int = 96
    """Of a frame, in pixels."""
    width: int = 128
    frames: int = 23
    """Of a clip. Training clips of 8 frames, 2 apart, lie evenly around the middle of 23."""
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"train": 1, "val": 1, "test": 1, "height": _LEAST_SIDE, "width": _LEAST_SIDE, "frames": _LEAST_FRAMES}
        problems = [
            f"{name} is {getattr(self, name)}, must be {value} or more"
            for name, value in {**least, "seed": 0}.items()
            if getattr(self, name) < value
        ]
        if problems:
            raise MotionSetError("motion set: " + "; ".join(problems))


def render_motion_set(root: Path, settings: MotionSetSettings, workers: int | None = None) -> Path:
    """Render what the folder `root` lacks of the set; returns the path of its spec, which is there when all is.

    workers: processes that render; None takes one for each core. A run that was cut off is gone on with.
    Raises MotionSetError where the folder holds a set of other settings, or other things; OSError where it cannot be
    written; KeyboardInterrupt after a signal (SIGTERM, SIGUSR1).
    """
    _check_folder(root, settings)
    root.mkdir(parents=True, exist_ok=True)
    write_file(root / _SETTINGS_FILE, json.dumps(_described(settings), indent=2) + "\n")
    write_file(root / "classes.txt", "".join(f"{name}\n" for name in MOTIONS))
    context = multiprocessing.get_context("forkserver")
    with Interrupts() as interrupts, ProcessPoolExecutor(workers or usable_cores(), context, _start_worker) as pool:
        for split in SPLITS:
            _render_split(root, split, settings, pool, interrupts)
    clips = ", ".join(f"{getattr(settings, split)} {split}" for split in SPLITS)
    spec = _SPEC.format(clips=clips, **{k: v for k, v in dataclasses.asdict(settings).items() if k not in SPLITS})
    write_file(root / SPEC_FILE, spec)
    return root / SPEC_FILE


def _render_split(
    root: Path, split: Split, settings: MotionSetSettings, pool: ProcessPoolExecutor, interrupts: Interrupts
) -> None:
    labels = split_labels(split, getattr(settings, split), settings.seed).tolist()
    names = [f"{split}/{index:06d}.avi" for index in range(len(labels))]
    missing = [index for index, name in enumerate(names) if not (root / name).exists()]
    if missing:
        (root / split).mkdir(exist_ok=True)
        logger.info("rendering %d clips into %s", len(missing), root / split)
        clips = pool.map(
            _render_clip,
            (root / names[index] for index in missing),
            repeat(split),
            missing,
            (labels[index] for index in missing),
            repeat(settings),
            chunksize=8,
        )
        _wait(tqdm(clips, total=len(missing), unit="clip", dynamic_ncols=True, disable=None), pool, interrupts)
    lines = "".join(f"{name} {label}\n" for name, label in zip(names, labels, strict=True))
    write_file(root / f"{split}.csv", lines)


def _wait(clips: Iterable[None], pool: ProcessPoolExecutor, interrupts: Interrupts) -> None:
    for _ in clips:
        if interrupts.received is not None:
            pool.shutdown(cancel_futures=True)
            raise KeyboardInterrupt


def _render_clip(path: Path, split: Split, index: int, label: int, settings: MotionSetSettings) -> None:
    size = settings.height, settings.width
    clip = motion_clip(split, index, label=label, size=size, num_frames=settings.frames, seed=settings.seed)
    with replacing(path) as temporary:
        write_clip(temporary, clip, settings.frames)


def _check_folder(root: Path, settings: MotionSetSettings) -> None:
    file = root / _SETTINGS_FILE
    if not file.exists():
        if root.exists() and any(root.iterdir()):
            raise MotionSetError(f"{root}: holds other things than a motion set; take a folder of its own")
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MotionSetError(f"{file}: is not JSON: {error}; remove {root} to render the set again") from error
    if found != _described(settings):
        raise MotionSetError(
            f"{root}: holds a motion set of other settings, {found}; asked for is {_described(settings)}; "
            "give those, or take another folder"
        )


def _described(settings: MotionSetSettings) -> dict[str, int]:
    return {"version": _VERSION, **dataclasses.asdict(settings)}


def _start_worker() -> None:
    """One thread for each worker: products of small matrices take ten times as long on several that are shared."""
    cv2.setNumThreads(1)
    threadpool_limits(1)
