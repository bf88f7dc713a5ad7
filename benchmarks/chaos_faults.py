"""The faults of a chaos run, one small class each: what it does, and how one sees afterwards that it was noticed.

A fault `during` a run is done to one of its processes at a random moment; one `between` runs is done to the store or to
what the command is given, while no driver is alive (workers of a killed one may be).
"""

import dataclasses
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil
from chaos_disk import Disk
from chaos_processes import Driver, alive


@dataclasses.dataclass
class Scene:
    """What faults are done to."""

    store: Path
    listing: Path
    random: random.Random
    disk: Disk | None
    start: Callable[..., Driver]
    """Starts the command, with more options if they are given."""
    drivers: list[Driver] = dataclasses.field(default_factory=list)
    """Those that were started and not yet accounted for."""
    look_closely: bool = False
    """Whether the next runs are given --verify, for there is damage that sizes do not show."""


@dataclasses.dataclass
class Injection:
    """A fault that was done: to the driver with which log, in what words it is noticed if they are its own, and what
    showed it (None: nothing yet).
    """

    fault: "Fault"
    log: Path | None
    words: str
    noticed: str | None = None


class Fault(Protocol):
    """`says`: what a driver writes that has noticed it. `ends`: with what status it may end a driver (None: any).

    `kills`: whether it counts as a kill. `nothing_to_see`: a run need not notice it.
    """

    name: str
    weight: float
    kills: bool
    says: str | None
    ends: frozenset[int] | None
    nothing_to_see: bool

    def inject(self, scene: Scene, driver: Driver | None) -> str | None:
        """Do it; the words by which it alone is noticed, "" where there are none. None if it could not be done now."""


def _signalled(processes: list[psutil.Process], number: signal.Signals, scene: Scene) -> psutil.Process | None:
    """Send one of them a signal."""
    if not processes:
        return None
    victim = scene.random.choice(processes)
    try:
        victim.send_signal(number)
    except psutil.Error:
        return None
    return victim


@dataclasses.dataclass
class KillBelow:
    """SIGKILL to a process that Ray runs for the driver."""

    kind: str
    weight: float
    says: str | None
    ends: frozenset[int] | None
    kills: bool = True
    nothing_to_see: bool = False

    @property
    def name(self) -> str:
        """In the table."""
        return f"SIGKILL of a {self.kind}"

    def inject(self, scene: Scene, driver: Driver | None) -> str | None:
        """See `Fault`."""
        assert driver is not None
        return None if _signalled(driver.descendants(self.kind), signal.SIGKILL, scene) is None else ""


@dataclasses.dataclass
class SignalDriver:
    """A signal to the driver that ends it."""

    number: signal.Signals
    weight: float
    ends: frozenset[int] | None
    nothing_to_see: bool = False

    @property
    def kills(self) -> bool:
        """Only where it has no choice."""
        return self.number == signal.SIGKILL

    @property
    def says(self) -> str | None:
        """Only where it has one."""
        return None if self.kills else f"{self.number.name}: no video is begun any more"

    @property
    def name(self) -> str:
        """In the table."""
        return f"{self.number.name} to the driver"

    def inject(self, scene: Scene, driver: Driver | None) -> str | None:
        """See `Fault`."""
        assert driver is not None
        if driver.status is not None:
            return None
        driver.send(self.number)
        return ""


@dataclasses.dataclass
class Suspend:
    """SIGSTOP, and some seconds later SIGCONT."""

    kind: str
    weight: float
    kills: bool = False
    says: str | None = None
    ends: frozenset[int] | None = frozenset()
    nothing_to_see: bool = True

    @property
    def name(self) -> str:
        """In the table."""
        return f"SIGSTOP, SIGCONT of a {self.kind}"

    def inject(self, scene: Scene, driver: Driver | None) -> str | None:
        """See `Fault`."""
        assert driver is not None
        if driver.status is not None:
            return None
        processes = [psutil.Process(driver.pid)] if self.kind == "driver" else driver.descendants(self.kind)
        victim = _signalled(processes, signal.SIGSTOP, scene)
        if victim is None:
            return None
        time.sleep(scene.random.uniform(0.5, 4))
        if alive(victim):
            victim.send_signal(signal.SIGCONT)
        return ""


@dataclasses.dataclass
class SecondDriver:
    """The same command once more while it runs."""

    name: str = "the same command twice"
    weight: float = 3
    kills: bool = False
    says: str | None = r"(?i)(held|another run)"
    ends: frozenset[int] | None = frozenset({75})
    nothing_to_see: bool = False

    def inject(self, scene: Scene, driver: Driver | None) -> str | None:
        """See `Fault`."""
        if sum(one.status is None for one in scene.drivers) > 1:
            return None
        scene.drivers.append(scene.start())
        return ""


@dataclasses.dataclass
class DiskFull:
    """No byte is free for some seconds, or until the driver has given up."""

    name: str = "disk full"
    weight: float = 4
    kills: bool = False
    says: str | None = "No space left on device"
    ends: frozenset[int] | None = frozenset({1})
    nothing_to_see: bool = False

    def inject(self, scene: Scene, driver: Driver | None) -> str | None:
        """See `Fault`."""
        assert driver is not None
        if scene.disk is None or not driver.descendants("worker"):
            return None
        scene.disk.fill(leave=scene.random.choice([0, 1 << 16, 1 << 20]))
        driver.wait(scene.random.uniform(2, 12))
        scene.disk.free()
        return ""


@dataclasses.dataclass
class ReadOnlyStore:
    """The store cannot be written for the time of one run."""

    name: str = "store read-only"
    weight: float = 2
    kills: bool = False
    says: str | None = "Read-only file system"
    ends: frozenset[int] | None = frozenset({1, 2})
    nothing_to_see: bool = False

    def inject(self, scene: Scene, driver: Driver | None) -> str | None:
        """See `Fault`."""
        if scene.disk is None or not (scene.store / "store.json").exists() or not scene.disk.set_read_only():
            return None
        try:
            scene.drivers.append(scene.start())
            scene.drivers[-1].wait(60)
        finally:
            scene.disk.set_writable()
        return ""


@dataclasses.dataclass
class OtherList:
    """The list has lost a line when the command is run again; then it is put back."""

    name: str = "another list"
    weight: float = 2
    kills: bool = False
    says: str | None = "was begun with other settings"
    ends: frozenset[int] | None = frozenset({2})
    nothing_to_see: bool = False

    def inject(self, scene: Scene, driver: Driver | None) -> str | None:
        """See `Fault`."""
        if not (scene.store / "store.json").exists():
            return None
        whole = scene.listing.read_text(encoding="utf-8")
        lines = whole.splitlines(keepends=True)
        lines.pop(scene.random.randrange(len(lines)))
        scene.listing.write_text("".join(lines), encoding="utf-8")
        try:
            scene.drivers.append(scene.start())
            scene.drivers[-1].wait(60)
        finally:
            scene.listing.write_text(whole, encoding="utf-8")
        return ""


@dataclasses.dataclass
class DamageFile:
    """A file of the store is removed, cut off, or one of its bits is turned over."""

    what: str
    pattern: str
    how: str
    weight: float
    nothing_to_see: bool = False
    kills: bool = False
    says: str | None = None
    ends: frozenset[int] | None = frozenset()

    @property
    def name(self) -> str:
        """In the table."""
        return f"{self.what} {self.how}"

    def inject(self, scene: Scene, driver: Driver | None) -> str | None:
        """See `Fault`."""
        files = sorted(f for f in scene.store.glob(self.pattern) if f.is_file() and f.stat().st_size > 0)
        if not files:
            return None
        file = scene.random.choice(files)
        shard = re.search(r"shards/(\d+)\.zarr", str(file))
        words = rf"shard {int(shard[1])} is mended" if shard else re.escape(file.name) + ": is damaged"
        if self.how == "removed":
            file.unlink()
            return words if shard else ""
        data = bytearray(file.read_bytes())
        if self.how == "truncated":
            data = data[: scene.random.randrange(len(data))]
        else:
            data[scene.random.randrange(len(data))] ^= 1 << scene.random.randrange(8)
            scene.look_closely = True
        file.write_bytes(data)
        return words


@dataclasses.dataclass
class ShardLost:
    """A complete shard is gone, as by an rm in the wrong folder."""

    name: str = "complete shard removed"
    weight: float = 1
    kills: bool = False
    says: str | None = None
    ends: frozenset[int] | None = frozenset()
    nothing_to_see: bool = True
    """It is done again as one that was never begun."""

    def inject(self, scene: Scene, driver: Driver | None) -> str | None:
        """See `Fault`."""
        shards = sorted(scene.store.glob("shards/*.zarr"))
        if not shards:
            return None
        shutil.rmtree(scene.random.choice(shards))
        return ""


INTERRUPTED = 75
DURING: list[Fault] = [
    # several in turn that die as they start end the run, with status 1
    KillBelow("worker", 60, says=r"worker lost|a worker died as it started", ends=frozenset({1})),
    KillBelow("raylet", 2, says=None, ends=None),
    KillBelow("gcs_server", 2, says=None, ends=None),
    SignalDriver(signal.SIGKILL, 12, ends=frozenset({-signal.SIGKILL})),
    # while Python and Ray start, other handlers than ours
    SignalDriver(signal.SIGTERM, 3, ends=frozenset({INTERRUPTED, -signal.SIGTERM, 1, 15})),
    SignalDriver(signal.SIGUSR1, 3, ends=frozenset({INTERRUPTED, -signal.SIGUSR1})),
    Suspend("worker", 6),
    Suspend("driver", 3),
    SecondDriver(),
    DiskFull(),
]
BETWEEN: list[Fault] = [
    ReadOnlyStore(),
    OtherList(),
    DamageFile("partial file", "partial/*/[0-9]*.tracks", "truncated", 3),
    DamageFile("partial file", "partial/*/[0-9]*.tracks", "flipped", 3),
    DamageFile("partial file", "partial/*/[0-9]*.tracks", "removed", 1, nothing_to_see=True),
    DamageFile("file of a shard", "shards/*.zarr/**/*", "truncated", 3),
    DamageFile("file of a shard", "shards/*.zarr/**/*", "flipped", 3),
    DamageFile("file of a shard", "shards/*.zarr/**/*", "removed", 3),
    ShardLost(),
]


def noticed(injection: Injection, driver: Driver, seen_before: int) -> str | None:
    """What shows, now that the driver has ended, that it noticed the fault; None where nothing does.

    seen_before: how many earlier faults of the kind took a line of this driver's log for themselves.
    """
    fault, ended = injection.fault, driver.status
    if injection.words and re.search(injection.words, driver.log):
        return "log"
    if injection.log != driver.log_path:
        return None
    if fault.says is not None and len(re.findall(fault.says, driver.log)) > seen_before:
        return "log"
    if fault.ends is None and ended not in (0, None):
        return f"status {ended}"
    ends_it = isinstance(fault, SignalDriver) and fault.ends is not None and ended in fault.ends
    return f"status {ended}" if ends_it else None
