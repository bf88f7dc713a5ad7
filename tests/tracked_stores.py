"""Stores of a tracker that is never wrong: rendered films, their true tracks, and made-up visibility and confidence.

    store = make_tracked_store(tmp_path, {"ball.avi": Film((scene, 72))})

writes the videos and their list into tmp_path/videos and the store tmp_path/store, by the code that extraction uses
from the tracker's rows on: encoding, partial files, shards. A point that something hides is where it really is; one
that comes out again is valid again. No network is needed, and no weights.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_specs.dataset import load_videos
from data_specs.demo_clips import write_clip
from data_specs.geometry import grid_points, grid_size, inside_frame, start_frames
from data_specs.recipe import Recipe, load_recipe
from data_specs.scene import Scene
from data_specs.schema import VideoMeta
from data_specs.video import Frame, Video
from extraction.commit import ShardFolder, begin_store
from extraction.job_records import ShardJob
from extraction.jobs import run_job
from extraction.motion.tracker import RowTracks
from extraction.partial import PartialWriter
from extraction.plan import store_info
from extraction.process_video import encode_rows
from extraction.stages import untimed

TRACKMAE = load_recipe("trackmae").resolved(4)
"""8 positions, one every 8 frames; a video of 57 frames or more has them all. Change what a test needs less of."""

Alter = Callable[[RowTracks], RowTracks]


class Film:
    """A video of known motion: shots, each a scene of one size from its frame 0 on, and its number of frames."""

    def __init__(self, *shots: tuple[Scene, int]) -> None:
        self.shots = shots
        self.size = shots[0][0].size
        self.begins = [0, *itertools.accumulate(count for _, count in shots)]
        self.num_frames = self.begins.pop()
        self.cuts = tuple(self.begins[1:])

    def shot(self, t: int) -> tuple[Scene, int, int]:
        """The scene that frame t shows, the frame in which that begins, and the one after its last."""
        number = int(np.searchsorted(self.begins, t, side="right")) - 1
        return self.shots[number][0], self.begins[number], [*self.begins, self.num_frames][number + 1]

    def render(self, t: int) -> NDArray[np.uint8]:
        """Frame t, RGB uint8 (height, width, 3)."""
        scene, begin, _ = self.shot(t)
        return scene.render(t - begin)

    def row(self, start: int, recipe: Recipe) -> RowTracks:
        """The truth of the row that begins in frame `start`. Beyond its shot's end, its points go on as they did.

        Beyond the film's last frame they stay, and nothing is known of them.
        Visibility is 0.85 to 1 where a point is seen, else below 0.5; confidence is 0.75 to 1, at random (seeded).
        """
        scene, begin, end = self.shot(start)
        points = grid_points(self.size, recipe.grid_stride)
        positions, seen = scene.track(points, start - begin, recipe.length, recipe.frame_step)
        positions[:, 0] = points  # to the last bit
        frames = start + recipe.frame_step * np.arange(recipe.length + 1)
        uncut = (frames < end) | (not recipe.detect_cuts)
        rng = np.random.default_rng((start, len(points)))
        visibility = np.where(seen & uncut, rng.uniform(0.85, 1, seen.shape), rng.uniform(0, 0.5, seen.shape))
        confidence = rng.uniform(0.75, 1, seen.shape)
        visibility, confidence = visibility.astype(np.float32), confidence.astype(np.float32)
        valid = (visibility * confidence > recipe.visible_above) & inside_frame(positions, self.size) & uncut
        valid[:, 0] = True
        homographies, estimated = np.tile(np.eye(3), (recipe.length, 1, 1)), uncut[1:] & recipe.remove_camera
        for k in np.flatnonzero(estimated).tolist():
            homographies[k] = scene.homography(frames[k] - begin, frames[k + 1] - begin)
        past = frames >= self.num_frames
        if past.any():
            positions[:, past] = positions[:, ~past][:, -1:]
            for known in (visibility, confidence, valid):
                known[:, past] = 0
            homographies[past[1:]], estimated[past[1:]] = np.eye(3), False
        return RowTracks(start, positions, valid, homographies, estimated, visibility=visibility, confidence=confidence)


class TrueTracker:
    """A `Tracker` of a film's video. alter: a change to each row, for tests of rows that are wrong."""

    def __init__(self, film: Film, recipe: Recipe, alter: Alter | None = None) -> None:
        assert recipe.start_stride is not None
        times = (film.num_frames, recipe.length, recipe.frame_step, recipe.start_stride)
        starts = start_frames(*times, keep_short=recipe.keep_short)
        self._rows = {start + recipe.span: start for start in starts}
        self._film, self._recipe, self._alter = film, recipe, alter
        self._count = 0
        self.lookback = recipe.span

    def push(self, frame: Frame, begins_shot: bool = False) -> list[RowTracks]:
        """See `Tracker`; a row is complete with its last frame."""
        assert frame.shape[:2] == self._film.size
        assert begins_shot == (self._count in self._film.cuts and self._recipe.detect_cuts)
        complete, self._count = self._rows.pop(self._count, None), self._count + 1
        return [] if complete is None else [self._row(complete)]

    def finish(self) -> list[RowTracks]:
        """See `Tracker`; a short film's row is left."""
        return [self._row(start) for start in self._rows.values()]

    def _row(self, start: int) -> RowTracks:
        row = self._film.row(start, self._recipe)
        return row if self._alter is None else self._alter(row)


def make_tracked_store(
    folder: Path,
    films: Mapping[str, Film],
    recipe: Recipe = TRACKMAE,
    *,
    shards: int = 1,
    weights_sha256: str | None = "0123456789abcdef" * 4,
    alter: Alter | None = None,
) -> Path:
    """Write the films, by their names (.avi), and the store of their true tracks; returns the store.

    recipe: of a tracker, with its start stride resolved. Scenes are tracked as they are: a short side of at most the
    recipe's. alter: see `TrueTracker`.
    """
    root, store = folder / "videos", folder / "store"
    root.mkdir(parents=True, exist_ok=True)
    for name, film in films.items():
        assert min(film.size) <= recipe.short_side
        write_clip(root / name, film, film.num_frames)  # type: ignore[arg-type]  # it renders, as a scene does
    (root / "list.txt").write_text("".join(f"{name}\n" for name in films), encoding="utf-8")
    videos = load_videos(str(root / "list.txt"), str(root))
    info = store_info(videos, recipe, shards, weights_sha256=weights_sha256)
    begin_store(store, info)
    for shard in range(shards):
        entries = videos.shard(shard, shards)
        for place, entry in enumerate(entries):
            path = ShardFolder(store, shard).tracks_path(place)
            path.parent.mkdir(parents=True, exist_ok=True)
            film, video = films[entry.path], Video(root / entry.path, recipe.short_side)
            with PartialWriter(path) as writer:
                for row in encode_rows(_shown(video, film, recipe), TrueTracker(film, recipe, alter), recipe, untimed):
                    writer.append(row)
                writer.finish(
                    VideoMeta(
                        index=entry.index,
                        id=entry.id,
                        path=entry.path,
                        num_frames=video.decoded_frames,
                        fps=video.fps,
                        frame_size=video.frame_size,
                        source_size=video.source_size,
                        grid_size=grid_size(video.frame_size, recipe.grid_stride),
                        num_starts=writer.num_rows,
                        cuts=film.cuts if recipe.detect_cuts else (),
                    )
                )
        job = ShardJob(
            store=store, shard=shard, entries=entries, recipe=recipe, software=info.software,
            settings_sha256=info.settings_sha256,
        )  # fmt: skip
        run_job(job)
    return store


def _shown(video: Video, film: Film, recipe: Recipe) -> Iterator[tuple[Frame, bool]]:
    """The video's frames, as they are decoded, each with whether a shot begins with it."""
    return ((frame, t in film.cuts and recipe.detect_cuts) for t, frame in enumerate(video))
