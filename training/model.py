"""A masked video model: VideoMAE's ViT (Tong et al., NeurIPS 2022), with a head for every target.

The encoder sees the visible tokens alone; a light decoder sees them and a mask token for each token to be predicted.

Axes: B clips, C = 3 colour channels, T frames, (H, W) height and width in pixels, N = t*h*w tokens of a clip in
row-major order, Nv visible and Np predicted ones, D channels of a token, K values that a head predicts for a token.
"""

import dataclasses
import math
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from timm.layers import DropPath  # type: ignore[attr-defined]
from timm.models.beit import Block
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

COLOURS = 3
MLP_RATIO = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitSize:
    """Width, depth and attention heads of an encoder, width and attention heads of its decoder."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int


VIT_SIZES = {
    "vit_micro": VitSize(width=96, depth=3, heads=3, decoder_width=48, decoder_heads=3),
    "vit_tiny": VitSize(width=192, depth=12, heads=3, decoder_width=96, decoder_heads=3),
    "vit_small": VitSize(width=384, depth=12, heads=6, decoder_width=192, decoder_heads=3),
    "vit_base": VitSize(width=768, depth=12, heads=12, decoder_width=384, decoder_heads=6),
    "vit_large": VitSize(width=1024, depth=24, heads=16, decoder_width=512, decoder_heads=8),
    "vit_huge": VitSize(width=1280, depth=32, heads=16, decoder_width=640, decoder_heads=8),
}
"""Encoders by name: VideoMAE's; `vit_tiny` for trying; `vit_micro` for studies in little on a CPU. A decoder is half as
wide as its encoder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a model is built from; every checkpoint has it."""

    size: str = "vit_base"
    """A name in VIT_SIZES."""
    heads: dict[str, int] = dataclasses.field(default_factory=dict)
    """K, values predicted for a token, by the target's name."""
    frames: int = 16
    """T, frames of a clip."""
    input_size: tuple[int, int] = (224, 224)
    """(H, W) of a frame, in pixels."""
    tubelet: int = 2
    """Frames of a token."""
    patch: int = 16
    """Side of a token's square, in pixels."""
    decoder: Literal["joint", "separate"] = "joint"
    """One decoder for all heads, or one for each (MME, table 12)."""
    decoder_depth: int = 1
    """Blocks of a decoder."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass in place of keeping them: less memory, a third more time."""
    norm_eps: float = 1e-6
    """Epsilon of the layer norms: VideoMAE's code has 1e-6, its published Hugging Face conversions 1e-12."""
    decoder_norm_eps: float | None = None
    """Epsilon of the decoder's last norm, where it differs: Hugging Face's is always 1e-5."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, must be 1 or more"
            for name in ("frames", "tubelet", "patch", "decoder_depth")
            if (value := getattr(self, name)) < 1
        ]
        problems += [
            f"head {name} has {values} values, needs 1 or more" for name, values in self.heads.items() if values < 1
        ]
        if self.size not in VIT_SIZES:
            problems.append(f"size is {self.size}, must be one of {', '.join(VIT_SIZES)}")
        if self.decoder not in {"joint", "separate"}:
            problems.append(f"decoder is {self.decoder}, must be joint or separate")
        if not problems:
            if self.frames % self.tubelet:
                problems.append(f"frames is {self.frames}, must be a multiple of tubelet, {self.tubelet}")
            if len(self.input_size) != 2 or any(side < 1 or side % self.patch for side in self.input_size):
                problems.append(f"input_size is {self.input_size}, must be two multiples of patch, {self.patch}")
        if problems:
            raise ValueError("model: " + "; ".join(problems))

    @property
    def vit(self) -> VitSize:
        """Widths, depth and attention heads."""
        return VIT_SIZES[self.size]

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """(t, h, w): tokens of a clip along time, height and width."""
        height, width = self.input_size
        return self.frames // self.tubelet, height // self.patch, width // self.patch

    @property
    def token_values(self) -> int:
        """Colour values of the pixels of one token."""
        return COLOURS * self.tubelet * self.patch**2

    @property
    def decoder_names(self) -> list[str]:
        """Keys of the decoders: those of the heads, or `joint` alone."""
        return list(self.heads) if self.decoder == "separate" else ["joint"]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**dataclasses.asdict(self), "input_size": list(self.input_size)}

    @classmethod
    def from_json(cls, fields: dict[str, Any], where: str) -> "ModelConfig":
        """The inverse of `to_json`; `where` names the fields' source in a ValueError."""
        try:
            return cls(**{**fields, "heads": dict(fields["heads"]), "input_size": tuple(fields["input_size"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: not a model's configuration: {error}") from error


def sinusoid_table(num_tokens: int, width: int) -> Tensor:
    """Fixed positions of tokens, float32 (num_tokens, width): sin and cos of n / 10000^(2i / width), interleaved.

    As in VideoMAE, n counts the tokens of the whole clip (Vaswani et al. 2017, section 3.5); it knows no axes.
    """
    frequencies = 10000.0 ** (-2.0 * (np.arange(width) // 2) / width)
    table = np.arange(num_tokens)[:, None] * frequencies
    table[:, 0::2], table[:, 1::2] = np.sin(table[:, 0::2]), np.cos(table[:, 1::2])
    return torch.from_numpy(table.astype(np.float32))


class MaskedVideoModel(nn.Module):
    """Predicts each head's target of masked tokens from the visible ones.

    Linear layers start as in VideoMAE and MAE: Xavier-uniform, biases 0; the mask token normal with 0.02, cut at ±0.02;
    the patch embedding and the step down to the decoder with PyTorch's own, as VideoMAE leaves them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.heads:
            raise ValueError("model: heads is empty, name at least one target")
        self.config = config
        width = config.vit.decoder_width
        self.encoder = VideoEncoder(config)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.decoders = nn.ModuleDict({name: Decoder(config) for name in config.decoder_names})
        self.heads = nn.ModuleDict({name: nn.Linear(width, values) for name, values in config.heads.items()})
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.heads.apply(_initialise)

    def forward(self, video: Tensor, visible: Tensor, predict: Tensor) -> dict[str, Tensor]:
        """Predictions (B, Np, K) by head, for a video float (B, C, T, H, W), normalised as ImageNet's pictures are.

        `visible` (B, Nv) and `predict` (B, Np) are int64 indices of tokens; a token in neither takes no part. The order
        of a head's K values is that of its target; `pixels` has VideoMAE's: frame of the tubelet, row, column, colour.
        """
        tokens = self.encoder(video, visible)
        decoded = {name: decoder(tokens, visible, predict, self.mask_token) for name, decoder in self.decoders.items()}
        return {name: head(decoded[name if name in decoded else "joint"]) for name, head in self.heads.items()}


class VideoEncoder(nn.Module):
    """The part that is kept after pretraining: patch embedding, positions, blocks, final norm.

    drop_path: chance that a clip passes by the last block's branches in training; rises linearly with depth from 0 at
    the first (Huang et al. 2016). final_norm: false leaves the tokens as the last block gives them. Neither is part of
    the configuration: weights have the same names, and pretraining has no use for either.
    """

    positions: Tensor

    def __init__(self, config: ModelConfig, *, drop_path: float = 0.0, final_norm: bool = True) -> None:
        super().__init__()
        self.config = config
        cube = (config.tubelet, config.patch, config.patch)
        self.patch_embed = nn.Conv3d(COLOURS, config.vit.width, kernel_size=cube, stride=cube)
        table = sinusoid_table(math.prod(config.token_grid), config.vit.width)
        self.register_buffer("positions", table, persistent=False)
        self.blocks = _blocks(config, config.vit.depth, config.vit.width, config.vit.heads, drop_path)
        self.norm = nn.LayerNorm(config.vit.width, eps=config.norm_eps) if final_norm else nn.Identity()

    def forward(self, video: Tensor, visible: Tensor | None = None) -> Tensor:
        """Features (B, Nv, D) of the tokens `visible`, int64 (B, Nv), or of all N; `video` is float (B, C, T, H, W)."""
        patches, positions = self._patches(video), self.positions
        if visible is not None:
            patches, positions = torch.take_along_dim(patches, visible[..., None], dim=1), positions[visible]
        # the convolution's kernels do not overlap: as a product it costs the visible tokens alone
        tokens = functional.linear(patches, self.patch_embed.weight.flatten(1), self.patch_embed.bias)
        tokens = tokens + positions  # float32, also under autocast
        return self.norm(_run(self.blocks, tokens, self.config.checkpoint_activations))  # type: ignore[no-any-return]

    def _patches(self, video: Tensor) -> Tensor:
        """The pixels of each token, (B, N, C*tubelet*patch*patch), in the order of a kernel of the patch embedding."""
        config = self.config
        expected = (COLOURS, config.frames, *config.input_size)
        if tuple(video.shape[1:]) != expected:
            raise ValueError(
                f"a video has shape (B, C, T, H, W) = {tuple(video.shape)}, this model takes (B, *{expected})"
            )
        (t, h, w), (p, q) = config.token_grid, (config.tubelet, config.patch)
        cubes = video.reshape(len(video), COLOURS, t, p, h, q, w, q)
        return cubes.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(len(video), t * h * w, config.token_values)


class Decoder(nn.Module):
    """Blocks over the encoder's tokens and a mask token for each token to be predicted."""

    positions: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.vit.decoder_width
        self.embed = nn.Linear(config.vit.width, width, bias=False)
        self.register_buffer("positions", sinusoid_table(math.prod(config.token_grid), width), persistent=False)
        self.blocks = _blocks(config, config.decoder_depth, width, config.vit.decoder_heads)
        eps = config.norm_eps if config.decoder_norm_eps is None else config.decoder_norm_eps
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, tokens: Tensor, visible: Tensor, predict: Tensor, mask_token: Tensor) -> Tensor:
        """Features (B, Np, D) of the tokens `predict`, from the encoder's `tokens` (B, Nv, D), those of `visible`."""
        seen = self.embed(tokens) + self.positions[visible]
        masked = mask_token + self.positions[predict]
        decoded = _run(self.blocks, torch.cat([seen, masked], dim=1), self.config.checkpoint_activations)
        return self.norm(decoded[:, visible.shape[1] :])  # type: ignore[no-any-return]


def _blocks(config: ModelConfig, depth: int, width: int, heads: int, drop_path: float = 0.0) -> nn.ModuleList:
    # BEiT's block without its window is VideoMAE's: keys have no bias, queries and values do
    norm: Any = partial(nn.LayerNorm, eps=config.norm_eps)
    block = partial(Block, width, num_heads=heads, mlp_ratio=MLP_RATIO, qkv_bias=True, norm_layer=norm)
    rates = [drop_path * number / max(depth - 1, 1) for number in range(depth)]
    return nn.ModuleList(block(drop_path=rate) for rate in rates).apply(_initialise)


def _run(blocks: nn.ModuleList, tokens: Tensor, recompute: bool) -> Tensor:
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            is_random = isinstance(block.drop_path1, DropPath)  # and nothing else in a block is
            tokens = checkpoint(block, tokens, use_reentrant=False, preserve_rng_state=is_random)
        else:
            tokens = block(tokens)
    return tokens


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def training_flops(config: ModelConfig, num_visible: int, num_predict: int) -> int:
    """Floating-point operations of a forward and a backward pass for one clip, as model FLOP utilisation counts them.

    A multiply-add is 2; only matrix products count; what activation checkpointing computes again does not.
    """
    vit, both = config.vit, num_visible + num_predict
    embed = 2 * num_visible * config.token_values * vit.width
    encoder = vit.depth * _block_flops(vit.width, num_visible)
    step_down = 2 * num_visible * vit.width * vit.decoder_width
    decoder = step_down + config.decoder_depth * _block_flops(vit.decoder_width, both)
    heads = 2 * num_predict * vit.decoder_width * sum(config.heads.values())
    forward = embed + encoder + len(config.decoder_names) * decoder + heads
    return 3 * forward - embed  # the gradient by the weights and by the input, but nobody asks for that by the pixels


def _block_flops(width: int, num_tokens: int) -> int:
    projections = 2 * num_tokens * width**2 * (4 + 2 * MLP_RATIO)  # queries, keys, values, output; two of the MLP
    return projections + 4 * num_tokens**2 * width  # scores and their sums
