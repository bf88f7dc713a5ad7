"""The inner loops of TV-L1 flow, as Triton compiles them; `kernels` launches them and says what they compute.

An image is cut into tiles of STRIPS * ROWS x COLUMNS pixels, each of which one program keeps in registers. A warp has a
strip of ROWS rows, one thread for each column: a tile is a tuple with one (STRIPS, COLUMNS) tensor for each row of the
strips. So the pixel above or below is in another element of the tuple, the one beside it a shuffle within the warp, and
only a strip's first and last row pass through shared memory. At the tile's rim a pixel has no neighbour: what is
computed there is wrong, and wrong by one pixel more with each iteration. So tiles overlap, and only what lies a halo
inside is written, to new planes beside the old, which other programs still read.
"""

import triton
import triton.language as tl


@triton.jit
def _from_left(values, STRIPS: tl.constexpr, COLUMNS: tl.constexpr):
    index = tl.maximum(tl.arange(0, COLUMNS) - 1, 0)
    return tl.gather(values, tl.broadcast_to(index[None, :], (STRIPS, COLUMNS)), 1)


@triton.jit
def _from_right(values, STRIPS: tl.constexpr, COLUMNS: tl.constexpr):
    index = tl.minimum(tl.arange(0, COLUMNS) + 1, COLUMNS - 1)
    return tl.gather(values, tl.broadcast_to(index[None, :], (STRIPS, COLUMNS)), 1)


@triton.jit
def _from_strip_above(values, STRIPS: tl.constexpr, COLUMNS: tl.constexpr):
    index = tl.maximum(tl.arange(0, STRIPS) - 1, 0)
    return tl.gather(values, tl.broadcast_to(index[:, None], (STRIPS, COLUMNS)), 0)


@triton.jit
def _from_strip_below(values, STRIPS: tl.constexpr, COLUMNS: tl.constexpr):
    index = tl.minimum(tl.arange(0, STRIPS) + 1, STRIPS - 1)
    return tl.gather(values, tl.broadcast_to(index[:, None], (STRIPS, COLUMNS)), 0)


@triton.jit
def _divergences(px, py, first_column, y, STRIPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """div p of every row: px and py less their left and upper neighbours, which are 0 outside the image."""
    divergences = ()
    above = _from_strip_above(py[ROWS - 1], STRIPS, COLUMNS)
    for row in tl.static_range(ROWS):
        left = tl.where(first_column, 0.0, _from_left(px[row], STRIPS, COLUMNS))
        divergences = divergences + (px[row] - left + py[row] - tl.where(y + row == 0, 0.0, above),)
        above = py[row]
    return divergences


@triton.jit
def _dual_step(
    u, px, py, weight, step, last_column, y, last_y, STRIPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    new_px, new_py = (), ()
    below_strip = _from_strip_below(u[0], STRIPS, COLUMNS)
    for row in tl.static_range(ROWS):
        if row + 1 < ROWS:
            below = u[row + 1]
        else:
            below = below_strip
        gx = tl.where(last_column, 0.0, _from_right(u[row], STRIPS, COLUMNS) - u[row])
        gy = tl.where(y + row == last_y, 0.0, below - u[row])
        scale = 1.0 / (1.0 + step * weight[row] * tl.sqrt(gx * gx + gy * gy))
        new_px = new_px + ((px[row] + step * gx) * scale,)
        new_py = new_py + ((py[row] + step * gy) * scale,)
    return new_px, new_py


@triton.jit
def _load_rows(pointers, inside_column, y, height, width, other, ROWS: tl.constexpr):
    rows = ()
    for row in tl.static_range(ROWS):
        inside = inside_column & (y + row >= 0) & (y + row < height)
        rows = rows + (tl.load(pointers + row * width, mask=inside, other=other),)
    return rows


@triton.jit
def iterate_tile(
    flow, dual, linear, weight, new_flow, new_dual, height, width, tiles_x, count, bound, theta, step,
    HALO: tl.constexpr, STRIPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tile, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    plane = height * width
    first = tl.arange(0, STRIPS)[:, None] * ROWS
    column = tl.arange(0, COLUMNS)[None, :]
    y = (tile // tiles_x) * (STRIPS * ROWS - 2 * HALO) - HALO + first
    x = (tile % tiles_x) * (COLUMNS - 2 * HALO) - HALO + column
    inside_x = (x >= 0) & (x < width)
    first_column, last_column = x == 0, x == width - 1
    here = y * width + x
    flow += pair * 2 * plane + here
    dual += pair * 4 * plane + here
    linear += pair * 4 * plane + here
    u1 = _load_rows(flow, inside_x, y, height, width, 0.0, ROWS)
    u2 = _load_rows(flow + plane, inside_x, y, height, width, 0.0, ROWS)
    p11 = _load_rows(dual, inside_x, y, height, width, 0.0, ROWS)
    p12 = _load_rows(dual + plane, inside_x, y, height, width, 0.0, ROWS)
    p21 = _load_rows(dual + 2 * plane, inside_x, y, height, width, 0.0, ROWS)
    p22 = _load_rows(dual + 3 * plane, inside_x, y, height, width, 0.0, ROWS)
    ix = _load_rows(linear, inside_x, y, height, width, 0.0, ROWS)
    iy = _load_rows(linear + plane, inside_x, y, height, width, 0.0, ROWS)
    inverse = _load_rows(linear + 2 * plane, inside_x, y, height, width, 0.0, ROWS)
    rho = _load_rows(linear + 3 * plane, inside_x, y, height, width, 0.0, ROWS)
    smooth = _load_rows(weight + pair * plane + here, inside_x, y, height, width, 1.0, ROWS)
    for _ in range(count):
        div1 = _divergences(p11, p12, first_column, y, STRIPS, ROWS, COLUMNS)
        div2 = _divergences(p21, p22, first_column, y, STRIPS, ROWS, COLUMNS)
        new_u1, new_u2 = (), ()
        for row in tl.static_range(ROWS):
            change = -(rho[row] + ix[row] * u1[row] + iy[row] * u2[row]) * inverse[row]
            change = tl.minimum(tl.maximum(change, -bound), bound)
            new_u1 = new_u1 + (u1[row] + change * ix[row] + theta * div1[row],)
            new_u2 = new_u2 + (u2[row] + change * iy[row] + theta * div2[row],)
        u1, u2 = new_u1, new_u2
        p11, p12 = _dual_step(u1, p11, p12, smooth, step, last_column, y, height - 1, STRIPS, ROWS, COLUMNS)
        p21, p22 = _dual_step(u2, p21, p22, smooth, step, last_column, y, height - 1, STRIPS, ROWS, COLUMNS)
    new_flow += pair * 2 * plane + here
    new_dual += pair * 4 * plane + here
    own_x = inside_x & (column >= HALO) & (column < COLUMNS - HALO)
    for row in tl.static_range(ROWS):
        own = own_x & (first + row >= HALO) & (first + row < STRIPS * ROWS - HALO) & (y + row < height)
        tl.store(new_flow + row * width, u1[row], mask=own)
        tl.store(new_flow + plane + row * width, u2[row], mask=own)
        tl.store(new_dual + row * width, p11[row], mask=own)
        tl.store(new_dual + plane + row * width, p12[row], mask=own)
        tl.store(new_dual + 2 * plane + row * width, p21[row], mask=own)
        tl.store(new_dual + 3 * plane + row * width, p22[row], mask=own)


@triton.jit
def _bilinear(image, y, x, height, width, inside):
    y = tl.minimum(tl.maximum(y, 0.0), height - 1.0)
    x = tl.minimum(tl.maximum(x, 0.0), width - 1.0)
    y0, x0 = tl.floor(y).to(tl.int32), tl.floor(x).to(tl.int32)
    y1, x1 = tl.minimum(y0 + 1, height - 1), tl.minimum(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    top_left = tl.load(image + y0 * width + x0, mask=inside, other=0.0)
    top_right = tl.load(image + y0 * width + x1, mask=inside, other=0.0)
    low_left = tl.load(image + y1 * width + x0, mask=inside, other=0.0)
    low_right = tl.load(image + y1 * width + x1, mask=inside, other=0.0)
    top = top_left + fx * (top_right - top_left)
    low = low_left + fx * (low_right - low_left)
    return top + fy * (low - top)


@triton.jit
def linearise_tile(
    a, b, flow, linear, height, width, tiles_x, flat,
    STRIPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tile, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    plane = height * width
    first = tl.arange(0, STRIPS)[:, None] * ROWS
    column = tl.arange(0, COLUMNS)[None, :]
    y = (tile // tiles_x) * (STRIPS * ROWS - 2) - 1 + first
    x = (tile % tiles_x) * (COLUMNS - 2) - 1 + column
    inside_x = (x >= 0) & (x < width)
    here = y * width + x
    flow += pair * 2 * plane + here
    u1 = _load_rows(flow, inside_x, y, height, width, 0.0, ROWS)
    u2 = _load_rows(flow + plane, inside_x, y, height, width, 0.0, ROWS)
    gray = _load_rows(a + pair * plane + here, inside_x, y, height, width, 0.0, ROWS)
    warped, mean = (), ()
    for row in tl.static_range(ROWS):
        inside = inside_x & (y + row >= 0) & (y + row < height)
        found = _bilinear(b + pair * plane, y + row + u2[row], x + u1[row], height, width, inside)
        warped = warped + (found,)
        mean = mean + (0.5 * (gray[row] + found),)
    above = _from_strip_above(mean[ROWS - 1], STRIPS, COLUMNS)
    below_strip = _from_strip_below(mean[0], STRIPS, COLUMNS)
    linear += pair * 4 * plane + here
    own_x = inside_x & (column >= 1) & (column < COLUMNS - 1)
    for row in tl.static_range(ROWS):
        if row + 1 < ROWS:
            below = mean[row + 1]
        else:
            below = below_strip
        left = tl.where(x == 0, mean[row], _from_left(mean[row], STRIPS, COLUMNS))
        right = tl.where(x == width - 1, mean[row], _from_right(mean[row], STRIPS, COLUMNS))
        gx = 0.5 * (right - left)
        gy = 0.5 * (tl.where(y + row == height - 1, mean[row], below) - tl.where(y + row == 0, mean[row], above))
        above = mean[row]
        square = gx * gx + gy * gy
        inverse = tl.where(square > flat, 1.0 / tl.maximum(square, flat), 0.0)
        rho = warped[row] - gx * u1[row] - gy * u2[row] - gray[row]
        own = own_x & (first + row >= 1) & (first + row < STRIPS * ROWS - 1) & (y + row < height)
        tl.store(linear + row * width, gx, mask=own)
        tl.store(linear + plane + row * width, gy, mask=own)
        tl.store(linear + 2 * plane + row * width, inverse, mask=own)
        tl.store(linear + 3 * plane + row * width, rho, mask=own)


@triton.jit
def edge_weight_block(image, weight, height, width, softness, most, BLOCK: tl.constexpr):
    pair = tl.program_id(1).to(tl.int64)
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, x = here // width, here % width
    inside = y < height
    image += pair * height * width + here
    left = tl.load(image - 1, mask=inside & (x > 0), other=0.0)
    right = tl.load(image + 1, mask=inside & (x < width - 1), other=0.0)
    above = tl.load(image - width, mask=inside & (y > 0), other=0.0)
    below = tl.load(image + width, mask=inside & (y < height - 1), other=0.0)
    gx, gy = 0.5 * (right - left), 0.5 * (below - above)
    factor = 1.0 + tl.sqrt(gx * gx + gy * gy) * softness
    factor = factor * factor
    tl.store(weight + pair * height * width + here, tl.minimum(factor * factor, most), mask=inside)


@triton.jit
def _without_extremes(values, COUNT: tl.constexpr):
    """The values but for their least and greatest, in any order."""
    least, greatest = tl.minimum(values[0], values[1]), tl.maximum(values[0], values[1])
    kept = ()
    for i in tl.static_range(2, COUNT):
        # of three, one stays within: what is pushed out of either end
        low = tl.minimum(least, values[i])
        inner = tl.maximum(least, values[i])
        least = low
        kept = kept + (tl.minimum(greatest, inner),)
        greatest = tl.maximum(greatest, inner)
    return kept


@triton.jit
def median_block(image, filtered, height, width, SIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Forgetful selection: of any n / 2 + 2 values neither the least nor the greatest is the median of the n."""
    pair = tl.program_id(1).to(tl.int64)
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, x = here // width, here % width
    inside = y < height
    image += pair * height * width
    values = ()
    for i in tl.static_range(SIDE * SIDE):
        yy = tl.minimum(tl.maximum(y + (i // SIDE - SIDE // 2), 0), height - 1)
        xx = tl.minimum(tl.maximum(x + (i % SIDE - SIDE // 2), 0), width - 1)
        values = values + (tl.load(image + yy * width + xx, mask=inside, other=0.0),)
    held = values[: SIDE * SIDE // 2 + 2]
    for i in tl.static_range(SIDE * SIDE // 2 + 2, SIDE * SIDE):
        held = _without_extremes(held, SIDE * SIDE + 3 - i) + (values[i],)
    tl.store(filtered + pair * height * width + here, _without_extremes(held, 3)[0], mask=inside)
