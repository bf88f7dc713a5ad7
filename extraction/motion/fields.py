"""The two kinds of image that flow is about."""

import numpy as np
from numpy.typing import NDArray

Gray = NDArray[np.float32]
"""A grey image, float32 (height, width), within 0 ... 255."""

FlowField = NDArray[np.float32]
"""A dense flow, float32 (height, width, 2): what is at x, y in the first frame is at x + flow[y, x, 0],
y + flow[y, x, 1] in the second, in pixels."""
