"""One row of the study with one seed: pretrain, probe, fine-tune, each by its command; what is done is kept.

ROW/pretrain/  probe-N/  finetune/     runs of the commands; N is the pretraining step of the probed encoder
ROW/result.json                        what the table takes, written last
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from study_data import Study
from study_rows import BASE, Row, Size, finetune_recipe, pretrain_recipe, row

from data_specs.durable import write_file
from data_specs.motion_set import MOTIONS, partner
from training.checkpoint import checkpoint_path
from training.finetuning import finetune, probe
from training.pretrain import main as pretrain

CURVE = 3
"""Checkpoints of a pretraining of the main rows that are probed."""
FRAME_ORDERS = ("given", "shuffled", "single")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a row is computed, and how."""

    study: Study
    size: Size
    seed: int
    device: str
    workers: int

    def options(self, out: Path) -> list[Any]:
        """What all three commands are told."""
        return ["--out", out, "--resume", "--seed", self.seed, "--device", self.device, "--workers", self.workers]

    def labelled(self, *more: Any) -> list[Any]:
        """Options of the two commands that read labelled clips."""
        return ["--dataset", self.study.spec, "--root", self.study.videos, "--model", self.size.model, *more]


def run_row(name: str, place: Place) -> None:
    """Do what is left to do of a row. Raises RuntimeError where a command fails."""
    folder = place.study.row(name, place.seed)
    if (folder / "result.json").exists():
        return
    kept = folder / "seconds.json"
    seconds = _Seconds(kept, json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {})
    result: dict[str, Any] = {"row": name, "seed": place.seed}
    if name in FRAME_ORDERS[1:]:
        result |= _control(name, place, folder, seconds)
    else:
        result |= _compared(row(name), place, folder, seconds)
    write_file(folder / "result.json", json.dumps({**result, "seconds": seconds.of}, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class _Seconds:
    """How long each command took, those that were interrupted too; kept in a file."""

    file: Path
    of: dict[str, float]

    def add(self, name: str, seconds: float) -> None:
        self.of[name] = round(self.of.get(name, 0.0) + seconds, 1)
        write_file(self.file, json.dumps(self.of) + "\n")


def _compared(chosen: Row, place: Place, folder: Path, seconds: _Seconds) -> dict[str, Any]:
    result: dict[str, Any] = {"curve": {}}
    steps = [0]
    if chosen.changes is not None:
        result["loss"] = _pretrain(chosen, place, folder, seconds)
        every = place.size.pretrain_steps // CURVE
        last = place.size.pretrain_steps
        steps = [every * number for number in range(1, CURVE)] if chosen.has_curve else []
        steps = [step for step in steps if step < last] + [last]
    for step in steps:
        init = checkpoint_path(folder / "pretrain", step) if step else None
        found = _probe(place, folder / f"probe-{step}", folder / "probe.yaml", init, "given", seconds)
        result["curve"][str(step)] = found["top1"]
    result["probe"] = found
    result["finetune"] = _finetune(place, folder, init, "given", seconds)
    return result


def _control(order: str, place: Place, folder: Path, seconds: _Seconds) -> dict[str, Any]:
    """Probe and fine-tuning of the base's encoder on clips without the order of their frames."""
    init = checkpoint_path(place.study.row(BASE, place.seed) / "pretrain", place.size.pretrain_steps)
    found = _probe(place, folder / "probe", folder / "probe.yaml", init, order, seconds)
    return {"probe": found, "finetune": _finetune(place, folder, init, order, seconds)}


def _pretrain(chosen: Row, place: Place, folder: Path, seconds: _Seconds) -> dict[str, Any]:
    size, run = place.size, folder / "pretrain"
    recipe = place.study.write_recipe(folder / "pretrain.yaml", pretrain_recipe(chosen, size))
    _command(
        pretrain, "pretrain", seconds,
        "--store", place.study.store(clip_tracks=chosen.clip_tracks), "--root", place.study.videos, "--recipe", recipe,
        "--model", size.model, "--steps", size.pretrain_steps, "--batch-size", size.batch_size,
        "--lr", size.base_lr * chosen.lr_factor,
        "--save-every", size.pretrain_steps // CURVE, "--keep", CURVE + 1, "--figure-every", size.pretrain_steps,
        *place.options(run),
    )  # fmt: skip
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    last = lines[-max(1, len(lines) // 10) :]
    heads = [name.removesuffix("_trivial") for name in last[-1] if name.endswith("_trivial")]
    return {
        head: {
            "error": _mean(line[head] for line in last),
            "constant": _mean(line[f"{head}_trivial"] for line in last),
        }
        for head in heads
    }


def _probe(place: Place, run: Path, recipe: Path, init: Path | None, order: str, seconds: _Seconds) -> dict[str, float]:
    place.study.write_recipe(recipe, finetune_recipe(place.size, frozen=True, frame_order=order))
    _command(
        probe.main, run.name, seconds,
        *place.labelled("--list", place.study.probed_list, "--validate-split", "val", "--recipe", recipe, "--once"),
        *(["--init", init] if init else []), *place.options(run),
    )  # fmt: skip
    return accuracies(run)


def _finetune(place: Place, folder: Path, init: Path | None, order: str, seconds: _Seconds) -> dict[str, float]:
    fields = finetune_recipe(place.size, frozen=False, frame_order=order)
    recipe, run = place.study.write_recipe(folder / "finetune.yaml", fields), folder / "finetune"
    _command(
        finetune.main, "finetune", seconds,
        *place.labelled("--recipe", recipe, "--steps", place.size.finetune_steps, "--keep", 1),
        *(["--init", init] if init else []), *place.options(run),
    )  # fmt: skip
    return accuracies(run)


def accuracies(run: Path) -> dict[str, float]:
    """What a test says: top-1, of all videos; `motion`, the share whose pair of motions is right; `direction`, of those
    the share that is right: what the order of the frames decides, one half by chance.
    """
    top1 = float(json.loads((run / "test.json").read_text(encoding="utf-8"))["top1"])
    return {"top1": top1, **motion_and_direction(confusion_of(run), range(len(MOTIONS)))}


def confusion_of(run: Path) -> NDArray[np.float64]:
    """Counts of the test's clips by true and predicted label, (12, 12)."""
    columns = range(1, len(MOTIONS) + 1)
    return np.loadtxt(run / "confusion.csv", delimiter=",", skiprows=1, usecols=columns, ndmin=2)


def motion_and_direction(confusion: NDArray[np.float64], labels: Sequence[int]) -> dict[str, float]:
    """`motion` and `direction` as `accuracies` has them, of the clips of these labels."""
    rows = np.asarray(labels)
    right, turned = (confusion[rows, others].sum() for others in (rows, [partner(label) for label in labels]))
    return {
        "motion": float((right + turned) / confusion[rows].sum()),
        "direction": float(right / max(1, right + turned)),
    }


def _command(main: Callable[[Sequence[str]], int], name: str, seconds: _Seconds, *options: Any) -> None:
    begun = time.monotonic()
    try:
        status = main([str(option) for option in options])
    finally:
        seconds.add(name, time.monotonic() - begun)
    if status:
        raise SystemExit(status)  # the command has said why


def _mean(values: Any) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
