"""What a run says of itself: RUN/log.jsonl, a line per step; skipped.jsonl, validation.jsonl; TensorBoard; a bar.

A line of log.jsonl has

    step            optimisation steps done, from 1; epoch: clips consumed by the clips of an epoch
    loss            sum over the losses of weight * mean error, exact over all ranks and micro-batches
    one key a loss  its mean error, or null where nothing of the whole batch counted: in pretraining each head's squared
                    error, in fine-tuning `cross_entropy`; the name with _trivial: that of the best constant prediction,
                    which a model must beat to have learnt anything
    lr, grad_norm   learning rate of the step, the largest of the layers'; L2 norm of the gradient before clipping
    clips, skipped  clips of the step over all ranks; clips that could not be read
    seconds         wall time of the step on rank 0, data included; clips_per_s: clips / seconds
    wait_share      share of that time spent waiting for data, mean over the ranks

A line of validation.jsonl has the step, and what the task's validation found.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data_specs.durable import replacing

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


class RunLog:
    """The log of a run; one process has it open. What a log says of steps after `step` is dropped when it is opened."""

    def __init__(self, run: Path, *, step: int, steps: int) -> None:
        """step: where the run goes on from, 0 for a new one; steps: where it ends."""
        run.mkdir(parents=True, exist_ok=True)
        for name in ("log.jsonl", "skipped.jsonl", "validation.jsonl"):
            cut_back(run / name, step)
        self._log = (run / "log.jsonl").open("a", encoding="utf-8")
        self._skipped, self._validation = run / "skipped.jsonl", run / "validation.jsonl"
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._steps, self._last_line = steps, time.monotonic()
        bar = sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True) if bar else None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a step's line. A number that is not finite becomes null: JSON has none."""
        self._log.write(json_line(line))
        self._log.flush()
        step = int(line["step"])
        for name, value in line.items():
            if name not in ("step", "seconds", "clips") and value is not None:
                self._board.add_scalar(name, value, step)
        self._say(step, line)

    def write_skipped(self, step: int, clips: Iterable[tuple[str, str]]) -> None:
        """Add clips that could not be read, each a video's id and the reason."""
        with self._skipped.open("a", encoding="utf-8") as file:
            file.writelines(json_line({"step": step, "id": video, "reason": reason}) for video, reason in clips)

    def write_validation(self, line: Mapping[str, Any]) -> None:
        """Add what validation found after a step; numbers go to TensorBoard, their names after `validation/`."""
        with self._validation.open("a", encoding="utf-8") as file:
            file.write(json_line(line))
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)):
                self._board.add_scalar(f"validation/{name}", value, int(line["step"]))

    def picture(self, name: str, image: Any, step: int) -> None:
        """Add a picture, uint8 (H, W, 3) RGB, to TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def sync(self) -> None:
        """Put on disk what was written, so that no log ends before its run's checkpoint."""
        os.fsync(self._log.fileno())

    def close(self) -> None:
        """Close the files, and take the bar away."""
        self._log.close()
        self._board.close()
        if self._bar is not None:
            self._bar.close()

    def _say(self, step: int, line: Mapping[str, Any]) -> None:
        loss, rate, wait = (float(line[name] or 0.0) for name in ("loss", "clips_per_s", "wait_share"))
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} clips/s, {wait:.0%} waiting")
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES or step == self._steps:
            self._last_line = time.monotonic()
            logger.info(
                "step %d of %d, loss %.4f, %.1f clips/s, %.0f%% of the time waiting for data",
                step, self._steps, loss, rate, 100 * wait,
            )  # fmt: skip


def json_line(fields: Mapping[str, Any]) -> str:
    """One line of JSON with its newline; numbers that are not finite become null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def summary(log: Path, heads: Iterable[str]) -> str:
    """Each head's loss at a log's beginning and end, the means of a tenth of its steps, and the best constant's."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    tenth = max(1, len(lines) // 10)

    def mean(name: str, part: list[dict[str, Any]]) -> str:
        values = [line[name] for line in part if line.get(name) is not None]
        return f"{sum(values) / len(values):.4f}" if values else "nothing measured"

    first, last = lines[:tenth], lines[-tenth:]
    return "; ".join(
        f"{head} {mean(head, first)} -> {mean(head, last)} (best constant {mean(f'{head}_trivial', last)})"
        for head in heads
    )


def cut_back(log: Path, step: int) -> None:
    """Drop a log's lines of steps after `step`, and a last line that a crash cut off; all at once or not at all."""
    if not log.exists():
        return
    with (
        log.open(encoding="utf-8") as lines,
        replacing(log) as temporary,
        temporary.open("w", encoding="utf-8") as kept,
    ):
        kept.writelines(line for line in lines if (at := _step_of(line)) is not None and at <= step)


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError):
        return None
