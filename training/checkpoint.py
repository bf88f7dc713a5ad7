"""Checkpoints: RUN/checkpoints/step-00000200.pt, each there whole or not at all.

A checkpoint is what `torch.save` makes of a dictionary of tensors and plain values, so that
`torch.load(file, weights_only=True)` opens it without running any code of its own:

    format, version   "motion-targets/checkpoint", 1
    kind              what was trained: pretraining (also where it is missing), fine-tuning
    step              optimisation steps done
    model             the model's state dict, float32
    model_config      what the model is built from (training.model.ModelConfig's fields; in fine-tuning
                      training.finetuning.classifier.ClassifierConfig's)
    recipe            the resolved recipe (PretrainRecipe.to_json, FinetuneRecipe.to_json)
    origin            what its weights began from, where they did not begin fresh; may be missing
    optimizer, scaler their state dicts
    schedule          steps, warmup_steps and peak learning rate of the run that wrote it, for the record
    random            for each rank, its generators' states (training.random_states)
    data              position, the clips consumed so far by all ranks, and what their order follows from: the seed, the
                      batch size, the store's or the list's digest
"""

import logging
import pickle
import re
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from data_specs.durable import replacing

logger = logging.getLogger(__name__)

FORMAT, VERSION = "motion-targets/checkpoint", 1
_FIELDS = ("step", "model", "model_config", "recipe", "optimizer", "scaler", "schedule", "random", "data")
_NAME = re.compile(r"step-(\d{8,})\.pt")
_STALE_SECONDS = 3600.0
_MOST_SHOWN = 200
_DAMAGED = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error,
    pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip
"""What torch.load trips over in bytes that are not its own."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message names the file and the way out."""


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is."""
    return run / "checkpoints" / f"step-{step:08d}.pt"


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    folder = run / "checkpoints"
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=step_of)


def latest(run: Path) -> Path | None:
    """A run's newest checkpoint, or None where it has none yet."""
    return next(reversed(checkpoints(run)), None)


def save(run: Path, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `state["step"]`, then remove all but the newest `keep` (1 or more).

    state: all fields but format and version. Where the write fails, the older ones stay as they are.
    """
    missing = set(_FIELDS) - set(state)
    assert not missing, f"a checkpoint without {missing}"
    path = checkpoint_path(run, int(state["step"]))
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, "version": VERSION, **state}, temporary)
    for old in checkpoints(run)[:-keep]:
        old.unlink(missing_ok=True)
    for left in path.parent.glob(".tmp-*"):  # of a process that was killed as it wrote
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            left.unlink(missing_ok=True)
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU.

    Raises CheckpointError for a file that is not there, is cut off, damaged or of another format or version, and names
    the newest older one that can be read.
    """
    try:
        return _load(path)
    except CheckpointError as error:
        older = _newest_readable(path)
        way_out = f"; {older} can be read: remove the broken file to go on from there" if older else ""
        raise CheckpointError(f"{error}{way_out}") from error


def check_kind(content: dict[str, Any], kind: str, path: Path | None) -> None:
    """Raise CheckpointError where a checkpoint is of another kind of training."""
    if content["kind"] != kind:
        raise CheckpointError(f"checkpoint {path} is of {content['kind']}, not of {kind}; take another folder")


def _load(path: Path) -> dict[str, Any]:
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read: {error.strerror}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path}: is cut off, damaged or not a checkpoint: {first_line}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path}: is not one of pretrain-motion's or finetune-motion's ({FORMAT})")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint {path}: version {state.get('version')!r}; this software reads version {VERSION}"
        )
    missing = [field for field in _FIELDS if field not in state]
    if missing:
        raise CheckpointError(f"checkpoint {path}: lacks {', '.join(missing)}")
    return {"kind": "pretraining", "origin": {}, **state}


def _newest_readable(path: Path) -> Path | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    for older in reversed(checkpoints(path.parent.parent)):
        if step_of(older) < int(match[1]):
            try:
                _load(older)
            except CheckpointError:
                continue
            return older
    return None


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def differences(kept: dict[str, Any], wanted: dict[str, Any], of: str) -> list[str]:
    """One line for each value of `wanted` that a checkpoint's `kept` has otherwise, both named."""
    return [
        f"{of} {name}: the checkpoint has {_shown(kept.get(name))}, asked for is {_shown(value)}"
        for name, value in wanted.items()
        if kept.get(name) != value
    ]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
