"""Whether what a tracker's store calls valid is what follows from the tracker's own estimates."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_specs.encoding import MOST_UNITS
from data_specs.recipe import Recipe

_PRODUCT_ERROR = 1e-6  # of visibility * confidence in single precision


def estimate_problems(
    data: Mapping[str, NDArray[Any]], recipe: Recipe, inside: NDArray[np.bool_], unseen: NDArray[np.bool_]
) -> Iterator[str]:
    """Problems of a few start rows' `visibility`, `confidence` and `valid` (P, L + 1), without the place.

    A point is valid where visibility * confidence is above the recipe's `visible_above`, it is inside the frame and no
    cut and no end of the video lies before it; always in its first frame, and never where its displacements cannot
    follow it.

    data: arrays of the store by name. inside: (P, L + 1), false where rounding may have moved a position across the
    frame's border. unseen: (P, L + 1), where a cut lies between the row's first frame and the position's, or the
    video's end.
    """
    visibility, confidence, above = data["visibility"], data["confidence"], recipe.visible_above
    wrong = False
    for name, values in ("visibility", visibility), ("confidence", confidence):
        if (outside := ~((values >= 0) & (values <= 1))).any():
            point, k = np.argwhere(outside)[0]
            wrong = True
            yield f"{name} of point {point} at step {k} is {values[point, k]}, must be 0 to 1"
    if wrong:
        return
    # least and most that the product can have been before its factors were rounded
    least = _moved(visibility, -0.5) * _moved(confidence, -0.5) - _PRODUCT_ERROR
    most = _moved(visibility, 0.5) * _moved(confidence, 0.5) + _PRODUCT_ERROR
    reached = np.ones(inside.shape, np.bool_)
    reached[:, 1:] = (np.abs(data["displacement"].astype(np.int32)) < MOST_UNITS).all(axis=-1)
    valid, threshold = data["valid"] == 1, f"above visible_above, {above}"
    must_be = (least > above) & inside & ~unseen & reached
    for contradicts, problem in [
        (valid & unseen, "is valid after a cut or past the video's end"),
        (valid & (most <= above), f"is valid, and visibility * confidence is not {threshold}"),
        (
            ~valid & must_be,
            f"is not valid, though visibility * confidence is {threshold}, it is inside the frame and no cut lies "
            "before it",
        ),
    ]:
        contradicts[:, 0] = False  # there it is valid, whatever the tracker thinks of it
        if contradicts.any():
            point, k = np.argwhere(contradicts)[0]
            yield (
                f"point {point} at step {k}, visibility {visibility[point, k]}, confidence {confidence[point, k]}, "
                f"{problem}"
            )


def _moved(values: NDArray[np.float16], units: float) -> NDArray[np.float64]:
    """Values moved by so many units in their last place, but not below 0."""
    return np.maximum(values.astype(np.float64) + units * np.spacing(values).astype(np.float64), 0)
