"""The orientation of a vector, fast enough for every pixel: written so that a loop over pixels is vectorised.

Angles are counted in eighths of a turn (octants) from x towards y: 0 is +x, 2 is +y (down), 4 is -x. They are right to
1e-7 of a turn, and exact on the axes.

Numba compiles these functions into their callers and does not notice in a caller's cache when this file changes.
"""

import math

import numba
import numpy as np

# atan t for 0 <= t <= 1: Abramowitz & Stegun, formula 4.4.49, right to 2e-8; here in octants, 4 / pi times as much
_C = [
    np.float32(4 / math.pi * c)
    for c in (
        1.0,
        -0.3333314528,
        0.1999355085,
        -0.1420889944,
        0.1065626393,
        -0.0752896400,
        0.0429096138,
        -0.0161657367,
        0.0028662257,
    )
]
_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8 = _C
_TINY = np.float32(1e-30)  # keeps 0 / 0 out; far below any gradient
_ZERO, _TWO, _FOUR, _EIGHT = np.float32(0), np.float32(2), np.float32(4), np.float32(8)


@numba.njit(cache=True, error_model="numpy")
def half_turn(dx: np.float32, dy: np.float32) -> np.float32:
    """Angle of the line through (dx, dy), float32 within 0 ... 4 octants; both ends are the x axis. 0 for (0, 0)."""
    ax, ay = abs(dx), abs(dy)
    longer, shorter = max(ax, ay), min(ax, ay)
    t = shorter / max(longer, _TINY)
    s = t * t
    octants = t * (_C0 + s * (_C1 + s * (_C2 + s * (_C3 + s * (_C4 + s * (_C5 + s * (_C6 + s * (_C7 + s * _C8))))))))
    octants = _TWO - octants if ay > ax else octants
    return _FOUR - octants if (dx < _ZERO) != (dy < _ZERO) else octants


@numba.njit(cache=True, error_model="numpy")
def full_turn(dx: np.float32, dy: np.float32) -> np.float32:
    """Angle of the vector (dx, dy), float32 within 0 ... 8 octants; both ends are +x. 0 for (0, 0)."""
    half = half_turn(dx, dy)
    return np.float32(half + _FOUR) if dy < _ZERO else half
