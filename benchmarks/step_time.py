"""What motion targets add to a training step: a step on stored motion against one on pixels, and the wait for data.

    python benchmarks/step_time.py STORE --root DIR [--model vit_tiny] [--batch-size 4] [--steps 6] [--device cpu]

Both models have the same encoder, masks and clips, and differ in their heads alone: the recipe's, and `pixels`; where
each head has a decoder of its own, in those too. The weights of CLIP's tower are random, and its arithmetic is not
counted as the model's. Steps of the two alternate; each way's time is the shortest of its steps, so that ratios hold on
a busy machine. On a GPU it also prints the memory and, with --peak-tflops, the share of the card's arithmetic that the
model uses. Then the recipe trains through the loader with --workers processes; what is printed is the share of the time
that steps wait for data.
"""

import argparse
import itertools
import math
import time
from pathlib import Path

import torch

from training.assembly import Choices, build_task
from training.clip_tower import RANDOM
from training.distributed import Group
from training.model import ModelConfig, training_flops
from training.optim import make_optimizer
from training.reading.masks import token_counts
from training.recipe import HeadOptions, PretrainRecipe, load_recipe
from training.step import StepInput, optimise
from training.step_batches import StepBatches
from training.task import Precision, Task


class Way:
    """A model and its optimizer, ready to do steps."""

    def __init__(self, task: Task, recipe: PretrainRecipe, group: Group, precision: Precision) -> None:
        self.task, self.group, self.precision = task, group, precision
        self.optimizer = make_optimizer(task.model, recipe, batch_size=1, base_lr=None)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=False)

    def step(self, batch: dict) -> float:
        given = StepInput(number=1, micro_batches=[batch], waited=0.0, signalled=lambda: False)
        begun = time.perf_counter()
        optimise(self.task, self.task.model, self.optimizer, self.scaler, given, self.group, self.precision)
        return time.perf_counter() - begun  # the losses have been read by then: the device is done


def make_way(options: argparse.Namespace, recipe: PretrainRecipe, workers: int) -> Way:
    """options: with the store, root, model, batch_size and device. Nothing is drawn or saved."""
    group = Group(0, 1, torch.device(options.device))
    precision: Precision = "bf16" if options.device == "cuda" else "fp32"
    choices = Choices(
        store=options.store, root=options.root, recipe=recipe, model=options.model, out=Path(),
        batch_size=options.batch_size, accumulate=1, clips_per_video=1, seed=0, workers=workers,
        allow_incomplete=True, checkpoint_activations=False, init=None,
        clip_weights=RANDOM if "clip" in recipe.heads else None, precision=precision,
    )  # fmt: skip
    return Way(build_task(choices, group), recipe, group, precision)


def take_batches(way: Way, number: int) -> list[dict]:
    """The run's first batches, on the device."""
    stream = StepBatches(way.task.loader(0), 1, way.group.device, ahead=False)
    taken = [stream.take()[0][0] for _ in range(number)]
    stream.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--root", required=True)
    parser.add_argument("--recipe", default="mme-object")
    parser.add_argument("--model", default="vit_tiny")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak-tflops", type=float, help="of the card, dense, in the precision used")
    options = parser.parse_args()
    motion = load_recipe(options.recipe)
    pixels = motion.predicting({"pixels": HeadOptions()})

    ways = {
        recipe: make_way(options, of, options.workers) for recipe, of in [(options.recipe, motion), ("pixels", pixels)]
    }
    batches = {name: take_batches(way, 2) for name, way in ways.items()}
    least, memory = dict.fromkeys(ways, math.inf), dict.fromkeys(ways, 0)
    for number in range(options.steps + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = ways[name].step(batches[name][number % 2])
            if number:  # the first one warms up
                least[name] = min(least[name], seconds)
            if options.device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated()
    visible, predicted = token_counts(motion.token_grid, motion.mask, motion.mask_ratio, motion.drop_tokens)
    for name, seconds in least.items():
        flops = training_flops(ModelConfig(**ways[name].task.model_config), visible, predicted) * options.batch_size
        extra = f", {memory[name] / 2**30:.1f} GiB" if memory[name] else ""
        if options.peak_tflops:
            extra += f", {flops / seconds / options.peak_tflops / 1e12:.1%} of the peak"
        print(f"  {name:12} {1e3 * seconds:8.1f} ms a step, {options.batch_size / seconds:6.1f} clips/s{extra}")
    print(f"{options.recipe} / pixels: {least[options.recipe] / least['pixels']:.3f}")
    print_waiting(ways[options.recipe], options.steps)


def print_waiting(way: Way, steps: int) -> None:
    """Train through the loader; what it reads ahead before the first step is not counted."""
    stream = StepBatches(way.task.loader(0), 1, way.group.device, ahead=way.group.device.type == "cuda")
    waited = total = 0.0
    for number in itertools.count():
        begun = time.perf_counter()
        micro_batches, waiting = stream.take()
        way.step(micro_batches[0])
        if number >= 2:
            waited, total = waited + waiting, total + time.perf_counter() - begun
        if number == steps + 1:
            break
    stream.close()
    print(f"share of a step that waits for data: {waited / total:.1%}")


if __name__ == "__main__":
    main()
