"""Precision and recall of the cut detector, on clips of your own, on concatenations of them, and on rendered motion.

    python benchmarks/cut_detection.py CLIP... --cuts bikes.mp4=30,76,137,187,242

`--cuts` names the frames at which a shot begins in a clip; clips without it have none. Rows of the table:

- whole clips, and the same with every second frame only, so that everything moves twice as fast;
- *different shots*: 12 frames of one shot, then 12 of another, of the same clip or not, brought to one size;
- *same shot, later*: 12 frames, then 12 of the same shot at least 60 frames on: a jump cut, or hardly a cut at all;
- *flashes*: every 15th frame of a clip white; *switched light*: a gain of 0.5 or 1.6 from some frame on;
- *dissolves* of 8 frames between two shots: a cut found anywhere in it counts as found, though not at an exact frame;
- *rendered*: moving scenes (`data_specs.scene`) at up to 20 px per frame, 256 x 340.

Where the package `scenedetect` can be imported, its detectors are measured too, with a shortest shot of 1 frame.
Times are the least of 5 runs over the first clip.
"""

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from data_specs.scene import Scene, Texture, moving, random_scene
from data_specs.video import Frame, Video
from extraction.cuts import ShotFrames
from extraction.stages import untimed

Finder = Callable[[list[Frame]], list[int]]
PIECE, LATER, DISSOLVE, SHORT_SIDE = 12, 60, 8, 256


@dataclasses.dataclass
class Case:
    """Frames and where their cuts are; `within`: a cut found up to so many frames later counts."""

    frames: list[Frame]
    cuts: list[int]
    within: int = 0


@dataclasses.dataclass
class Clip:
    """A clip's frames at the tracked size, its cuts, and its shots as (first, last + 1)."""

    frames: list[Frame]
    cuts: list[int]

    @property
    def shots(self) -> list[tuple[int, int]]:
        """Those that are long enough to take a piece from."""
        return [(a, b) for a, b in pairwise([0, *self.cuts, len(self.frames)]) if b - a >= PIECE]


def ours(frames: list[Frame]) -> list[int]:
    """The detector of `extraction/cuts.py`."""
    shots = ShotFrames(frames, True, untimed)
    for _ in shots:
        pass
    return shots.cuts


def finders() -> dict[str, Finder]:
    """Ours, and PySceneDetect's where it is installed."""
    found: dict[str, Finder] = {"ours": ours}
    with contextlib.suppress(ImportError):
        from scenedetect import FrameTimecode  # noqa: PLC0415
        from scenedetect.detectors import AdaptiveDetector, ContentDetector, HistogramDetector  # noqa: PLC0415

        def library(kind: type) -> Finder:
            def find(frames: list[Frame]) -> list[int]:
                detector = kind(min_scene_len=1)
                cuts = []
                for t, frame in enumerate(frames):
                    cuts += detector.process_frame(FrameTimecode(t, 25.0), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
                return [cut.frame_num for cut in cuts]

            return find

        for kind in (AdaptiveDetector, ContentDetector, HistogramDetector):
            found[f"scenedetect {kind.__name__}"] = library(kind)
    return found


def read_clips(paths: list[Path], cuts: list[str]) -> list[Clip]:
    """Decode the clips; `cuts` as on the command line."""
    known = {name: [int(t) for t in frames.split(",")] for name, _, frames in (entry.partition("=") for entry in cuts)}
    if unknown := known.keys() - {path.name for path in paths}:
        raise SystemExit(f"--cuts names clips that are not given: {', '.join(sorted(unknown))}")
    return [Clip(list(Video(path, SHORT_SIDE)), known.get(path.name, [])) for path in paths]


def joined(rng: np.random.Generator, clips: list[Clip], later: bool) -> tuple[list[Frame], list[Frame]] | None:
    """Two pieces to be joined: of one shot, or of two; None where the draw has nothing to offer."""
    shots = [(clip, *shot) for clip in clips for shot in clip.shots]
    clip, a, b = shots[rng.integers(len(shots))]
    if later:
        if b - a < 2 * PIECE + LATER:
            return None
        i = int(rng.integers(a, b - 2 * PIECE - LATER + 1))
        j = int(rng.integers(i + PIECE + LATER, b - PIECE + 1))
        return clip.frames[i : i + PIECE], clip.frames[j : j + PIECE]
    other, c, d = shots[rng.integers(len(shots))]
    if (other is clip) and a == c:
        return None
    i, j = int(rng.integers(a, b - PIECE + 1)), int(rng.integers(c, d - PIECE + 1))
    height, width = clip.frames[0].shape[:2]
    second = [cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in other.frames[j : j + PIECE]]
    return clip.frames[i : i + PIECE], second


def cases(clips: list[Clip], count: int) -> Iterator[tuple[str, Iterator[Case]]]:
    """The table's rows: a name and its cases."""
    rng = np.random.default_rng(0)

    def joins(later: bool) -> Iterator[Case]:
        done = 0
        for _ in range(20 * count):
            if done < count and (pair := joined(rng, clips, later)):
                done += 1
                yield Case(pair[0] + pair[1], [PIECE])

    def dissolves() -> Iterator[Case]:
        for case in joins(later=False):
            a, b = case.frames[:PIECE], case.frames[PIECE:]
            mixed = [
                cv2.addWeighted(a[-DISSOLVE + k], 1 - share, b[k], share, 0)
                for k in range(DISSOLVE)
                for share in [(k + 1) / (DISSOLVE + 1)]
            ]
            yield Case(a[:-DISSOLVE] + mixed + b[DISSOLVE:], [PIECE - DISSOLVE], within=DISSOLVE)

    def flashes() -> Iterator[Case]:
        for clip in clips:
            near = {cut + d for cut in clip.cuts for d in (-2, -1, 0, 1, 2)}  # a flash at a cut is a shot of its own
            white = set(range(7, len(clip.frames), 15)) - near
            yield Case([np.full_like(f, 255) if t in white else f for t, f in enumerate(clip.frames)], clip.cuts)

    def lights() -> Iterator[Case]:
        for clip in clips:
            for a, b in clip.shots:
                for gain in (0.5, 1.6):
                    i = int(rng.integers(a, b - PIECE + 1))
                    piece = clip.frames[i : i + PIECE]
                    yield Case(piece[:6] + [cv2.convertScaleAbs(f, alpha=gain) for f in piece[6:]], [])

    def rendered() -> Iterator[Case]:
        for speed in (2.0, 6.0, 12.0, 20.0):
            for seed in range(3):
                yield Case(random_scene(seed, speed, (256, 340)).frames(6), [])
                camera = moving((speed * np.cos(seed), speed * np.sin(seed)))
                texture = Texture(seed, waves=20, shortest=4, longest=30 + 20 * seed)
                yield Case(Scene(size=(256, 340), background=texture, camera=camera, noise=3).frames(6), [])

    yield "whole clips", (Case(clip.frames, clip.cuts) for clip in clips)
    yield "every second frame", (Case(clip.frames[::2], [-(-t // 2) for t in clip.cuts]) for clip in clips)
    yield "different shots", joins(later=False)
    yield "same shot, later", joins(later=True)
    yield "flashes", flashes()
    yield "switched light", lights()
    yield f"dissolves of {DISSOLVE}", dissolves()
    yield "rendered, to 20 px", rendered()


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--cuts", nargs="*", default=[], metavar="NAME=FRAME,FRAME", help="where a clip's shots begin")
    parser.add_argument("--joins", type=int, default=150, help="how many concatenations of each kind")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    clips = read_clips(options.clips, options.cuts)
    methods = finders()
    print("| detector | case | frames | cuts | found | false | recall | precision |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    totals = {(case, name): [0, 0, 0, 0] for case, _ in cases(clips, 0) for name in methods}
    for case, examples in cases(clips, options.joins):
        for example in examples:
            for name, find in methods.items():
                found = find(example.frames)
                hits = sum(any(cut <= t <= cut + example.within for t in found) for cut in example.cuts)
                wrong = sum(not any(cut <= t <= cut + example.within for cut in example.cuts) for t in found)
                totals[case, name] = [
                    a + b
                    for a, b in zip(
                        totals[case, name], (len(example.frames), len(example.cuts), hits, wrong), strict=True
                    )
                ]
    for (case, name), (frames, cuts, hits, wrong) in sorted(totals.items(), key=lambda item: item[0][1]):
        recall = f"{hits / cuts:.3f}" if cuts else ""
        precision = f"{hits / (hits + wrong):.3f}" if hits + wrong else ""
        print(f"| {name} | {case} | {frames} | {cuts} | {hits} | {wrong} | {recall} | {precision} |")
    frames = clips[0].frames
    for name, find in methods.items():
        seconds = []
        for _ in range(5):
            begun = time.perf_counter()
            find(frames)
            seconds.append(time.perf_counter() - begun)
        height, width = frames[0].shape[:2]
        print(f"{name}: {min(seconds) / len(frames) * 1e3:.2f} ms per frame of {height}x{width}")


if __name__ == "__main__":
    main()
