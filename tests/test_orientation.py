import math

import numba
import numpy as np
import pytest

from extraction.orientation import full_turn, half_turn


@numba.njit
def over(x, y):
    full, half = np.empty(x.size, np.float32), np.empty(x.size, np.float32)
    for i in range(x.size):
        full[i], half[i] = full_turn(x[i], y[i]), half_turn(x[i], y[i])
    return full, half


def test_angles_are_those_of_arctan2():
    """All around the circle, at lengths from 1e-6 to 1e6."""
    angle = np.linspace(0, 2 * np.pi, 100_003, endpoint=False)
    length = 10.0 ** np.random.default_rng(0).uniform(-6, 6, angle.size)
    x, y = (length * np.cos(angle)).astype(np.float32), (length * np.sin(angle)).astype(np.float32)
    full, half = over(x, y)
    truth = np.arctan2(y.astype(np.float64), x) % (2 * np.pi) * 4 / np.pi
    assert full.min() >= 0
    assert full.max() <= 8
    assert half.max() <= 4
    assert np.abs((full - truth + 4) % 8 - 4).max() < 1e-6
    assert np.abs((half - truth + 2) % 4 - 2).max() < 1e-6


@pytest.mark.parametrize(
    ("x", "y", "octants"), [(1, 0, 0), (0, 3, 2), (-2, 0, 4), (0, -5, 6), (0, 0, 0), (-1, -0.0, 4), (-0.0, 1, 2)]
)
def test_the_axes_are_exact(x, y, octants):
    full, half = over(np.array([x], np.float32), np.array([y], np.float32))
    assert full[0] == octants
    assert half[0] == math.fmod(octants, 4) or (x < 0 and half[0] == 4)  # both are the x axis
