"""A Slurm cluster of two nodes on this machine, for the tests: real daemons, in namespaces of their own.

Each node has its own network address, host name, scratch disk and view of the processes, so that it is to Slurm and Ray
what a machine is. All of it is in one process-id namespace, which ends as the pipe from this process does: nothing is
left behind, however the tests end.
"""

import functools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import REPOSITORY

NODES = ("n1", "n2")
CPUS = 8
"""Of each node, as Slurm sees it."""

_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "unshare", "nsenter", "ip")
_NAMESPACES = ["unshare", "--net", "--uts", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL"]

# cred_expire: a requeued job is held for so many seconds, at least 5, by default 120; config_overrides: more cores than
# there are
_CONFIGURATION = """\
ClusterName=tests
SlurmctldHost=ctl(10.77.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
MaxArraySize={max_array_size}
KillWait=10
MinJobAge=3600
ReturnToService=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

_CLUSTER = """\
set -eu
cd "$1"
mount --bind hosts /etc/hosts
hostname ctl
ip link set lo up
ip link add lan type bridge
ip address add 10.77.0.1/24 dev lan
ip link set lan up
munged --foreground --force --key-file=munge.key --socket="$1/munge.socket" --pid-file="$1/munged.pid" \\
    --log-file="$1/munged.log" --seed-file="$1/munge.seed" >munged.out 2>&1 &
until [ -S munge.socket ]; do sleep 0.05; done
slurmctld -D >slurmctld.out 2>&1 &
number=10
shift
for name in "$@"; do
    number=$((number + 1))
    {namespaces} bash node.sh "$name" "10.77.0.$number" >"$name.out" 2>&1 &
    until [ "$(readlink "/proc/$!/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
    ip link add "to-$name" type veth peer name eth0 netns "$!"
    ip link set "to-$name" master lan up
done
cat # until the tests end
"""

_NODE = """\
set -eu
hostname "$1"
until ip link show eth0 >/dev/null 2>&1; do sleep 0.01; done
ip link set lo up
ip address add "$2/24" dev eth0
ip link set eth0 up
mount -t tmpfs tmpfs scratch
slurmd -D -N "$1" &
wait
"""

_PROBE = """\
set -e
ip link add lan type bridge
unshare --net sleep 9 &
until [ "$(readlink "/proc/$!/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
ip link add to-n1 type veth peer name eth0 netns "$!"
hostname probe
mount -t tmpfs tmpfs /tmp
"""
"""What the two above need of the kernel and of the container, if this is one."""


@functools.cache
def why_not() -> str | None:
    """Why there can be no cluster here; None where there can."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian's slurm-wlm, munge and iproute2 have them)"
    if os.geteuid() != 0:
        return "Slurm's daemons and namespaces need root"
    try:
        tried = subprocess.run(
            [*_NAMESPACES, "bash", "-c", _PROBE], capture_output=True, text=True, timeout=30, check=False
        )
    except subprocess.TimeoutExpired:
        return "namespaces are not made here in 30 s"
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class SlurmCluster:
    """A running cluster. Commands run on its login node, so to speak; the project's are those of this repository."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "RAY_"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MOTION_TARGETS_SCRATCH": str(folder / "scratch"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }
        self._process = process

    def has_ended(self) -> bool:
        """Whether there is no cluster any more."""
        return self._process.poll() is not None

    def run(
        self, *command: str | Path, cwd: Path | None = None, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; raises RuntimeError with what it said where that fails."""
        (inside,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        # --mount would take the working folder away
        enter = ["nsenter", "--target", inside, "--net", "--uts"]
        result = subprocess.run(
            [*enter, *map(str, command)],
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {result.returncode}: {result.stderr}{result.stdout}")
        return result

    def sbatch(self, *arguments: str | Path, cwd: Path, **environment: str) -> str:
        """Submit; returns the job's id."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, **environment).stdout.strip()

    def jobs(self, job: str) -> list[dict[str, str]]:
        """What `scontrol show job` says of a job, or of each task of an array."""
        lines = self.run("scontrol", "show", "job", job, "--oneliner").stdout.splitlines()
        return [dict(word.partition("=")[::2] for word in line.split()) for line in lines if line.strip()]

    def wait_until(self, holds: Callable[[], bool], seconds: float = 120, what: str = "") -> None:
        """Wait for a condition; raises TimeoutError."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                queue = self.run("squeue", "--all", check=False)
                raise TimeoutError(f"{what or holds} did not come in {seconds} s\n{queue.stdout}{queue.stderr}")
            time.sleep(0.1)

    def wait(self, job: str, seconds: float = 120) -> list[dict[str, str]]:
        """Wait until a job, or each task of an array, has ended; returns what `jobs` says then."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY")
        self.wait_until(lambda: all(j["JobState"] in ended for j in self.jobs(job)), seconds, f"the end of job {job}")
        return self.jobs(job)


@contextmanager
def slurm_cluster(max_array_size: int = 1001) -> Iterator[SlurmCluster]:
    """Start a cluster; it is gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path may not be long, as pytest's are
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "scratch").mkdir()
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    addresses = {"ctl": "10.77.0.1", **{name: f"10.77.0.{11 + number}" for number, name in enumerate(NODES)}}
    (folder / "hosts").write_text(
        "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
    )
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(
            folder=folder,
            max_array_size=max_array_size,
            nodes="\n".join(
                f"NodeName={name} NodeAddr={addresses[name]} CPUs={CPUS} RealMemory=16000 State=UNKNOWN"
                for name in NODES
            ),
        )
    )
    (folder / "cluster.sh").write_text(_CLUSTER.replace("{namespaces}", " ".join(_NAMESPACES)))
    (folder / "node.sh").write_text(_NODE)
    process = subprocess.Popen(
        [*_NAMESPACES, "bash", str(folder / "cluster.sh"), str(folder), *NODES],
        env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
        stdin=subprocess.PIPE,
    )
    cluster = SlurmCluster(folder, process)
    try:
        cluster.wait_until(lambda: _idle(cluster), 120, "the nodes")
        yield cluster
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the first process of the namespace ends, and with it, by the kernel, all that is in it
        try:
            process.wait(60)
        finally:
            process.kill()
            shutil.rmtree(folder, ignore_errors=True)


def _idle(cluster: SlurmCluster) -> bool:
    if cluster.has_ended():
        raise RuntimeError("the cluster could not be started; what it said is above")
    if not (cluster.folder / "slurmctld.out").exists():
        return False
    said = cluster.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False)
    return said.returncode == 0 and sorted(said.stdout.split("\n")) == ["", *(f"{name} idle" for name in NODES)]
