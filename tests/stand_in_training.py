"""A small stand-in for model, targets and clips, whose losses are known in closed form; also run as a script.

    python tests/stand_in_training.py RUN OPTIONS_AS_JSON

trains it in a process of its own (under torchrun: in several).
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from training import checkpoint
from training.distributed import open_group
from training.interrupts import ignore_in_worker
from training.loop import train
from training.masked_prediction import MaskedPrediction
from training.optim import make_optimizer, make_schedule
from training.recipe import HeadOptions, PretrainRecipe
from training.step import StoppedError
from training.task import Settings, Task

T, H, W = 2, 4, 6
VISIBLE, PREDICT = 3, 5
VIDEOS = 11
RECIPE = PretrainRecipe(name="stand-in", heads={"pixels": HeadOptions(weight=1.0), "flow": HeadOptions(weight=0.25)})


@dataclasses.dataclass(frozen=True)
class Clip:
    id: str


@dataclasses.dataclass(frozen=True)
class Skipped:
    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Target:
    values: torch.Tensor
    weights: torch.Tensor


class TinyModel(nn.Module):
    """A linear encoder of the clip's mean colours with dropout, a linear decoder for each head."""

    def __init__(self, dropout=0.2):
        super().__init__()
        self.encoder = nn.Linear(3 * T, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.mask_token = nn.Parameter(torch.full((1, 1, 8), 0.1))
        self.decoders = nn.ModuleDict({"pixels": nn.Linear(8, 4), "flow": nn.Linear(8, 2)})

    def forward(self, video, visible, predict):
        assert video.shape[1:] == (3, T, H, W)
        assert visible.shape[1] in (VISIBLE, 1)
        hidden = self.norm(self.encoder(video.mean(dim=(3, 4)).flatten(1)))[:, None]
        tokens = self.dropout(hidden + self.mask_token * predict[..., None])
        return {name: decoder(tokens) for name, decoder in self.decoders.items()}


class Clips(IterableDataset):
    """Clip n of the endless order has numbers drawn from its own key; batches as `reading.clips` gives them."""

    def __init__(self, position, batch_size, rank, world_size, *, bad=None, unread=(), delay=0.0):
        self.position, self.batch_size, self.rank, self.world_size = position, batch_size, rank, world_size
        self.bad, self.unread, self.delay = bad, unread, delay

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        number, count = (info.id, info.num_workers) if info else (0, 1)
        micro_batch = number
        while True:
            first = self.position + (micro_batch * self.world_size + self.rank) * self.batch_size
            yield self.batch(range(first, first + self.batch_size))
            micro_batch += count

    def batch(self, numbers):
        time.sleep(self.delay)
        read = [n for n in numbers if n not in self.unread]
        batch = {
            "clip": [Clip(f"video-{n % VIDEOS}") for n in read],
            "skipped": [Skipped(f"video-{n % VIDEOS}", "decode: no frame") for n in numbers if n in self.unread],
        }
        if read:
            rngs = [np.random.default_rng([7, n]) for n in read]
            frames = [rng.integers(0, 256, (T, H, W, 3), dtype=np.uint8) for rng in rngs]
            values = [rng.normal(size=(PREDICT, 6)).astype(np.float32) for rng in rngs]
            # some clips have no valid target at all, so that the counts of ranks and micro-batches differ
            valid = [rng.random((PREDICT, 6)) < (n % 3) / 2 for n, rng in zip(read, rngs, strict=True)]
            batch |= {
                "frames": torch.tensor(np.stack(frames)),
                "values": torch.tensor(np.stack(values)),
                "valid": torch.tensor(np.stack(valid)),
                "visible": torch.arange(VISIBLE).expand(len(read), -1).contiguous(),
                "predict": torch.arange(PREDICT).expand(len(read), -1).contiguous(),
            }
            if self.bad in read:
                batch["values"][read.index(self.bad)] = torch.nan
        return batch


def stand_in_loader(position, *, batch_size, rank=0, world_size=1, workers=0, **clips):
    return DataLoader(
        Clips(position, batch_size, rank, world_size, **clips),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=lambda _: ignore_in_worker(),
        multiprocessing_context="fork" if workers else None,  # a forkserver would import PyTorch in each, for seconds
    )


def stand_in_targets(batch, without=()):
    parts = {"pixels": slice(0, 4), "flow": slice(4, 6)}
    return {
        name: Target(batch["values"][..., part], batch["valid"][..., part].float() * (name not in without))
        for name, part in parts.items()
    }


def stand_in_objective(weights=None, without=()):
    return MaskedPrediction(
        weights=weights or {name: head.weight for name, head in RECIPE.heads.items()},
        head_sizes={"pixels": 4, "flow": 2},
        compute_targets=lambda batch: stand_in_targets(batch, without),
        clip_size=(T, H, W),
    )


def train_stand_in(run, *, steps, batch_size=4, accumulate=1, workers=0, resume=False, keep=3, save_every=1000,
                   dropout=0.2, without=(), clip_grad=None, draw=None, figure_every=0, device="cpu", precision="fp32",
                   schedule_steps=None, validate=None, validate_every=0, **clips):  # fmt: skip
    """Train the stand-in; returns (outcome, model)."""
    torch.manual_seed(0)
    with open_group(device) as group:
        model = TinyModel(dropout).to(group.device)
        optimizer = make_optimizer(model, RECIPE, batch_size=batch_size, base_lr=1.0)
        planned = schedule_steps or steps
        schedule = make_schedule(
            optimizer, steps=planned, warmup_steps=min(2, planned - 1), min_lr=0.1, batch_size=batch_size
        )
        each = batch_size // group.world_size // accumulate
        task = Task(
            model=model,
            objective=stand_in_objective(without=without),
            model_config={"size": "tiny"},
            recipe=RECIPE.to_json(),
            clip_grad=clip_grad,
            loader=lambda position: stand_in_loader(
                position, batch_size=each, rank=group.rank, world_size=group.world_size, workers=workers, **clips
            ),
            clips_per_epoch=VIDEOS,
            data={"seed": 0, "batch_size": batch_size},
            draw=draw,
            validate=None if validate is None else lambda: validate(model),
        )
        settings = Settings(
            steps=steps, batch_size=batch_size, accumulate=accumulate, precision=precision, keep=keep,
            save_every=save_every, figure_every=figure_every, validate_every=validate_every,
        )  # fmt: skip
        newest = checkpoint.latest(run) if resume else None
        kept = checkpoint.load(newest) if newest is not None else None
        return train(task, settings, group, run, optimizer, schedule, kept), model


def log_lines(run):
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def numbers(run):
    """What a log has that does not depend on the time."""
    names = ("step", "epoch", "loss", "pixels", "flow", "lr", "grad_norm", "clips", "skipped")
    return [tuple(line[name] for name in names) for line in log_lines(run)]


def main():
    torch.set_num_threads(1)
    run, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    try:
        outcome, _ = train_stand_in(run, **options)
    except StoppedError as error:
        sys.stderr.write(f"{error}\n")
        os._exit(1)  # as a process that fails does: the others are not waited for
    sys.exit(75 if outcome == "interrupted" else 0)


if __name__ == "__main__":
    main()
