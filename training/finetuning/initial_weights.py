"""What a classifier begins from: an encoder, or a fine-tuned model, with its head where the classes are the same."""

from pathlib import Path

import torch
from torch import Tensor

from training.finetuning.classifier import VideoClassifier
from training.interchange import LoadReport, load_encoder
from training.weight_files import Weights, read_weights

_NOT_HEAD = "encoder."


def load_classifier(model: VideoClassifier, given: Path | Weights) -> LoadReport:
    """Load the encoder in place as `training.interchange.load_encoder` does, from the same files and folders, and the
    head and its norms where they fit: all of them, finite, of the same classes, so far as something names those.

    The report's notes say why a head stayed as it was. Raises InterchangeError, with the model untouched.
    """
    read = given if isinstance(given, Weights) else read_weights(given)
    of_encoder = load_encoder(model.encoder, read)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(_NOT_HEAD)}
    notes, fresh, loaded = list(of_encoder.notes), [*of_encoder.fresh], [*of_encoder.loaded]
    problem = _misfit(model, own, read)
    if problem is None:
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(read.tensors[name])
        loaded += own
        if read.classes is None:
            notes.append(f"it does not name its {len(model.config.classes)} classes: they are taken to be these")
    else:
        fresh += own
        if "head.weight" in read.tensors:
            notes.append(f"head as it was: {problem}")
    return LoadReport(
        source=of_encoder.source,
        loaded=tuple(sorted(loaded)),
        fresh=tuple(sorted(fresh)),
        skipped=tuple(name for name in of_encoder.skipped if name not in loaded),
        notes=tuple(notes),
        training=read.training,
    )


def head_is_loaded(report: LoadReport) -> bool:
    """Whether a classifier has its head from the file too."""
    return "head.weight" in report.loaded


def _misfit(model: VideoClassifier, own: dict[str, Tensor], read: Weights) -> str | None:
    """Why the head in a file is not the model's."""
    for name, value in own.items():
        if name not in read.tensors:
            return f"it has no {name}"
        found = read.tensors[name]
        if found.shape != value.shape:
            return f"{name} is {tuple(found.shape)}, the model's is {tuple(value.shape)}"
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            return f"{name} has values that are not finite"
    classes = model.config.classes
    if read.classes is not None and read.classes != classes:
        pairs = list(zip(read.classes, classes, strict=False))
        first = next((n for n, (theirs, ours) in enumerate(pairs) if theirs != ours), len(pairs) - 1)
        return f"its class {first} is {read.classes[first]!r}, here it is {classes[first]!r}"
    if model.config.pooling == "tokens" and "fc_norm.weight" in read.tensors:
        return "it pools before the norm, a probe after it"
    return None
