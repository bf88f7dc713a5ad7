"""SURF: interest points and upright descriptors (Bay, Ess, Tuytelaars & Van Gool 2008, "Speeded-Up Robust Features").

Points are the maxima, over position and scale, of the determinant of the Hessian, whose derivatives are box filters on
an integral image (section 3). Every filter is computed at every pixel, in the second octave too, and maxima are refined
to a few hundredths of a pixel. Box filters have odd sides and are centred on a pixel, so nothing is half a pixel off:
(0, 0) is the centre of the top-left pixel.

Descriptors are U-SURF's: 64 sums of Haar responses, without an orientation (section 4). Between neighbouring frames
that is both faster and more distinctive; turns of up to about 15 degrees are tolerated.
"""

import math

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

# The sides of the box filters. Octave 1 is 9, 15, 21, 27 and octave 2 is 15, 27, 39, 51 (section 3.3); a point is found
# at the inner two of an octave, between the sizes on either side of them.
FILTER_SIZES = (9, 15, 21, 27, 39, 51)
_SIZES = np.array(FILTER_SIZES)
_NEIGHBOURS = np.array([[0, 1, 2], [1, 2, 3], [1, 3, 4], [3, 4, 5]])
# A filter of side 9 approximates Gaussian derivatives of sigma 1.2.
_SIGMA_PER_SIDE = 1.2 / 9
# Balances Dxy's box filter against those of Dxx and Dyy (eq. 3).
_DXY_WEIGHT = np.float32(0.9**2)
# In grey levels squared: what a blob one to two grey levels high gives. Dark videos need them; below is only rounding.
_LEAST_RESPONSE = np.float32(0.1)
# Samples of a descriptor along a side, at a spacing of sigma, and subregions (section 4.2); weights of sigma 3.3 sigma.
_SAMPLES, _SUBREGIONS = 20, 4
_WEIGHT_SIGMA = 3.3

_fast = numba.njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


def surf(
    gray: NDArray[np.uint8], max_points: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The strongest points of a grey frame uint8 (height, width), strongest first, and their descriptors.

    Returns points (N, 2) as x, y in pixels, their sigma (N,) in pixels, and descriptors (N, 64) of unit length, all
    float32, N <= max_points. A frame with a side below 23 has none: the filters do not fit.
    """
    integral = cv2.integral(gray)
    found = refined_maxima(hessian_responses(integral))
    order = np.argsort(-found[:, 3], kind="stable")[:max_points]
    points = np.ascontiguousarray(found[order, :2])
    sigma = found[order, 2]
    return points, sigma, describe(integral, points, sigma)


def hessian_responses(integral: NDArray[np.int32]) -> NDArray[np.float32]:
    """Determinant of the Hessian (eq. 3) by box filters of each size: float32 (6, height, width), grey levels squared.

    integral: int32 (height + 1, width + 1), sums over the pixels above and to the left of a pixel's top left corner.
    The response is 0 where the filter reaches beyond the frame.
    """
    height, width = integral.shape[0] - 1, integral.shape[1] - 1
    responses = np.zeros((len(FILTER_SIZES), height, width), dtype=np.float32)
    for level, side in enumerate(FILTER_SIZES):
        if side <= min(height, width):
            _box_hessian(integral, side, responses[level])
    return responses


@_fast
def _box_hessian(integral: NDArray[np.int32], side: int, response: NDArray[np.float32]) -> None:
    height, width = response.shape
    lobe, half, mid = side // 3, side // 2, side // 6
    inner = width - 2 * half
    area = np.float32(1 / (side * side))
    xx = np.empty(width + 1, dtype=np.int32)
    yy = np.empty(width + 1, dtype=np.int32)
    xy = np.empty(width + 1, dtype=np.int32)
    for y in range(half, height - half):
        # sums down the columns first, then along the row; one output to each loop, or they are not vectorised
        top, bottom = integral[y - lobe + 1], integral[y + lobe]
        for x in range(width + 1):
            xx[x] = bottom[x] - top[x]
        outer_top, inner_top = integral[y - half], integral[y - mid]
        inner_bottom, outer_bottom = integral[y + mid + 1], integral[y + half + 1]
        for x in range(width + 1):
            yy[x] = outer_bottom[x] - outer_top[x] - 3 * (inner_bottom[x] - inner_top[x])
        a, b, c, d = integral[y - lobe], integral[y], integral[y + 1], integral[y + lobe + 1]
        for x in range(width + 1):
            xy[x] = b[x] - a[x] - d[x] + c[x]
        xx_left, xx_mid_left = xx, xx[half - mid :]
        xx_mid_right, xx_right = xx[half + mid + 1 :], xx[2 * half + 1 :]
        yy_left, yy_right = yy[half - lobe + 1 :], yy[half + lobe :]
        xy_a, xy_b, xy_c, xy_d = xy[half - lobe :], xy[half:], xy[half + 1 :], xy[half + lobe + 1 :]
        out = response[y, half : half + inner]
        for x in range(inner):
            dxx = area * np.float32(np.int32(xx_right[x] - xx_left[x] - 3 * (xx_mid_right[x] - xx_mid_left[x])))
            dyy = area * np.float32(np.int32(yy_right[x] - yy_left[x]))
            dxy = area * np.float32(np.int32(xy_b[x] - xy_a[x] - xy_d[x] + xy_c[x]))
            out[x] = dxx * dyy - _DXY_WEIGHT * (dxy * dxy)


def refined_maxima(responses: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maxima of the responses among their 26 neighbours in position and scale: float32 (M, 4), x, y, sigma, response.

    Each is refined by quadratics through its neighbours' values, and dropped if they have no maximum within a sample.
    """
    return np.asarray(_refined_maxima(responses, _SIZES, _NEIGHBOURS))


@_fast
def _refined_maxima(
    responses: NDArray[np.float32], sizes: NDArray[np.int64], neighbours: NDArray[np.int64]
) -> NDArray[np.float32]:
    _, height, width = responses.shape
    # of two neighbours only one can be a maximum: at most one in each 2 x 2 block
    found = np.empty((len(neighbours) * ((height + 1) // 2) * ((width + 1) // 2), 4), dtype=np.float32)
    count = 0
    is_peak = np.empty(width, dtype=np.uint8)
    for triple in neighbours:
        below, level, above = responses[triple[0]], responses[triple[1]], responses[triple[2]]
        step = sizes[triple[2]] - sizes[triple[1]]
        border = sizes[triple[2]] // 2 + 1
        inner = width - 2 * border
        for y in range(border, height - border):
            _sieve(level, y, border, is_peak)
            for sieved in range(inner):
                x = sieved + border
                if is_peak[sieved] and _is_maximum(below, level, above, y, x):
                    ok, dx, dy, ds, value = _refine(below, level, above, y, x)
                    if ok:
                        found[count, 0] = x + dx
                        found[count, 1] = y + dy
                        found[count, 2] = (sizes[triple[1]] + ds * step) * _SIGMA_PER_SIDE
                        found[count, 3] = value
                        count += 1
    return found[:count].copy()


@_fast
def _sieve(level: NDArray[np.float32], y: int, border: int, is_peak: NDArray[np.uint8]) -> None:
    """Row y's peaks among four neighbours: without a branch, and a function of its own, so that it is vectorised."""
    row, left, right = level[y, border:], level[y, border - 1 :], level[y, border + 1 :]
    up, down = level[y - 1, border:], level[y + 1, border:]
    for x in range(level.shape[1] - 2 * border):
        v = row[x]
        is_peak[x] = (v > _LEAST_RESPONSE) & (v > left[x]) & (v >= right[x]) & (v > up[x]) & (v >= down[x])


@_fast
def _is_maximum(
    below: NDArray[np.float32], level: NDArray[np.float32], above: NDArray[np.float32], y: int, x: int
) -> bool:
    """Whether level[y, x] is above its neighbours before it in raster order and not below those after it."""
    v = level[y, x]
    for j in range(y - 1, y + 2):
        for i in range(x - 1, x + 2):
            if below[j, i] >= v or above[j, i] > v:
                return False
    diagonals = level[y - 1, x - 1] >= v or level[y - 1, x + 1] >= v or level[y + 1, x - 1] > v
    return not (diagonals or level[y + 1, x + 1] > v)


@_fast
def _refine(
    below: NDArray[np.float32], level: NDArray[np.float32], above: NDArray[np.float32], y: int, x: int
) -> tuple[bool, float, float, float, float]:
    """Offsets in x, y and scale, in samples, of the maximum at level[y, x], and its response; false if none.

    One quadratic in all three (Brown & Lowe 2002) is 0.1 px off for a small blob, for a peak's width changes too much
    from one filter size to the next. So each size has its quadratic in x and y, the peaks' heights have one in scale,
    and the position is interpolated between the peaks on either side of that scale.
    """
    ok, dx, dy, peak = _peak(level, y, x)
    ok_below, dx_below, dy_below, peak_below = _peak(below, y, x)
    ok_above, dx_above, dy_above, peak_above = _peak(above, y, x)
    slope, bend = 0.5 * (peak_above - peak_below), peak_above + peak_below - 2 * peak
    if not (ok and bend < 0 and abs(slope) < -bend):
        return False, 0.0, 0.0, 0.0, 0.0
    ds = -slope / bend
    if ds < 0 and ok_below:
        dx, dy = dx - ds * (dx_below - dx), dy - ds * (dy_below - dy)
    elif ds > 0 and ok_above:
        dx, dy = dx + ds * (dx_above - dx), dy + ds * (dy_above - dy)
    return True, dx, dy, ds, peak + 0.5 * slope * ds


@_fast
def _peak(response: NDArray[np.float32], y: int, x: int) -> tuple[bool, float, float, float]:
    """Offsets in x and y and height of the peak of the quadratic around [y, x].

    Where that is no peak, or a pixel away or more: false, no offsets, and the height of the pixel.
    """
    v = np.float64(response[y, x])
    gx = 0.5 * (response[y, x + 1] - response[y, x - 1])
    gy = 0.5 * (response[y + 1, x] - response[y - 1, x])
    hxx = response[y, x + 1] + response[y, x - 1] - 2 * v
    hyy = response[y + 1, x] + response[y - 1, x] - 2 * v
    hxy = 0.25 * (response[y + 1, x + 1] - response[y + 1, x - 1] - response[y - 1, x + 1] + response[y - 1, x - 1])
    determinant = hxx * hyy - hxy * hxy
    if not (determinant > 0 and hxx < 0):
        return False, 0.0, 0.0, v
    dx = (hxy * gy - hyy * gx) / determinant
    dy = (hxy * gx - hxx * gy) / determinant
    if not (abs(dx) < 1 and abs(dy) < 1):
        return False, 0.0, 0.0, v
    return True, dx, dy, v + 0.5 * (gx * dx + gy * dy)


def describe(
    integral: NDArray[np.int32], points: NDArray[np.float32], sigma: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Upright descriptors (section 4.2) of points (N, 2) at scales sigma (N,): float32 (N, 64) of unit length.

    Subregion by subregion, row-major: the sums of dx, dy, |dx| and |dy|. Where the window reaches beyond the frame, the
    responses nearest to it inside are repeated.
    """
    return np.asarray(_describe(integral, points, sigma, _WEIGHTS))


_OFFSETS = np.arange(_SAMPLES) - (_SAMPLES - 1) / 2
_WEIGHTS = np.exp(-(_OFFSETS**2) / (2 * _WEIGHT_SIGMA**2)).astype(np.float32)


@_fast
def _describe(
    integral: NDArray[np.int32],
    points: NDArray[np.float32],
    sigma: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> NDArray[np.float32]:
    height, width = integral.shape[0] - 1, integral.shape[1] - 1
    descriptors = np.zeros((len(points), 4 * _SUBREGIONS * _SUBREGIONS), dtype=np.float32)
    columns = np.empty(_SAMPLES, dtype=np.int64)
    per_region = _SAMPLES // _SUBREGIONS
    for n in range(len(points)):
        scale = sigma[n]
        h = max(1, int(scale + np.float32(0.5)))  # half of the Haar filter's side
        for i in range(_SAMPLES):
            # between pixels, where filters of an even side are centred; pixel x begins at x in the integral image
            at = points[n, 0] + np.float32(0.5) + scale * np.float32(i - 0.5 * (_SAMPLES - 1))
            columns[i] = min(max(math.floor(at + np.float32(0.5)), h), width - h)
        out = descriptors[n]
        for j in range(_SAMPLES):
            at = points[n, 1] + np.float32(0.5) + scale * np.float32(j - 0.5 * (_SAMPLES - 1))
            row = min(max(math.floor(at + np.float32(0.5)), h), height - h)
            top, middle, bottom = integral[row - h], integral[row], integral[row + h]
            for region in range(_SUBREGIONS):
                sum_x = sum_y = sum_abs_x = sum_abs_y = np.float32(0)
                for i in range(region * per_region, (region + 1) * per_region):
                    left, centre, right = columns[i] - h, columns[i], columns[i] + h
                    total = bottom[right] - bottom[left] - top[right] + top[left]
                    left_half = bottom[centre] - bottom[left] - top[centre] + top[left]
                    upper_half = middle[right] - middle[left] - top[right] + top[left]
                    dx = weights[i] * np.float32(np.int32(total - 2 * left_half))
                    dy = weights[i] * np.float32(np.int32(total - 2 * upper_half))
                    sum_x += dx
                    sum_y += dy
                    sum_abs_x += abs(dx)
                    sum_abs_y += abs(dy)
                k = 4 * (j // per_region * _SUBREGIONS + region)
                out[k] += weights[j] * sum_x
                out[k + 1] += weights[j] * sum_y
                out[k + 2] += weights[j] * sum_abs_x
                out[k + 3] += weights[j] * sum_abs_y
        norm = np.float32(0)
        for k in range(len(out)):
            norm += out[k] * out[k]
        if norm > 0:
            out *= np.float32(1) / math.sqrt(norm)
    return descriptors
