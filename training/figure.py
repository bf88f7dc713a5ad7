"""MME's figure 4 for a batch: what the model saw, what was to be predicted, what it predicted, and the frame.

A row is one tubelet of a clip. Its columns are the masked frame, the true trajectories, the predicted ones, where there
are pixel predictions the frame with them, and the frame itself. Predicted patches are grey, dropped ones nearly black.
Trajectories start at the grid points of the predicted tokens and run from dark to light in the order of time (MME
figure 10), over the frame without its colours; steps that are not valid are in neither column. With anchoring `clip` a
token has one step of points that begin in the clip's first frame: it is drawn where they begin, over that frame.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_specs.drawing import draw_label, draw_trajectories
from data_specs.durable import replacing
from data_specs.video import Frame
from training.recipe import PretrainRecipe

MASKED, DROPPED = (128, 128, 128), (32, 32, 32)
GAP = 4
_GAP_COLOUR = 255
_DIMMED = 0.6
_MOTION = ("true", "predicted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """True and predicted displacements (B, Np, K, L, 2), x and y per step; `valid` (B, Np, K, L).

    Axis 1 is in the order of the batch's `predict`. The K points are those of a grid over the patch, row-major, so K is
    a square number. Tensors or arrays.
    """

    true: Any
    predicted: Any
    valid: Any
    unit: str = "px"
    """Said in the columns' titles; a pixel of the view for each unit."""


def draw_figure(
    path: Path,
    batch: Mapping[str, Any],
    recipe: PretrainRecipe,
    *,
    motion: Motion | None = None,
    pasted_pixels: Any = None,
    labels: Sequence[str] = (),
    clips: int = 2,
    tubelets: int = 2,
    scale: int = 2,
) -> Frame:
    """Draw the first `clips` clips of a batch, `tubelets` of each, to a PNG that is there whole or not at all.

    Returns the picture, RGB.

    batch: `frames` uint8 (B, T, H, W, 3), `visible` and `predict`. pasted_pixels: uint8 like `frames`, with the
    prediction in the predicted patches. labels: the clips' names. scale: factor of enlargement.
    Raises ValueError where shapes do not fit one another, OSError where the file cannot be written.
    """
    frames, visible, predict = (_array(batch[name]) for name in ("frames", "visible", "predict"))
    tubelet, number = recipe.tubelet, recipe.token_grid[0]
    by_clip = recipe.anchoring == "clip"
    count = min(tubelets, number)
    shown = [(2 * i + 1) * number // (2 * count) for i in range(count)]
    rows = []
    for b in range(min(clips, len(frames))):
        states = token_states(recipe.token_grid, visible[b], predict[b])
        for t in shown:
            panels = row_panels(
                frames[b, t * tubelet],
                states[t],
                motion=None if motion is None else _of_tubelet(motion, b, predict[b], recipe.token_grid, t),
                pasted=None if pasted_pixels is None else _array(pasted_pixels[b])[t * tubelet],
                scale=scale,
                begin=frames[b, 0] if by_clip else None,
            )
            name = labels[b] if b < len(labels) else f"clip {b}"
            foot = 0, panels["masked"].shape[0] - 20
            draw_label(panels["masked"], f"{name}, frame {t * tubelet}", foot)
            if by_clip and motion is not None:
                last = t * tubelet + tubelet
                for title in _MOTION:
                    draw_label(panels[title], f"frame 0, its points' step from {last - tubelet} to {last}", foot)
            rows.append(panels)
    for title, panel in rows[0].items():
        draw_label(panel, f"{title}, {motion.unit}" if motion is not None and title in _MOTION else title)
    picture = _mosaic(rows)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path}: cannot be encoded")
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
    return picture


def token_states(
    grid: tuple[int, int, int], visible: NDArray[np.integer], predict: NDArray[np.integer]
) -> NDArray[np.uint8]:
    """For each token of the grid, uint8 (t, h, w): 0 visible, 1 predicted, 2 dropped."""
    states = np.full(math.prod(grid), 2, dtype=np.uint8)
    states[visible] = 0
    states[predict] = 1
    return states.reshape(grid)


def grid_points(states: NDArray[np.uint8], patch: tuple[int, int], points: int) -> NDArray[np.float64]:
    """The grid points of a tubelet's predicted tokens: (N, K, 2), x and y in pixels of the view.

    states: uint8 (h, w); patch: (height, width) in pixels; points: K, a square number. Each lies in the centre of its
    cell, row-major within the patch.
    """
    side = math.isqrt(points)
    if side * side != points:
        raise ValueError(f"{points} points in a patch are not a grid")
    corners = np.argwhere(states == 1)[:, None] * patch  # y, x
    cell = np.array(patch) / side
    within = np.argwhere(np.ones((side, side))) * cell + (cell - 1) / 2
    return np.asarray((corners + within)[..., ::-1])


def row_panels(
    frame: Frame,
    states: NDArray[np.uint8],
    *,
    motion: Motion | None = None,
    pasted: Frame | None = None,
    scale: int = 2,
    begin: Frame | None = None,
) -> dict[str, Frame]:
    """The panels of one row, RGB, by title. `motion` holds the tubelet's predicted tokens alone: (N, K, L, 2).

    begin: the frame in which the trajectories begin, where it is not `frame`.
    """
    patch = frame.shape[0] // states.shape[0], frame.shape[1] // states.shape[1]
    panels = {"masked": _masked(frame, states, scale, covered=(1, 2))}
    if motion is not None:
        valid = _array(motion.valid).astype(bool)
        start = grid_points(states, patch, valid.shape[1])[:, :, None]
        for title, displacement in zip(_MOTION, (motion.true, motion.predicted), strict=True):
            steps = _array(displacement).astype(np.float64)
            if steps.shape != (*start.shape[:2], valid.shape[2], 2) or valid.shape[0] != start.shape[0]:
                raise ValueError(
                    f"{title} displacements {steps.shape} with validity {valid.shape}: the tubelet has {len(start)} "
                    "predicted tokens"
                )
            positions = np.concatenate([start, start + np.cumsum(steps, axis=2)], axis=2)
            positions = ((positions + 0.5) * scale - 0.5).reshape(-1, positions.shape[2], 2)
            finite = np.isfinite(positions[:, 1:]).all(axis=-1)
            panels[title] = _backdrop(frame if begin is None else begin, scale)
            draw_trajectories(panels[title], np.nan_to_num(positions), valid.reshape(finite.shape) & finite)
    if pasted is not None:
        panels["predicted pixels"] = _masked(pasted, states, scale, covered=(2,))
    panels["original"] = _enlarged(frame, scale)
    return panels


def _of_tubelet(
    motion: Motion, clip: int, predict: NDArray[np.integer], grid: tuple[int, int, int], tubelet: int
) -> Motion:
    """A clip's motion of the tokens of one tubelet; `predict` is ascending, and so row-major within the tubelet."""
    if len(motion.valid[clip]) != len(predict):
        raise ValueError(f"motion of {len(motion.valid[clip])} tokens, {len(predict)} are predicted")
    inside = predict // (grid[1] * grid[2]) == tubelet
    true, predicted, valid = (_array(values[clip])[inside] for values in (motion.true, motion.predicted, motion.valid))
    return Motion(true=true, predicted=predicted, valid=valid)


def _enlarged(frame: Frame, scale: int) -> Frame:
    # by a whole number and the half-pixel rule
    return np.asarray(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def _backdrop(frame: Frame, scale: int) -> Frame:
    grey = cv2.cvtColor(_enlarged(frame, scale), cv2.COLOR_RGB2GRAY)
    return np.repeat((grey[..., None] * _DIMMED).astype(np.uint8), 3, axis=2)


def _masked(frame: Frame, states: NDArray[np.uint8], scale: int, covered: Sequence[int]) -> Frame:
    """The enlarged frame with its predicted (1) and dropped (2) patches painted over, where `covered` names them."""
    panel = _enlarged(frame, scale)
    height, width = frame.shape[0] // states.shape[0] * scale, frame.shape[1] // states.shape[1] * scale
    for state in covered:
        for i, j in np.argwhere(states == state):
            colour = MASKED if state == 1 else DROPPED
            panel[i * height : (i + 1) * height, j * width : (j + 1) * width] = colour
    return panel


def _mosaic(rows: Sequence[Mapping[str, Frame]]) -> Frame:
    padded = [
        np.concatenate(
            [np.pad(p, ((0, GAP), (0, GAP), (0, 0)), constant_values=_GAP_COLOUR) for p in row.values()], axis=1
        )
        for row in rows
    ]
    return np.concatenate(padded)[:-GAP, :-GAP]


def _array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
