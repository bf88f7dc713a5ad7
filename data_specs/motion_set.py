"""A controlled set of clips whose label is how an object moves, and nothing else.

A textured shape moves over a textured ground, seen by a panning camera. Twelve motions come in pairs, each the other
one backward. Everything else (textures, shape, size, place, speed, the camera's path, noise) is drawn without regard to
the label, so that

- *no single frame tells the label*: where the shape is, how it is turned and how far its texture is zoomed are each
  uniform on a circle (the frame is a torus for the shape: what leaves at one side comes in at the other; the texture's
  scales are a Shepard tone's, entering at one end of the spectrum as others leave at the other). A motion shifts them,
  and a uniform distribution on a circle that is shifted is the same one, at every time and for every motion;
- *no unordered set of frames tells a motion from its partner*: the partner is the same motion run backward from the
  same distribution, and so are the camera's paths.

Time u is counted from the middle of the clip, in frames; lengths are pixels, x right and y down, clockwise as seen.
A clip that is cut out of a longer one keeps both properties if its place is drawn evenly around the middle.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_specs.keyed_random import keyed_generator

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MOTIONS = (
    "right", "left",
    "down", "up",
    "clockwise", "counterclockwise",
    "expanding", "contracting",
    "accelerating", "decelerating",
    "curving clockwise", "curving counterclockwise",
)  # fmt: skip
"""The labels, by number. Numbers 2 i and 2 i + 1 are a pair: each is the other one run backward."""

_WAVES = 32
_LOBES = 3
# lengths in shares of the frame's short side, times in frames
_GROUND_WAVELENGTHS = 0.1, 0.5
_SHAPE_WAVELENGTHS = 0.1, 0.4
# grey levels: least and largest mean of a colour, and contrast; a shape stands out from its ground, as objects do
_GROUND_LEVELS = (50.0, 110.0), (20.0, 40.0)
_SHAPE_LEVELS = (160.0, 210.0), (20.0, 40.0)
_SPEED = 0.018, 0.036
_SPIN = math.radians(4), math.radians(8)
_ZOOM = math.log(1.025), math.log(1.05)
_SPEED_CHANGE = 0.9
_TURN = math.radians(160), math.radians(240)
_RADIUS = 0.26, 0.34
_LOBE = 0.06
_PAN = 0.018
_SWAY = 0.03
_SWAY_PERIOD = 12.0, 30.0
_NOISE = 2.0  # grey levels

Motion = Callable[[float], NDArray[np.float64]]
"""Time u to (x, y, angle, log zoom): px, px, radians, natural logarithm."""


def partner(label: int) -> int:
    """The motion that is this one run backward."""
    return label ^ 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Waves:
    """A texture: a sum of plane waves, (n,) each, `colours` complex (n, 3); grey levels around `mean` (3,)."""

    direction: NDArray[np.float64]
    wavelength: NDArray[np.float64]
    colours: NDArray[np.complex128]
    mean: NDArray[np.float64]

    def image(
        self, x: NDArray[np.float64], y: NDArray[np.float64], turned: float = 0.0, zoom: float = 1.0
    ) -> NDArray[np.float64]:
        """Colours (H, W, 3) at columns x (W,) and rows y (H,), of the texture turned and zoomed about its origin."""
        number = 2 * np.pi / (self.wavelength * zoom)
        angle = self.direction + turned
        # a plane wave is the product of one along x and one along y, so an image is a product of matrices
        along_x = np.exp(1j * np.outer(number * np.cos(angle), x))[:, :, None] * self.colours[:, None, :]
        along_y = np.exp(1j * np.outer(y, number * np.sin(angle)))
        waves = (along_y @ along_x.reshape(len(number), -1)).real
        return np.asarray(self.mean + waves.reshape(len(y), len(x), 3))


@dataclasses.dataclass(frozen=True)
class _ShepardTexture:
    """A texture that can be zoomed for ever: `place` (n,) of each wave in the spectrum, which zooming shifts."""

    waves: _Waves
    place: NDArray[np.float64]
    wavelengths: tuple[float, float]

    def at(self, log_zoom: float) -> _Waves:
        """What is seen when it is zoomed by exp(log_zoom): waves of the spectrum's ends have no amplitude."""
        shortest, longest = self.wavelengths
        span = math.log(longest / shortest)
        place = (self.place + log_zoom / span) % 1.0
        heard = math.sqrt(2) * np.sin(np.pi * place)[:, None]
        return dataclasses.replace(
            self.waves, wavelength=shortest * np.exp(span * place), colours=self.waves.colours * heard
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionClip:
    """One clip, ready to be rendered. `size` is (height, width) in pixels; `label` is a number of MOTIONS."""

    size: tuple[int, int]
    num_frames: int
    label: int
    seed: int
    place: tuple[float, float]
    """(x, y) of the shape at u = 0, without the camera."""
    path: Motion
    """The shape's motion, relative to the ground and to `place`."""
    camera: Callable[[float], NDArray[np.float64]]
    """u to the shift (x, y) of everything that is seen."""
    radius: float
    lobes: NDArray[np.float64]
    """(_LOBES, 2) amplitude and phase of the outline's waves."""
    ground: _Waves
    texture: _ShepardTexture

    def time(self, frame: float) -> float:
        """u of a frame's number."""
        return frame - (self.num_frames - 1) / 2

    def pose(self, frame: float) -> NDArray[np.float64]:
        """(x, y, angle, log zoom) of the shape in the image of a frame; x and y are not yet brought into the frame."""
        u = self.time(frame)
        pose = self.path(u)
        pose[:2] += np.asarray(self.place) + self.camera(u)
        return pose

    def render(self, frame: int) -> NDArray[np.uint8]:
        """A frame by its number, RGB uint8 (height, width, 3)."""
        height, width = self.size
        u, pose = self.time(frame), self.pose(frame)
        shift = self.camera(u)
        image = self.ground.image(np.arange(width) - shift[0], np.arange(height) - shift[1])
        waves = self.texture.at(float(pose[3]))
        for x, y in self._centres(pose):
            self._paint(image, waves, x, y, float(pose[2]))
        noise = np.random.default_rng((self.seed, frame)).normal(0, _NOISE, image.shape)
        return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)

    def moved(self, points: NDArray[np.float64], start: float, end: float) -> NDArray[np.float64]:
        """Where the surface points seen at `points` (N, 2) in frame `start` are in frame `end`: (N, 2), x and y.

        Points of the shape stay with its copy that they are on, and may leave the frame.
        """
        moved = points + self.camera(self.time(end)) - self.camera(self.time(start))
        before, after = self.pose(start), self.pose(end)
        turn, zoom = after[2] - before[2], math.exp(after[3] - before[3])
        rotation = zoom * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        for x, y in self._centres(before):
            offset = points - (x, y)
            on_it = self._coverage(offset[:, 0], offset[:, 1], float(before[2])) >= 0.5
            centre = np.array([x, y]) + after[:2] - before[:2]
            moved[on_it] = centre + offset[on_it] @ rotation.T
        return np.asarray(moved)

    def on_shape(self, points: NDArray[np.float64], frame: float) -> NDArray[np.bool_]:
        """Whether points (N, 2) of a frame show the shape."""
        pose, found = self.pose(frame), np.zeros(len(points), dtype=bool)
        for x, y in self._centres(pose):
            found |= self._coverage(points[:, 0] - x, points[:, 1] - y, float(pose[2])) >= 0.5
        return found

    def _centres(self, pose: NDArray[np.float64]) -> list[tuple[float, float]]:
        """(x, y) of the shape and of those of its copies on the torus that the frame shows."""
        height, width = self.size
        return [(x, y) for x in _copies(pose[0], width, self._reach) for y in _copies(pose[1], height, self._reach)]

    @property
    def _reach(self) -> float:
        """No pixel further from the shape's centre shows any of it."""
        return self.radius * (1 + float(np.abs(self.lobes[:, 0]).sum())) + 0.5

    def _paint(self, image: NDArray[np.float64], waves: _Waves, x: float, y: float, angle: float) -> None:
        columns, rows = _within(x, self._reach, image.shape[1]), _within(y, self._reach, image.shape[0])
        if not len(columns) or not len(rows):
            return
        across, down = columns.astype(np.float64) - x, rows.astype(np.float64) - y
        alpha = self._coverage(across[None, :], down[:, None], angle)[..., None]
        box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        box += alpha * (waves.image(across, down, angle) - box)

    def _coverage(self, across: NDArray[np.float64], down: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
        """How much of a pixel, given from the shape's centre, the shape covers: 0 ... 1, its edge 1 px soft."""
        direction = np.arctan2(down, across) - angle
        outline = self.radius * (
            1 + sum(size * np.cos((k + 2) * direction + phase) for k, (size, phase) in enumerate(self.lobes))
        )
        return np.asarray(np.clip(outline - np.hypot(across, down) + 0.5, 0, 1))


def motion_clip(
    split: Split, index: int, *, label: int, size: tuple[int, int], num_frames: int, seed: int = 0
) -> MotionClip:
    """The clip `index` of a split with this label: all else follows from (seed, split, index), not from the label.

    size: (height, width) in pixels. No two clips have a texture in common, so the splits have none.
    """
    rng = keyed_generator("clip", int(seed), split, int(index))
    height, width = size
    short = min(size)
    radius = short * rng.uniform(*_RADIUS)
    lobes = np.stack([rng.uniform(0, _LOBE, _LOBES), rng.uniform(0, 2 * np.pi, _LOBES)], axis=1)
    place = (width * rng.random(), height * rng.random())
    turned = 2 * np.pi * rng.random()
    pan = short * _PAN * math.sqrt(rng.random()) * _unit(rng)
    sway = short * _SWAY * rng.random() * _unit(rng)
    phase, period = 2 * np.pi * rng.random(), rng.uniform(*_SWAY_PERIOD)
    noise = int(rng.integers(2**31))
    ground_waves, shape_waves = ((short * a, short * b) for a, b in (_GROUND_WAVELENGTHS, _SHAPE_WAVELENGTHS))
    ground = _draw_waves(rng, ground_waves, *_GROUND_LEVELS)
    texture = _ShepardTexture(_draw_waves(rng, shape_waves, *_SHAPE_LEVELS), rng.random(_WAVES), shape_waves)
    amounts = {
        "speed": short * rng.uniform(*_SPEED),
        "heading": 2 * np.pi * rng.random(),
        "spin": rng.uniform(*_SPIN),
        "zoom": rng.uniform(*_ZOOM),
        "turn": rng.uniform(*_TURN) / num_frames,
    }

    def path(u: float) -> NDArray[np.float64]:
        pose = _motion(label // 2, u if label % 2 == 0 else -u, num_frames / 2, amounts)
        pose[2] += turned
        return pose

    return MotionClip(
        size=size,
        num_frames=num_frames,
        label=label,
        seed=noise,
        place=place,
        path=path,
        camera=lambda u: np.asarray(pan * u + sway * math.sin(2 * np.pi * u / period + phase)),
        radius=radius,
        lobes=lobes,
        ground=ground,
        texture=texture,
    )


def split_labels(split: Split, count: int, seed: int = 0) -> NDArray[np.int64]:
    """The labels of a split's clips, int64 (count,): each as often as any other, to one, in random order."""
    order: NDArray[np.int64] = keyed_generator("labels", int(seed), split, 0).permutation(
        np.arange(count) % len(MOTIONS)
    )
    return order


def _motion(pair: int, u: float, half: float, amounts: dict[str, float]) -> NDArray[np.float64]:
    """(x, y, angle, log zoom) of the first motion of a pair at time u, from 0 at u = 0."""
    speed, heading = amounts["speed"], amounts["heading"]
    along = np.array([math.cos(heading), math.sin(heading), 0, 0])
    if pair == 0:
        return np.array([speed * u, 0, 0, 0])
    if pair == 1:
        return np.array([0, speed * u, 0, 0])
    if pair == 2:
        return np.array([0, 0, amounts["spin"] * u, 0])
    if pair == 3:
        return np.array([0, 0, 0, amounts["zoom"] * u])
    if pair == 4:
        return np.asarray(speed * (u + _SPEED_CHANGE * u**2 / (2 * half)) * along)
    # at constant speed along a circle, in the direction heading + turn * u
    turn = amounts["turn"]
    x, y = math.sin(heading + turn * u) - math.sin(heading), math.cos(heading) - math.cos(heading + turn * u)
    return np.array([speed / turn * x, speed / turn * y, 0, 0])


def _draw_waves(
    rng: np.random.Generator,
    wavelengths: tuple[float, float],
    means: tuple[float, float],
    contrasts: tuple[float, float],
) -> _Waves:
    shortest, longest = wavelengths
    wavelength = longest * (shortest / longest) ** rng.random(_WAVES)
    amplitude = np.exp(1j * (2 * np.pi * rng.random((_WAVES, 1)) + rng.uniform(0, 1.5, (_WAVES, 3))))
    contrast = rng.uniform(*contrasts)
    return _Waves(
        direction=2 * np.pi * rng.random(_WAVES),
        wavelength=wavelength,
        colours=contrast * math.sqrt(2 / _WAVES) * amplitude,
        mean=rng.uniform(*means, 3),
    )


def _unit(rng: np.random.Generator) -> NDArray[np.float64]:
    angle = 2 * np.pi * rng.random()
    return np.array([math.cos(angle), math.sin(angle)])


def _copies(centre: float, period: int, reach: float) -> list[float]:
    """Where along an axis of the torus the shape is seen: its centre, and those of copies that reach into the frame."""
    first = centre % period
    return [at for at in (first - period, first, first + period) if -0.5 - reach < at < period - 0.5 + reach]


def _within(centre: float, reach: float, count: int) -> NDArray[np.int64]:
    return np.arange(max(0, math.ceil(centre - reach)), min(count - 1, math.floor(centre + reach)) + 1)
