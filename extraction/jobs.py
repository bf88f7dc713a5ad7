"""The pieces of work that a run consists of: one video into a partial file, a shard out of its partial files, a look
at a complete shard for damage.

Each runs in whichever process it is called in, writes its own files and returns a small record.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from data_specs.dataset import VideoEntry
from data_specs.durable import replacing
from data_specs.failures import Failure, failures_seal, read_failures
from data_specs.geometry import grid_size
from data_specs.recipe import Recipe
from data_specs.schema import VideoMeta
from data_specs.shard_files import size_and_crc32
from data_specs.track_store import StoreError, TrackShard, TrackStore
from data_specs.validate_shard import shard_damage
from data_specs.video import (
    FrameTooSmallError,
    Video,
    VideoChangedError,
    VideoError,
    VideoOpenError,
    VideoTooShortError,
)
from data_specs.video_files import video_path
from extraction.commit import ShardFolder, check_unchanged
from extraction.cuts import ShotFrames
from extraction.motion.cotracker3.weights import Weights
from extraction.partial import PartialError, PartialFile, PartialWriter
from extraction.process_video import process_video
from extraction.shard_writer import ShardVideo, VideoSource, write_shard
from extraction.stages import StageTimer
from extraction.tries import counting

logger = logging.getLogger(__name__)

# OpenCV's DIS crashes on sides of 8 to 14 px.
_SMALLEST_SIDE = 16

EXIT_STALLED = 1
"""Status of a process that ended itself over a video; run again, extract-tracks passes that video by."""


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


def run_job(job: Job) -> Result:
    """Do a job in this process."""
    # One worker, one thread: workers share the machine, and a sum's order, hence its last bit, stays the same.
    cv2.setNumThreads(1)
    match job:
        case VideoJob():
            return extract_video(job)
        case ShardJob():
            return assemble_shard(job)
        case CheckJob():
            return check_shard(job)


def extract_video(job: VideoJob) -> VideoResult:
    """Extract one video into its partial file, or record why that cannot be done.

    Errors of writing (a full disk, a store that is gone) are not the video's fault and are raised.
    """
    timer, begun = StageTimer(), time.perf_counter()
    folder = ShardFolder(job.store, job.shard)
    try:
        check_unchanged(job.store, job.store_digest)
        with counting(folder.tries_path(job.place)), _giving_up(job, folder, timer):
            return _extract_video(job, folder, timer, begun)
    except OSError:
        check_unchanged(job.store, job.store_digest)  # says more than that some file is not there
        raise


class VideoStalledError(Exception):
    """Nothing went forward for too long: the decoder hangs."""


@contextmanager
def _giving_up(job: VideoJob, folder: ShardFolder, timer: StageTimer) -> Iterator[None]:
    """End this process, after recording the failure, if the video stalls: native code that hangs has no other end."""
    done = threading.Event()
    tick = min(1.0, job.stall_seconds / 8)

    def watch() -> None:
        # ticks are counted, not time: a process that was suspended has not stalled
        changes, ticks = timer.changes, 0
        while not done.wait(tick):
            changes, ticks = timer.changes, ticks + 1 if timer.changes == changes else 0
            if ticks * tick > job.stall_seconds:
                stalled = VideoStalledError(f"nothing went forward for {job.stall_seconds:g} s")
                try:
                    logger.error("%s: %s: %s; ending this process", job.entry.path, timer.current, stalled)
                    check_unchanged(job.store, job.store_digest)
                    folder.write_failed(job.place, job.failure(timer.current, stalled))
                finally:  # also where that cannot be written
                    os._exit(EXIT_STALLED)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _extract_video(job: VideoJob, folder: ShardFolder, timer: StageTimer, begun: float) -> VideoResult:
    num_frames, num_rows = 0, 0
    failure: Failure | None = None
    try:
        num_frames, num_rows = _extract(job, folder.tracks_path(job.place), timer)
    except Exception as error:
        stage = timer.failed or "decode"
        if stage == "write" or (isinstance(error, OSError) and not isinstance(error, VideoError)):
            raise
        if not isinstance(error, VideoError):
            logger.exception("%s failed in stage %s", job.entry.path, stage)
        if not job.root.is_dir():
            raise OSError(f"{job.root}: the folder of the videos is gone") from error
        failure = job.failure(stage, error)
        folder.write_failed(job.place, failure)
    return VideoResult(
        num_frames=num_frames,
        num_rows=num_rows,
        failure=failure,
        seconds=timer.seconds,
        wall_seconds=time.perf_counter() - begun,
    )


def _extract(job: VideoJob, path: Path, timer: StageTimer) -> tuple[int, int]:
    recipe = job.recipe
    assert recipe.start_stride is not None
    with timer("decode"):
        file = video_path(job.root, job.entry.path, follow_links=job.follow_links)
        try:
            file_bytes, file_crc32 = size_and_crc32(file)
            before = file.stat()
        except OSError as error:  # no permission, a bad sector: the video's fault, not that of the store
            raise VideoOpenError(file, (error.strerror or "cannot be read").lower()) from error
        video = Video(file, recipe.short_side)
    grid = grid_size(video.frame_size, recipe.grid_stride)
    if 0 in grid or min(video.frame_size) < _SMALLEST_SIDE:
        height, width = video.frame_size
        least = max(recipe.grid_stride, _SMALLEST_SIDE)
        raise FrameTooSmallError(video.path, f"frames are {height}x{width}; they must be {least}x{least} or larger")
    frames = ShotFrames(video, recipe.detect_cuts, timer)
    with replacing(path) as temporary, PartialWriter(temporary) as writer:
        for row in process_video(frames, recipe, timer, job.device, job.weights):
            with timer("write"):
                writer.append(row)
        if writer.num_rows == 0:
            least, steps = (recipe.span, f"{recipe.length} steps")
            if recipe.keep_short:
                least, steps = (recipe.frame_step, "one step")
            raise VideoTooShortError(
                video.path, f"{video.decoded_frames} frames; a trajectory of {steps} needs {least + 1}"
            )
        if _identity(file) != (file_bytes, before.st_mtime_ns, before.st_ino):
            raise VideoChangedError(file, "was written to while it was read; extract it again when it is whole")
        with timer("write"):
            writer.finish(
                VideoMeta(
                    index=job.entry.index,
                    id=job.entry.id,
                    path=job.entry.path,
                    num_frames=video.decoded_frames,
                    fps=video.fps,
                    frame_size=video.frame_size,
                    source_size=video.source_size,
                    grid_size=grid,
                    num_starts=writer.num_rows,
                    cuts=tuple(frames.cuts),
                    file_bytes=file_bytes,
                    file_crc32=file_crc32,
                )
            )
    return video.decoded_frames, writer.num_rows


def _identity(file: Path) -> tuple[int, int, int] | None:
    """A file's bytes, time of change and number; None where it is gone."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def assemble_shard(job: ShardJob) -> ShardResult:
    """Write a shard out of its partial files, and put it in place.

    Videos that were done in an earlier commit of the shard (failures are tried again, or damage is mended) are taken
    from there. A shard that another worker has put in place already is left as it is. Where something of it cannot be
    read, nothing is written: `damaged` in the result says what to extract again.
    """
    begun = time.perf_counter()
    folder = ShardFolder(job.store, job.shard)
    check_unchanged(job.store, job.store_digest)
    if folder.was_put_in_place():
        return _put_in_place(job, folder)
    sources, failures, damaged = _what_is_there(job, folder)
    if not damaged:
        staging = folder.staging_path()
        try:
            more = {"settings_sha256": job.settings_sha256, "failures": failures_seal(failures)}
            write_shard(staging / "shard.zarr", job.shard, sources, job.recipe, job.software, more)
            check_unchanged(job.store, job.store_digest)
            folder.commit(staging, failures)
        except PartialError as error:
            logger.warning("%s; its video is extracted again", error)
            damaged = [p for p in range(len(job.entries)) if folder.tracks_path(p) == error.path]
        except StoreError as error:
            logger.warning("%s; its videos are extracted again", error)
            check = CheckJob(store=job.store, shard=job.shard, entries=job.entries, root=None)
            found = check_shard(check).damaged
            taken_over = [p for p in range(len(job.entries)) if not folder.tracks_path(p).exists()]
            damaged = [place for place in taken_over if place in found] or taken_over
        except OSError:
            check_unchanged(job.store, job.store_digest)
            if not folder.was_put_in_place():
                raise
            return _put_in_place(job, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # gone already, if the shard is in place
    if damaged and folder.was_put_in_place():  # and its partial files removed, while they were read here
        return _put_in_place(job, folder)
    for place in damaged:
        folder.tracks_path(place).unlink(missing_ok=True)
    return ShardResult(
        num_videos=len(sources),
        num_failures=len(failures),
        damaged=tuple(damaged),
        seconds=time.perf_counter() - begun,
    )


def _what_is_there(job: ShardJob, folder: ShardFolder) -> tuple[list[VideoSource], list[Failure], list[int]]:
    """The shard's videos and failures, in list order, and the places of those of which there is nothing sound."""
    former, former_failures = _former(folder, job.recipe)
    partial = folder.partial_names()
    sources: list[VideoSource] = []
    failures: list[Failure] = []
    damaged: list[int] = []
    for place, entry in enumerate(job.entries):
        failure = folder.read_failed(place) if folder.failed_path(place).name in partial else None
        if folder.tracks_path(place).name in partial:
            try:
                sources.append(PartialFile(folder.tracks_path(place), job.recipe))
            except PartialError as error:
                logger.warning("%s; its video is extracted again", error)
                damaged.append(place)
        elif failure is None and entry.index in former:
            sources.append(former[entry.index])
        elif failure is not None or entry.index in former_failures:
            failures.append(failure or former_failures[entry.index])
        else:
            damaged.append(place)
    return sources, failures, damaged


def _put_in_place(job: ShardJob, folder: ShardFolder) -> ShardResult:
    """What came of a shard that another worker has put in place."""
    return ShardResult(
        num_videos=TrackShard(folder.complete_path, job.recipe).num_videos,
        num_failures=len(read_failures(job.store, job.shard)),
    )


def _former(folder: ShardFolder, recipe: Recipe) -> tuple[dict[int, VideoSource], dict[int, Failure]]:
    """The videos and failures of the shard as it was committed before, by their index in the list; what of it cannot be
    read is not among them.
    """
    former: dict[int, VideoSource] = {}
    failures: dict[int, Failure] = {}
    if folder.is_complete:
        with contextlib.suppress(StoreError):
            shard = TrackShard(folder.complete_path, recipe)
            former = {meta.index: ShardVideo(shard, number) for number, meta in enumerate(shard.metas)}
        with contextlib.suppress(ValueError, OSError):
            failures = {failure.index: failure for failure in read_failures(folder.store, folder.shard)}
    return former, failures


def check_shard(job: CheckJob) -> CheckResult:
    """Read a complete shard back. Raises StoreError where it is the store itself that cannot be read."""
    damage = shard_damage(TrackStore(job.store), job.shard, job.root)
    sound = set() if damage.videos is None else {index for index, _, _ in damage.listed} - damage.videos
    damaged = [place for place, entry in enumerate(job.entries) if entry.index not in sound]
    return CheckResult(problems=tuple(damage.problems), damaged=tuple(damaged))
