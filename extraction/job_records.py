"""What a run's jobs are, and what comes of them: records that travel between processes."""

import dataclasses
from pathlib import Path

from data_specs.dataset import VideoEntry
from data_specs.failures import Failure
from data_specs.recipe import Recipe
from data_specs.video import VideoError
from extraction.motion.cotracker3.weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoJob:
    """Extract the video that is number `place` of its shard."""

    store: Path
    shard: int
    place: int
    entry: VideoEntry
    root: Path
    recipe: Recipe
    attempts: int
    """How often it was tried before."""
    stall_seconds: float
    """A video on which nothing has gone forward for so long is given up, and its process with it."""
    device: str = "cpu"
    """Where the motion is measured, see `process_video`."""
    weights: Weights | None = None
    """Of a tracker that is a network."""
    store_digest: str | None = None
    """`commit.store_digest` of the store that the run began with, to notice that it is gone; None leaves that out."""
    follow_links: bool = False
    """Whether symbolic links below the root may lead out of it."""

    def failure(self, stage: str, error: BaseException, tries: int = 1) -> Failure:
        """The record of this job's failure."""
        message = error.reason if isinstance(error, VideoError) else str(error)
        return Failure(
            index=self.entry.index,
            id=self.entry.id,
            path=self.entry.path,
            stage=stage,
            error=type(error).__name__,
            message=message,
            attempts=self.attempts + tries,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoResult:
    """What came of a video: its number of frames and start rows, or its failure; and where the time went."""

    num_frames: int = 0
    num_rows: int = 0
    failure: Failure | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    wall_seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Assemble a shard whose videos are all done or failed."""

    store: Path
    shard: int
    entries: tuple[VideoEntry, ...]
    recipe: Recipe
    software: dict[str, str]
    settings_sha256: str
    """`StoreInfo.settings_sha256`."""
    store_digest: str | None = None
    """See `VideoJob`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckJob:
    """Read a complete shard back: which of its videos are damaged?"""

    store: Path
    shard: int
    entries: tuple[VideoEntry, ...]
    root: Path | None
    """Where the videos are, if they are to be compared with the ones that were extracted; else None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What is wrong with a shard, and the places of the videos that have to be extracted again."""

    problems: tuple[str, ...]
    damaged: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What came of a shard: `damaged` are the places of videos that have to be extracted again first."""

    num_videos: int = 0
    num_failures: int = 0
    damaged: tuple[int, ...] = ()
    seconds: float = 0.0


Job = VideoJob | ShardJob | CheckJob
Result = VideoResult | ShardResult | CheckResult
