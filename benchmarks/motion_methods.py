"""The methods that `motion_accuracy.py` compares, by name, with the time of their parts."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast, get_args

from reference_recipe import ReferenceTracker

from data_specs.recipe import Flow, load_recipe
from data_specs.video import Frame
from extraction.motion.flow_tracker import FlowTracker, PairMotion, TrackedFrame
from extraction.stages import Stage

REFERENCE = "reference"


@dataclasses.dataclass(frozen=True)
class PassTimes:
    """Milliseconds of one pair: the first flow, everything up to the homography, rectification and second flow with
    its median filter, and all together.
    """

    first: float
    camera: float
    second: float
    total: float


class Method(Protocol):
    """A named source of motion. `in_image`: its points follow the image, see Recipe.positions_in."""

    @property
    def name(self) -> str:
        """As it was asked for."""

    @property
    def in_image(self) -> bool:
        """True for `image`, false for `stabilised`."""

    def motions(self, frames: Sequence[Frame]) -> Iterator[tuple[PairMotion, PassTimes]]:
        """The motion from each frame to the next, computed as it is asked for."""


class _PairTracker(Protocol):
    def pair_motion(self, a: TrackedFrame, b: TrackedFrame) -> PairMotion: ...


class _PassTimer:
    """A `Stage` that keeps the order of a pair's stages, so that the two called "flow" can be told apart."""

    def __init__(self) -> None:
        self.done: list[tuple[str, float]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.done.append((stage, 1000 * (time.perf_counter() - begun)))

    def passes(self, total: float) -> PassTimes:
        """Split at the end of the first flow, and where the rectification (or else the second flow) begins."""
        names = [name for name, _ in self.done]
        first = names.index("flow") + 1
        second = next(
            (i for i, name in enumerate(names) if i >= first and name in {"warp", "flow", "median"}), len(names)
        )
        parts = [sum(ms for _, ms in part) for part in (self.done[:first], self.done[first:second], self.done[second:])]
        return PassTimes(parts[0], parts[1], parts[2], total)


@dataclasses.dataclass(frozen=True)
class TrackerMethod:
    """A method whose pairs come from a tracker; `make` makes one for each sequence."""

    name: str
    in_image: bool
    make: Callable[[Stage], _PairTracker]

    def motions(self, frames: Sequence[Frame]) -> Iterator[tuple[PairMotion, PassTimes]]:
        """See `Method`. Decoding and conversion to grey are not timed."""
        timer = _PassTimer()
        tracker = self.make(timer)
        previous = TrackedFrame(frames[0])
        for frame in frames[1:]:
            current = TrackedFrame(frame)
            timer.done.clear()
            begun = time.perf_counter()
            motion = tracker.pair_motion(previous, current)
            yield motion, timer.passes(1000 * (time.perf_counter() - begun))
            previous = current


def make_method(spec: str, *, first_pass_only: bool = False) -> Method:
    """The method called `reference`, or RECIPE or RECIPE:FLOW; a recipe is a shipped one's name or a .yaml file.

    first_pass_only: leave the camera in, and do not measure again.
    Raises ValueError for an unknown flow, RecipeError (which is one) for a recipe that does not load.
    """
    if spec == REFERENCE:
        return TrackerMethod(spec, True, lambda stage: ReferenceTracker(stage, remove_camera=not first_pass_only))
    name, _, flow = spec.partition(":")
    if flow and flow not in get_args(Flow):
        raise ValueError(f"method {spec}: no flow is called {flow}; there are {', '.join(get_args(Flow))}")
    recipe = load_recipe(name).resolved(1)
    if flow:
        recipe = dataclasses.replace(recipe, flow=cast(Flow, flow))
    if first_pass_only:
        recipe = dataclasses.replace(recipe, remove_camera=False, positions_in="image")
    return TrackerMethod(spec, recipe.positions_in == "image", lambda stage: FlowTracker(recipe, stage))


def make_methods(specs: Sequence[str], *, first_pass_only: bool = False) -> list[Method]:
    """The methods of that name, each once; raises ValueError, see `make_method`, and for a name given twice."""
    if len(set(specs)) != len(specs):
        raise ValueError(f"a method is named twice: {' '.join(specs)}")
    return [make_method(spec, first_pass_only=first_pass_only) for spec in specs]
