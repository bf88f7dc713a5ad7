"""The batch scripts' own decisions, with stand-ins for Slurm and the commands; test_slurm has the real ones."""

import os
import signal
import subprocess
import time

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "slurm" / "extract_array.sbatch"

# Ends with $STATUS; where $WAITS is set, after so many SIGUSR1
COMMAND = """#!/usr/bin/env bash
echo "$@"
signals=0
trap 'signals=$((signals + 1)); echo "heard $signals" >&2' USR1
echo "RAY_TMPDIR=$RAY_TMPDIR RAY_ADDRESS=${RAY_ADDRESS:-none} OMP_NUM_THREADS=$OMP_NUM_THREADS" >&2
while [ "$signals" -lt "${WAITS:-0}" ]; do sleep 0.02; done
exit "${STATUS:-0}"
"""

# By an array's id, Slurm shows all of its tasks, and one of them has that id itself
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >&2
if [ "$1" != --oneliner ]; then exit; fi
if [ "$4" = 7 ]; then echo "JobId=9 ArrayJobId=7 JobName=x UserId=a(1) JobState=COMPLETED Reason=None"; fi
echo "JobId=8 ArrayJobId=7 JobName=x UserId=a(1) JobState=$STATE Reason=None"
"""


@pytest.fixture
def start(tmp_path):
    """Gives a function that starts the script as Slurm starts an array's task."""
    for name, text in {"extract-tracks": COMMAND, "scontrol": SCONTROL}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def start(*arguments, task=1, first=0, last=3, count=4, start_new_session=False, **environment):
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MOTION_TARGETS"))}
        variables = {
            **own,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "8",
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_MIN": str(first),
            "SLURM_ARRAY_TASK_MAX": str(last),
            "SLURM_ARRAY_TASK_COUNT": str(count),
            "MOTION_TARGETS_SCRATCH": str(tmp_path),
            "RAY_ADDRESS": "somebody:6379",
            "STATE": "RUNNING",
            **environment,
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=start_new_session,
        )  # fmt: skip

    return start


def ended(process):
    """Status, words of the command, and what was said."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out.split(), err


def signalled(process, number=signal.SIGUSR1, times=1):
    """The same, after so many signals while the command runs."""
    said = ""
    for heard in range(times):
        while (f"heard {heard}" if heard else "OMP_NUM_THREADS") not in said:
            said += process.stderr.readline()
        process.send_signal(number)
    status, words, err = ended(process)
    return status, words, said + err


def test_a_task_takes_its_part_and_the_cores_it_has(start, tmp_path):
    status, words, said = ended(start("--dataset", "k 400", SLURM_CPUS_PER_TASK="8"))
    assert status == 0
    assert words == ["--dataset", "k", "400", "--part", "1/4", "--workers", "8"]
    assert "RAY_ADDRESS=none OMP_NUM_THREADS=1" in said
    assert f"RAY_TMPDIR={tmp_path}/mt-" in said
    assert not list(tmp_path.glob("mt-*")), "the job's folder is removed"
    assert ended(start(task=7, first=5, last=8))[1][:2] == ["--part", "2/4"]


@pytest.mark.parametrize("own", [["--workers", "3"], ["--executor", "local"], ["--executor=local"]])
def test_the_user_s_own_workers_stay(start, own):
    assert ended(start(*own, SLURM_CPUS_PER_TASK="8"))[1] == [*own, "--part", "1/4"]


@pytest.mark.parametrize("parts", [["--parts", "512"], ["--parts=512"]])
def test_with_the_number_of_parts_some_may_be_left_out(start, parts):
    process = start(*parts, "--shards", "9", task=17, first=3, last=31, count=5)
    assert ended(process)[1] == ["--shards", "9", "--part", "17/512", "--workers", "1"]


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        ([], {"last": 4}, "an array with gaps would leave shards out"),
        (["--only-shards", "1"], {}, "leave --only-shards out"),
        (["--part=1/2"], {}, "leave --part out"),
    ],
)
def test_what_would_leave_shards_out_is_refused(start, arguments, environment, says):
    status, words, said = ended(start("--shards", "12", *arguments, **environment))
    assert (status, words) == (2, [])
    assert says in said


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_other_statuses_are_the_task_s_own_also_after_a_signal(start, status):
    assert ended(start(STATUS=str(status)))[0] == status
    ended_with, _, said = signalled(start(STATUS=str(status), WAITS="1"))
    assert ended_with == status
    assert "scontrol requeue" not in said


def test_an_interrupted_task_is_requeued_however_often_it_is_signalled(start):
    """A signal ends bash's `wait`, not the waiting."""
    status, _, said = signalled(start(STATUS="75", WAITS="4", SLURM_RESTART_COUNT="2"), times=4)
    assert status == 75
    assert said.count("SIGUSR1: no new work is begun") == 4
    assert "7_1 is requeued and goes on from here; requeue 3 of at most 100" in said
    assert said.count("scontrol requeue 7_1\n") == 1


def test_the_last_task_whose_id_is_the_array_s_is_requeued_too(start):
    status, _, said = signalled(start(STATUS="75", WAITS="1", SLURM_JOB_ID="7"))
    assert status == 75
    assert "scontrol requeue 7_1" in said


def test_sigterm_reaches_the_command_as_sigusr1(start):
    status, _, said = signalled(start(STATUS="75", WAITS="1"), signal.SIGTERM)
    assert status == 75
    assert "scontrol requeue 7_1" in said


def test_a_signal_to_every_process_is_seen_whichever_ends_first(start):
    """As from Slurm. The command may be gone, and waited for, before the shell has looked at its own signal."""
    for _ in range(15):
        process = start(WAITS="1", start_new_session=True)
        while "OMP_NUM_THREADS" not in process.stderr.readline():
            pass
        os.killpg(process.pid, signal.SIGTERM)
        status, _, said = ended(process)
        assert (status, said.count("scontrol requeue 7_1")) == (75, 1), said


def test_75_without_a_signal_is_not_requeued(start):
    """Shards that another run holds: requeueing would go on for as long as that runs."""
    status, _, said = ended(start(STATUS="75"))
    assert status == 75
    assert "Not requeued; submit the same line again later" in said
    assert "scontrol requeue" not in said


def test_requeues_are_bounded(start):
    status, _, said = signalled(start(STATUS="75", WAITS="1", SLURM_RESTART_COUNT="3", MOTION_TARGETS_MAX_REQUEUES="3"))
    assert status == 75
    assert "not finished after 3 requeues" in said
    assert "scontrol requeue" not in said


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_what_slurm_has_ended_is_not_requeued(start, state):
    """Slurm would take it: a job that its user has cancelled would run again."""
    status, _, said = signalled(start(STATUS="75", WAITS="1", STATE=state))
    assert status == 75
    assert "Slurm has ended this job itself" in said
    assert "scontrol requeue" not in said


@pytest.mark.parametrize(("silent", "says"), [(2, "scontrol requeue 7_1"), (3, "scontrol says nothing of this job")])
def test_a_controller_that_does_not_answer_is_asked_again(start, tmp_path, silent, says):
    process = start(STATUS="75", WAITS="1", COUNT=str(tmp_path / "asked"))
    (tmp_path / "bin" / "sleep").write_text('#!/bin/sh\ncase "$1" in 5 | 20) exit ;; esac\nexec /bin/sleep "$1"\n')
    (tmp_path / "bin" / "sleep").chmod(0o755)
    silence = f'if [ "$1" = --oneliner ] && echo >>"$COUNT" && [ "$(wc -l <"$COUNT")" -le {silent} ]; then exit 1; fi'
    (tmp_path / "bin" / "scontrol").write_text(f"{SCONTROL.splitlines()[0]}\n{silence}\n{SCONTROL}")
    status, _, said = signalled(process)
    assert status == 75
    assert says in said
    assert (tmp_path / "asked").read_text() == "\n" * 3


def test_the_scripts_find_their_folder_from_slurm_s_copy(tmp_path):
    """Slurm runs /var/spool/…/slurm_script; where it came from is in scontrol's Command, with its arguments."""
    copy = tmp_path / "spool" / "slurm_script"
    copy.parent.mkdir()
    (tmp_path / "bin").mkdir()
    copy.write_text(SCRIPT.read_text())
    said = []
    for name, command in {"by Command": f"{SCRIPT} --root /a/extract_array.sbatch", "lost": "/nowhere/x"}.items():
        (tmp_path / "bin" / "scontrol").touch(0o755)
        (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\necho '   Command={command}'\n")
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
        result = subprocess.run(["bash", str(copy)], env=environment, capture_output=True, text=True, check=False)
        said.append((name, result.stderr))
    assert "submit it as an array" in said[0][1]
    assert f"no job.sh in {tmp_path}/slurm: set MOTION_TARGETS_SLURM" in said[1][1]


@pytest.mark.parametrize(
    ("script", "given", "command"),
    [
        ("pretrain", [], "pretrain-motion"),
        ("finetune", [], "finetune-motion"),
        ("finetune", ["--probe"], "probe-motion"),
    ],
)
@pytest.mark.parametrize("status", ["0", "2", "75"])
def test_training_runs_on_all_gpus_and_resumes(tmp_path, script, given, command, status):
    """srun as its first node's task, torchrun as its first process; hostnames of a list of one node are that one."""
    node = "echo NodeAddr=127.0.0.1 Command=/none State=x"
    stand_ins = {
        "scontrol": f'case "$*" in *hostnames*) echo n1 ;; *node*) {node} ;; esac',
        "srun": 'while [ "$1" != bash ]; do echo "srun $1"; shift; done; SLURM_NODEID=0 exec "$@"',
        "torchrun": 'while [ "$1" != --no-python ]; do echo "torchrun $1"; shift; done; shift; RANK=0 exec "$@"',
        command: f'printf "<%s> " {command} "$@"; exit {status}',
    }
    (tmp_path / "bin").mkdir()
    for name, text in stand_ins.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MOTION_TARGETS"))}
    variables = {
        **own, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "8", "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "n1", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "6",
        "MOTION_TARGETS_SCRATCH": str(tmp_path),
    }  # fmt: skip
    result = subprocess.run(
        ["bash", str(REPOSITORY / "slurm" / f"{script}.sbatch"), *given, "--out", "a run"],
        env=variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == int(status), result.stderr
    assert f"<{command}> <--out> <a run> <--resume>" in result.stdout
    said = result.stdout.splitlines()
    for option in ("srun --nodes=1", "srun --cpus-per-task=6", "torchrun --nproc-per-node=4", "torchrun --nnodes=1"):
        assert option in said
    assert not list(tmp_path.glob("mt-*"))


@pytest.mark.parametrize("name", ["env.sh", "job.sh", "record.sh", "extract_array.sbatch", "extract_cluster.sbatch",
                                  "pretrain.sbatch", "finetune.sbatch"])  # fmt: skip
def test_every_script_is_sound_bash(name):
    subprocess.run(["bash", "-n", str(REPOSITORY / "slurm" / name)], check=True)


def test_record_notes_id_and_status_of_rank_0_alone(tmp_path):
    script = ["bash", str(REPOSITORY / "slurm" / "record.sh"), str(tmp_path / "r")]
    waiting = "trap 'exit 75' USR1; touch ready; while :; do sleep 0.02; done"
    process = subprocess.Popen([*script, "bash", "-c", waiting], cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not ((tmp_path / "r.pid").exists() and (tmp_path / "ready").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert int((tmp_path / "r.pid").read_text()) != process.pid
    os.kill(int((tmp_path / "r.pid").read_text()), signal.SIGUSR1)
    assert process.wait(timeout=30) == 0, "torchrun would take 75 for a failure"
    assert (tmp_path / "r.status").read_text() == "75\n"
    assert not (tmp_path / "r.pid").exists()
    (tmp_path / "r.status").unlink()
    (tmp_path / "ready").unlink()
    environment = {**os.environ, "RANK": "1"}
    assert subprocess.run([*script, "bash", "-c", "exit 75"], env=environment, check=False).returncode == 0
    assert subprocess.run([*script, "bash", "-c", "exit 3"], env=environment, check=False).returncode == 3
    assert list(tmp_path.iterdir()) == []
