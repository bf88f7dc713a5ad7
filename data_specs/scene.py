"""Rendered scenes whose motion is known exactly: the ground truth of tests and benchmarks, and the demo's clips.

A scene is a textured plane seen by a moving camera, with textured discs that move over it. `Texture` is a sum of
cosines, evaluated where a pixel's ray meets its surface: there is no source image, so nothing is interpolated and a
motion of 0.01 px is rendered as exactly as one of 10 px. Any other function of a surface's points will do as well.
Every surface moves by a homography, so the true position of any of its points at any time is a product of matrices.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data_specs.geometry import apply_homography, inside_frame

Motion = Callable[[float], NDArray[np.float64]]
"""Time in frames to the 3 x 3 homography that moves a surface there from where it is at time 0."""

TextureFunction = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Points (..., 2) of a surface, x and y in the pixels of frame 0, to their colours (..., 3) within 0 ... 255."""


@dataclasses.dataclass(frozen=True)
class Texture:
    """A random band-limited RGB texture: `waves` cosines with wavelengths between `shortest` and `longest` px."""

    seed: int
    waves: int = 40
    shortest: float = 5.0
    longest: float = 60.0
    contrast: float = 55.0
    brightness: float = 128.0

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Colours (..., 3), within 0 ... 255, at points (..., 2)."""
        rng = np.random.default_rng(self.seed)
        wavelength = self.longest * (self.shortest / self.longest) ** rng.random(self.waves)
        angle = rng.random(self.waves) * 2 * np.pi
        waves = 2 * np.pi / wavelength * np.stack([np.cos(angle), np.sin(angle)])
        amplitude = wavelength**0.5
        phase = points @ waves
        # one cosine and one sine for each wave give all three channels their own phase
        shift = rng.random((self.waves, 3)) * 1.5 + rng.random((self.waves, 1)) * 2 * np.pi
        colours = np.cos(phase) @ (amplitude[:, None] * np.cos(shift)) - np.sin(phase) @ (
            amplitude[:, None] * np.sin(shift)
        )
        spread = np.sqrt(np.sum(amplitude**2) / 2)
        return np.asarray(np.clip(self.brightness + self.contrast * colours / spread, 0, 255))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disc:
    """A textured disc. `centre` (x, y) and `radius` are in the plane of frame 0, where `motion` moves it."""

    texture: TextureFunction
    centre: tuple[float, float]
    radius: float
    motion: Motion

    def coverage(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much of a pixel at plane points (..., 2) of time 0 the disc covers, 0 ... 1, with a 1 px soft edge."""
        distance = np.linalg.norm(points - np.asarray(self.centre), axis=-1)
        return np.asarray(np.clip(self.radius - distance + 0.5, 0, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A plane, the discs on it (later ones in front) and a camera. `size` is (height, width) in pixels.

    `camera` maps frame 0's coordinates of a still point to its coordinates in frame t; `noise` is the standard
    deviation of the sensor's noise in grey levels.
    """

    size: tuple[int, int]
    background: TextureFunction
    camera: Motion
    discs: tuple[Disc, ...] = ()
    noise: float = 0.0
    seed: int = 0

    def render(self, t: int) -> NDArray[np.uint8]:
        """Frame t, RGB uint8 (height, width, 3)."""
        pixels = self._pixels()
        image = self.background(self._to_surface(pixels, self.camera(t)))
        for disc in self.discs:
            points = self._to_surface(pixels, self.camera(t) @ disc.motion(t))
            alpha = disc.coverage(points)[..., None]
            seen = alpha[..., 0] > 0
            image[seen] += alpha[seen] * (disc.texture(points[seen]) - image[seen])
        if self.noise:
            image = image + np.random.default_rng((self.seed, t)).normal(0, self.noise, image.shape)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    def frames(self, count: int) -> list[NDArray[np.uint8]]:
        """Frames 0 ... count - 1."""
        return [self.render(t) for t in range(count)]

    def layers(self, points: NDArray[np.float64], t: float) -> NDArray[np.int64]:
        """Which surface is seen at points (..., 2) of frame t: 0 the plane, i + 1 disc i."""
        layer = np.zeros(points.shape[:-1], dtype=np.int64)
        for number, disc in enumerate(self.discs, 1):
            on_disc = self._to_surface(points, self.camera(t) @ disc.motion(t))
            layer[disc.coverage(on_disc) >= 0.5] = number
        return layer

    def homography(self, t: float, u: float) -> NDArray[np.float64]:
        """The camera's G: a still point at x in frame t is at G x in frame u."""
        return np.asarray(self.camera(u) @ np.linalg.inv(self.camera(t)))

    def track(
        self, points: NDArray[np.float64], start: int, length: int, frame_step: int = 1
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The true trajectories of the surface points seen at `points` (N, 2) in frame `start`.

        Returns positions (N, length + 1, 2) and whether each is inside the frame and not hidden (N, length + 1).
        """
        layer = self.layers(points, start)
        positions = np.empty((len(points), length + 1, 2))
        visible = np.empty((len(points), length + 1), dtype=bool)
        for k in range(length + 1):
            t = start + k * frame_step
            for number in range(len(self.discs) + 1):
                on_it = layer == number
                positions[on_it, k] = apply_homography(self._between(number, start, t), points[on_it])
            visible[:, k] = inside_frame(positions[:, k], self.size) & (self.layers(positions[:, k], t) == layer)
        return positions, visible

    def flow(self, t: int, u: int) -> NDArray[np.float64]:
        """The true flow (height, width, 2) from frame t to frame u of what frame t shows."""
        pixels = self._pixels()
        positions, _ = self.track(pixels.reshape(-1, 2), t, 1, u - t)
        return (positions[:, 1] - positions[:, 0]).reshape(pixels.shape)

    def _between(self, layer: int, t: float, u: float) -> NDArray[np.float64]:
        """The map of a surface's points from frame t to frame u."""
        if layer == 0:
            return self.homography(t, u)
        motion = self.discs[layer - 1].motion
        return np.asarray(self.camera(u) @ motion(u) @ np.linalg.inv(self.camera(t) @ motion(t)))

    def _pixels(self) -> NDArray[np.float64]:
        y, x = np.mgrid[0 : self.size[0], 0 : self.size[1]].astype(np.float64)
        return np.stack([x, y], axis=-1)

    @staticmethod
    def _to_surface(points: NDArray[np.float64], to_frame: NDArray[np.float64]) -> NDArray[np.float64]:
        return apply_homography(np.linalg.inv(to_frame), points)


def still(_t: float) -> NDArray[np.float64]:
    """No motion."""
    return np.eye(3)


def moving(
    velocity: tuple[float, float] = (0.0, 0.0),
    *,
    about: tuple[float, float] = (0.0, 0.0),
    turn: float = 0.0,
    zoom: float = 1.0,
    tilt: tuple[float, float] = (0.0, 0.0),
) -> Motion:
    """A steady motion: per frame, `velocity` (x, y) in px, `turn` in radians about `about`, `zoom` as a factor, and
    `tilt`, the homography's perspective row, in 1/px.
    """
    to_origin = np.array([[1, 0, -about[0]], [0, 1, -about[1]], [0, 0, 1.0]])

    def motion(t: float) -> NDArray[np.float64]:
        cosine, sine, scale = np.cos(turn * t), np.sin(turn * t), zoom**t
        linear = np.array([[scale * cosine, -scale * sine, 0], [scale * sine, scale * cosine, 0], [0, 0, 1]])
        perspective = np.array([[1, 0, 0], [0, 1, 0], [tilt[0] * t, tilt[1] * t, 1.0]])
        shift = np.array([[1, 0, velocity[0] * t], [0, 1, velocity[1] * t], [0, 0, 1.0]])
        return np.asarray(shift @ np.linalg.inv(to_origin) @ perspective @ linear @ to_origin)

    return motion


def random_scene(seed: int, speed: float, size: tuple[int, int] = (136, 184), noise: float = 2.0) -> Scene:
    """A camera that pans, turns, zooms and tilts over a plane with three moving discs; `speed` in px per frame."""
    rng = np.random.default_rng(seed)
    height, width = size

    def direction(length: float) -> tuple[float, float]:
        angle = rng.random() * 2 * np.pi
        return length * np.cos(angle), length * np.sin(angle)

    camera = moving(
        direction(0.6 * speed),
        about=(width / 2, height / 2),
        turn=rng.normal() * 0.004 * speed,
        zoom=1 + rng.normal() * 0.003 * speed,
        tilt=(rng.normal() * 1e-5 * speed, rng.normal() * 1e-5 * speed),
    )
    discs = tuple(
        Disc(
            texture=Texture(10 * seed + i, shortest=4, longest=30),
            centre=(width * (0.2 + 0.3 * i), height * (0.3 + 0.2 * i)),
            radius=0.14 * height,
            motion=moving(direction(0.7 * speed), about=(width * (0.2 + 0.3 * i), height * (0.3 + 0.2 * i))),
        )
        for i in range(3)
    )
    return Scene(size=size, background=Texture(10 * seed + 9), camera=camera, discs=discs, noise=noise, seed=seed)
