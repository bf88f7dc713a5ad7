"""The order of the clips: endless, the same for one seed, whatever the batch size, ranks, workers and interruptions.

A position in the stream counts clips from the start of the training. Every epoch shows each video once, in a new
order, as `clips_per_video` clips one after the other; epochs follow without a gap. What is random in a clip is drawn
from a generator that depends on which clip it is and on nothing else.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from data_specs.keyed_random import keyed_generator


@dataclasses.dataclass(frozen=True)
class StreamClip:
    """One clip of the stream: which time round, which video (0 ... num_videos - 1), and which of its clips."""

    epoch: int
    video: int
    repeat: int


@dataclasses.dataclass(frozen=True)
class ClipStream:
    """The endless order of clips over `num_videos` videos. Small, and cheap to send to a worker."""

    num_videos: int
    seed: int
    clips_per_video: int = 1
    """Clips taken of a video each time it is opened (repeated sampling)."""

    def __post_init__(self) -> None:
        if min(self.num_videos, self.clips_per_video) < 1:
            raise ValueError(
                f"num_videos is {self.num_videos}, clips_per_video is {self.clips_per_video}: must be 1 or more"
            )

    @property
    def clips_per_epoch(self) -> int:
        """Clips from one epoch's first to the next one's."""
        return self.num_videos * self.clips_per_video

    def __getitem__(self, position: int) -> StreamClip:
        """The clip at a position 0, 1, 2, …; raises IndexError for a negative one."""
        if position < 0:
            raise IndexError(f"position {position} of a stream that begins at 0")
        epoch, within = divmod(position, self.clips_per_epoch)
        place, repeat = divmod(within, self.clips_per_video)
        return StreamClip(epoch, int(_epoch_order(self.num_videos, self.seed, epoch)[place]), repeat)

    def slice(self, position: int, count: int) -> list[StreamClip]:
        """The `count` clips from `position` on."""
        return [self[p] for p in range(position, position + count)]


class RankBatches(Sampler[list[int]]):
    """One rank's batches of stream positions, without end: a `batch_sampler` for a map-style dataset.

    The m-th batch of rank r holds the `batch_size` positions from position + (m * world_size + r) * batch_size on, so
    that the ranks' m-th batches together are the same clips for any world size and batch size with the same product. A
    video's clips lie in one batch.
    """

    def __init__(
        self, stream: ClipStream, batch_size: int, rank: int = 0, world_size: int = 1, position: int = 0
    ) -> None:
        """`position` is that of the first clip of all ranks: where an interrupted run goes on.

        Raises ValueError for a batch size or position that is not a multiple of `clips_per_video`.
        """
        clips = stream.clips_per_video
        if batch_size < 1 or batch_size % clips:
            raise ValueError(
                f"batch_size is {batch_size}, must be a multiple of clips_per_video, {clips}, "
                "so that the clips of a video are in one batch"
            )
        if position < 0 or position % clips:
            raise ValueError(
                f"position is {position}, must be a multiple of clips_per_video, {clips}, and not negative"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, must be 0 or more and less than world_size, {world_size}")
        self.stream, self.batch_size, self.rank, self.world_size = stream, batch_size, rank, world_size
        self.position = position

    def __iter__(self) -> Iterator[list[int]]:
        first = self.position + self.rank * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.world_size * self.batch_size


def rng_for(seed: int, epoch: int, video: int, repeat: int, purpose: str) -> np.random.Generator:
    """The generator for one thing that is random in a clip: `purpose` names it (`start`, `view`, `mask`, …).

    The numbers depend on the five arguments alone, and those of two purposes or clips are independent.
    """
    # numpy's integers print differently
    return keyed_generator(purpose, int(seed), int(epoch), int(video), int(repeat))


def choose_start(num_frames: int, span: int, start_stride: int, rng: np.random.Generator) -> int:
    """Frame of the video at which a clip starts, drawn uniformly from the multiples of `start_stride` where it fits.

    span: frames of the video from the clip's first to its last, both counted. A clip that fits nowhere starts at 0.
    """
    return 0 if num_frames < span else int(rng.integers((num_frames - span) // start_stride + 1)) * start_stride


@functools.lru_cache(maxsize=2)  # a batch can reach into the next epoch
def _epoch_order(num_videos: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = keyed_generator("order", int(seed), int(epoch)).permutation(num_videos)
    order.setflags(write=False)
    return order
