"""A run that is killed a hundred times, on disks that fill up and stores that are damaged: is anything lost?

    python benchmarks/chaos.py                           # copies of the demo's clips, about ten minutes on two cores
    python benchmarks/chaos.py --videos DIR --kills 100 --seed 3

Copies of the videos of a folder, some of them damaged, are extracted once undisturbed, in one process, and then on Ray
with two workers while faults happen at random moments (chaos_faults.py): the command is started again and again until
it ends by itself, with a store that is whole. Then `inspect-tracks --verify` must find no problem, and every file must
be that of the undisturbed store (of failures, all but the number of attempts). If fewer than `--kills` processes have
been killed by then, it begins again with a new store.

Exit status: 0 if nothing was lost and every driver ended in a way that what was done to it explains, else 1. As root
the store is on a small file system of its own, which becomes full and read-only; otherwise these faults are left out.
Linux only.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import chaos_faults
from chaos_disk import Disk, can_mount
from chaos_faults import Fault, Injection, Scene, noticed
from chaos_processes import Driver, become_subreaper, end_everything, reap

from data_specs.demo_clips import render_demo_clips

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "RAY_AUTH_MODE": "disabled"}
ENVIRONMENT.pop("RAY_ADDRESS", None)
MOST_SURPRISES = 20
HIT_AT_START = 0.15
SUFFIXES = {".avi", ".mkv", ".mov", ".mp4", ".webm"}


def copy_videos(source: Path, root: Path, count: int) -> Path:
    """Copies of a folder's videos under names of their own, every sixth of them damaged; returns their list."""
    originals = sorted(f for f in source.iterdir() if f.suffix in SUFFIXES)
    if not originals:
        raise SystemExit(f"{source}: has no videos ({', '.join(sorted(SUFFIXES))})")
    root.mkdir()
    names = []
    for number in range(count):
        original = originals[number % len(originals)]
        name, data = f"{number:02d} {original.name}", bytearray(original.read_bytes())
        if number % 6 == 5:
            kind = number // 6 % 3
            if kind == 0:  # as a broken download leaves it
                del data[len(data) // 2 :]
            elif kind == 1:
                data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
            else:
                data = bytearray(b"not a video\n")
        (root / name).write_bytes(data)
        names.append(name)
    listing = root.with_name("list.txt")
    listing.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return listing


def differences(store: Path, undisturbed: Path) -> list[str]:
    """Files that are not the same in both stores; of failures, the number of attempts may differ."""

    def contents(root: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        for file in sorted(f for f in root.rglob("*") if f.is_file()):
            name = str(file.relative_to(root))
            if name.startswith("failures/"):
                records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                found[name] = [{k: v for k, v in record.items() if k != "attempts"} for record in records]
            elif name != "locks":
                found[name] = file.read_bytes()
        return found

    ours, theirs = contents(store), contents(undisturbed)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


class Chaos:
    """Runs of the command on one store, with faults, until it is whole."""

    def __init__(self, options: argparse.Namespace, work: Path, listing: Path, status: int) -> None:
        self.options, self.work, self.listing, self.expected = options, work, listing, status
        self.random = random.Random(options.seed)
        self.injections: list[Injection] = []
        self.surprises: list[str] = []
        self.starts = 0
        self.scene: Scene

    @property
    def kills(self) -> int:
        """How often a process was killed so far."""
        return sum(injection.fault.kills for injection in self.injections)

    def start(self, *more: str) -> Driver:
        """Start the command."""
        self.starts += 1
        command = [*command_line(self.options, self.listing, self.scene.store), "--executor", "ray", "--workers", "2"]
        command += ["--max-tries", "1000", "--grace-seconds", "5"]
        if self.scene.look_closely:
            command.append("--verify")
        environment = {**ENVIRONMENT, "RAY_TMPDIR": str(self.work / "ray")}
        return Driver([*command, *more], self.work / f"{self.starts:04d}.log", environment)

    def run(self, store: Path, disk: Disk | None, deadline: float) -> None:
        """Until the store is whole, or TimeoutError."""
        self.scene = Scene(store, self.listing, self.random, disk, self.start)
        self.scene.drivers.append(self.start())
        while True:
            if time.monotonic() > deadline or len(self.surprises) > MOST_SURPRISES:
                raise TimeoutError(f"{store}: given up, it is not whole yet")
            living = [driver for driver in self.scene.drivers if driver.status is None]
            if living:
                living[0].wait(self.random.expovariate(1 / self.options.interval))
            whole = False
            for driver in [driver for driver in self.scene.drivers if driver.status is not None]:
                self.scene.drivers.remove(driver)
                whole |= self.account(driver)
            reap({driver.pid for driver in self.scene.drivers})
            living = [driver for driver in self.scene.drivers if driver.status is None]
            if whole and not living:
                return
            if not living:
                if self.random.random() < self.options.damage:
                    self.inject(chaos_faults.BETWEEN, None)
                self.scene.drivers.append(self.start())
            elif self.kills < self.options.kills:
                victim = self.random.choice(living)
                # most of a driver's life would be its start, were it as likely to be hit then
                if victim.descendants("worker") or self.random.random() < HIT_AT_START:
                    self.inject(chaos_faults.DURING, victim)

    def inject(self, faults: list[Fault], driver: Driver | None) -> None:
        """One of the faults, if there is anything to do it to."""
        (fault,) = self.random.choices(faults, [fault.weight for fault in faults])
        before = len(self.scene.drivers)
        words = fault.inject(self.scene, driver)
        if words is not None:
            # faults that run the command themselves are seen in that run's log
            run_by_it = self.scene.drivers[-1] if len(self.scene.drivers) > before else driver
            log = run_by_it.log_path if run_by_it else None
            self.injections.append(Injection(fault, log, words))
            say(f"{self.kills:4d} kills, run {self.starts}: {fault.name}")

    def account(self, driver: Driver) -> bool:
        """Look at a driver that has ended; returns whether it left a store that is whole."""
        status, its = driver.status, [i for i in self.injections if i.log == driver.log_path]
        complete = len(list(self.scene.store.glob("shards/*.zarr"))) == self.options.shards
        closely, whole = "--verify" in driver.process.args, complete and status == self.expected  # type: ignore[operator]
        for injection in [i for i in self.injections if i.noticed is None]:
            before = sum(
                i.fault is injection.fault and i.noticed == f"log {driver.log_path.name}" for i in self.injections
            )
            how = noticed(injection, driver, before)
            if how is not None:
                injection.noticed = f"log {driver.log_path.name}" if how == "log" else how
            elif injection in its and not (whole or injection.fault.nothing_to_see):
                injection.noticed = "gone on with"  # its driver was ended before it could say so
        if whole and closely:
            self.scene.look_closely = False
        explained: set[int | None] = {self.expected} if complete else set()
        if any(isinstance(i.fault, chaos_faults.SecondDriver) for i in self.injections):
            explained.add(chaos_faults.INTERRUPTED)  # it has left shards to the other
        unexplained = status not in explained and all(
            i.fault.ends is not None and status not in i.fault.ends for i in its
        )
        if unexplained:
            tail = "".join(driver.log.splitlines(keepends=True)[-12:])
            self.surprises.append(f"status {status} after {[i.fault.name for i in its]}:\n{tail}")
            say(f"unexplained: {self.surprises[-1]}")
        return whole and not self.scene.look_closely


def command_line(options: argparse.Namespace, listing: Path, store: Path) -> list[str]:
    """What is run again and again, as far as both executors have it in common."""
    return [
        str(BIN / "extract-tracks"), "--dataset", str(listing), "--root", str(listing.with_name("videos")),
        "--shards", str(options.shards), "--out", str(store), "--flow", "dis",
    ]  # fmt: skip


def table(injections: list[Injection], lost: int | None) -> str:
    """The faults by kind, as Markdown. lost: files that differ; None while that is not known."""
    lines = ["| fault | injected | noticed | how | lost |", "| --- | --- | --- | --- | --- |"]
    by_kind: dict[str, list[Injection]] = {}
    for injection in injections:
        by_kind.setdefault(injection.fault.name, []).append(injection)
    for name, of_kind in by_kind.items():
        how = Counter((i.noticed or "").split(" 0")[0] for i in of_kind if i.noticed)
        told = ", ".join(f"{what} {count}" for what, count in how.most_common())
        if of_kind[0].fault.nothing_to_see and not how:
            told = "nothing to notice"
        lines.append(f"| {name} | {len(of_kind)} | {sum(how.values())} | {told} | {'?' if lost is None else lost} |")
    return "\n".join(lines)


def say(text: str) -> None:
    """A line for whoever watches."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos to copy; default: the demo's clips")
    parser.add_argument("--count", type=int, default=30, help="how many copies")
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--interval", type=float, default=1.5, help="mean seconds from one fault to the next")
    parser.add_argument("--damage", type=float, default=0.6, help="how likely the store is damaged between two runs")
    parser.add_argument("--minutes", type=float, default=60, help="give up after so long")
    parser.add_argument("--keep", action="store_true", help="keep the stores and logs")
    options = parser.parse_args()
    become_subreaper()
    work = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # short: Ray's sockets lie below it
    begun = time.monotonic()
    try:
        return chaos(options, work, begun)
    finally:
        end_everything()
        if options.keep:
            say(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def chaos(options: argparse.Namespace, work: Path, begun: float) -> int:
    """The whole of it, in the folder `work`."""
    source = options.videos
    if source is None:
        source = work / "demo"
        render_demo_clips(source)
    listing = copy_videos(source, work / "videos", options.count)
    undisturbed = work / "undisturbed.tracks"
    command = [*command_line(options, listing, undisturbed), "--executor", "local"]
    status = subprocess.run(
        command, stderr=(work / "undisturbed.log").open("wb"), env=ENVIRONMENT, check=False
    ).returncode
    if status not in (0, 1):
        raise SystemExit((work / "undisturbed.log").read_text(encoding="utf-8"))
    calm = time.monotonic() - begun
    say(f"undisturbed: status {status}, {calm:.0f} s")
    num_bytes = sum(f.stat().st_size for f in undisturbed.rglob("*") if f.is_file())
    trial, lost, problems, rounds = Chaos(options, work, listing, status), [], 0, 0
    if not can_mount():
        say("not root: no disk will be full and no store read-only")
    try:
        while not rounds or trial.kills < options.kills:
            rounds += 1
            folder = work / f"round{rounds}"
            disk = Disk(folder, 4 * num_bytes + (64 << 20)) if can_mount() else None
            folder.mkdir(exist_ok=True)
            try:
                trial.run(folder / "s.tracks", disk, begun + 60 * options.minutes)
                end_everything()
                lost += differences(folder / "s.tracks", undisturbed)
                verified = subprocess.run(
                    [str(BIN / "inspect-tracks"), str(folder / "s.tracks"), "--verify"],
                    capture_output=True, text=True, env=ENVIRONMENT, check=False,
                )  # fmt: skip
                problems += verified.returncode != 0
                say(f"round {rounds}: {len(lost)} files differ; {verified.stdout.strip()}{verified.stderr.strip()}")
            finally:
                end_everything()
                if disk is not None and not options.keep:
                    disk.close()
    except TimeoutError as error:
        say(str(error))
        lost.append("everything that is not in the store after so long")
    print(table(trial.injections, len(lost)))
    print(
        f"\n{trial.kills} processes killed, {len(trial.injections)} faults in {trial.starts} runs of the command and "
        f"{rounds} store(s) of {options.count} videos in {options.shards} shards; seed {options.seed}; "
        f"{time.monotonic() - begun:.0f} s, of these {calm:.0f} s undisturbed; {len(lost)} files lost or different, "
        f"{problems} stores with problems, {len(trial.surprises)} drivers that ended unexplained"
    )
    for name in lost:
        print(f"differs: {name}")
    for surprise in trial.surprises:
        print(f"unexplained: {surprise}")
    return 1 if lost or problems or trial.surprises else 0


if __name__ == "__main__":
    sys.exit(main())
