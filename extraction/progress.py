"""How far a run is: a bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

from extraction.job_records import ShardResult, VideoResult

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts videos, frames and failures; close it when the run ends."""

    def __init__(self, videos: int) -> None:
        self._videos = videos
        self._frames = self._failed = self._done = 0
        self._begun = self._last_line = time.monotonic()
        self._bar = tqdm(total=videos, unit="video", dynamic_ncols=True) if sys.stderr.isatty() else None

    def video_done(self, result: VideoResult) -> None:
        """Count a video, and say so if it failed."""
        self._done += 1
        self._frames += result.num_frames
        if result.failure is not None:
            self._failed += 1
            failure = result.failure
            self._say(f"failed: {failure.path}: {failure.error}: {failure.message}")
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._rate():.1f} frames/s, {self._failed} failed")
            self._bar.update()
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES or self._done == self._videos:
            self._last_line = time.monotonic()
            elapsed = self._last_line - self._begun
            eta = elapsed / self._done * (self._videos - self._done)
            logger.info(
                "%d of %d videos, %d failed, %.1f frames/s, %.0f s left",
                self._done, self._videos, self._failed, self._rate(), eta,
            )  # fmt: skip

    def expect(self, more: int) -> None:
        """Count on so many more videos."""
        self._videos += more
        if self._bar is not None:
            self._bar.total = self._videos

    def shard_done(self, shard: int, result: ShardResult) -> None:
        """Report a shard that is in place."""
        self._say(f"shard {shard} complete: {result.num_videos} videos, {result.num_failures} failed")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _rate(self) -> float:
        return self._frames / max(time.monotonic() - self._begun, 1e-9)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            logger.info("%s", text)
