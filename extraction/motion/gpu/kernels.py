"""The inner loops of TV-L1 flow on a CUDA device; `eager` has the same functions in plain torch and specifies them.

All tensors are float32, contiguous and row-major, (batch, ..., height, width). With TRITON_INTERPRET=1 set before
`triton_kernels` is imported the same code runs, slowly, on the CPU's.
"""

import triton
from torch import Tensor

from extraction.motion.gpu.triton_kernels import edge_weight_block, iterate_tile, linearise_tile, median_block

STRIPS, ROWS = 8, 8
"""Strips of a tile, a warp each, and rows of a strip."""
ITERATIONS_PER_LAUNCH = 5
"""More save traffic and waste the overlap: with 5, 54 x 22 of a tile's 64 x 32 pixels are written."""
_COLUMNS = 32  # a warp's threads
_REGISTERS = 128  # for each thread: two programs of eight warps then share a multiprocessor
_LINEARISE_ROWS = 4
_BLOCK = 512


def iterate(
    flow: Tensor,
    dual: Tensor,
    linear: Tensor,
    weight: Tensor,
    count: int,
    steps: tuple[float, float, float],
    *,
    per_launch: int = ITERATIONS_PER_LAUNCH,
    strips: int = STRIPS,
    rows: int = ROWS,
) -> tuple[Tensor, Tensor]:
    """`count` iterations on flow (B, 2, H, W) and dual variables (B, 4, H, W): the new ones, see `eager.iterate`.

    per_launch: iterations that a program does before it writes. strips, rows: its tile, both powers of two.
    """
    batch, _, height, width = flow.shape
    own_rows, own_columns = strips * rows - 2 * per_launch, _COLUMNS - 2 * per_launch
    if own_rows < 1 or own_columns < 1:
        raise ValueError(f"{per_launch} iterations leave nothing of a tile of {strips * rows} x {_COLUMNS} pixels")
    tiles_x = triton.cdiv(width, own_columns)
    grid = (tiles_x * triton.cdiv(height, own_rows), batch)
    bound, theta, dual_step = steps
    while count > 0:
        now = min(count, per_launch)
        new_flow, new_dual = flow.new_empty(flow.shape), dual.new_empty(dual.shape)
        iterate_tile[grid](
            flow, dual, linear, weight, new_flow, new_dual, height, width, tiles_x, now, bound, theta, dual_step,
            HALO=per_launch, STRIPS=strips, ROWS=rows, COLUMNS=_COLUMNS, num_warps=strips, maxnreg=_REGISTERS,
            enable_fp_fusion=True,
        )  # fmt: skip
        flow, dual = new_flow, new_dual
        count -= now
    return flow, dual


def linearise(a: Tensor, b: Tensor, flow: Tensor, flat: float) -> Tensor:
    """Warp b by the flow (B, 2, H, W) and linearise: (B, 4, H, W), see `eager.linearise`."""
    batch, height, width = a.shape
    linear = a.new_empty((batch, 4, height, width))
    tiles_x = triton.cdiv(width, _COLUMNS - 2)
    grid = (tiles_x * triton.cdiv(height, STRIPS * _LINEARISE_ROWS - 2), batch)
    linearise_tile[grid](
        a, b, flow, linear, height, width, tiles_x, flat,
        STRIPS=STRIPS, ROWS=_LINEARISE_ROWS, COLUMNS=_COLUMNS, num_warps=STRIPS,
        enable_fp_fusion=True,
    )  # fmt: skip
    return linear


def edge_weight(image: Tensor, edge: float, most: float) -> Tensor:
    """One over the weight of smoothness (B, H, W), see `eager.edge_weight`."""
    batch, height, width = image.shape
    weight = image.new_empty(image.shape)
    grid = (triton.cdiv(height * width, _BLOCK), batch)
    edge_weight_block[grid](image, weight, height, width, 0.25 / edge, most, BLOCK=_BLOCK, enable_fp_fusion=True)
    return weight


def median(images: Tensor, side: int) -> Tensor:
    """The median over side x side pixels, 3 or 5, of images (..., H, W); the border is replicated."""
    *_, height, width = images.shape
    filtered = images.new_empty(images.shape)
    grid = (triton.cdiv(height * width, _BLOCK), images.numel() // (height * width))
    median_block[grid](images, filtered, height, width, SIDE=side, BLOCK=_BLOCK, enable_fp_fusion=True)
    return filtered
