"""How positions and histograms become the store's integers, and back. Axis legend: N points, L steps."""

import numpy as np
from numpy.typing import NDArray

from data_specs.schema import UNIT_PX

MOST_UNITS = 32767
"""Longest step that a displacement can hold, along either axis, in units of 1/64 px."""
MAX_STEP_PX = MOST_UNITS * UNIT_PX
"""The same in pixels, just under 512."""
HISTOGRAM_LEVELS = 254
"""The largest code of a histogram; 255 is the fill value."""


def encode_positions(positions: NDArray[np.floating]) -> NDArray[np.int16]:
    """Positions (N, L + 1, 2) in pixels to displacements (N, L, 2) in units of 1/64 px.

    What is rounded is each position's distance from the first one, not each step: the running sum of the
    displacements is at most half a unit off at every step and does not drift.
    Raises ValueError for a step that does not fit.
    """
    units = np.rint((positions - positions[:, :1]) / UNIT_PX)
    steps = np.diff(units, axis=1)
    # rounding can push a step of just MAX_STEP_PX over by one unit
    if steps.size and not np.abs(steps).max() <= MOST_UNITS:
        raise ValueError(f"a step of {np.abs(steps).max() * UNIT_PX} px; the longest that fits is {MAX_STEP_PX} px")
    return steps.astype(np.int16)


def within_reach(positions: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Positions (N, L + 1, 2) in pixels as near as displacements come, which hold `MAX_STEP_PX` along either axis.

    A point that is estimated farther away follows by the longest steps there are until it is there. Returns the
    positions, float64, unchanged wherever they can be, and bool (N, L + 1), where that is.
    """
    units = np.rint((positions - positions[:, :1]) / UNIT_PX)
    nearest = units.copy()
    for k in range(1, units.shape[1]):
        nearest[:, k] = nearest[:, k - 1] + np.clip(units[:, k] - nearest[:, k - 1], -MOST_UNITS, MOST_UNITS)
    reached = (nearest == units).all(axis=-1)
    return np.where(reached[..., None], positions, positions[:, :1] + nearest * UNIT_PX), reached


def decode_positions(displacement: NDArray[np.int16], first: NDArray[np.floating]) -> NDArray[np.float64]:
    """Displacements (N, L, 2) and the grid points (N, 2) to positions (N, L + 1, 2) in pixels."""
    steps = np.cumsum(displacement.astype(np.int64), axis=1) * UNIT_PX
    return np.asarray(first[:, None] + np.concatenate([np.zeros_like(steps[:, :1]), steps], axis=1))


def encode_flow(flow: NDArray[np.floating]) -> NDArray[np.int16]:
    """Flow (N, 2) in pixels to units of 1/64 px. Raises ValueError where it does not fit."""
    units = np.rint(flow / UNIT_PX)
    if units.size and not np.abs(units).max() <= MOST_UNITS:
        raise ValueError(f"a flow of {np.abs(flow).max()} px; the longest that fits is {MAX_STEP_PX} px")
    return np.asarray(units.astype(np.int16))


def decode_flow(codes: NDArray[np.int16]) -> NDArray[np.float32]:
    """The inverse of `encode_flow`, float32 (N, 2), in pixels."""
    return codes.astype(np.float32) * np.float32(UNIT_PX)


def encode_histograms(histograms: NDArray[np.floating]) -> tuple[NDArray[np.uint8], np.float32]:
    """Histograms of one start row, of any shape, all >= 0, to (codes, scale): code = 254 * sqrt(value / scale).

    The scale is the row's largest value. The square root spends the levels where the values are: a histogram's
    small bins keep their relative size when it is standardised.
    """
    scale = np.float32(histograms.max(initial=0.0))
    if scale <= 0:
        return np.zeros(histograms.shape, dtype=np.uint8), np.float32(0)
    return np.rint(np.sqrt(histograms / scale) * HISTOGRAM_LEVELS).astype(np.uint8), scale


def decode_histograms(codes: NDArray[np.uint8], scale: float) -> NDArray[np.float32]:
    """The inverse of `encode_histograms`, float32 of the codes' shape, in the histograms' own unit."""
    return np.square(codes.astype(np.float32) / HISTOGRAM_LEVELS) * np.float32(scale)
