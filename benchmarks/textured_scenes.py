"""Random scenes of known motion over pictures of real clips: what `motion_accuracy.py` measures against.

Everything is sampled in floating point by cubic splines (`scipy.ndimage.map_coordinates`): a frame shows its surface
exactly where the truth says, not rounded to 1/32 px as by `cv2.remap`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_specs.geometry import apply_homography, grid_points
from data_specs.scene import Disc, Motion, Scene, Texture, TextureFunction, moving
from data_specs.video import Frame, Video

# Blur of a texture, in pixels of the frame in which it is seen smallest: leaves 0.29 of what is at a frame's Nyquist.
BLUR = 0.5
SPEED_BANDS = ((0.5, 2.0), (4.0, 8.0), (14.0, 20.0), (0.5, 2.0), (4.0, 8.0), (14.0, 20.0), (2.0, 14.0))
"""Sequence i takes its speed, px per frame, from band i modulo 7: most go where results are reported."""
_OBJECTS = 4
_PICTURES_OF_A_CLIP = 6
_LEAST_CONTRAST = 12.0  # standard deviation in grey levels; frames of a fade are no textures
_PLACES_TRIED = 4
_GOLDEN = 0.5 * (5**0.5 - 1)


class PictureTexture:
    """A picture as a surface of unbounded size, mirrored at its border (about the centres of its outermost pixels).

    picture: (height, width, 3), levels 0 ... 255. origin: the point x, y of the picture at the surface's (0, 0).
    blur: standard deviation in pixels of the Gaussian that is applied once, so that views of the surface from farther
    off are not aliased and all views show the same surface; 0 interpolates the picture's own values.
    """

    def __init__(
        self, picture: NDArray[np.uint8], origin: tuple[float, float] = (0.0, 0.0), blur: float = BLUR
    ) -> None:
        self._origin = np.asarray(origin, dtype=np.float64)
        self._splines = []
        for channel in np.moveaxis(picture.astype(np.float64), -1, 0):
            smooth = ndimage.gaussian_filter(channel, blur, mode="mirror") if blur > 0 else channel
            self._splines.append(ndimage.spline_filter(smooth, order=3, mode="mirror"))

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Colours (..., 3) at points (..., 2), within 0 ... 255."""
        x, y = np.moveaxis(points + self._origin, -1, 0)
        channels = [
            ndimage.map_coordinates(spline, [y, x], order=3, mode="mirror", prefilter=False) for spline in self._splines
        ]
        return np.asarray(np.clip(np.stack(channels, axis=-1), 0, 255))


def read_pictures(clips: Sequence[str | Path]) -> list[list[Frame]]:
    """Frames of each clip to take textures from, evenly spread over it, at short side 256 or their own if smaller.

    Raises VideoError where a clip cannot be read, ValueError where none of its frames has any contrast.
    """
    pictures = []
    for clip in clips:
        video = Video(clip, short_side=256)
        wanted = set(np.linspace(0, video.announced_frames - 1, _PICTURES_OF_A_CLIP + 2)[1:-1].astype(int).tolist())
        own = [f for i, f in enumerate(video) if i in wanted and f.mean(axis=-1).std() >= _LEAST_CONTRAST]
        if not own:
            raise ValueError(f"{clip}: none of its frames has enough contrast to be a texture")
        pictures.append(own)
    return pictures


def sequence_speed(number: int) -> float:
    """Speed of sequence `number` in px per frame: spread over its band of `SPEED_BANDS` by the golden ratio."""
    low, high = SPEED_BANDS[number % len(SPEED_BANDS)]
    return float(low * (high / low) ** ((0.5 + _GOLDEN * number) % 1.0))


def textured_scene(
    seed: int,
    speed: float,
    size: tuple[int, int],
    frames: int,
    pictures: Sequence[Sequence[Frame]] = (),
    noise: float = 2.0,
) -> Scene:
    """A camera that pans, turns, zooms and tilts over a plane with four moving discs, `frames` frames long.

    speed: px per frame; the camera moves the plane's points by it on average, and each disc moves in the image by 0.75
    to 1.25 of it, 35 to 100 degrees away from the pan, through the frame's middle part. size: (height, width).
    pictures: of each clip, from `read_pictures`; procedural textures where there are none.
    """
    rng = np.random.default_rng((seed, 1))
    height, width = size
    centre = np.array([width / 2, height / 2])
    camera, pan = _camera(rng, speed, size, frames)
    middle = (frames - 1) / 2
    discs = []
    for number in range(_OBJECTS):
        angle = pan + rng.choice([-1, 1]) * np.deg2rad(rng.uniform(35, 100))
        wanted = speed * rng.uniform(0.75, 1.25) * np.array([np.cos(angle), np.sin(angle)])
        quarter = np.array([0.2 if number % 2 else -0.2, 0.2 if number // 2 else -0.2])
        meets = centre + (quarter + rng.uniform(-0.14, 0.14, 2)) * [width, height]
        earlier, later = camera(middle - 0.5), camera(middle + 0.5)
        by_camera = apply_homography(later @ np.linalg.inv(earlier), meets) - meets
        own = wanted - by_camera
        start = apply_homography(np.linalg.inv(camera(middle)), meets) - own * middle
        motion = moving(
            (own[0], own[1]),
            about=(start[0], start[1]),
            turn=rng.uniform(-1, 1) * 0.003 * speed,
            zoom=1 + rng.uniform(-1, 1) * 0.001 * speed,
        )
        radius = height * rng.uniform(0.11, 0.18)
        to_frame = _composed(camera, motion)
        texture = _texture(rng, (seed, number), pictures, start, radius, to_frame, size, frames)
        discs.append(Disc(texture=texture, centre=(start[0], start[1]), radius=radius, motion=motion))
    seen_at_middle = apply_homography(np.linalg.inv(camera(middle)), centre)
    background = _texture(rng, (seed, _OBJECTS), pictures, seen_at_middle, None, camera, size, frames)
    return Scene(size=size, background=background, camera=camera, discs=tuple(discs), noise=noise, seed=seed)


def _camera(rng: np.random.Generator, speed: float, size: tuple[int, int], frames: int) -> tuple[Motion, float]:
    """A steady camera motion of that mean displacement over the frame, and the direction of its pan in radians."""
    height, width = size
    pan = rng.uniform(0, 2 * np.pi)
    shares = rng.uniform(-1, 1, 4)
    points = grid_points(size, 8)

    def motion(amount: float) -> Motion:
        return moving(
            (0.8 * amount * np.cos(pan), 0.8 * amount * np.sin(pan)),
            about=(width / 2, height / 2),
            turn=shares[0] * 0.4 * amount / width,
            zoom=1 + shares[1] * 0.4 * amount / width,
            tilt=(shares[2] * 0.8 * amount / width**2, shares[3] * 0.8 * amount / width**2),
        )

    amount = speed
    for _ in range(4):  # nearly linear: a few corrections are exact to 0.1 %
        camera = motion(amount)
        steps = [apply_homography(camera(t + 1) @ np.linalg.inv(camera(t)), points) - points for t in range(frames - 1)]
        amount *= speed / float(np.linalg.norm(steps, axis=-1).mean())
    return motion(amount), float(pan)


def _composed(camera: Motion, motion: Motion) -> Motion:
    return lambda t: np.asarray(camera(t) @ motion(t))


def _texture(
    rng: np.random.Generator,
    seed: tuple[int, int],
    pictures: Sequence[Sequence[Frame]],
    middle: NDArray[np.float64],
    radius: float | None,
    to_frame: Motion,
    size: tuple[int, int],
    frames: int,
) -> TextureFunction:
    """A texture whose picture's middle is at `middle`, or for an object of that radius anywhere within the picture."""
    clip, picture = rng.random(2)
    shifts = rng.uniform(-1, 1, (_PLACES_TRIED, 2))
    if not pictures:
        return Texture(seed[0] * 100 + seed[1], shortest=5.0, longest=60.0 if radius is None else 30.0)
    of_clip = pictures[int(clip * len(pictures))]
    chosen = of_clip[int(picture * len(of_clip))]
    in_picture = np.array([chosen.shape[1] - 1, chosen.shape[0] - 1]) / 2
    if radius is not None:
        # the place with the most contrast of a few: an object of one colour would have no motion to measure
        places = in_picture + shifts * np.maximum(in_picture - radius, 0)
        in_picture = max(places, key=lambda place: _contrast(chosen, place, radius))
    origin = in_picture - middle
    blur = BLUR * _texels_per_pixel(to_frame, size, frames)
    return PictureTexture(chosen, (float(origin[0]), float(origin[1])), blur)


def _contrast(picture: Frame, place: NDArray[np.float64], radius: float) -> float:
    """Standard deviation in grey levels of the square of that half width about a place x, y."""
    (left, top), (right, bottom) = np.maximum(place - radius, 0).astype(int), (place + radius).astype(int) + 1
    return float(picture[top:bottom, left:right].mean(axis=-1).std())


def _texels_per_pixel(to_frame: Motion, size: tuple[int, int], frames: int) -> float:
    """How many of a surface's pixels lie along one pixel of a frame where it is seen smallest; 1 or more."""
    points = grid_points(size, max(4, min(size) // 8))
    largest = 1.0
    for t in range(frames):
        to_surface = np.linalg.inv(to_frame(t))
        across, down = (
            apply_homography(to_surface, points + half) - apply_homography(to_surface, points - half)
            for half in np.array([[0.5, 0], [0, 0.5]])
        )
        largest = max(largest, float(np.linalg.svd(np.stack([across, down], axis=-1), compute_uv=False).max()))
    return largest
