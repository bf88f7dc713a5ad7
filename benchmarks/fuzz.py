"""Fuzzing: every reader of files that need not be trusted, with inputs that are nearly sound (docs/security.md).

    python benchmarks/fuzz.py --seconds 600             # shared out over all targets
    python benchmarks/fuzz.py --inputs 1000 --target lists

The targets run in a process of their own, for an input may kill it. A crash is any other error than the documented
ones, an input that takes more than 5 s of the processor, or makes the process 1 GB larger. Exit status: 1 where there
was a crash.
"""

import argparse
import dataclasses
import json
import logging
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fuzz_targets
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

MOST_SECONDS = 5.0
MOST_GROWTH_MB = 1024
ADDRESS_SPACE = 48 << 30
"""A limit far above what is counted as a crash, so that one does not take the machine with it."""
_A_ROUND = 200
_MOST_CRASHES = 5


@dataclasses.dataclass
class Outcome:
    """What came of a target: inputs that were tried, those that were refused by a documented error, and the crashes."""

    target: str
    tried: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    grown_mb: float = 0.0
    crashes: list[str] = dataclasses.field(default_factory=list)


class _OutOfTime(BaseException):
    """Ends a round."""


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(target: fuzz_targets.Target, *, begin: int, inputs: int, seconds: float) -> Outcome:
    """Try a target in this process: so many inputs, from the seed `begin` on, or for so many seconds."""
    outcome, begun = Outcome(target.name), time.perf_counter()
    number = begin
    while outcome.tried < inputs and time.perf_counter() - begun < seconds and len(outcome.crashes) < _MOST_CRASHES:
        _round(target, outcome, number, min(_A_ROUND, inputs - outcome.tried), begun + seconds)
        number += 1
    outcome.seconds = time.perf_counter() - begun
    return outcome


def _round(target: fuzz_targets.Target, outcome: Outcome, number: int, inputs: int, end: float) -> None:
    last = ""

    @seed(number)
    @settings(
        max_examples=inputs, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate], report_multiple_bugs=False,
    )  # fmt: skip
    @given(st.randoms(use_true_random=True).map(target.make))
    def attempt(value: object) -> None:
        nonlocal last
        if time.perf_counter() > end:
            raise _OutOfTime
        before, begun = _memory_mb(), time.process_time()
        last = repr(value)[:2000]
        outcome.tried += 1
        try:
            target.read(value)
        except target.errors as error:
            outcome.refused += 1
            assert str(error), "an error without a message"
        taken, grown = time.process_time() - begun, _memory_mb() - before
        outcome.slowest, outcome.grown_mb = max(outcome.slowest, taken), max(outcome.grown_mb, grown)
        assert taken < MOST_SECONDS, f"took {taken:.1f} s"
        assert grown < MOST_GROWTH_MB, f"took {grown:.0f} MB"

    try:
        attempt()
    except _OutOfTime:
        pass
    except HypothesisException as error:
        outcome.crashes.append(f"seed {number}: {type(error).__name__}: {error}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome.crashes.append(f"seed {number}: {type(error).__name__}: {str(error)[:300]}: {last[:1000]}")


def _in_children(folder: Path, names: list[str], begin: int, inputs: int, seconds: float) -> Iterator[Outcome]:
    """Try targets in a process of its own, and go on in another where an input ends it."""
    while names:
        command = [sys.executable, __file__, "--child", str(folder), "--seed", str(begin), "--inputs", str(inputs),
                   "--seconds", str(seconds), *(part for name in names for part in ("--target", name))]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            watch = threading.Timer((seconds + 60) * len(names) + 120, child.kill)
            watch.start()
            assert child.stdout is not None
            for line in child.stdout:
                names = names[1:]
                yield Outcome(**json.loads(line))
            watch.cancel()
        if names:
            yield Outcome(names[0], crashes=[f"hangs, or ends its process: status {child.returncode}"])
            names = names[1:]


def main() -> int:
    """Print the table as Markdown, and the crashes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="of all targets together")
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="of each target, at most")
    parser.add_argument("--target", action="append", default=[], help="this target only; can be given several times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.child is not None:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        targets = {target.name: target for target in fuzz_targets.all_targets(options.child)}
        for name in options.target:
            outcome = fuzz(targets[name], begin=options.seed, inputs=options.inputs, seconds=options.seconds)
            print(json.dumps(dataclasses.asdict(outcome)), flush=True)
        return 0
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        fuzz_targets.make_store(Path(folder))
        names = options.target or [target.name for target in fuzz_targets.all_targets(Path(folder))]
        print("| target | inputs | refused | crashes | slowest, ms of CPU | growth, MB |")
        print("| --- | --- | --- | --- | --- | --- |")
        seconds = options.seconds / len(names)
        for outcome in _in_children(Path(folder), names, options.seed, options.inputs, seconds):
            outcomes.append(outcome)
            figures = f"{1e3 * outcome.slowest:.0f} | {outcome.grown_mb:.0f}"
            counts = f"{outcome.tried:,} | {outcome.refused:,} | {len(outcome.crashes)}"
            print(f"| {outcome.target} | {counts} | {figures} |", flush=True)
    tried, crashes = sum(o.tried for o in outcomes), sum(len(o.crashes) for o in outcomes)
    print(f"| all | {tried:,} | {sum(o.refused for o in outcomes):,} | {crashes} | | |")
    for outcome in outcomes:
        for crash in outcome.crashes:
            print(f"\n{outcome.target}: {crash}")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
