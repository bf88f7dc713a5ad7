"""export-encoder: a run's encoder for others, as a Hugging Face folder or a file of VideoMAE's code."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jsonargparse

from data_specs.durable import sync, sync_tree, temporary_sibling
from training import checkpoint
from training.interchange import (
    InterchangeError,
    export_huggingface,
    export_videomae,
)
from training.model import MaskedVideoModel, ModelConfig

RECORD = "export.json"
"""What was exported from where; it marks a folder as an export."""
VIDEOMAE_FILE = "videomae.pth"


def build_parser() -> jsonargparse.ArgumentParser:
    """The command line's options."""
    parser = jsonargparse.ArgumentParser(
        prog="export-encoder",
        description="Write the encoder of a pretraining run for transformers (VideoMAEModel) or for VideoMAE's code.",
        epilog="Exit status: 0 written, 2 usage error, or nothing written.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints (RUN/checkpoints/step-N.pt)")
    add("--to", type=Literal["hf", "videomae"], required=True, help="Hugging Face's folder, or VideoMAE's .pth")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    add("--step", type=int | None, metavar="N", help="the checkpoint of this step; default: the newest")
    add("--whole", action="store_true", help="the decoder too, of a run that predicts pixels alone")
    add("--force", action="store_true", help="replace an earlier export in DIR")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(argv)
    try:
        sys.stdout.write(
            export_encoder(options.run, options.to, options.out, options.step, options.whole, options.force)
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"export-encoder: {error}\n")
        return 2
    return 0


def export_encoder(
    run: Path,
    to: Literal["hf", "videomae"],
    out: Path,
    step: int | None = None,
    whole: bool = False,
    force: bool = False,
) -> str:
    """Write the folder `out`, whole or not at all, from a run's folder or a checkpoint; returns a line that says so.

    `out` has `export.json` (source, step, recipe, the model's configuration) beside the weights. Raises ValueError or
    OSError where there is no such checkpoint, it is not one, its model cannot be exported so, or `out` is in the way.
    """
    _check_out(out, force)
    file = find_checkpoint(run, step)
    content = checkpoint.load(file)
    checkpoint.check_kind(content, "pretraining", file)
    config = ModelConfig.from_json(content["model_config"], where=str(file))
    model = MaskedVideoModel(config)
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise InterchangeError(f"{file}: its weights are not those of its model_config: {error}") from error
    record = {
        "to": to,
        "whole": whole,
        "source": str(file),
        "step": content["step"],
        "recipe": content["recipe"],
        "model_config": config.to_json(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(out)
    try:
        temporary.mkdir()
        try:
            if to == "hf":
                export_huggingface(model, temporary, whole)
            else:
                export_videomae(model, temporary / VIDEOMAE_FILE, whole)
        except InterchangeError as error:
            raise InterchangeError(f"{file}: {error}") from error
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        sync_tree(temporary)
        _put(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    what = ("VideoMAEForPreTraining" if whole else "VideoMAEModel") if to == "hf" else VIDEOMAE_FILE
    return f"{out}: {what}, {config.size}, step {content['step']} of {file}\n"


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """The file of a run's step, by default its newest; `run` may be the file. Raises InterchangeError."""
    if run.is_file():
        if step is not None:
            raise InterchangeError(f"{run}: is one checkpoint; --step {step} needs the run's folder")
        return run
    steps = {checkpoint.step_of(file): file for file in checkpoint.checkpoints(run)}
    if not steps:
        raise InterchangeError(
            f"{run}: no checkpoints/step-*.pt in it, so not a run's folder, or one that saved nothing yet"
        )
    if step is not None and step not in steps:
        raise InterchangeError(f"{run}: no checkpoint of step {step}; there are {', '.join(map(str, sorted(steps)))}")
    return steps[max(steps) if step is None else step]


def _check_out(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InterchangeError(f"{out}: is a file; --out names a folder")
    found = sorted(entry.name for entry in out.iterdir())
    if found and RECORD not in found:
        raise InterchangeError(f"{out}: has {', '.join(found[:3])}, and is no earlier export; choose another folder")
    if found and not force:
        raise InterchangeError(f"{out}: holds an export already; --force replaces it, or choose another folder")


def _put(temporary: Path, out: Path) -> None:
    """Rename `temporary` to `out`; an earlier export goes when the new one is in its place."""
    old = temporary_sibling(out) if out.is_dir() and any(out.iterdir()) else None
    if old:
        out.rename(old)
    temporary.rename(out)
    sync(out.parent)
    if old:
        shutil.rmtree(old)


if __name__ == "__main__":
    sys.exit(main())
