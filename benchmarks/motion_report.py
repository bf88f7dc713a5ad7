"""What `motion_accuracy.py` found, as Markdown, JSON, a plot, and a sheet of the rendered frames to look at."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from motion_methods import REFERENCE, PassTimes
from motion_scores import BINS, GRID_STRIDE, Figures

from data_specs.geometry import grid_points
from data_specs.scene import Scene


@dataclasses.dataclass
class Result:
    """What one method scored, and the times of its pairs, each with the pair's true speed in px per frame."""

    figures: Figures = dataclasses.field(default_factory=Figures)
    times: list[tuple[float, PassTimes]] = dataclasses.field(default_factory=list)

    def milliseconds(self, label: str) -> dict[str, float]:
        """The median over a bin's pairs of each part and of the total; NaN where it has none."""
        low, high = BINS[label]
        chosen = [dataclasses.asdict(times) for speed, times in self.times if low <= speed <= high]
        parts = [field.name for field in dataclasses.fields(PassTimes)]
        return {part: median(t[part] for t in chosen) if chosen else float("nan") for part in parts}

    def times_as_fast(self, reference: "Result", label: str) -> float:
        """The median over a bin's pairs of the reference's time over this one's; both took turns, pair by pair."""
        low, high = BINS[label]
        pairs = zip(reference.times, self.times, strict=True)
        ratios = [r.total / own.total for (speed, r), (_, own) in pairs if low <= speed <= high]
        return median(ratios) if ratios else float("nan")


Results = Mapping[str, Result]
Cell = Callable[[str, str], str]


def flow_table(results: Results) -> str:
    """First and second pass, the camera and the time, a row for each method and bin."""
    reference = results.get(REFERENCE)

    def ratio(method: str, label: str) -> str:
        if reference is None:
            return "–"
        of_all = reference.figures.mean("residual flow", label)
        return f"{results[method].figures.mean('residual flow', label) / of_all:.2f}"

    def fast(method: str, label: str) -> str:
        return "–" if reference is None else f"{results[method].times_as_fast(reference, label):.1f}"

    columns: dict[str, Cell] = {
        "first pass": _mean(results, "first pass"),
        "residual": _mean(results, "residual flow"),
        "÷ reference": ratio,
        "residual, own": _mean(results, "residual flow, own"),
        "full": _mean(results, "full flow"),
        "measured": _mean(results, "measured"),
        "camera": _mean(results, "camera"),
        **{part: _time(results, key) for part, key in [("1st ms", "first"), ("camera ms", "camera")]},
        **{part: _time(results, key) for part, key in [("2nd ms", "second"), ("all ms", "total")]},
        "times as fast": fast,
    }
    return _table(results, columns)


def track_table(results: Results) -> str:
    """Trajectories at L = 6, a row for each method and bin."""
    names = {
        "end point": "end point",
        "own": "end point, own",
        "objects": "end point, objects",
        "background": "end point, background",
        "no camera": "end point without camera",
        "no camera: objects": "end point without camera, objects",
        "objects, own": "end point without camera, objects, own",
        "background ": "end point without camera, background",
        "published": "end point, published",
        "false valid": "false valid",
        "missed": "missed",
    }
    columns: dict[str, Cell] = {title: _mean(results, name) for title, name in names.items()}
    columns["points"] = lambda method, label: str(results[method].figures.count("end point", label))
    return _table(results, columns)


def pairs_table(results: Results) -> str:
    """First-pass flow on pairs of files."""
    columns: dict[str, Cell] = {
        "EPE": _mean(results, "flow"),
        "outliers": _mean(results, "outliers"),
        "pixels": lambda method, label: str(results[method].figures.count("flow", label)),
        "ms": lambda method, label: _time(results, "first")(method, label) if label == "all" else "",
    }
    return _table(results, columns)


def to_json(results: Results) -> dict[str, Any]:
    """{method: {bin: {name: {mean, count}, ms: {part: median}, times_as_fast}}}; what is not known is null."""
    reference = results.get(REFERENCE)
    found: dict[str, Any] = {}
    for name, result in results.items():
        found[name] = result.figures.to_json()
        for label, of_bin in found[name].items():
            of_bin["ms"] = {part: _known(ms) for part, ms in result.milliseconds(label).items()}
            of_bin["times_as_fast"] = _known(result.times_as_fast(reference, label)) if reference else None
    return found


def write_plot(results: Results, path: str | Path) -> None:
    """Error against time, log axes, a panel for each bin: hollow the first pass, filled both passes recomposed."""
    import matplotlib  # noqa: PLC0415 - an extra: only who plots needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, panels = pyplot.subplots(1, len(BINS), figsize=(4 * len(BINS), 4), layout="constrained")
    for panel, label in zip(panels, BINS, strict=True):
        for number, (name, result) in enumerate(results.items()):
            ms = result.milliseconds("all")
            first = ms["first"], result.figures.mean("first pass", label)
            both = ms["total"], result.figures.mean("full flow", label)
            colour = f"C{number}"
            panel.plot(*zip(first, both, strict=True), color=colour, linewidth=0.7)
            panel.plot(*first, "o", color=colour, markerfacecolor="none")
            panel.plot(*both, "o", color=colour, label=name)
        panel.set(xscale="log", yscale="log", xlabel="ms per pair", title=f"{label} px/frame")
        for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            axis("{x:g}")
        panel.grid(visible=True, which="both", alpha=0.2)
    panels[0].set_ylabel("end-point error of the flow, px")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, title="○ first pass\n● both passes", loc="outside right upper")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_sheet(scenes: Sequence[tuple[Scene, float]], frames: int, path: str | Path) -> None:
    """A row for each scene, with its speed: its first, middle and last frame, and where points of the first are then.

    Green: truly visible; red: hidden. Points on objects are drawn larger.
    """
    rows = []
    for scene, speed in scenes:
        points = grid_points(scene.size, 2 * GRID_STRIDE)
        positions, visible = scene.track(points, 0, frames - 1)
        on_object = scene.layers(points, 0) > 0
        row = []
        for t in (0, (frames - 1) // 2, frames - 1):
            plain = np.ascontiguousarray(scene.render(t)[..., ::-1])
            picture = plain.copy()
            for k in range(len(points)):
                x, y = (int(v) for v in np.rint(positions[k, t]))
                colour = (0, 255, 0) if visible[k, t] else (0, 0, 255)
                cv2.circle(picture, (x, y), 2 if on_object[k] else 1, colour, -1)
            cv2.putText(plain, f"{speed:.1f} px, frame {t}", (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 255, 255), 1)
            row += [plain, picture]
        rows.append(np.concatenate(row, axis=1))
    if not cv2.imwrite(str(path), np.concatenate(rows, axis=0)):
        raise OSError(f"{path}: cannot be written")


def _table(results: Results, columns: Mapping[str, Cell]) -> str:
    lines = ["| " + " | ".join(["method", "px/frame", *columns]) + " |", "| --- " * (len(columns) + 2) + "|"]
    for name in results:
        lines += [
            "| " + " | ".join([name, label, *(cell(name, label) for cell in columns.values())]) + " |" for label in BINS
        ]
    return "\n".join(line.replace("nan", "–") for line in lines)


def _mean(results: Results, figure: str) -> Cell:
    return lambda method, label: f"{results[method].figures.mean(figure, label):.3f}"


def _time(results: Results, part: str) -> Cell:
    return lambda method, label: f"{results[method].milliseconds(label)[part]:.1f}"


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
