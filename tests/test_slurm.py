"""The batch scripts on a real Slurm cluster of two nodes: signals, requeues, and the same bytes at the end."""

import json
import re

import pytest
from conftest import REPOSITORY, store_bytes
from slurm_cluster import slurm_cluster, why_not

from data_specs.demo_clips import write_clip
from data_specs.scene import random_scene
from extraction import cli, inspect_cli

SHARDS = 6
VIDEOS = 14
MAX_ARRAY_SIZE = 5  # fewer than there are shards

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no Slurm cluster: {why_not()}")


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster(MAX_ARRAY_SIZE) as running:
        yield running


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Clips of several sizes in a folder with a space in its name; `list.txt` names them."""
    root = tmp_path_factory.mktemp("some clips")
    for number in range(VIDEOS):
        write_clip(root / f"{number}.avi", random_scene(number, 1.5, (72 - number, 104 + number)), 22 + number)
    (root / "list.txt").write_text("".join(f"{number}.avi\n" for number in range(VIDEOS)))
    return root


def run_options(videos, store):
    return ["--dataset", str(videos / "list.txt"), "--root", str(videos), "--shards", str(SHARDS), "--out", str(store),
            "--flow", "dis"]  # fmt: skip


@pytest.fixture(scope="module")
def local_store(videos, tmp_path_factory):
    """The store of a run in one process that nothing disturbs."""
    store = tmp_path_factory.mktemp("local") / "s"
    assert cli.main([*run_options(videos, store), "--executor", "local"]) == 0
    return store


@pytest.fixture
def stand_in(tmp_path):
    """A folder with an extract-tracks that waits for SIGUSR1 and ends with 75; started again, it is done at once."""
    command = tmp_path / "bin" / "extract-tracks"
    command.parent.mkdir()
    command.write_text(
        '#!/bin/bash\n[ -z "${SLURM_RESTART_COUNT:-}" ] || { echo all done; exit; }\n'
        "trap 'exit 75' USR1\nwhile :; do sleep 0.1; done\n"
    )
    command.chmod(0o755)
    return str(command.parent)


def script(name):
    return REPOSITORY / "slurm" / f"{name}.sbatch"


def log(folder, job):
    (file,) = folder.glob(f"*-{job}.log")
    return file.read_text()


def test_a_signalled_task_and_a_requeued_one_go_on_to_the_same_bytes(cluster, videos, local_store, tmp_path):
    """Four tasks over six shards, in-process Ray each. One gets the signal that Slurm sends before a time limit, and
    requeues itself; one is requeued from outside, by which every process of it gets SIGTERM.
    """
    store = tmp_path / "s"
    array = cluster.sbatch(
        "--array=1-4", "--cpus-per-task=1", script("extract_array"), *run_options(videos, store), cwd=tmp_path
    )

    def has_begun(shard):
        """Whether a first video of a shard is done, but not its last; 0 and 1 are those of the first two tasks."""
        return any(store.glob(f"partial/{shard:05d}/*.tracks"))

    cluster.wait_until(lambda: has_begun(0), what="a first video of task 1")
    cluster.run("scancel", "--signal=USR1", "--batch", f"{array}_1")
    cluster.wait_until(lambda: has_begun(1), what="a first video of task 2")
    cluster.run("scontrol", "requeue", f"{array}_2")

    tasks = {found["ArrayTaskId"]: found for found in cluster.wait(array, 240)}
    logs = {number: log(tmp_path, f"{array}_{number}") for number in tasks}
    said = "\n".join(logs.values())
    assert {number: found["Restarts"] for number, found in tasks.items()} == {"1": "1", "2": "1", "3": "0", "4": "0"}
    assert {(found["JobState"], found["ExitCode"]) for found in tasks.values()} == {("COMPLETED", "0:0")}, said
    assert f"{array}_1 is requeued and goes on from here; requeue 1 of at most 100" in logs["1"]
    assert "SIGTERM: no new work is begun" in logs["2"]
    assert "part 0 of 4 on" in logs["1"]
    done = [int(count) for count in re.findall(r"(\d+) videos done, 0 failed", logs["1"])]
    assert sum(done) == 5, "none of shards 0 and 4 is done twice, none is missing"
    assert done[0] in range(1, 5), "it was in the middle"
    assert inspect_cli.main([str(store), "--verify"]) == 0
    assert store_bytes(store) == store_bytes(local_store)


def test_what_plan_prints_does_what_is_left(cluster, videos, local_store, tmp_path):
    """Six shards in arrays of at most five tasks: two for each of three tasks, of which one is done."""
    store = tmp_path / "the store"
    options = [*run_options(videos, store), "--executor", "local"]
    assert cli.main([*options, "--only-shards", "1,2,4"]) == 0
    planned = cluster.run("extract-tracks", "plan", *options, "--throttle", "1", cwd=REPOSITORY)
    assert planned.stdout.startswith("sbatch --array=0,2%1 slurm/extract_array.sbatch --parts 3 --dataset ")
    said = cluster.run(
        "bash", "-c", planned.stdout.replace("sbatch ", f"sbatch --chdir='{tmp_path}' ", 1), cwd=REPOSITORY
    )
    array = said.stdout.split()[-1]
    assert {found["JobState"] for found in cluster.wait(array)} == {"COMPLETED"}
    assert len(list(tmp_path.glob("*.log"))) == 2
    assert store_bytes(store) == store_bytes(local_store)
    again = cluster.run("extract-tracks", "plan", *options)
    assert again.stdout == ""
    assert "nothing is left: 6 of 6 shards are complete" in again.stderr


def test_the_time_limit_requeues_by_the_script_s_own_options(cluster, stand_in, tmp_path):
    """Two minutes before the end of two minutes is as soon as Slurm looks, which it does every half minute.

    Of two tasks, the last has the array's own id.
    """
    job = cluster.sbatch("--array=0-1", "--time=2", script("extract_array"), cwd=tmp_path, MOTION_TARGETS_BIN=stand_in)
    assert [(ended["JobState"], ended["Restarts"]) for ended in cluster.wait(job)] == [("COMPLETED", "1")] * 2
    for task in (f"{job}_0", f"{job}_1"):
        assert "SIGUSR1: no new work is begun" in log(tmp_path, task)
        assert log(tmp_path, task).endswith("all done\n")


def test_a_cancelled_task_stays_cancelled(cluster, stand_in, tmp_path):
    job = cluster.sbatch("--array=0", script("extract_array"), cwd=tmp_path, MOTION_TARGETS_BIN=stand_in)
    cluster.wait_until(
        lambda: "part 0 of 1" in "".join(f.read_text() for f in tmp_path.glob("*.log")), what="its start"
    )
    cluster.run("scancel", job)
    (ended,) = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    cluster.wait_until(lambda: "Slurm has ended this job itself" in log(tmp_path, f"{job}_0"), what="its last line")


def test_one_ray_cluster_over_two_nodes(cluster, videos, local_store, tmp_path):
    """Signalled in the middle, requeued, finished."""
    store = tmp_path / "s"
    options = [*run_options(videos, store), "--workers", "2"]
    job = cluster.sbatch("--nodes=2", script("extract_cluster"), *options, cwd=tmp_path)
    cluster.wait_until(lambda: any(store.glob("partial/*/*.tracks")), what="a first video")
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    (ended,) = cluster.wait(job, 240)
    said = log(tmp_path, job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), said
    assert said.count("Running command on head node") == 2
    assert f"{job} is requeued and goes on from here" in said
    assert store_bytes(store) == store_bytes(local_store)


def test_pretraining_on_two_nodes_is_requeued_and_resumed(cluster, videos, local_store, tmp_path):
    run = tmp_path / "run"
    options = ["--store", local_store, "--root", videos, "--recipe", "demo", "--model", "vit_tiny", "--device", "cpu",
               "--batch-size", "2", "--steps", "5", "--workers", "0", "--figure-every", "0", "--out", run]  # fmt: skip
    job = cluster.sbatch("--nodes=2", "--cpus-per-task=2", script("pretrain"), *options, cwd=tmp_path)
    cluster.wait_until(lambda: (run / "log.jsonl").exists() and (run / "log.jsonl").read_text(), what="a first step")
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    (ended,) = cluster.wait(job, 240)
    said = log(tmp_path, job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), said
    assert "interrupted and saved" in said
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert json.loads((run / "run.json").read_text())["from_step"] in range(1, 5)
    assert said.count("torchrun on 2 nodes") == 2


def test_fine_tuning_is_requeued_resumed_and_tested(cluster, videos, tmp_path):
    run, listed = tmp_path / "run", tmp_path / "labelled.txt"
    listed.write_text("".join(f"{number}.avi {number % 2}\n" for number in range(4)))
    options = ["--dataset", listed, "--root", videos, "--test-list", listed, "--recipe", "small", "--test-clips", "1",
               "--test-crops", "1", "--model", "vit_micro", "--device", "cpu", "--batch-size", "4", "--steps", "200",
               "--workers", "0", "--out", run]  # fmt: skip
    job = cluster.sbatch("--nodes=2", "--cpus-per-task=2", script("finetune"), *options, cwd=tmp_path)
    cluster.wait_until(lambda: (run / "log.jsonl").exists() and (run / "log.jsonl").read_text(), what="a first step")
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    (ended,) = cluster.wait(job, 240)
    said = log(tmp_path, job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), said
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == list(range(1, 201))
    tested = json.loads((run / "test.json").read_text())
    assert (tested["command"], tested["step"], tested["videos"]) == ("finetune-motion", 200, 4)
