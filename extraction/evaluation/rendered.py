"""Ground truth that needs no download: rendered scenes, followed at points on a grid, hidden or not, to the pixel."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_specs.geometry import grid_points
from data_specs.scene import Disc, Scene, Texture, moving, random_scene
from extraction.evaluation.annotated_video import AnnotatedVideo

FRAMES = 24
_GRID_STRIDE = 12
# New points are taken from these frames too: what they show first is what a camera and objects uncover.
_SEEDED = (0, 8, 16)


def rendered_scenes() -> dict[str, Scene]:
    """The scenes by name, speeds in px per frame. No two have one size, and none is square."""
    crossing = tuple(
        Disc(texture=Texture(seed, shortest=4, longest=30), centre=centre, radius=radius, motion=moving(velocity))
        for seed, centre, radius, velocity in [
            (51, (-20.0, 50.0), 24.0, (8.0, 1.0)),
            (52, (150.0, 190.0), 30.0, (-1.0, -7.0)),
        ]
    )
    return {
        "slow": random_scene(11, 1.0, (144, 192)),
        "medium": random_scene(12, 3.0, (200, 152)),
        "fast": random_scene(13, 7.0, (160, 216)),
        # two discs pass over what was in sight, and it comes back
        "covered": Scene(
            size=(136, 208), background=Texture(50), camera=moving((0.6, -0.4)), discs=crossing, noise=2.0, seed=14
        ),
    }


def rendered_videos() -> Iterator[AnnotatedVideo]:
    """The scenes' first 24 frames, rendered one scene at a time."""
    for name, scene in rendered_scenes().items():
        yield annotate_scene(name, scene, FRAMES, _GRID_STRIDE, _SEEDED)


def annotate_scene(
    name: str, scene: Scene, num_frames: int, grid_stride: int, seeded: tuple[int, ...] = (0,)
) -> AnnotatedVideo:
    """The scene's frames 0 ... num_frames - 1 and the true tracks, over all of them, of what is on the grid of stride
    `grid_stride` in each of the frames `seeded`, in rising order; what an earlier one of these shows too, that one has
    already.
    """
    positions, visible = [], []
    for frame in seeded:
        tracks, seen = _whole_tracks(scene, grid_points(scene.size, grid_stride), frame, num_frames)
        new = ~seen[:, [earlier for earlier in seeded if earlier < frame]].any(axis=1)
        positions.append(tracks[new])
        visible.append(seen[new])
    return AnnotatedVideo(name, scene.frames(num_frames), np.concatenate(positions), np.concatenate(visible))


def _whole_tracks(
    scene: Scene, points: NDArray[np.float64], frame: int, num_frames: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Positions (N, T, 2) and visibility (N, T), over the whole clip, of what is at `points` in `frame`."""
    after, seen_after = scene.track(points, frame, num_frames - 1 - frame)
    before, seen_before = scene.track(points, frame, frame, frame_step=-1)
    return (
        np.concatenate([before[:, :0:-1], after], axis=1),
        np.concatenate([seen_before[:, :0:-1], seen_after], axis=1),
    )
