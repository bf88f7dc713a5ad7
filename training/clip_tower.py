"""CLIP's vision tower, frozen: the features of a frame that the head `clip` predicts (TrackMAE, its spatial target).

The towers are timm's of OpenAI's CLIP (Radford et al., ICML 2021), with its QuickGELU: the weights of towers that were
trained with another activation (most of OpenCLIP's) have the same shapes and give other features here.
"""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor
from torch.nn import functional

from training.frames import normalise_frames
from training.recipe import CLIP_TOWERS, ClipModel, PretrainRecipe
from training.task import AUTOCAST, Precision
from training.weight_files import load_torch_file

HUB, RANDOM = "hub", "random"
_TIMM_NAMES: dict[ClipModel, str] = {
    "vit_base_patch16": "vit_base_patch16_clip_quickgelu_224.openai",
    "vit_large_patch14": "vit_large_patch14_clip_quickgelu_224.openai",
}
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order in which timm looks for them
_FRAMES_AT_ONCE = 128
_SHOWN_PROBLEMS = 5
_PROJECTION = {"head.weight", "head.bias"}  # to the space that texts are in too; a feature is taken before it


class ClipWeightsError(ValueError):
    """Weights that are not there, cannot be read, or are not the tower's; the message names them and the way out."""


class ClipTower:
    """Features of frames, for `targets.compute_targets`. Not a part of any model: nothing trains or saves it."""

    def __init__(self, model: VisionTransformer, grid: tuple[int, int], precision: Precision = "fp32") -> None:
        """model: timm's, on its device. grid: (h, w), the tokens of a frame that features are wanted for."""
        self._model = model.eval().requires_grad_(False)
        self._grid, self._precision = grid, precision

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Features float32 (N, h * w, D), tokens row-major, of frames uint8 (N, H, W, 3), RGB, on the model's device.

        They are those of the patches after the final norm, before the projection; the class token's is left out. Where
        the tower has another grid of patches than tokens are asked for, they are resized to it (bilinear, half-pixel),
        as TrackMAE does with ViT-L/14's 16 x 16. Frames are normalised as CLIP was trained, not as ImageNet's are.
        """
        return torch.cat([self._features(part) for part in torch.split(frames, _FRAMES_AT_ONCE)])

    def _features(self, frames: Tensor) -> Tensor:
        video = normalise_frames(frames, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        with torch.autocast(frames.device.type, AUTOCAST[self._precision], enabled=self._precision != "fp32"):
            tokens = self._model.forward_features(video)
        features = tokens[:, self._model.num_prefix_tokens :].float()
        patches = self._model.patch_embed.grid_size
        if patches == self._grid:
            return features
        maps = features.transpose(1, 2).reshape(len(frames), -1, *patches)
        resized = functional.interpolate(maps, size=self._grid, mode="bilinear", align_corners=False)
        return resized.flatten(2).transpose(1, 2)


def open_clip_tower(
    recipe: PretrainRecipe, weights: str | None, precision: Precision, device: torch.device
) -> tuple[ClipTower, str] | None:
    """The tower of a recipe with the head `clip`, and what tells its weights from others; None for other recipes.

    weights: a file (see `load_weights`), `hub` for OpenAI's from the Hugging Face hub, or `random`: the same ones
    always, for trying. The second value is the file's SHA-256 in hex, or `random`. Where the recipe's views are not of
    224 pixels, the tower's positions are resampled to theirs (timm; bicubic).
    Raises ClipWeightsError where the head has no weights, or they are given without it.
    """
    if "clip" not in recipe.heads:
        if weights is not None:
            raise ClipWeightsError(f"--clip-weights {weights}: there is no head clip for it here; leave it out")
        return None
    if weights is None:
        raise ClipWeightsError(
            f"recipe {recipe.name} predicts features of CLIP's {recipe.clip_model}: --clip-weights hub fetches the "
            "tower's weights, --clip-weights FILE reads them; random is for trying the command"
        )
    model = build_tower(recipe.clip_model, (recipe.input_size, recipe.input_size))
    digest = RANDOM
    if weights != RANDOM:
        file = fetch_weights(recipe.clip_model) if weights == HUB else Path(weights)
        load_weights(model, file)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    return ClipTower(model.to(device), recipe.token_grid[1:], precision), digest


def build_tower(name: ClipModel, size: tuple[int, int], **options: Any) -> VisionTransformer:
    """timm's tower for frames of `size`, (height, width), multiples of its patch; always with the same random weights.

    options: of `timm.create_model`, in place of the tower's own.
    """
    patch, _ = CLIP_TOWERS[name]
    assert not any(side % patch for side in size), f"{name} for {size} pixels"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(_TIMM_NAMES[name], pretrained=False, num_classes=0, img_size=size, **options)
    assert isinstance(model, VisionTransformer)
    return model


def fetch_weights(name: ClipModel) -> Path:
    """The file of OpenAI's weights in timm's names, from the Hugging Face hub or its cache. Raises ClipWeightsError."""
    config = timm.get_pretrained_cfg(_TIMM_NAMES[name])
    assert config is not None and config.hf_hub_id is not None
    problem: Exception | None = None
    for file in _HUB_FILES:
        try:
            return Path(hf_hub_download(config.hf_hub_id, file))
        except (OSError, EntryNotFoundError) as error:
            problem = error
            if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
                break  # another file will not be found either
    raise ClipWeightsError(
        f"--clip-weights hub: {config.hf_hub_id} cannot be fetched from the Hugging Face hub, and is not in its cache "
        f"({type(problem).__name__}: {str(problem).splitlines()[0]}); fetch one of {', '.join(_HUB_FILES)} where there "
        "is a network, and give it with --clip-weights FILE"
    )


def load_weights(model: VisionTransformer, file: Path) -> None:
    """Load a tower's weights from a `.safetensors` or a file of `torch.save`, in timm's, OpenAI's or OpenCLIP's names.

    Of a whole CLIP the rest is left out; half precision becomes single. Nothing in the file is run. Raises
    ClipWeightsError, with the model untouched, for what is not this tower's; InterchangeError for what is damaged.
    """
    weights, wanted = _read(file), model.state_dict()
    found, problems = _in_timm_names(weights, model)
    if not problems:
        problems += [f"{key} is missing" for key in wanted if key not in found]
        problems += [f"{key} has no place" for key in found if key not in wanted and key not in _PROJECTION]
        for key, value in wanted.items():
            if key in found and found[key].shape != value.shape:
                problems.append(f"{key} is {tuple(found[key].shape)}, this tower's is {tuple(value.shape)}")
            elif key in found and not bool(torch.isfinite(found[key]).all()):
                problems.append(f"{key} has values that are not finite")
    if problems:
        held = ", ".join(sorted(weights)[:2]) or "no weights"
        more = f" and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise ClipWeightsError(
            f"--clip-weights {file}: not the weights of this tower in timm's, OpenAI's or OpenCLIP's names: "
            f"{'; '.join(problems[:_SHOWN_PROBLEMS])}{more}; it holds {held}, …"
        )
    model.load_state_dict({key: found[key] for key in wanted})


def _in_timm_names(weights: dict[str, Tensor], model: VisionTransformer) -> tuple[dict[str, Tensor], list[str]]:
    """Weights by timm's names, positions resampled to the model's; and what speaks against their being its own."""
    patch = (3, *model.patch_embed.patch_size)
    stems = [weights[key] for key in weights if key.endswith(("visual.conv1.weight", "patch_embed.proj.weight"))]
    for stem in stems:  # timm would resample it, and take ViT-B/32 for ViT-B/16
        if tuple(stem.shape[1:]) != patch:
            return {}, [f"its patches are {tuple(stem.shape[1:])}, this tower's {patch}"]
    try:
        return checkpoint_filter_fn(dict(weights), model), []
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return {}, [f"{type(error).__name__}: {error}"]


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors by name of a file of weights."""
    if not file.is_file():
        raise ClipWeightsError(f"--clip-weights {file}: there is no such file; or say hub, or random")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ClipWeightsError(f"--clip-weights {file}: damaged, or not of safetensors: {error}") from error
    if _is_torchscript(file):
        plain = file.with_name(f"{file.stem}-weights.pt")
        raise ClipWeightsError(
            f"--clip-weights {file}: is a TorchScript archive, as OpenAI publishes CLIP, and opening it runs code from "
            "it. If you trust it, keep its weights alone, once: "
            f"python -c \"import torch; torch.save(torch.jit.load('{file}', 'cpu').state_dict(), '{plain}')\"; "
            "--clip-weights hub has the same"
        )
    content = load_torch_file(file)
    nested = [content, *(content.get(key) for key in ("state_dict", "model"))] if isinstance(content, dict) else []
    weights = next((part for part in reversed(nested) if isinstance(part, dict)), {})
    return {key: value for key, value in weights.items() if isinstance(value, Tensor)}


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
