"""Weights from and for others: Hugging Face folders of `VideoMAEModel` and `VideoMAEForPreTraining`, VideoMAE's `.pth`.

A Hugging Face folder is `config.json` and `model.safetensors` (or `pytorch_model.bin`); transformers is not needed.
The values of a `pixels` head are ordered as in both: frame of the tubelet, row, column, colour (VideoMAE's
`engine_for_pretraining.py`: `(p0 p1 p2) c`).
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from training.model import COLOURS, MLP_RATIO, MaskedVideoModel, ModelConfig, VideoEncoder, sinusoid_table
from training.weight_files import PIXELS, InterchangeError, Weights, read_weights
from training.weight_names import ours_to_videomae, videomae_to_huggingface

__all__ = ["InterchangeError", "LoadReport", "export_huggingface", "export_videomae", "load_encoder"]

_SHOWN_PROBLEMS = 8
_NORM = ("encoder.norm.weight", "encoder.norm.bias")
_TRANSFORMERS_DEFAULTS = {"num_attention_heads": 12, "decoder_num_attention_heads": 6, "hidden_act": "gelu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a file's weights, by VideoMAE's pretraining names; what it has no name for, by the owner's."""

    source: Path
    """The file or folder."""
    loaded: tuple[str, ...]
    """Weights that the model now has from it."""
    fresh: tuple[str, ...]
    """Weights of the model that are as they were before."""
    skipped: tuple[str, ...]
    """Weights of the file that the model has no place for."""
    notes: tuple[str, ...]
    """What a reader of the features should know."""
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of a checkpoint of this project, the kind, recipe's name and step of its training."""

    def __str__(self) -> str:
        parts = [f"{self.source}: {len(self.loaded)} weights loaded"]
        parts += [f"as they were: {_parts(self.fresh)}"] if self.fresh else []
        parts += [f"not used: {_parts(self.skipped)}"] if self.skipped else []
        return "; ".join([*parts, *self.notes])

    @property
    def origin(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, in plain values."""
        return {"init": str(self.source), **self.training, "weights": len(self.loaded), "notes": list(self.notes)}


def load_encoder(model: MaskedVideoModel | VideoEncoder, given: Path | Weights) -> LoadReport:
    """Load an encoder's weights in place, and those of the decoder and `pixels` head where all of them fit.

    `given` is a Hugging Face folder, a file of VideoMAE's code (of pretraining or fine-tuning), a checkpoint of this
    project or a run's folder, whose newest is taken; or what was read from one of them. The model keeps its
    configuration: its LayerNorm epsilon, and positions for its own grid of tokens. Raises InterchangeError, with the
    model untouched, for other files, encoders of another size or with learned positions, and values that are not
    finite.
    """
    read = given if isinstance(given, Weights) else read_weights(given)
    path, weights, settings = read.source, read.tensors, read.settings
    targets = _targets(model)
    encoder = {name for name in targets if name.startswith("encoder.")}
    found = {name for name in weights if name.startswith("encoder.")}
    if not found & encoder:
        some = ", ".join(sorted(weights)[:3])
        raise InterchangeError(f"{path}: not a VideoMAE encoder: no encoder.blocks.0.…, but {some}, …")
    has_norm = _NORM[0] in weights
    wanted = encoder if has_norm else encoder - set(_NORM)
    found -= {"encoder.pos_embed"}
    if _NORM[0] not in encoder:  # the pooled features have a norm of their own
        found -= set(_NORM)
    problems = _mismatches(weights, targets, found & encoder)
    problems += [f"{name} is missing" for name in sorted(wanted - found)]
    problems += [f"{name} has no place in {model.config.size}" for name in sorted(found - encoder)]
    problems += _settings_problems(settings, model.config)
    if "encoder.pos_embed" in weights and not _is_sinusoid(weights["encoder.pos_embed"]):
        problems.append("encoder.pos_embed holds learned positions, this model's are fixed")
    if problems:
        raise InterchangeError(f"{path} does not fit {model.config.size}: {_some(problems)}")

    notes = _settings_notes(settings, model.config)
    if not has_norm and _NORM[0] in encoder:
        notes.append("no final norm in it, as after fine-tuning with mean pooling: the model's own stays")
    loaded, rest = found & encoder, _decoder_names(model, targets)
    if rest:
        why = [f"it has no {name}" for name in sorted(rest - set(weights))]
        why += [f"{name} has no place" for name in sorted(weights) if name.startswith("decoder.") and name not in rest]
        why += _mismatches(weights, targets, rest & set(weights))
        heads = (_setting(settings, "decoder_num_attention_heads"), model.config.vit.decoder_heads)
        why += [f"{heads[0]} attention heads, the model {heads[1]}"] if settings and heads[0] != heads[1] else []
        if why:
            notes.append(f"decoder as it was: {why[0]}")
        else:
            loaded |= rest
    with torch.no_grad():
        for name in loaded:
            targets[name].copy_(weights[name])
    return LoadReport(
        source=path,
        loaded=tuple(sorted(loaded)),
        fresh=tuple(sorted(set(targets) - loaded)),
        skipped=tuple(sorted(set(weights) - loaded)),
        notes=tuple(notes),
        training=read.training,
    )


def export_huggingface(model: MaskedVideoModel | VideoEncoder, folder: Path, whole: bool = False) -> None:
    """Write `config.json`, `model.safetensors`, `preprocessor_config.json` for transformers' `from_pretrained`.

    `VideoMAEModel` gives this encoder's features, final norm included, hence `use_mean_pooling: false`. With `whole`
    it is a `VideoMAEForPreTraining`, of a model with the head `pixels` alone; transformers computes the decoder's last
    norm with epsilon 1e-5, whatever the model's, which at VideoMAE's 1e-6 changes predictions in the sixth digit.
    Raises InterchangeError for other heads.
    """
    weights = _exported(model, whole)
    folder.mkdir(parents=True, exist_ok=True)
    named = videomae_to_huggingface(weights, prefix="videomae." if whole else "")
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _huggingface_config(model.config, whole))
    _write_json(folder / "preprocessor_config.json", _preprocessor_config(model.config))


def export_videomae(model: MaskedVideoModel | VideoEncoder, file: Path, whole: bool = False) -> None:
    """Write a `.pth` that VideoMAE's fine-tuning reads as a pretrained one: the encoder; `whole`: decoder and head too.

    Raises InterchangeError for `whole` where the heads are not `pixels` alone.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {name: t.detach().cpu().clone() for name, t in _exported(model, whole).items()}}, file)


def _targets(model: MaskedVideoModel | VideoEncoder) -> dict[str, Tensor]:
    """The model's own tensors by VideoMAE's names, where it has one."""
    if isinstance(model, VideoEncoder):
        return ours_to_videomae({f"encoder.{name}": tensor for name, tensor in model.state_dict().items()})
    return ours_to_videomae(model.state_dict(), PIXELS if model.config.decoder == "separate" else "joint")


def _decoder_names(model: MaskedVideoModel | VideoEncoder, targets: Mapping[str, Tensor]) -> set[str]:
    """VideoMAE's names of what predicts pixels, where the model does."""
    if isinstance(model, VideoEncoder) or PIXELS not in model.config.heads:
        return set()
    return {name for name in targets if name.startswith(("mask_token", "encoder_to_decoder.", "decoder."))}


def _exported(model: MaskedVideoModel | VideoEncoder, whole: bool) -> dict[str, Tensor]:
    config = model.config
    wanted = {PIXELS: config.token_values}
    if whole and (isinstance(model, VideoEncoder) or config.heads != wanted):
        raise InterchangeError(
            f"a whole VideoMAE predicts pixels alone, {wanted}; this model's heads are {config.heads}: "
            "export its encoder alone"
        )
    return {name: tensor for name, tensor in _targets(model).items() if whole or name.startswith("encoder.")}


def _mismatches(weights: Mapping[str, Tensor], targets: Mapping[str, Tensor], names: set[str]) -> list[str]:
    """What does not fit, for names that both have."""
    problems = []
    for name in sorted(names):
        if weights[name].shape != targets[name].shape:
            problems.append(f"{name} is {tuple(weights[name].shape)}, the model's is {tuple(targets[name].shape)}")
        elif not bool(torch.isfinite(weights[name]).all()):
            problems.append(f"{name} has values that are not finite")
    return problems


def _setting(settings: Mapping[str, Any] | None, name: str) -> Any:
    return (settings or {}).get(name, _TRANSFORMERS_DEFAULTS.get(name))


def _settings_problems(settings: Mapping[str, Any] | None, config: ModelConfig) -> list[str]:
    """What config.json says that shapes do not show."""
    if settings is None:
        return []
    problems = []
    heads = _setting(settings, "num_attention_heads")
    if heads != config.vit.heads:
        problems.append(
            f"config.json has {heads} attention heads, {config.size} has {config.vit.heads} (transformers' conversion "
            "of VideoMAE's ViT-S says 16 for 6: correct config.json if it is one)"
        )
    if _setting(settings, "hidden_act") != "gelu":
        problems.append(f"config.json has hidden_act {settings['hidden_act']}, must be gelu")
    return problems


def _settings_notes(settings: Mapping[str, Any] | None, config: ModelConfig) -> list[str]:
    if settings is None:
        return []
    notes = []
    eps = settings.get("layer_norm_eps", 1e-12)
    if eps != config.norm_eps:
        notes.append(f"layer_norm_eps is {eps:g} there, the model's {config.norm_eps:g} stays")
    theirs = [settings.get(name, ours) for name, ours in (("num_frames", config.frames), ("image_size", 224))]
    size = theirs[1] if isinstance(theirs[1], list) else [theirs[1]] * 2
    if [theirs[0], *size] != [config.frames, *config.input_size]:
        ours = [config.frames, *config.input_size]
        notes.append(f"frames and size are {[theirs[0], *size]} there, {ours} here: the same position is another place")
    return notes


def _is_sinusoid(positions: Tensor) -> bool:
    table = positions.reshape(-1, positions.shape[-1])
    return torch.allclose(table.float(), sinusoid_table(*table.shape), atol=1e-3)


def _huggingface_config(config: ModelConfig, whole: bool) -> dict[str, Any]:
    vit, (height, width) = config.vit, config.input_size
    return {
        "architectures": ["VideoMAEForPreTraining" if whole else "VideoMAEModel"],
        "model_type": "videomae",
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch,
        "num_channels": COLOURS,
        "num_frames": config.frames,
        "tubelet_size": config.tubelet,
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "intermediate_size": MLP_RATIO * vit.width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.norm_eps,
        "qv_bias": True,
        "use_mean_pooling": False,  # true would be a model without the final norm
        "decoder_num_attention_heads": vit.decoder_heads,
        "decoder_hidden_size": vit.decoder_width,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_intermediate_size": MLP_RATIO * vit.decoder_width,
        "norm_pix_loss": True,
        "torch_dtype": "float32",
    }


def _preprocessor_config(config: ModelConfig) -> dict[str, Any]:
    height, width = config.input_size
    square = height == width
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": height} if square else {"height": height, "width": width},
        "resample": 2,  # bilinear
        "do_center_crop": square,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_DEFAULT_MEAN),
        "image_std": list(IMAGENET_DEFAULT_STD),
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _some(problems: list[str]) -> str:
    more = len(problems) - _SHOWN_PROBLEMS
    return "; ".join(problems[:_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def _parts(names: tuple[str, ...]) -> str:
    """`decoder.blocks.0.norm1.weight`, … as `decoder.blocks`, …"""
    return ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
