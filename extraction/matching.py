"""Mutual nearest neighbours among two sets of descriptors.

The distances are worked out in a kernel of our own and not by a matrix product, whose threads (BLAS) would meet those
of the workers on the other cores; a sum's order, hence its last bit, is always the same.
"""

import numba
import numpy as np
from numpy.typing import NDArray

_fast = numba.njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


def mutual_nearest(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs that are each other's nearest by Euclidean distance.

    a: (N, D), b: (M, D), float32 and finite. Returns indices into a, ascending, and into b: (K,) each. Of equally near
    ones the first counts.
    """
    nearest_in_b, nearest_in_a = _nearest(np.ascontiguousarray(a), np.ascontiguousarray(b.T))
    in_a = np.flatnonzero(nearest_in_a[nearest_in_b] == np.arange(len(a)))
    return in_a, nearest_in_b[in_a]


@_fast
def _nearest(a: NDArray[np.float32], b_t: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The nearest of b to each of a, and of a to each of b. b_t: b transposed (D, M)."""
    nearest_in_b = np.zeros(len(a), dtype=np.int64)
    nearest_in_a = np.zeros(b_t.shape[1], dtype=np.int64)
    best_of_b = np.full(b_t.shape[1], -np.inf, dtype=np.float32)
    half_power = np.zeros(b_t.shape[1], dtype=np.float32)
    for k in range(len(b_t)):
        _add_power(b_t[k], half_power)
    closeness = np.empty(b_t.shape[1], dtype=np.float32)
    for i in range(len(a)):
        power = np.float32(0)
        for k in range(a.shape[1]):
            power += a[i, k] * a[i, k]
        _closeness(a[i], b_t, np.float32(0.5) * power, half_power, closeness)
        nearest_in_b[i] = _first_largest(closeness)
        _keep_larger(closeness, i, best_of_b, nearest_in_a)
    return nearest_in_b, nearest_in_a


# Each loop in a function of its own, over few arrays: that is how they are vectorised.


@_fast
def _add_power(row: NDArray[np.float32], half_power: NDArray[np.float32]) -> None:
    for j in range(len(row)):
        half_power[j] += np.float32(0.5) * row[j] * row[j]


@_fast
def _closeness(
    a: NDArray[np.float32],
    b_t: NDArray[np.float32],
    half_power_of_a: np.float32,
    half_power_of_b: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Minus half the squared distances |a - b|^2 / 2 = |a|^2 / 2 + |b|^2 / 2 - a b: float32 (M,) into `out`."""
    for j in range(len(out)):
        out[j] = -half_power_of_a - half_power_of_b[j]
    whole = len(a) // 4 * 4
    for k in range(0, whole, 4):
        b0, b1, b2, b3 = b_t[k], b_t[k + 1], b_t[k + 2], b_t[k + 3]
        a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
        for j in range(len(out)):
            out[j] += a0 * b0[j] + a1 * b1[j] + a2 * b2[j] + a3 * b3[j]
    for k in range(whole, len(a)):
        row, a0 = b_t[k], a[k]
        for j in range(len(out)):
            out[j] += a0 * row[j]


@_fast
def _first_largest(values: NDArray[np.float32]) -> int:
    largest = values[0]
    for j in range(len(values)):
        largest = values[j] if values[j] > largest else largest
    for j in range(len(values)):
        if values[j] == largest:
            return j
    return 0


@_fast
def _keep_larger(
    values: NDArray[np.float32], index: int, largest: NDArray[np.float32], where: NDArray[np.int64]
) -> None:
    for j in range(len(values)):
        is_larger = values[j] > largest[j]
        where[j] = index if is_larger else where[j]
        largest[j] = values[j] if is_larger else largest[j]
