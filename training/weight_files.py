"""Files of weights as others and this project write them, read by VideoMAE's pretraining names."""

import argparse
import dataclasses
import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training import checkpoint
from training.model import ModelConfig
from training.weight_names import huggingface_to_videomae, ours_to_videomae, plain_videomae

PIXELS = "pixels"
"""The head whose decoder is VideoMAE's."""
_DAMAGED = (RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, struct.error)
"""What torch.load trips over in bytes that are not its own."""


class InterchangeError(ValueError):
    """Weights that cannot be read, do not fit, or cannot be written; the message names file, weight and both shapes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """What is in a file or folder of weights."""

    source: Path
    """The file, or Hugging Face's folder."""
    tensors: dict[str, Tensor]
    """By VideoMAE's pretraining names, a classifier's `fc_norm` and `head`; what it has no name for, by the owner's."""
    settings: dict[str, Any] | None = None
    """What the model is built from, in the words of Hugging Face's config.json; None where nothing says it."""
    size: str | None = None
    """The name in VIT_SIZES, of a checkpoint of this project."""
    classes: tuple[str, ...] | None = None
    """Names of a classifier's classes by number, where something names them."""
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Kind, recipe's name and step of the training that a checkpoint of this project is of."""
    recipe: dict[str, Any] | None = None
    """The resolved recipe of that training; nothing has been checked."""


def read_weights(path: Path) -> Weights:
    """Read a Hugging Face folder, a file of VideoMAE's code, a checkpoint of this project, or the newest of a run.

    Raises InterchangeError for other files and folders, OSError.
    """
    if path.is_dir() and not (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        newest = checkpoint.latest(path)
        if newest is None:
            raise InterchangeError(f"{path}: a run without a checkpoint")
        path = newest
    if path.is_dir():
        return _read_huggingface(path)
    if path.suffix == ".safetensors":
        raise InterchangeError(f"{path}: give its folder, its config.json is needed too")
    content = load_torch_file(path)
    if not isinstance(content, dict):
        raise InterchangeError(f"{path}: holds a {type(content).__name__}, not weights by name")
    nested = next((content[key] for key in ("model", "module", "state_dict") if key in content), content)
    if not isinstance(nested, dict):
        raise InterchangeError(f"{path}: its weights are a {type(nested).__name__}, not tensors by name")
    tensors = {name: value for name, value in nested.items() if isinstance(value, Tensor)}
    if content.get("format") != checkpoint.FORMAT:
        return Weights(source=path, tensors=plain_videomae(tensors))
    separate = any(name.startswith(f"decoders.{PIXELS}.") for name in tensors)
    named = ours_to_videomae(plain_videomae(tensors), PIXELS if separate else "joint")
    recipe, config = content.get("recipe"), content.get("model_config")
    training = {
        "kind": content.get("kind", "pretraining"),
        "recipe": recipe.get("name") if isinstance(recipe, dict) else None,
        "step": content.get("step"),
    }
    if not isinstance(config, dict):
        return Weights(source=path, tensors=named, training=training)
    of_encoder = _encoder_config(config.get("encoder", config), path)
    return Weights(
        source=path,
        tensors=named,
        recipe=recipe if isinstance(recipe, dict) else None,
        settings=None if of_encoder is None else _settings_of(of_encoder),
        size=None if of_encoder is None else of_encoder.size,
        classes=tuple(map(str, config["classes"])) if isinstance(config.get("classes"), list) else None,
        training=training,
    )


def _encoder_config(fields: Any, path: Path) -> ModelConfig | None:
    """A checkpoint's configuration; None for one that this software does not know: then the weights alone say it."""
    try:
        config = ModelConfig.from_json(fields, where=str(path))
    except ValueError:
        return None
    return config if isinstance(config.norm_eps, float) else None


def load_torch_file(file: Path) -> Any:
    """What is in a file of `torch.save`, on the CPU; nothing in it is run. Raises InterchangeError, OSError."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # VideoMAE keeps its options in `args`
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(
            r"WeightsUnpickler error: (?:Unsupported global: )?(.+?)(?: was not|$)", str(error), re.MULTILINE
        )
        reason = found[1] if found else "no pickle"
        raise InterchangeError(
            f"{file}: not a file of weights, or one with Python objects beside them, which could run code ({reason}); "
            "if you trust it, load it with torch.load(weights_only=False) and save its state dict alone as {'model': …}"
        ) from error
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # it is not there, or must not be read; PyTorch has others for what it finds in it
        reason = str(error).split("\n", maxsplit=1)[0]
        raise InterchangeError(f"{file}: damaged, or not of torch.save ({type(error).__name__}: {reason})") from error


def _settings_of(config: ModelConfig) -> dict[str, Any]:
    """A checkpoint's configuration in the words of Hugging Face's config.json."""
    return {
        "num_attention_heads": config.vit.heads,
        "decoder_num_attention_heads": config.vit.decoder_heads,
        "num_frames": config.frames,
        "image_size": list(config.input_size),
        "layer_norm_eps": config.norm_eps,
    }


def _read_huggingface(folder: Path) -> Weights:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InterchangeError(f"{folder}: no config.json, so not a Hugging Face folder")
    try:
        settings = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InterchangeError(f"{config_file}: not JSON: {error}") from error
    if not isinstance(settings, dict) or settings.get("model_type") != "videomae":
        found = settings.get("model_type") if isinstance(settings, dict) else type(settings).__name__
        raise InterchangeError(f"{config_file}: model_type is {found}, must be videomae")
    if (file := folder / "model.safetensors").is_file():
        try:
            weights = load_file(file)
        except SafetensorError as error:
            raise InterchangeError(f"{file}: damaged: {error}") from error
    elif (file := folder / "pytorch_model.bin").is_file():
        weights = load_torch_file(file)
    else:
        raise InterchangeError(
            f"{folder}: neither model.safetensors nor pytorch_model.bin; weights in several files become one by "
            "save_pretrained(max_shard_size='100GB')"
        )
    tensors = {
        name.replace("classifier.", "head.") if name.startswith("classifier.") else name: tensor
        for name, tensor in huggingface_to_videomae(weights).items()
    }
    return Weights(source=folder, tensors=tensors, settings=settings, classes=_huggingface_classes(settings))


def _huggingface_classes(settings: dict[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes by number; None where they are not named, or by transformers alone (LABEL_0)."""
    names = settings.get("id2label")
    if not isinstance(names, dict) or set(names) != {str(number) for number in range(len(names))}:
        return None
    ordered = tuple(str(names[str(number)]) for number in range(len(names)))
    return None if ordered == tuple(f"LABEL_{number}" for number in range(len(names))) else ordered
