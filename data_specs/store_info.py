"""What store.json says of a store."""

import dataclasses
import hashlib
import json
from typing import Any, TypeVar

from data_specs.list_names import text_problem
from data_specs.recipe import Recipe, RecipeError
from data_specs.schema import FORMAT, VERSION
from data_specs.store_metadata import StoreError

T = TypeVar("T")

MOST_SHARDS = 1_000_000
MOST_VIDEOS = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class StoreInfo:
    """The contents of store.json."""

    dataset: str
    split: str
    recipe: Recipe
    list_sha256: str
    num_videos: int
    num_shards: int
    software: dict[str, str]
    clip_stride: int | None = None
    """The data set's: frames from one frame of a training clip to the next. None in stores from before 0.3."""
    flip: bool | None = None
    """The data set's: whether a mirrored video is as good a training sample. None in stores from before 0.3."""
    weights_sha256: str | None = None
    """SHA-256 of the file of weights that a tracker's network was given, in hexadecimal. None where it has none."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "dataset": {
                "name": self.dataset,
                "split": self.split,
                **({} if self.clip_stride is None else {"clip_stride": self.clip_stride}),
                **({} if self.flip is None else {"flip": self.flip}),
            },
            "list": {"sha256": self.list_sha256, "videos": self.num_videos},
            "shards": self.num_shards,
            "positions_in": self.recipe.positions_in,
            "recipe": self.recipe.to_json(),
            **({} if self.weights_sha256 is None else {"weights": {"sha256": self.weights_sha256}}),
            "software": self.software,
        }

    @property
    def settings_sha256(self) -> str:
        """SHA-256 of all that two runs on one store must agree in, as compact JSON with sorted keys: not `software`.

        Each shard has it among its attributes, so that a lost store.json can be written again.
        """
        fields = {key: value for key, value in self.to_json().items() if key != "software"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @classmethod
    def from_json(cls, fields: Any, where: str) -> "StoreInfo":
        """Check and take over the fields; raises StoreError naming `where`."""
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise StoreError(f"{where}: is not a track store's ({FORMAT})")
        if fields.get("version") != VERSION:
            raise StoreError(f"{where}: version {fields.get('version')!r}; this software reads version {VERSION}")
        weights = fields.get("weights")
        try:
            info = cls(
                dataset=_text(fields["dataset"]["name"]),
                split=_text(fields["dataset"]["split"]),
                recipe=Recipe.from_json(_present_fields(fields["recipe"]), where),
                list_sha256=_text(fields["list"]["sha256"]),
                num_videos=_count(fields["list"]["videos"], 0, MOST_VIDEOS),
                num_shards=_count(fields["shards"], 1, MOST_SHARDS),
                software={_text(k): _text(v) for k, v in fields["software"].items()},
                clip_stride=_optional(fields["dataset"].get("clip_stride"), int),
                flip=_optional(fields["dataset"].get("flip"), bool),
                weights_sha256=None if weights is None else _text(weights["sha256"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecipeError) as error:
            raise StoreError(f"{where}: a field is missing or wrong: {error}") from error
        if info.recipe.start_stride is None:
            raise StoreError(f"{where}: recipe.start_stride is null; a store's recipe must give it")
        return info


def _count(value: Any, least: int, most: int) -> int:
    """The value, where it is a whole number within these bounds."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{str(value)[:100]} is not a whole number from {least} to {most}")
    return value


def _text(value: Any) -> str:
    """The value, where it is a text of one line that no terminal minds."""
    if type(value) is not str:
        raise TypeError(f"{str(value)[:100]!a} is not a text")
    if value and (problem := text_problem(value)):
        raise ValueError(f"{value[:100]!a} {problem}")
    return value


def _optional(value: Any, kind: type[T]) -> T | None:
    """The value, where it is there; TypeError where it is of another type."""
    if value is not None and type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _present_fields(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields in today's terms.

    A store without `detect_cuts` is from before cuts were looked for, one without `forward_backward` from when `tvl1`
    was OpenCV's.
    """
    present = {"detect_cuts": False, **recipe}
    if "forward_backward" not in recipe and recipe.get("flow") == "tvl1":
        present["flow"] = "tvl1-opencv"
    return present
