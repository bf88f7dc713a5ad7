"""CoTracker3 as a tracker of single points through whole videos: the offline model, which sees all frames at once."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data_specs.recipe import Recipe
from data_specs.video import Frame
from extraction.evaluation.point_tracker import query_frames
from extraction.motion.cotracker3.network import CoTracker3, to_network
from extraction.motion.cotracker3.window_tracker import support_points
from extraction.motion.gpu.device import device_errors

_GLOBAL_SIDE, _LOCAL_SIDE, _LOCAL_EXTENT = 5, 8, 50
_TOKENS_AT_A_TIME = 1 << 15  # points times frames, on a device that needs many to be busy


class CoTrackerPoints:
    """A `PointTracker`. together: all queries of a video are tracked at once.

    As CoTracker evaluates itself (Karaev et al. 2024, section 4; the package's `EvaluationPredictor`), each query is
    tracked by itself, with a grid of 5 x 5 points over the frame and one of 8 x 8 points around the query, which are in
    the video's first frame whenever the query is. `together`, with the grid over the frame alone, takes a fraction of
    the time, and a query's tracks are no longer independent of the others, as TAP-Vid demands.

    A point is visible where visibility * confidence is above the recipes' threshold, also the evaluation's, and always
    in its query's frame.
    """

    def __init__(self, network: CoTracker3, *, together: bool = False) -> None:
        self._network, self._together = network, together

    def track(
        self, frames: Sequence[Frame], queries: NDArray[np.float64], *, both_ways: bool = True
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """See `PointTracker`. The network always looks both ways."""
        starts = query_frames(queries, len(frames))
        network, count = self._network, len(frames)
        height, width = frames[0].shape[:2]
        factors = np.array(to_network((height, width), network.resolution))
        with device_errors(network.device, f"features of {count} frames"):
            features = network.new_features(count)
            for number, frame in enumerate(frames):
                features.put([number], network.pyramid(torch.from_numpy(frame[None].copy())))  # it may be read-only
        places = torch.tensor([features.places(range(count))])
        points, visible = np.empty((len(queries), count, 2)), np.empty((len(queries), count), np.bool_)
        asked = np.concatenate([starts[:, None], queries[:, 1:] * factors], axis=1)
        for chosen, batch in self._batches(asked, count):
            own = len(chosen) // len(batch)  # of each window's points, the queries come first
            with device_errors(network.device, f"{len(batch)} windows of {count} frames and {batch.shape[1]} points"):
                found = network.track(features, places.expand(len(batch), -1), torch.from_numpy(batch).float())
                certain = (found.visibility * found.confidence)[:, :own].flatten(0, 1).cpu().numpy()
                points[chosen] = found.points[:, :own].flatten(0, 1).cpu().numpy() / factors
            visible[chosen] = certain > Recipe.visible_above
        numbers = np.arange(len(queries))
        points[numbers, starts], visible[numbers, starts] = queries[:, 1:], True
        if not both_ways:
            visible &= np.arange(count) >= starts[:, None]
        return points, visible

    def _batches(self, asked: NDArray[np.float64], frames: int) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Numbers of queries (Q,), and the points (B, N, 3) that the network gets for them, Q / B queries a window."""
        numbers = np.arange(len(asked))
        around = _in_first_frame(support_points(_GLOBAL_SIDE, self._network.resolution))
        if self._together:
            return [(numbers, np.concatenate([asked, around])[None])] if len(asked) else []
        local = _in_first_frame(support_points(_LOCAL_SIDE, (_LOCAL_EXTENT, _LOCAL_EXTENT)) - _LOCAL_EXTENT / 2)
        offset = asked * [0, 1, 1]  # the support is in the first frame
        windows = np.concatenate(
            [asked[:, None], offset[:, None] + local, np.repeat(around[None], len(asked), axis=0)], axis=1
        )
        on_cpu = self._network.device.type == "cpu"
        at_a_time = 1 if on_cpu else max(1, _TOKENS_AT_A_TIME // (windows.shape[1] * frames))
        return [(numbers[n : n + at_a_time], windows[n : n + at_a_time]) for n in range(0, len(asked), at_a_time)]


def _in_first_frame(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros((len(points), 1)), points], axis=1)
