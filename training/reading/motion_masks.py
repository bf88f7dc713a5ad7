"""Visible patches drawn by how much they move (TrackMAE's motion-guided masking, its figures 3 and 5).

TrackMAE samples from a half that moves more and one that moves less. What its released code leaves to chance is settled
here: patches that move alike are ranked at random, not by their place in the frame; no patch is drawn twice, so that
every clip shows as many as it should; and a patch without a measurement counts neither as moving nor as still.

Axis legend: t tubelets, (h, w) patches, (Gh, Gw) points of the view's grid, L steps, N = h * w.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_specs.schema import UNIT_PX
from training.recipe import Mask

Motion = NDArray[np.float64]

STILL_PX = 0.1
"""What moves by less than this in a step, in pixels of the view, is still: a tracker cannot tell."""


def patch_motion(displacement: NDArray[np.floating[Any]], valid: NDArray[np.bool_], per_side: int) -> Motion:
    """How much each patch of a clip moves: float64 (h, w), in pixels of the view per step; NaN where nothing says.

    The mean length of the valid steps of all its points, over all tubelets. displacement: (t, Gh, Gw, L, 2), x and y in
    pixels of the view; valid: (t, Gh, Gw, L); per_side: points along a patch's side.
    """
    lengths = np.where(valid, np.sqrt(np.einsum("...c,...c->...", displacement, displacement)), 0)
    of_points = lengths.sum(axis=(0, 3), dtype=np.float64), np.count_nonzero(valid, axis=(0, 3))
    rows, columns = (n // per_side for n in valid.shape[1:3])
    total, count = (values.reshape(rows, per_side, columns, per_side).sum(axis=(1, 3)) for values in of_points)
    motion = np.full((rows, columns), np.nan)
    np.divide(total, count, out=motion, where=count > 0)
    return motion


def sample_visible(
    motion: Motion, count: int, mask: Mask, high_share: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw `count` of a clip's patches to be visible: bool (h, w).

    motion: (h, w), of `patch_motion`. What is less than `STILL_PX` is taken for that, and a patch of which nothing is
    known for the median of the others.

    `motion-bins`: int(ρ * count) of them, drawn uniformly, are among the ceil(N / 2) patches that move most, the others
    among the rest; ρ is drawn from the range `high_share`. Where a bin has too few, all of it is visible and the other
    bin gives more. What moves alike is ranked at random.

    `motion-proportional`, `motion-inverse`: one after the other without replacement, each with a chance proportional to
    the motion, or to its inverse.
    """
    known = np.isfinite(motion)
    moves = np.where(known, motion, np.median(motion[known]) if known.any() else 0.0).ravel()
    moves = np.maximum(moves, STILL_PX)
    if mask == "motion-bins":
        drawn = _from_bins(moves, count, rng.uniform(*high_share), rng)
    else:
        # Efraimidis & Spirakis (2006): the smallest of exponential times at these rates are such a sample
        times = rng.standard_exponential(len(moves)) * (moves if mask == "motion-inverse" else 1 / moves)
        drawn = np.argsort(times)[:count]
    visible = np.zeros(moves.shape, dtype=np.bool_)
    visible[drawn] = True
    return visible.reshape(motion.shape)


def _from_bins(moves: Motion, count: int, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    # in whole units of the store, but from a random fraction on: no speed lies where rounding errors decide
    units = np.floor(moves / UNIT_PX + rng.random())
    order = np.lexsort((rng.random(len(moves)), -units))
    high, low = np.split(order, [-(-len(order) // 2)])
    of_high = min(max(int(share * count), count - len(low)), len(high))
    return np.concatenate([rng.permutation(high)[:of_high], rng.permutation(low)[: count - of_high]])
