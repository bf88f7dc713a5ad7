"""The inner loops of TV-L1 flow (Zach, Pock & Bischof 2007, as algorithm 1 of Sánchez Pérez et al., IPOL 2013).

An image of (height, width) is a flat float32 array of height + 2 rows of `row_length(width)` numbers: a row of padding
above and below, and at least two numbers of padding on the right, so that the left neighbour of a row's first pixel is
the padding that ends the row before. The dual variables' padding stays zero, which is the divergence's boundary
condition; u repeats its last column and row into its padding, which is the
gradient's. Flat arrays make each loop one long run over several rows that compiles to wide vector instructions, and
rows that begin on a cache line keep its loads from straddling two.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
"""One flat, padded image."""

_LINE = 16  # float32 in a cache line, and in the widest vector register
_CHUNK_ROWS = 16  # small enough for the second-level cache, long enough for the loops to pay
# `max` and `min` have no NaN to look after, and sums may be taken in the order that the vector unit likes
_FAST = {"contract", "reassoc", "nsz", "arcp", "nnan", "ninf"}
FLAT = np.float32(1e-6)  # squared gradient (grey levels per px)² below which a pixel says nothing


def row_length(width: int) -> int:
    """Numbers from one row of a plane to the next."""
    return (width + _LINE + 1) // _LINE * _LINE


def new_plane(height: int, width: int) -> Plane:
    """A plane of zeros whose rows begin on cache lines."""
    count = (height + 2) * row_length(width)
    raw = np.zeros(count + _LINE, np.float32)
    offset = -raw.ctypes.data // raw.itemsize % _LINE
    return raw[offset : offset + count]


def image_of(plane: Plane, height: int, width: int) -> NDArray[np.float32]:
    """The pixels of a plane, a view of shape (height, width)."""
    return plane.reshape(height + 2, row_length(width))[1 : height + 1, :width]


@numba.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _primal(u1, u2, ix, iy, inverse, rho, p11, left11, p12, above12, p21, left21, p22, above22, bound, theta):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Thresholding (IPOL eq. 15) and u = v + theta div p (eq. 13), in place; the sum of squared changes of u."""
    change = np.float32(0)
    for i in range(len(u1)):
        step = -(rho[i] + ix[i] * u1[i] + iy[i] * u2[i]) * inverse[i]
        step = bound if step > bound else step
        step = -bound if step < -bound else step
        d1 = step * ix[i] + theta * (p11[i] - left11[i] + p12[i] - above12[i])
        d2 = step * iy[i] + theta * (p21[i] - left21[i] + p22[i] - above22[i])
        u1[i] += d1
        u2[i] += d2
        change += d1 * d1 + d2 * d2
    return change


@numba.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _dual(u, right, below, px, py, weight, step):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """p = (p + step grad u) / (1 + step weight |grad u|) (IPOL eq. 14), in place: |p| stays below 1 / weight."""
    one = np.float32(1)
    for i in range(len(u)):
        gx = right[i] - u[i]
        gy = below[i] - u[i]
        scale = one / (one + step * weight[i] * math.sqrt(gx * gx + gy * gy))
        px[i] = (px[i] + step * gx) * scale
        py[i] = (py[i] + step * gy) * scale


@numba.njit(cache=True, error_model="numpy")
def iterate(
    flow: tuple[Plane, Plane],
    dual: tuple[Plane, Plane, Plane, Plane],
    linear: tuple[Plane, Plane, Plane, Plane],
    weight: Plane,
    size: tuple[int, int],
    count: int,
    steps: tuple[np.float32, np.float32, np.float32],
    tolerance: float,
) -> tuple[int, bool]:
    """Up to `count` iterations on flow u1, u2 and dual variables p11, p12, p21, p22, in place.

    linear: the linearised residual rho + ix u1 + iy u2 as (ix, iy, 1 / |(ix, iy)|², rho); see `linearise`.
    weight: one over the smoothness term's weight at each pixel; 1 for plain total variation.
    steps: bound lambda theta of a thresholding step, theta, dual step tau / theta.
    tolerance: stop once the mean squared change of u is no more than this (px²); a negative one never stops.
    Each row's dual variables are updated as soon as the row below has its new u, which nothing else reads in between:
    the numbers are those of alternating full sweeps. Returns the iterations done and whether the tolerance was met.
    """
    u1, u2 = flow
    p11, p12, p21, p22 = dual
    ix, iy, inverse, rho = linear
    height, width = size
    bound, theta, dual_step = steps
    row = len(u1) // (height + 2)
    chunks = (height + _CHUNK_ROWS - 1) // _CHUNK_ROWS
    for done in range(1, count + 1):
        change = 0.0
        for chunk in range(chunks):
            first = 1 + chunk * _CHUNK_ROWS
            last = min(first + _CHUNK_ROWS, height + 1)
            a, b = first * row, last * row
            change += _primal(
                u1[a:b], u2[a:b], ix[a:b], iy[a:b], inverse[a:b], rho[a:b],
                p11[a:b], p11[a - 1 : b - 1], p12[a:b], p12[a - row : b - row],
                p21[a:b], p21[a - 1 : b - 1], p22[a:b], p22[a - row : b - row], bound, theta,
            )  # fmt: skip
            for y in range(first, last):
                end = y * row + width
                u1[end] = u1[end - 1]
                u2[end] = u2[end - 1]
            ready = last - 1
            if chunk == chunks - 1:
                for i in range(b, b + row):
                    u1[i] = u1[i - row]
                    u2[i] = u2[i - row]
                ready = last
            first = max(first - 1, 1)
            a, b = first * row, ready * row
            _dual(u1[a:b], u1[a + 1 : b + 1], u1[a + row : b + row], p11[a:b], p12[a:b], weight[a:b], dual_step)
            _dual(u2[a:b], u2[a + 1 : b + 1], u2[a + row : b + row], p21[a:b], p22[a:b], weight[a:b], dual_step)
            for y in range(first, ready):
                for i in range(y * row + width, (y + 1) * row):
                    p11[i] = p12[i] = p21[i] = p22[i] = 0
        if change <= tolerance * height * width:
            return done, True
    return count, False


@numba.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _average(a, b, mean):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(len(a)):
        mean[i] = np.float32(0.5) * (a[i] + b[i])


@numba.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _linear_mean(left, right, above, below, a, warped, u1, u2, ix, iy, inverse, rho):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    half, one, zero = np.float32(0.5), np.float32(1), np.float32(0)
    for i in range(len(a)):
        gx = half * (right[i] - left[i])
        gy = half * (below[i] - above[i])
        square = gx * gx + gy * gy
        ix[i] = gx
        iy[i] = gy
        inverse[i] = one / square if square > FLAT else zero
        rho[i] = warped[i] - gx * u1[i] - gy * u2[i] - a[i]


@numba.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _linear_given(gx, gy, a, warped, u1, u2, inverse, rho):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    one, zero = np.float32(1), np.float32(0)
    for i in range(len(a)):
        square = gx[i] * gx[i] + gy[i] * gy[i]
        inverse[i] = one / square if square > FLAT else zero
        rho[i] = warped[i] - gx[i] * u1[i] - gy[i] * u2[i] - a[i]


@numba.njit(cache=True, error_model="numpy")
def _silence_padding(inverse: Plane, size: tuple[int, int]) -> None:
    """No data term in the padding, so that nothing moves there."""
    height, width = size
    row = len(inverse) // (height + 2)
    for y in range(1, height + 1):
        for i in range(y * row + width, (y + 1) * row):
            inverse[i] = 0


@numba.njit(cache=True, error_model="numpy")
def linearise(
    a: Plane,
    warped: Plane,
    flow: tuple[Plane, Plane],
    linear: tuple[Plane, Plane, Plane, Plane],
    mean: Plane,
    size: tuple[int, int],
) -> None:
    """Fill `linear` (see `iterate`) around the flow under which b was warped to `warped`.

    The gradient is that of the mean of both images, by central differences with the border repeated: half the noise of
    either's, and symmetric in time. `mean` is room to work in.
    """
    height, width = size
    row = len(a) // (height + 2)
    ix, iy, inverse, rho = linear
    _average(a, warped, mean)
    for y in range(1, height + 1):
        mean[y * row - 1] = mean[y * row]
        mean[y * row + width] = mean[y * row + width - 1]
    for i in range(row, row + width):
        mean[i - row] = mean[i]
    bottom = height * row
    for i in range(bottom, bottom + width):
        mean[i + row] = mean[i]
    s, e = row, (height + 1) * row
    _linear_mean(
        mean[s - 1 : e - 1], mean[s + 1 : e + 1], mean[s - row : e - row], mean[s + row : e + row],
        a[s:e], warped[s:e], flow[0][s:e], flow[1][s:e], ix[s:e], iy[s:e], inverse[s:e], rho[s:e],
    )  # fmt: skip
    _silence_padding(inverse, size)


@numba.njit(cache=True, error_model="numpy")
def linearise_given_gradient(
    a: Plane,
    warped: Plane,
    flow: tuple[Plane, Plane],
    linear: tuple[Plane, Plane, Plane, Plane],
    size: tuple[int, int],
) -> None:
    """As `linearise`, with the gradient that `linear` already holds: b's, warped as b was (IPOL eq. 10)."""
    ix, iy, inverse, rho = linear
    _linear_given(ix, iy, a, warped, flow[0], flow[1], inverse, rho)
    _silence_padding(inverse, size)


@numba.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _inverse_weight(left, right, above, below, weight, softness, most):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    half, one = np.float32(0.5), np.float32(1)
    for i in range(len(weight)):
        gx = half * (right[i] - left[i])
        gy = half * (below[i] - above[i])
        factor = one + math.sqrt(gx * gx + gy * gy) * softness
        factor = factor * factor
        factor = factor * factor
        weight[i] = factor if factor < most else most


@numba.njit(cache=True, error_model="numpy")
def edge_weight(image: Plane, weight: Plane, size: tuple[int, int], edge: float, most: float) -> None:
    """Fill `weight` (see `iterate`) with min((1 + |grad image| / (4 edge))⁴, most), which is near exp(|grad| / edge).

    The flow may then break where the image has an edge (Wedel et al. 2009, section 3), and breaks there rather than
    beside it. edge: grey levels per px. Pixels at the border take the padding for their neighbour and so weigh `most`
    or less; the flow's gradient across the border is zero whatever they weigh.
    """
    height, _ = size
    row = len(image) // (height + 2)
    s, e = row, (height + 1) * row
    _inverse_weight(
        image[s - 1 : e - 1], image[s + 1 : e + 1], image[s - row : e - row], image[s + row : e + row],
        weight[s:e], np.float32(0.25 / edge), np.float32(most),
    )  # fmt: skip
