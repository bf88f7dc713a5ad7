"""Optimizers with the papers' parameter groups, and a learning rate that follows from the step alone."""

from typing import Literal, Protocol

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # type: ignore[attr-defined]
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

__all__ = ["CosineLRScheduler", "gradient_norm", "make_optimizer", "make_schedule", "parameter_groups", "warmup_of"]

REFERENCE_BATCH = 256
"""Learning rates of the papers are for a batch of 256 clips; others scale them linearly (Goyal et al. 2017)."""
FIRST_LR = 1e-6
"""Learning rate of the warm-up's first step, for a batch of 256 (VideoMAE's released script)."""
_NO_DECAY = ("*mask_token", "*cls_token", "*pos_embed")


class TrainingRecipe(Protocol):
    """What a recipe of pretraining or fine-tuning says of the learning."""

    @property
    def base_lr(self) -> float:
        """Learning rate for a batch of 256."""

    @property
    def betas(self) -> tuple[float, float]:
        """Of AdamW."""

    @property
    def weight_decay(self) -> float:
        """Of weights."""

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""

    @property
    def warmup_epochs(self) -> int:
        """Epochs of linear warm-up."""


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, object]]:
    """The model's trainable parameters in two groups: without weight decay, and with it; or in two for each layer.

    Biases (q_bias and v_bias among them), norms and every other vector have no decay, nor have mask and class tokens
    and learned positions, as in VideoMAE and MAE; a model may name more in `no_weight_decay()`.

    layer_decay: below 1, a layer's groups have an `lr_scale`, which the schedule multiplies its rate by: layer_decay to
    the power of the number of layers after it (BEiT, Bao et al. 2022). Which parameters are a layer says the model's
    `group_matcher`, in timm's form.
    """
    named: set[str] = getattr(model, "no_weight_decay", set)()
    plain = [*_NO_DECAY, *sorted(named)]
    groups: list[dict[str, object]]
    if layer_decay == 1:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=plain)
    else:
        assert hasattr(model, "group_matcher"), "a model without layers"
        groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=plain, layer_decay=layer_decay)
    return groups


def make_optimizer(
    model: nn.Module,
    recipe: TrainingRecipe,
    *,
    batch_size: int,
    base_lr: float | None = None,
    kind: Literal["adamw", "sgd"] = "adamw",
    momentum: float = 0.9,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW with the recipe's betas and weight decay, or SGD, and the peak learning rate base_lr * batch_size / 256.

    base_lr: for a batch of 256, in place of the recipe's. batch_size: clips of one optimisation step, over all ranks
    and micro-batches; in fine-tuning its videos. momentum: of SGD. layer_decay: see `parameter_groups`.
    """
    groups = parameter_groups(model, recipe.weight_decay, layer_decay)
    rate = (recipe.base_lr if base_lr is None else base_lr) * batch_size / REFERENCE_BATCH
    fused = True if next(model.parameters()).is_cuda else None
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, weight_decay=recipe.weight_decay, fused=fused)
    return torch.optim.AdamW(groups, lr=rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=fused)


def warmup_of(recipe: TrainingRecipe, *, steps: int, steps_per_epoch: float, asked: int | None = None) -> int:
    """Steps of linear warm-up: `asked`, else the recipe's epochs, but then never more than a tenth of the run, or the
    share that they have of the recipe's own epochs where that is more (5 of 30, MME's table 15).

    Raises ValueError where the warm-up asked for is not shorter than the run.
    """
    if asked is None:
        most = steps // 10
        if recipe.warmup_epochs < recipe.epochs:
            most = max(most, steps * recipe.warmup_epochs // recipe.epochs)
        return min(round(recipe.warmup_epochs * steps_per_epoch), most)
    if not 0 <= asked < steps:
        raise ValueError(f"--warmup-steps is {asked}, must be 0 or more and less than the run's {steps} steps")
    return asked


def make_schedule(
    optimizer: torch.optim.Optimizer, *, steps: int, warmup_steps: int, min_lr: float, batch_size: int
) -> CosineLRScheduler:
    """Linear warm-up, then a cosine to `min_lr`; `step_update(k)` sets the rate of the step after k steps.

    min_lr: for a batch of 256, scaled like the peak (VideoMAE's script does so too); never above the peak. With peak P,
    end E, first rate F = 1e-6 * batch_size / 256 and W steps of warm-up the rate is F + (P - F) k / W for k < W, then
    E + (P - E) (1 + cos(pi (k - W) / (steps - W))) / 2, and E from `steps` on. Nothing but k enters, so that a run can
    go on with more steps. A group's `lr_scale` multiplies all of it.
    """
    peak = max(float(group["lr"]) for group in optimizer.param_groups)
    scale = batch_size / REFERENCE_BATCH
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup_steps,
        lr_min=min(min_lr * scale, peak),
        warmup_t=warmup_steps,
        warmup_lr_init=min(FIRST_LR * scale, peak),
        warmup_prefix=True,
        t_in_epochs=False,
    )


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, object]) -> None:
    """Take over a checkpoint's moments and settings, but compute as this device does (fused on CUDA only)."""
    how = ("fused", "foreach", "capturable")
    groups = [
        {**kept, **{name: own[name] for name in how if name in own}}
        for kept, own in zip(state["param_groups"], optimizer.param_groups, strict=True)  # type: ignore[call-overload]
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def gradient_norm(model: nn.Module, largest: float | None) -> torch.Tensor:
    """The L2 norm of all gradients, a scalar; gradients are scaled down to `largest` where it is given and less."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if largest is not None:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm
