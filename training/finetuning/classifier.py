"""A video classifier: the pretrained encoder over all tokens, their mean, a norm, and a linear head.

Two ways of pooling. Fine-tuning (`pooled`) is VideoMAE's: the last block's tokens are averaged, then normed by
`fc_norm`, which begins fresh; the encoder's own final norm is not used (modeling_finetune.py, use_mean_pooling). A
linear probe (`tokens`) leaves the encoder as it was pretrained: its normed tokens are averaged.

Axes: B clips, T frames, (H, W) height and width in pixels, D channels of a token, C classes.
"""

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model import ModelConfig, VideoEncoder

HEAD_STD = 2e-5
"""Of a head's first weights: 0.02, times an init_scale of 0.001 (VideoMAE)."""
_PROBE_STD = 0.01  # MAE's and SVT's linear layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What a classifier is built from; every checkpoint of fine-tuning has it."""

    encoder: ModelConfig
    """The encoder's; it has no heads."""
    classes: tuple[str, ...]
    """Names of the C classes by number."""
    pooling: Literal["pooled", "tokens"] = "pooled"
    """What is normed: the mean of the tokens, or each token."""
    frozen: bool = False
    """Whether the head alone is trained."""
    drop_path: float = 0.0
    """Chance that a clip passes by the last block; rises linearly from 0 at the first."""
    head_dropout: float = 0.0
    """Share of the features that is dropped before the head."""
    head_norm: Literal["none", "batch"] = "none"
    """`batch`: features are standardised by a batch norm without weights before the head."""

    def __post_init__(self) -> None:
        problems = []
        if len(self.classes) < 2:
            problems.append(f"classes are {', '.join(self.classes) or 'none'}, must be 2 or more")
        if len(set(self.classes)) < len(self.classes):
            problems.append("classes have a name twice")
        if self.head_norm == "batch" and not self.frozen:
            problems.append("head_norm is batch, which is for a frozen encoder: its statistics are each process's own")
        if self.encoder.heads:
            problems.append(f"encoder has the heads {', '.join(self.encoder.heads)}, must have none")
        if problems:
            raise ValueError("classifier: " + "; ".join(problems))

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields = {**dataclasses.asdict(self), "classes": list(self.classes)}
        # how it is computed is no part of what it is
        return {**fields, "encoder": {**self.encoder.to_json(), "checkpoint_activations": False}}

    @classmethod
    def from_json(cls, fields: dict[str, Any], where: str) -> "ClassifierConfig":
        """The inverse of `to_json`; `where` names the fields' source in a ValueError."""
        try:
            encoder = ModelConfig.from_json(fields["encoder"], where)
            return cls(**{**fields, "encoder": encoder, "classes": tuple(fields["classes"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: not a classifier's configuration: {error}") from error


class VideoClassifier(nn.Module):
    """Scores of the classes for a clip. Names of weights: `encoder.…` as in pretraining, `fc_norm`, `head`.

    The head's weights start normal with `head_std`, cut at two of it, its bias 0, as VideoMAE's; a probe's normal with
    0.01, as MAE's and SVT's.
    """

    def __init__(self, config: ClassifierConfig, head_std: float = HEAD_STD) -> None:
        super().__init__()
        self.config = config
        width, pooled = config.encoder.vit.width, config.pooling == "pooled"
        self.encoder = VideoEncoder(config.encoder, drop_path=config.drop_path, final_norm=not pooled)
        self.fc_norm = nn.LayerNorm(width, eps=config.encoder.norm_eps) if pooled else nn.Identity()
        self.head_norm = HeadNorm(width) if config.head_norm == "batch" else nn.Identity()
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(width, len(config.classes))
        if config.frozen:
            nn.init.normal_(self.head.weight, std=_PROBE_STD)
            self.encoder.requires_grad_(False)
            self.fc_norm.requires_grad_(False)
        else:
            nn.init.trunc_normal_(self.head.weight, std=head_std, a=-2 * head_std, b=2 * head_std)
        nn.init.zeros_(self.head.bias)

    def features(self, video: Tensor) -> Tensor:
        """What the head sees, (B, D), before its own norm and dropout; `video` as for `forward`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            return self.fc_norm(self.encoder(video).mean(dim=1))  # type: ignore[no-any-return]

    def forward(self, video: Tensor) -> Tensor:
        """Scores (B, C), before the softmax, of a video float (B, 3, T, H, W), normalised as in pretraining."""
        return self.head(self.head_dropout(self.head_norm(self.features(video))))  # type: ignore[no-any-return]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for `training.optim.parameter_groups`, as VideoMAE's and BEiT's: patches, each block, the rest."""
        # what matches nothing is timm's last layer: norms and head
        return {"stem": r"^encoder\.patch_embed", "blocks": r"^encoder\.blocks\.(\d+)"}


class HeadNorm(nn.BatchNorm1d):
    """Standardises features (B, D) by their batch, in the test by running statistics; it has no weights.

    A single clip has no deviation: it is standardised by the running statistics in training too, and leaves them alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False, eps=1e-6)  # MAE's linear probe

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D), standardised."""
        if self.training and len(features) > 1:
            return super().forward(features)
        return functional.batch_norm(features, self.running_mean, self.running_var, eps=self.eps)
