"""Do motion targets teach motion? Pretraining by different targets, same steps, same encoder; then probe, fine-tuning.

    python benchmarks/study.py --out study [--size small] [--seeds 3] [--jobs 2] [--rows NAME ...] [--device cpu]

Renders the controlled motion set, extracts its tracks, computes every row with every seed, and writes OUT/table.md and
pictures. Whatever is done is kept: the same command goes on where an earlier one ended, and --rows computes some of the
rows only. Rows run side by side, --jobs at a time, with one thread each. --report writes the tables of what is there.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from study_data import Study, check_settings, prepare_data
from study_report import write_report
from study_row import FRAME_ORDERS, Place, run_row
from study_rows import BASE, DEFAULT_ROWS, ROWS, SIZES, row

from data_specs.cores import usable_cores
from data_specs.interrupts import EXIT_INTERRUPTED, Interrupts

CONTROLS = FRAME_ORDERS[1:]


def main() -> int:
    options = _options()
    study, size = Study(options.out.absolute()), SIZES[options.size]
    if options.one is not None:
        name, seed = options.one
        run_row(name, Place(study=study, size=size, seed=int(seed), device=options.device, workers=options.workers))
        return 0
    if not options.report:
        try:
            check_settings(study, size, {"device": options.device})
            prepare_data(study, size, device=options.device, workers=usable_cores())
        except (ValueError, RuntimeError, OSError) as error:
            print(f"study: {error}", file=sys.stderr)
            return 2
        with Interrupts() as interrupts:
            failed = _run_all(options, study, interrupts)
        if interrupts.received:
            print("interrupted; the same command goes on", file=sys.stderr)
            return EXIT_INTERRUPTED
        if failed:
            print(f"{len(failed)} rows failed: {', '.join(failed)}; rows/NAME/seed-N/log.txt says why", file=sys.stderr)
            return 1
    print(write_report(study, size))
    return 0


def _options() -> argparse.Namespace:
    names = [*(each.name for each in ROWS), *CONTROLS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--size", choices=SIZES, default="small", help="how large everything is")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each row")
    parser.add_argument("--jobs", type=int, help="rows at a time; default: one a core, one on CUDA")
    parser.add_argument("--workers", type=int, default=0, help="processes that read clips, for each row")
    parser.add_argument("--rows", nargs="+", help=f"these alone, of {', '.join(names)}; default: all but the lr ones")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--report", action="store_true", help="only write the tables again")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.jobs = (1 if options.device == "cuda" else usable_cores()) if options.jobs is None else options.jobs
    if min(options.seeds, options.jobs) < 1 or options.workers < 0:
        parser.error("--seeds and --jobs must be 1 or more, --workers 0 or more")
    try:
        options.rows = [name if name in CONTROLS else row(name).name for name in options.rows or []]
    except ValueError as error:
        parser.error(str(error))
    if set(options.rows) & set(CONTROLS) and BASE not in options.rows:
        parser.error(f"{' and '.join(CONTROLS)} are of the encoder of {BASE}: name that row too")
    return options


def _run_all(options: argparse.Namespace, study: Study, interrupts: Interrupts) -> list[str]:
    """Compute the rows, seed by seed, in a process for each; returns those that failed. Signals are passed on."""
    names = options.rows or [*DEFAULT_ROWS, *CONTROLS]
    # controls need the base's encoder
    waiting = [(name, seed) for seed in range(options.seeds) for name in sorted(names, key=CONTROLS.__contains__)]
    waiting = [(name, seed) for name, seed in waiting if not (study.row(name, seed) / "result.json").exists()]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    failed, begun, total = [], time.monotonic(), len(waiting)
    while waiting or running:
        if interrupts.received:
            waiting.clear()
            for process in running.values():
                process.terminate()  # it saves, and ends
        ready = [each for each in waiting if _may_begin(each, running)]
        while ready and len(running) < options.jobs:
            each = ready.pop(0)
            waiting.remove(each)
            running[each] = _start(options, study, *each)
        time.sleep(0.5)
        for each, process in list(running.items()):
            if process.poll() is not None:
                del running[each]
                name = f"{each[0]}, seed {each[1]}"
                if process.returncode:
                    failed.append(name)
                done = total - len(waiting) - len(running)
                print(f"{time.monotonic() - begun:6.0f} s  {done} of {total}  {name}", flush=True)
    return failed


def _may_begin(each: tuple[str, int], running: dict[tuple[str, int], subprocess.Popen[bytes]]) -> bool:
    name, seed = each
    return name not in CONTROLS or (BASE, seed) not in running


def _start(options: argparse.Namespace, study: Study, name: str, seed: int) -> subprocess.Popen[bytes]:
    folder = study.row(name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, __file__, "--out", str(study.out), "--size", options.size, "--device", options.device,
        "--workers", str(options.workers), "--one", name, str(seed),
    ]  # fmt: skip
    # one thread for each: two that share a core wait for each other
    threads = {} if options.device == "cuda" else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **threads})


if __name__ == "__main__":
    sys.exit(main())
