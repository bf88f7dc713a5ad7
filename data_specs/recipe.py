"""Recipes: every option that changes what is in a track store, and nothing else.

A recipe is a YAML file of the fields of `Recipe`. It may name another one under `extends` and change some of
its fields. The resolved recipe is written into the store, and a store takes only videos of the recipe it was
begun with.
"""

import dataclasses
import math
from typing import Any, Literal

import jsonargparse

from data_specs.yaml_recipes import RecipeError, checked_fields, name_problem, recipe_fields, shipped_names

__all__ = [
    "POINT_OPTIONS",
    "CameraFeature",
    "Descriptor",
    "Flow",
    "Precision",
    "Recipe",
    "RecipeError",
    "TrackerName",
    "load_recipe",
    "recipe_names",
]

TrackerName = Literal["flow", "cotracker3"]
Flow = Literal["tvl1", "tvl1-fast", "tvl1-pyramid", "tvl1-opencv", "dis"]
CameraFeature = Literal["surf", "sift", "orb", "corners", "tracks"]
Descriptor = Literal["flow", "hof", "mbh"]
Precision = Literal["fp32", "bf16"]

POINT_OPTIONS = ("support_grid", "refinements", "visible_above", "precision", "compiled")
"""Fields that only a tracker of points has a use for; away from their defaults they are refused with flow."""

_BOUNDS = {
    "length": (1, 1000),
    "frame_step": (1, 10_000),
    "start_stride": (1, 100_000),
    "grid_stride": (1, 1024),
    "short_side": (16, 16_384),
    "min_inliers": (4, 1_000_000),
    "hog_window": (1, 1024),
    "support_grid": (0, 256),
    "refinements": (1, 1000),
}
"""Least and largest values of whole numbers. The largest keep sizes within what numbers and memories hold."""
_TUBELET = 2  # a tubelet's frames of a clip
_TUPLES = ("camera_features", "descriptors")  # JSON has lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to extract. Lengths are in pixels of the tracked frames, times in frames."""

    name: str
    """Name under which the recipe is written into the store."""
    length: int = 6
    """L, the number of steps of a trajectory (MME section 3.3: 6)."""
    frame_step: int = 1
    """Frames from one position of a trajectory to the next. In a recipe's file, null takes the step of the tubelets of
    the data set's clips: two frames, `clip_stride` apart (8; SSv2 6)."""
    start_stride: int | None = None
    """Trajectories start at multiples of this frame number; null takes the data set's own (4; SSv2 2)."""
    keep_short: bool = False
    """A video with too few frames for one trajectory, but enough for one step of it, gets one start row all the same,
    at its first frame: past the video's last frame nothing is valid. Without it such a video is recorded as failed."""
    grid_stride: int = 8
    """Distance of the grid's points; 8 puts four of them into a 16 x 16 patch (MME's K = 4)."""
    short_side: int = 256
    """Videos are tracked at this short side; smaller ones are left as they are."""
    tracker: TrackerName = "flow"
    """What measures the motion: `flow`, dense flow, integrated into trajectories; `cotracker3`, the points themselves
    (Karaev et al. 2024), with a visibility and a confidence at every position. Its code and weights are CC-BY-NC-4.0,
    not for commercial use, and are not part of this project."""
    flow: Flow = "tvl1"
    """Dense flow, compared in docs/methods.md: `tvl1`, TV-L1 from a first pass by DIS; `tvl1-fast`, with fewer
    iterations; `tvl1-pyramid`, from a first pass by TV-L1 at half the resolution, the one that runs on a GPU;
    `tvl1-opencv`, OpenCV's twice, for comparison; `dis`, DIS alone (preset medium). Tracker flow alone."""
    positions_in: Literal["image", "stabilised"] = "image"
    """`image`: a point follows its object through the video's own frames, and the camera's part is recorded beside
    it. `stabilised`: a point moves by the camera-free residual flow alone, as MME publishes it."""
    remove_camera: bool = True
    """Estimate the camera's homography; with flow, measure that again on the rectified frame (MME, appendix A)."""
    camera_features: tuple[CameraFeature, ...] = ("surf", "corners")
    """What the homography is estimated from: matched features; `corners`, carried by the first flow (tracker flow
    alone); `tracks`, the row's own points where they are valid (any other tracker)."""
    ransac_px: float = 1.0
    """Largest reprojection error of an inlier of the homography."""
    min_inliers: int = 25
    """A homography with fewer inliers than this is not used: the identity is, and is recorded as such."""
    forward_backward: bool = False
    """Measure the flow backward too, and end a trajectory where the two disagree: something covers the point
    (Sundaram, Brox & Keutzer 2010). Tracker flow alone."""
    detect_cuts: bool = True
    """Find the frames at which a shot begins, record them, and end every trajectory that would cross one. Needed for
    edited videos only; where a video has no cut it changes nothing but a quarter to half a millisecond per frame."""
    support_grid: int = 0
    """Of cotracker3: side of a square grid of points that are tracked along, over the whole frame, for the network to
    see more of the scene's motion (6 in its predictor); they are not stored. 0: none."""
    refinements: int = 6
    """Of cotracker3: updates of the tracks, each by the network's estimate of what they still lack (6 in its
    predictor)."""
    visible_above: float = 0.6
    """Of cotracker3: a point is valid where visibility * confidence is above this, it is inside the frame, and no cut
    lies before it; in its first frame always. Rule and value are those of its evaluation and its online predictor."""
    precision: Precision = "fp32"
    """Of cotracker3: what its network computes in."""
    compiled: bool = False
    """Of cotracker3: compile its network (torch.compile): minutes at first, faster from then on, and not the same to
    the last bit; nor are two runs, for what is compiled depends on the sizes that a worker has seen before."""
    hog: bool = True
    """Store histograms of oriented gradients along the trajectories (MME eq. 5)."""
    hog_window: int = 8
    """Side of the square window, centred on the tracked point, over which a histogram is summed."""
    hog_channels: Literal[1, 3] = 1
    """1: the strongest of the three colour channels at each pixel; 3: one histogram for each channel."""

    descriptors: tuple[Descriptor, ...] = ()
    """Descriptors to store of the flow from a row's first frame to that of its next position, for each cell of the
    grid: the short-term baselines of MME's table 5. `flow`: its mean; `hof`: histogram of its orientations (9 bins);
    `mbh`: motion boundary histograms of its x and y components (2 x 8 bins). The camera's motion is out of them where
    it was removed. Without interpolation the paper measures over the clip's stride: frame_step 4.
    Tracker flow alone."""
    hof_still_px: float = 0.4
    """`hof` counts pixels that move by less than this from one position to the next in a bin of their own, the ninth
    (0.4 in Wang & Schmid's released code)."""

    def __post_init__(self) -> None:
        problems = [
            f"{field} is {value}, must be {least} or more" + (f", at most {most}" if value > most else "")
            for field, (least, most) in _BOUNDS.items()
            if (value := getattr(self, field)) is not None and not least <= value <= most
        ]
        if problem := name_problem(self.name):
            problems.append(f"name {problem}")
        if not 0 < self.ransac_px < math.inf:
            problems.append(f"ransac_px is {self.ransac_px}, must be more than 0, and finite")
        if self.remove_camera and not self.camera_features:
            of_tracker = "corners" if self.tracker == "flow" else "tracks"
            problems.append(f"camera_features is empty: name at least one of surf, sift, orb, {of_tracker}")
        if len(set(self.camera_features)) != len(self.camera_features):
            problems.append(f"camera_features names a feature twice: {', '.join(self.camera_features)}")
        if len(set(self.descriptors)) != len(self.descriptors):
            problems.append(f"descriptors names one twice: {', '.join(self.descriptors)}")
        if not 0 <= self.hof_still_px < math.inf:
            problems.append(f"hof_still_px is {self.hof_still_px}, must be 0 or more")
        if not self.remove_camera and self.positions_in == "stabilised":
            problems.append("positions_in is stabilised, which needs remove_camera: true")
        if not 0 <= self.visible_above < 1:
            problems.append(f"visible_above is {self.visible_above}, must be 0 or more and less than 1")
        problems += self._without_points() if self.tracker == "flow" else self._without_flow()
        if problems:
            raise RecipeError(f"recipe {self.name}: " + "; ".join(problems))

    def _without_points(self) -> list[str]:
        """Options that need a tracker of points, where there is flow."""
        found = []
        given = [name for name in POINT_OPTIONS if getattr(self, name) != getattr(Recipe, name)]
        if given:
            found.append(f"{', '.join(given)}: of tracker cotracker3 alone, tracker is flow")
        if "tracks" in self.camera_features:
            found.append("camera_features names tracks, which tracker flow has none of; take corners")
        return found

    def _without_flow(self) -> list[str]:
        """Options that need dense flow, where a tracker of points measures none."""
        found = []
        if self.flow != Recipe.flow:
            found.append(f"flow is {self.flow}, tracker {self.tracker} measures none; leave it out")
        if self.positions_in != "image":
            found.append(f"positions_in is {self.positions_in}, those of tracker {self.tracker} are in the image")
        if self.forward_backward:
            found.append(f"forward_backward is true, which checks flow; tracker {self.tracker} measures none")
        if "corners" in self.camera_features:
            found.append("camera_features names corners, which flow carries; take tracks")
        if self.descriptors:
            names = ", ".join(self.descriptors)
            found.append(f"descriptors names {names}, which describe flow; tracker {self.tracker} measures none")
        return found

    @property
    def motion(self) -> str:
        """What measures the motion, in words: `flow tvl1`, `tracker cotracker3`."""
        return f"flow {self.flow}" if self.tracker == "flow" else f"tracker {self.tracker}"

    @property
    def span(self) -> int:
        """Frames from a trajectory's first position to its last: length * frame_step."""
        return self.length * self.frame_step

    def resolved(self, start_stride: int) -> "Recipe":
        """The recipe with `start_stride` where it left that to the data set."""
        return self if self.start_stride is not None else dataclasses.replace(self, start_stride=start_stride)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values, as they stand in store.json."""
        lists = {name: list(getattr(self, name)) for name in _TUPLES}
        return {**dataclasses.asdict(self), **lists}

    @classmethod
    def from_json(cls, fields: dict[str, Any], where: str) -> "Recipe":
        """Check types and values of `fields`; `where` names their source in an error."""
        try:
            checked = checked_fields(cls, fields)
            return cls(**{**checked, **{name: tuple(checked[name]) for name in _TUPLES}})
        except (jsonargparse.ArgumentError, RecipeError, TypeError) as error:
            raise RecipeError(f"{where}: {error}") from error


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the project."""
    return shipped_names("data_specs")


def load_recipe(name_or_file: str, clip_stride: int = 4) -> Recipe:
    """Load a shipped recipe by name (`mme`, `mme-object`, …) or a YAML file by path.

    clip_stride: the data set's, in frames, for recipes that leave `frame_step` to it: their step is that of a clip's
    tubelets, 2 * clip_stride.
    Raises RecipeError for an unknown name, a missing file, an unknown field, a wrong type or value.
    """
    fields = recipe_fields(name_or_file, "data_specs")
    if "frame_step" in fields and fields["frame_step"] is None:
        fields["frame_step"] = _TUBELET * clip_stride
    return Recipe.from_json(fields, where=f"recipe {name_or_file}")
