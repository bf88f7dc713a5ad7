"""Masks: which tokens of a clip the encoder sees and which are predicted.

A token grid (t, h, w) is tubelets along time and patches along height and width; token n is at (t, h, w) in row-major
order. How many tokens are masked depends on the options alone, never on chance, so that clips stack into batches.
"""

import math

import numpy as np
from numpy.typing import NDArray

from training.reading.motion_masks import Motion, sample_visible
from training.recipe import MOTION_MASKS, Mask, PretrainRecipe

TokenGrid = tuple[int, int, int]
Tokens = NDArray[np.int64]

_LEAST_PATCHES = 16  # of a block of a cube mask, as in MaskFeat
_LEAST_ASPECT = 0.3  # of its sides; the largest is the inverse


def sample_tokens(
    recipe: PretrainRecipe, rng: np.random.Generator, motion: Motion | None = None
) -> tuple[Tokens, Tokens]:
    """Draw a clip's (visible, predict) tokens: indices into the recipe's token grid, int64, ascending, disjoint.

    Together they are all tokens, less `drop_tokens` of them (MME table 16). Their numbers are those of `token_counts`.
    motion: what each patch moves by, (h, w), for a mask that is drawn from it; see `motion_masks.patch_motion`.
    Raises ValueError where one of them would be empty.
    """
    grid = recipe.token_grid
    token_counts(grid, recipe.mask, recipe.mask_ratio, recipe.drop_tokens)
    if recipe.has_motion_mask:
        assert motion is not None and motion.shape == grid[1:]
        visible = motion.size - int(recipe.mask_ratio * motion.size)
        patches = ~sample_visible(motion, visible, recipe.mask, recipe.high_motion_share, rng)
        masked = np.repeat(patches[None], grid[0], axis=0)
    else:
        masked = sample_mask(grid, recipe.mask, recipe.mask_ratio, rng)
    return split_tokens(masked, recipe.drop_tokens, rng)


def token_counts(grid: TokenGrid, mask: Mask, ratio: float, drop: float = 0.0) -> tuple[int, int]:
    """(visible, predicted) tokens of a clip. Raises ValueError, naming the options, where one of them is 0.

    `random` masks int(ratio * t * h * w) tokens, all others int(ratio * h * w) patches of every tubelet, as VideoMAE,
    MaskFeat and TrackMAE do. Of the n visible tokens int(drop * n) are then left out, and of the masked likewise.
    """
    tubelets, height, width = grid
    tokens = math.prod(grid)
    masked = int(ratio * tokens) if mask == "random" else tubelets * int(ratio * height * width)
    visible, predicted = (n - int(drop * n) for n in (tokens - masked, masked))
    if min(visible, predicted) < 1:
        raise ValueError(
            f"mask {mask}, mask_ratio {ratio} and drop_tokens {drop} leave {visible} visible and {predicted} predicted "
            f"of the {tubelets} x {height} x {width} tokens; there must be one of each at least"
        )
    return visible, predicted


def sample_mask(grid: TokenGrid, mask: Mask, ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a mask that takes no notice of the clip, bool (t, h, w), true where a token is masked.

    `tube`: the same patches in every tubelet (VideoMAE); `random`: any tokens; `cube`: blocks in space and time
    (MaskFeat, MME table 11).
    """
    assert mask not in MOTION_MASKS
    tubelets, height, width = grid
    if mask == "random":
        return _random_mask(math.prod(grid), int(ratio * math.prod(grid)), rng).reshape(grid)
    masked = int(ratio * height * width)
    if mask == "tube":
        patches = _random_mask(height * width, masked, rng).reshape(height, width)
        return np.repeat(patches[None], tubelets, axis=0)
    return _cube_mask(grid, masked, rng)


def split_tokens(masked: NDArray[np.bool_], drop: float, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
    """(visible, predict) of a mask (t, h, w): int64, ascending. Random tokens of each are left out: a share `drop`."""
    kept = []
    for tokens in (np.flatnonzero(~masked), np.flatnonzero(masked)):
        chosen = tokens
        if dropped := int(drop * len(tokens)):
            chosen = np.sort(rng.permutation(tokens)[dropped:])
        kept.append(chosen.astype(np.int64))
    return kept[0], kept[1]


def _random_mask(tokens: int, masked: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    mask = np.zeros(tokens, dtype=bool)
    mask[rng.permutation(tokens)[:masked]] = True
    return mask


def _cube_mask(grid: TokenGrid, masked: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Runs of tubelets of random length; in each run the same patches are masked, in blocks (MaskFeat, section 3.3)."""
    mask = np.zeros(grid, dtype=bool)
    free = np.ones(grid[0], dtype=bool)  # tubelets without a mask so far
    while free.any():
        start = int(rng.choice(np.flatnonzero(free)))
        stop = start + int(rng.integers(1, free.sum(), endpoint=True))
        taken = np.flatnonzero(~free[start:stop])  # a run ends where an earlier one begins
        stop = start + int(taken[0]) if len(taken) else min(stop, grid[0])
        mask[start:stop] = _block_mask(grid[1], grid[2], masked, rng)
        free[start:stop] = False
    return mask


def _block_mask(height: int, width: int, masked: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """`masked` of the patches (height, width), in rectangles of random size, aspect and place.

    Of the last rectangle, which may be too large, rows or columns at one of its sides are left out.
    """
    mask = np.zeros((height, width), dtype=bool)
    while (missing := masked - int(mask.sum())) > 0:
        area = rng.uniform(min(_LEAST_PATCHES, missing), missing)
        aspect = math.exp(rng.uniform(math.log(_LEAST_ASPECT), -math.log(_LEAST_ASPECT)))
        h = min(max(round(math.sqrt(area * aspect)), 1), height)
        w = min(max(round(math.sqrt(area / aspect)), 1), width)
        top, left = rng.integers(height - h, endpoint=True), rng.integers(width - w, endpoint=True)
        block = mask[top : top + h, left : left + w]
        places = np.argwhere(~block)
        if len(places) > missing:
            axis, sign = rng.integers(2), rng.choice([-1, 1])
            places = places[np.lexsort((places[:, 1 - axis], sign * places[:, axis]))][:missing]
        block[places[:, 0], places[:, 1]] = True
    return mask
