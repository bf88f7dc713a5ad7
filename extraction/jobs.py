"""Does a run's jobs, and the first kind of them: one video into a partial file.

A job is done in whichever process `run_job` is called in; it writes its own files and returns a small record.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from data_specs.durable import replacing
from data_specs.failures import Failure
from data_specs.geometry import grid_size
from data_specs.schema import VideoMeta
from data_specs.shard_files import size_and_crc32
from data_specs.video import (
    FrameTooSmallError,
    Video,
    VideoChangedError,
    VideoError,
    VideoOpenError,
    VideoTooShortError,
)
from data_specs.video_files import video_path
from extraction.assembly import assemble_shard, check_shard
from extraction.commit import ShardFolder, check_unchanged
from extraction.cuts import ShotFrames
from extraction.job_records import CheckJob, Job, Result, ShardJob, VideoJob, VideoResult
from extraction.partial import PartialWriter
from extraction.process_video import process_video
from extraction.stages import StageTimer
from extraction.tries import counting

logger = logging.getLogger(__name__)

# OpenCV's DIS crashes on sides of 8 to 14 px.
_SMALLEST_SIDE = 16

EXIT_STALLED = 1
"""Status of a process that ended itself over a video; run again, extract-tracks passes that video by."""


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
