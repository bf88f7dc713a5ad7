"""Which crop of a video a clip shows: MultiScaleCrop of temporal segment networks, as MME and VideoMAE train with it.

Wang et al., Temporal Segment Networks, ECCV 2016, section 3.2 (corner cropping, scale jittering); MME, table 14.
"""

from collections.abc import Sequence

import numpy as np

from data_specs.view import View

# The published code draws one of these for (x, y), in quarters of what the crop leaves of the frame: corners, centre,
# middles of the sides, and the points halfway between the centre and each corner.
_POSITIONS = (
    *((x, y) for x in (0, 4) for y in (0, 4)),
    (2, 2),
    *((0, 2), (4, 2), (2, 0), (2, 4)),
    *((x, y) for x in (1, 3) for y in (1, 3)),
)
_SNAP = 3
"""A side that is less than this many pixels from the view's is the view's, and the crop is not resized along it."""


def multi_scale_crop(
    frame_size: tuple[int, int], size: tuple[int, int], scales: Sequence[float], flip: bool, rng: np.random.Generator
) -> View:
    """Draw a view of `size`, (height, width), of a tracked frame of `frame_size`, (height, width) in pixels.

    scales: sides of the crop as shares of the frame's short side, in order; height and width take the same one or two
    that are neighbours, each such pair as likely as another. The crop is then put at one of 13 fixed positions. Sides
    and offsets are whole pixels of the tracked frame, and the crop lies inside it. flip: mirror half of the views.
    Takes three numbers from `rng`, whatever the arguments.
    """
    heights, widths = (_sides(frame_size, scales, side) for side in size)
    pairs = [(h, w) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= 1]
    height, width = pairs[rng.integers(len(pairs))]
    x, y = _POSITIONS[rng.integers(len(_POSITIONS))]
    mirrored = rng.random() < 0.5
    return View(
        top=y * ((frame_size[0] - height) // 4),
        left=x * ((frame_size[1] - width) // 4),
        height=height,
        width=width,
        size=size,
        flip=flip and mirrored,
    )


def _sides(frame_size: tuple[int, int], scales: Sequence[float], view_side: int) -> list[int]:
    short = min(frame_size)
    sides = [max(1, int(short * scale)) for scale in scales]
    # The published code takes the view's side even where the frame is a pixel or two smaller, and pads with black.
    return [view_side if abs(side - view_side) < _SNAP and view_side <= short else side for side in sides]
