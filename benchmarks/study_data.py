"""Where the files of a study are, and its data: the controlled motion set and the tracks of its training split."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from study_rows import Size, track_recipes

from data_specs.durable import write_file
from data_specs.motion_set_files import SPEC_FILE


@dataclasses.dataclass(frozen=True)
class Study:
    """A study's folder."""

    out: Path

    @property
    def videos(self) -> Path:
        """Root of the motion set."""
        return self.out / "set"

    @property
    def spec(self) -> Path:
        """The motion set as a data set."""
        return self.videos / SPEC_FILE

    @property
    def probed_list(self) -> Path:
        """The training clips that the linear probe is fitted to."""
        return self.out / "probed.csv"

    def store(self, *, clip_tracks: bool) -> Path:
        """The track store of the training split."""
        return self.out / ("tracks-clip" if clip_tracks else "tracks")

    def row(self, name: str, seed: int) -> Path:
        """Folder of one row with one seed."""
        return self.out / "rows" / name / f"seed-{seed}"

    def write_recipe(self, file: Path, fields: dict[str, Any]) -> Path:
        """Write a recipe for a command."""
        write_file(file, yaml.safe_dump(fields, sort_keys=False))
        return file


def prepare_data(study: Study, size: Size, *, device: str, workers: int) -> None:
    """Render the set and extract its tracks, as far as they are missing. Raises RuntimeError where a command fails."""
    _run(
        "data_specs.motion_set_cli", "--out", study.videos, "--workers", workers, "--train", size.train,
        "--val", size.val, "--test", size.test, "--height", size.height, "--width", size.width,
        "--frames", size.set_frames,
    )  # fmt: skip
    listed = (study.videos / "train.csv").read_text(encoding="utf-8").splitlines()
    write_file(study.probed_list, "".join(f"{line}\n" for line in listed[: size.probed]))
    for name, fields in track_recipes(size).items():
        recipe = study.write_recipe(study.out / f"{name}.yaml", fields)
        _run(
            "extraction.cli", "--dataset", study.spec, "--root", study.videos, "--recipe", recipe, "--shards", 4,
            "--workers", workers, "--device", device, "--out", study.out / name,
        )  # fmt: skip


def check_settings(study: Study, size: Size, settings: dict[str, Any]) -> None:
    """Write what all rows follow from to study.json. Raises ValueError where the folder has a study of others."""
    file, wanted = study.out / "study.json", {**settings, "size": dataclasses.asdict(size)}
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            raise ValueError(f"{file}: is of a study with another {', '.join(differing)}; take another --out")
    study.out.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps(wanted, indent=2) + "\n")


def _run(module: str, *options: Any) -> None:
    done = subprocess.run([sys.executable, "-m", module, *map(str, options)], check=False)
    if done.returncode:
        raise RuntimeError(
            f"{module} ended with status {done.returncode}; once that is mended the same command goes on"
        )
