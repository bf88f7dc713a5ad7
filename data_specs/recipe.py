"""Recipes: every option that changes what is in a track store, and nothing else.

A recipe is a YAML file of the fields of `Recipe`. It may name another one under `extends` and change some of
its fields. The resolved recipe is written into the store, and a store takes only videos of the recipe it was
begun with.
"""

import dataclasses
import math
from typing import Any, Literal

import jsonargparse

from data_specs.yaml_recipes import RecipeError, checked_fields, recipe_fields, shipped_names

__all__ = ["CameraFeature", "Descriptor", "Flow", "Recipe", "RecipeError", "load_recipe", "recipe_names"]

Flow = Literal["tvl1", "tvl1-fast", "tvl1-pyramid", "tvl1-opencv", "dis"]
CameraFeature = Literal["surf", "sift", "orb", "corners"]
Descriptor = Literal["flow", "hof", "mbh"]

_TUPLES = ("camera_features", "descriptors")  # JSON has lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to extract. Lengths are in pixels of the tracked frames, times in frames."""

    name: str
    """Name under which the recipe is written into the store."""
    length: int = 6
    """L, the number of steps of a trajectory (MME section 3.3: 6)."""
    frame_step: int = 1
    """Frames from one position of a trajectory to the next."""
    start_stride: int | None = None
    """Trajectories start at multiples of this frame number; null takes the data set's own (4; SSv2 2)."""
    grid_stride: int = 8
    """Distance of the grid's points; 8 puts four of them into a 16 x 16 patch (MME's K = 4)."""
    short_side: int = 256
    """Videos are tracked at this short side; smaller ones are left as they are."""
    flow: Flow = "tvl1"
    """Dense flow, compared in docs/methods.md: `tvl1`, TV-L1 from a first pass by DIS; `tvl1-fast`, with fewer
    iterations; `tvl1-pyramid`, from a first pass by TV-L1 at half the resolution, the one that runs on a GPU;
    `tvl1-opencv`, OpenCV's twice, for comparison; `dis`, DIS alone (preset medium)."""
    positions_in: Literal["image", "stabilised"] = "image"
    """`image`: a point follows its object through the video's own frames, and the camera's part is recorded beside
    it. `stabilised`: a point moves by the camera-free residual flow alone, as MME publishes it."""
    remove_camera: bool = True
    """Estimate the camera's homography and measure the flow again on the rectified frame (MME, appendix A)."""
    camera_features: tuple[CameraFeature, ...] = ("surf", "corners")
    """What the homography is estimated from: matched features, and corners carried by the first flow."""
    ransac_px: float = 1.0
    """Largest reprojection error of an inlier of the homography."""
    min_inliers: int = 25
    """A homography with fewer inliers than this is not used: the identity is, and is recorded as such."""
    forward_backward: bool = False
    """Measure the flow backward too, and end a trajectory where the two disagree: something covers the point
    (Sundaram, Brox & Keutzer 2010)."""
    detect_cuts: bool = True
    """Find the frames at which a shot begins, record them, and end every trajectory that would cross one. Needed for
    edited videos only; where a video has no cut it changes nothing but a quarter to half a millisecond per frame."""
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
    it was removed. Without interpolation the paper measures over the clip's stride: frame_step 4."""
    hof_still_px: float = 0.4
    """`hof` counts pixels that move by less than this from one position to the next in a bin of their own, the ninth
    (0.4 in Wang & Schmid's released code)."""

    def __post_init__(self) -> None:
        problems = [
            f"{field} is {value}, must be {least} or more"
            for field, least in [
                ("length", 1),
                ("frame_step", 1),
                ("start_stride", 1),
                ("grid_stride", 1),
                ("short_side", 16),
                ("min_inliers", 4),
                ("hog_window", 1),
            ]
            if (value := getattr(self, field)) is not None and value < least
        ]
        if not self.ransac_px > 0:
            problems.append(f"ransac_px is {self.ransac_px}, must be more than 0")
        if self.remove_camera and not self.camera_features:
            problems.append("camera_features is empty: name at least one of surf, sift, orb, corners")
        if len(set(self.camera_features)) != len(self.camera_features):
            problems.append(f"camera_features names a feature twice: {', '.join(self.camera_features)}")
        if len(set(self.descriptors)) != len(self.descriptors):
            problems.append(f"descriptors names one twice: {', '.join(self.descriptors)}")
        if not 0 <= self.hof_still_px < math.inf:
            problems.append(f"hof_still_px is {self.hof_still_px}, must be 0 or more")
        if not self.remove_camera and self.positions_in == "stabilised":
            problems.append("positions_in is stabilised, which needs remove_camera: true")
        if problems:
            raise RecipeError(f"recipe {self.name}: " + "; ".join(problems))

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


def load_recipe(name_or_file: str) -> Recipe:
    """Load a shipped recipe by name (`mme`, `mme-object`, …) or a YAML file by path.

    Raises RecipeError for an unknown name, a missing file, an unknown field, a wrong type or value.
    """
    return Recipe.from_json(recipe_fields(name_or_file, "data_specs"), where=f"recipe {name_or_file}")
