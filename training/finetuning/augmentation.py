"""What is varied in a labelled clip's pictures: the crop, the flip, RandAugment; the same in all of its frames.

Crop, resize and flip are one `View` of the video's own frames, so that they are interpolated once. RandAugment comes
after it, on the view, as in timm's pipeline for images: VideoMAE's released loader augments the whole frames and crops
afterwards, which interpolates twice or three times, takes longer the larger the file's frames are, and makes shifts
and histograms those of what the crop leaves out.
"""

import importlib.util
import math
import random
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_specs.view import View
from training.finetuning.recipe import FinetuneRecipe

_TRIES = 10
_SHIFT = 0.45
"""Of shifts in pixels: their largest, as a share of the view's side (VideoMAE's, timm's)."""


def training_view(frame_size: tuple[int, int], recipe: FinetuneRecipe, rng: np.random.Generator) -> View:
    """Draw the view of a frame of `frame_size`, (height, width) in pixels, that a clip shows; see `FinetuneRecipe`.

    recipe: resolved. The crop lies inside the frame, on whole pixels.
    """
    if recipe.jitter is not None:
        box = _jittered(frame_size, recipe.input_size, recipe.jitter, rng)
    else:
        box = random_resized_crop(frame_size, recipe.crop_area, recipe.crop_aspect, rng)
    top, left, height, width = box
    mirrored = bool(rng.random() < 0.5)
    size = (recipe.input_size, recipe.input_size)
    return View(top=top, left=left, height=height, width=width, size=size, flip=bool(recipe.flip) and mirrored)


def random_resized_crop(
    frame_size: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of torchvision's RandomResizedCrop, in pixels of a frame of (height, width).

    area: range of the crop's share of the frame's area; aspect: of its width over its height. Where ten crops in turn
    do not fit into the frame, it is the largest in the middle whose aspect is in the range. torchvision's own draws
    from torch's global generator, which other threads use too.
    """
    height, width = frame_size
    for _ in range(_TRIES):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        crop_width, crop_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = int(rng.integers(height - crop_height + 1)), int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < aspect[0]:
        crop_height = max(round(width / aspect[0]), 1)
    elif width / height > aspect[1]:
        crop_width = max(round(height * aspect[1]), 1)
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _jittered(
    frame_size: tuple[int, int], view_side: int, jitter: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """The square that a crop of `view_side` of the frame, its short side resized to a length of `jitter`, shows."""
    side = max(round(min(frame_size) * view_side / rng.uniform(*jitter)), 1)
    return int(rng.integers(frame_size[0] - side + 1)), int(rng.integers(frame_size[1] - side + 1)), side, side


def spread_views(frame_size: tuple[int, int], view_side: int, crops: int) -> list[View]:
    """Views of the frame with its short side resized to `view_side`: squares spread evenly along the longer side.

    frame_size: (height, width) in pixels. The first and the last reach the frame's ends; one is the centre. Three are
    the published test's.
    """
    height, width = frame_size
    side, left_over = min(frame_size), max(frame_size) - min(frame_size)
    starts = [round(left_over * i / (crops - 1)) for i in range(crops)] if crops > 1 else [left_over // 2]
    size = (view_side, view_side)
    return [
        View(
            top=start if height > width else 0,
            left=start if width >= height else 0,
            height=side,
            width=side,
            size=size,
        )
        for start in starts
    ]


class RandAugment:
    """timm's RandAugment (Cubuk et al. 2020) of clips: every frame gets the same operations, magnitudes and signs.

    config: as timm spells it, `rand-m9-mstd0.5-inc1`. side: of the views, in pixels.
    """

    def __init__(self, config: str, side: int) -> None:
        self._config, self._side = config, side
        self._load()

    def __call__(self, frames: NDArray[np.uint8], rng: np.random.Generator) -> None:
        """Augment the frames of a clip, uint8 (T, H, W, 3) RGB, in place; all that is random is drawn from `rng`."""
        chosen = rng.integers(len(self._ops), size=self._layers)
        seed = int(rng.integers(1 << 63))
        for frame in frames:
            self._timm.random = random.Random(seed)  # type: ignore[attr-defined] # the same numbers for every frame
            image = Image.fromarray(frame)
            for number in chosen:
                image = self._ops[number](image)
            frame[:] = np.asarray(image)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self._config, "side": self._side}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._config, self._side = state["config"], state["side"]
        self._load()

    def _load(self) -> None:
        # bicubic and the shift: VideoMAE's
        options = {"interpolation": Image.Resampling.BICUBIC, "translate_const": int(_SHIFT * self._side)}
        self._timm = _own_copy("timm.data.auto_augment")
        augment = self._timm.rand_augment_transform(self._config, options)
        self._ops, self._layers = augment.ops, augment.num_layers


def _own_copy(name: str) -> ModuleType:
    """A module, loaded once more: timm draws from the module `random`, whose numbers belong to the whole process and to
    all of its threads; a copy of the module can be given its own.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module named {name}", name=name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
