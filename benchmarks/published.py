"""How MME's released code turns flow into trajectories: the reference that ours is measured against."""

import numpy as np
from numpy.typing import NDArray


def quantise_flow(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flow as it survives an 8-bit picture: clipped at 20 px, 256 levels."""
    levels = np.rint((np.clip(flow, -20, 20) + 20) / 40 * 255)
    return (levels / 255 * 40 - 20).astype(np.float32)


def integrate(flows: list[NDArray[np.float32]], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Whole-pixel steps of 8-bit flow, without the median filter: positions (N, L + 1, 2)."""
    height, width = flows[0].shape[:2]
    positions = [np.trunc(points)]
    for flow in flows:
        x, y = np.clip(positions[-1], 0, [width - 1, height - 1]).astype(int).T
        positions.append(positions[-1] + np.trunc(quantise_flow(flow)[y, x]))
    return np.stack(positions, axis=1)
