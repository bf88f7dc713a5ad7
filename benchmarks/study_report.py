"""The study's tables and picture, from the results that are there."""

import json
import statistics
from collections.abc import Sequence
from typing import Any, get_args

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from study_data import Study
from study_row import FRAME_ORDERS, confusion_of, motion_and_direction
from study_rows import BASE, ROWS, Group, Size

from data_specs.durable import replacing, write_file
from data_specs.motion_set import MOTIONS, partner

_CONTROLS = {"shuffled": f"{BASE}, frames shuffled", "single": f"{BASE}, one frame, repeated"}
_COLUMNS = tuple((test, measure) for test in ("probe", "finetune") for measure in ("top1", "motion", "direction"))


def write_report(study: Study, size: Size) -> str:
    """Write OUT/table.md and OUT/curves.png; returns the tables' text."""
    results = _results(study)
    text = _tables(study, results, size)
    write_file(study.out / "table.md", text)
    _draw_curves(study, results)
    return text


def _results(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Of each row those of its seeds that are done."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((study.out / "rows").glob("*/seed-*/result.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["row"], []).append(result)
    return found


def _tables(study: Study, results: dict[str, list[dict[str, Any]]], size: Size) -> str:
    chance = 1 / len(MOTIONS)
    parts = [
        f"{size.pretrain_steps} steps of pretraining and {size.finetune_steps} of fine-tuning, {size.batch_size} clips "
        f"each; {size.model}, {size.frames} frames of {size.input_size} x {size.input_size}, patch {size.patch}; "
        f"{size.train} training clips, {size.test} test clips. Mean ± standard deviation over the seeds, %. Chance: "
        f"top-1 {chance:.1%}, pair {2 * chance:.1%}, direction 50 %.\n\n"
        "`pair`: the motion or its partner backward is named; `direction`: of those, the share in which it is the "
        "right one of the two, which only the order of the frames tells; `loss / constant`: of the last tenth of the "
        "pretraining, against the best constant prediction; `min`: of one seed, on one core.\n"
    ]
    for group in get_args(Group):
        rows = [(row.name, row.what) for row in ROWS if row.group == group]
        if any(name in results for name, _ in rows):
            parts.append(_table(group, rows, results))
    parts.append(_table("control", list(_CONTROLS.items()), results))
    parts += [_by_motion(study, results, test) for test in ("probe", "fine-tuned")]
    return "\n".join(parts)


def _by_motion(study: Study, results: dict[str, list[dict[str, Any]]], test: str) -> str:
    """Of the rows that are compared, pair / direction for each pair of motions, over the clips of all seeds."""
    pairs = [(label, partner(label)) for label in range(len(MOTIONS)) if label < partner(label)]
    names = [f"{MOTIONS[one]}, {MOTIONS[other]}" for one, other in pairs]
    lines = [f"| {test}: pair / direction | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for row in ROWS:
        done = results.get(row.name, []) if row.has_curve else []
        folders = [study.row(row.name, each["seed"]) for each in done]
        last = [f"probe-{max(map(int, each['curve']))}" if test == "probe" else "finetune" for each in done]
        runs = [folder / name for folder, name in zip(folders, last, strict=True)]
        confusions = [confusion_of(run) for run in runs if (run / "confusion.csv").exists()]
        if not confusions:
            continue
        found = [motion_and_direction(np.sum(confusions, axis=0), pair) for pair in pairs]
        cells = [f"{100 * each['motion']:.0f} / {100 * each['direction']:.0f}" for each in found]
        lines.append(f"| `{row.name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Sequence[tuple[str, str]], results: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        f"| {title} | | seeds | probe top-1 | pair | direction | fine-tuned top-1 | pair | direction | "
        "loss / constant | min |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, what in rows:
        done = results.get(name, [])
        if not done:
            continue
        cells = [_spread([each[test][measure] for each in done]) for test, measure in _COLUMNS]
        minutes = statistics.mean(sum(each["seconds"].values()) for each in done) / 60
        lines.append(f"| `{name}` | {what} | {len(done)} | {' | '.join(cells)} | {_losses(done)} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def _losses(done: Sequence[dict[str, Any]]) -> str:
    """Each head's loss at the end, as a share of the best constant's."""
    heads = done[0].get("loss", {})
    ratios = {
        head: statistics.mean(each["loss"][head]["error"] / each["loss"][head]["constant"] for each in done)
        for head in heads
        if all(each["loss"][head]["error"] is not None for each in done)
    }
    return ", ".join(f"{head} {ratio:.3f}" for head, ratio in ratios.items()) or "–"


def _draw_curves(study: Study, results: dict[str, list[dict[str, Any]]]) -> None:
    """Probe accuracy against pretraining steps, of the rows that are compared; bars are standard deviations."""
    mpl.use("agg")
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    start = _at(results.get("none", []), "0")
    for row in ROWS:
        done = results.get(row.name, [])
        if not row.has_curve or not done or row.changes is None:
            continue
        points = {0: start} if start else {}
        points |= {int(step): _at(done, step) for step in done[0]["curve"]}
        steps = sorted(points)
        means = [100 * statistics.mean(points[step]) for step in steps]
        bars = [100 * statistics.stdev(points[step]) if len(points[step]) > 1 else 0.0 for step in steps]
        axes.errorbar(steps, means, bars, marker="o", markersize=3, capsize=2, linewidth=1.2, label=row.name)
    axes.axhline(100 / len(MOTIONS), color="0.5", linestyle=":", linewidth=1, label="chance")
    axes.set(xlabel="pretraining steps", ylabel="linear probe, top-1 [%]", ylim=(0, None))
    axes.legend(frameon=False, fontsize="small")
    with replacing(study.out / "curves.png") as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def _at(done: Sequence[dict[str, Any]], step: str) -> list[float]:
    return [each["curve"][step] for each in done if step in each["curve"]]


assert set(_CONTROLS) == set(FRAME_ORDERS[1:])
