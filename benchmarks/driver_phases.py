"""extract-tracks in this process, with a record of what its driver did when: for `soak.py`.

    python benchmarks/driver_phases.py RECORD.json BEGUN extract-tracks' own options ...

BEGUN is `time.monotonic()` of when this process was asked for. The command is the user's: its functions are called
through timers, and nothing else is changed.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PHASES = {
    "load_videos": "data_specs.dataset",
    "store_info": "extraction.plan",
    "begin_store": "extraction.commit",
    "plan_shards": "extraction.plan",
    "compile_kernels": "extraction.kernels",
    "run": "extraction.run",
}
"""Functions that the command calls, and their modules; all else of it is what these leave."""


class PhaseRecord:
    """Wall and CPU seconds of the phases, in `calls`; CPU is that of all threads of this process."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.done_at: list[float] = []
        """`time.monotonic()` whenever a video was done."""
        self.summary: dict[str, Any] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a line in `calls` for each call."""

        def call(*args: Any, **options: Any) -> Any:
            begun, cpu = time.monotonic(), time.process_time()
            result = function(*args, **options)
            wall, cpu = time.monotonic() - begun, time.process_time() - cpu
            self.calls.append({"phase": name, "at": begun, "wall": wall, "cpu": cpu})
            if name == "run":
                self.summary = {**vars(result)}
            return result

        return call

    def noting_videos(self, progress: type[Any]) -> type[Any]:
        """The progress display, with a note of when each video was done."""
        record = self

        class Noting(progress):  # type: ignore[misc]
            def video_done(self, result: Any) -> None:
                record.done_at.append(time.monotonic())
                super().video_done(result)

        return Noting


def replace(old: Any, new: Any) -> None:
    """Put `new` where modules of `extraction` know `old`, under whatever name."""
    for module in [m for name, m in sys.modules.items() if name.startswith("extraction.")]:
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, new)


def main(argv: Sequence[str]) -> int:
    """Run the command, write the record; returns the command's exit status."""
    target, begun, *arguments = argv
    from extraction import cli  # noqa: PLC0415 (its imports are timed)

    imported, imported_cpu = time.monotonic(), time.process_time()
    record = PhaseRecord()
    for name, module in PHASES.items():
        function = getattr(sys.modules[module], name)
        replace(function, record.timed(name, function))
    progress = sys.modules["extraction.progress"].__dict__["Progress"]
    replace(progress, record.noting_videos(progress))
    status = cli.main(arguments)
    fields = {
        "status": status,
        "begun": float(begun),
        "imports": {"wall": imported - float(begun), "cpu": imported_cpu},
        "calls": record.calls,
        "done_at": record.done_at,
        "summary": record.summary,
        "ended": time.monotonic(),
        "cpu": time.process_time(),
    }
    Path(target).write_text(json.dumps(fields), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
