"""Compiling everything that a recipe needs once, before workers are started that would each compile it."""

import dataclasses
import logging
import time
from typing import Any

from data_specs.recipe import POINT_OPTIONS, Recipe
from data_specs.scene import random_scene
from extraction.cuts import ShotFrames
from extraction.process_video import process_video
from extraction.stages import untimed

logger = logging.getLogger(__name__)

_WORTH_A_WORD = 2.0  # seconds; loading compiled kernels takes less


def compile_kernels(recipe: Recipe) -> None:
    """Take one row of a small rendered clip through the whole extraction, so that numba's cache on disk has it all.

    A tracker other than flow is left out: what else there is, is compiled as it is for flow.
    The cache lies beside the package, or where NUMBA_CACHE_DIR says; on a cluster whose nodes do not share it, each
    node's workers still compile for themselves.
    """
    begun = time.perf_counter()
    recipe = dataclasses.replace(_by_flow(recipe), frame_step=1, start_stride=recipe.length + 1)
    side = max(64, 2 * recipe.grid_stride)
    clip = random_scene(0, 1.0, (side, side + 16)).frames(recipe.length + 1)
    for _ in process_video(ShotFrames(clip, recipe.detect_cuts, untimed), recipe, untimed):
        pass
    took = time.perf_counter() - begun
    if took > _WORTH_A_WORD:
        logger.info("compiled the kernels in %.0f s; they are kept for later runs", took)


def _by_flow(recipe: Recipe) -> Recipe:
    """A recipe of flow that calls every kernel which this one does."""
    if recipe.tracker == "flow":
        return recipe
    features = tuple(f for f in recipe.camera_features if f != "tracks")
    defaults: dict[str, Any] = {name: getattr(Recipe, name) for name in POINT_OPTIONS}
    return dataclasses.replace(recipe, tracker="flow", flow="dis", camera_features=features or ("corners",), **defaults)
