"""--device: what is refused, what is recorded, and a whole run with the batched flow."""

import json
import re
import subprocess
import sys

import gpu_flow
import numpy as np
import pytest
import torch

from data_specs.track_store import TrackStore
from extraction import cli, inspect_cli, process_video
from extraction import extract as extraction_steps
from extraction.motion.gpu import device
from extraction.motion.tvl1 import FAST
from extraction.ray_runner import gpu_share

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def extract(clips, store, *arguments):
    common = ["--dataset", clips / "list.txt", "--root", clips, "--shards", 2, "--out", store]
    return cli.main([str(a) for a in (*common, "--executor", "local", *arguments)])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--device", "gpu"], "--device is gpu, must be cpu, cuda or cuda:N"),
        (["--device", "cuda"], "recipe mme-object: flow is tvl1, must be tvl1-pyramid; camera_features is [surf, "),
        (["--device", "cuda"], "Take --recipe mme-object-gpu"),
        (["--device", "cuda", "--recipe", "mme-object-gpu", "--flow", "dis"], "flow is dis, must be tvl1-pyramid"),
        (["--workers-per-gpu", "0"], "--workers-per-gpu is 0, must be 1 or more"),
    ],
)  # fmt: skip
def test_what_a_device_cannot_do_is_refused(clips, tmp_path, capsys, arguments, problem):
    assert extract(clips, tmp_path / "s", *arguments) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@without_cuda
def test_a_missing_device_is_said_before_anything_is_begun(clips, tmp_path, capsys):
    assert extract(clips, tmp_path / "s", "--device", "cuda", "--recipe", "mme-object-gpu") == 2
    assert "--device cuda: torch sees no CUDA device; torch" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_cluster_chooses_among_its_devices(clips, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "localhost:1")
    arguments = ["--executor", "ray", "--device", "cuda:1", "--recipe", "mme-object-gpu"]
    assert extract(clips, tmp_path / "s", *arguments) == 2
    assert "on a Ray cluster, Ray says which; take --device cuda" in capsys.readouterr().err


def test_a_dry_run_needs_no_device(clips, tmp_path, capsys):
    assert extract(clips, tmp_path / "s", "--device", "cuda", "--recipe", "mme-object-gpu", "--dry-run") == 0
    assert "recipe     mme-object-gpu, flow tvl1-pyramid" in capsys.readouterr().out


@pytest.mark.parametrize("workers", range(1, 30))
def test_as_many_workers_share_a_gpu_as_were_asked_for(workers):
    units = round(gpu_share(workers) * 10_000)  # what Ray counts in
    assert units * workers <= 10_000 < units * (workers + 1)


@pytest.mark.parametrize(
    ("name", "visible", "shown"), [("cuda", None, None), ("cuda:1", None, "1"), ("cuda:1", "4,6", "6")]
)
def test_one_of_several_devices_is_all_that_ray_sees(monkeypatch, name, visible, shown):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # also if it is to go: what is set here is undone later
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert extraction_steps._shared_by_ray(name) == ("cuda", 3 if name == "cuda" else 1)
    assert extraction_steps.os.environ.get("CUDA_VISIBLE_DEVICES") == shown


@pytest.fixture
def pretended(monkeypatch):
    """`cuda` is there, and is the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(cli, "why_missing", lambda _: None)
    monkeypatch.setattr(process_video, "open_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(
        "extraction.plan.device_versions", lambda name: {"device": "pretended"} if name != "cpu" else {}
    )
    monkeypatch.setattr(process_video, "BATCH", 5)
    yield
    torch.set_num_threads(threads)


def test_a_store_extracted_in_batches_is_the_cpu_s_within_bounds(clips, tmp_path, pretended, caplog):
    few = ["--recipe", "mme-object-gpu", "--limit", "2"]
    stores = {}
    for name in ("cpu", "cuda"):
        assert extract(clips, tmp_path / name, *few, "--device", name) == 0
        assert inspect_cli.main([str(tmp_path / name), "--verify"]) == 0
        stores[name] = TrackStore(tmp_path / name)
    cpu, cuda = stores["cpu"], stores["cuda"]
    assert (cpu.info.software.get("device"), cuda.info.software["device"]) == (None, "pretended")
    assert cpu.info.recipe == cuda.info.recipe
    differences, agreeing, moved = [], [], []
    for path in ["a.avi", "sub folder/b.avi"]:
        (shard, video), (other, other_video) = cpu.find(path), cuda.find(path)
        assert len(shard.rows(video)) == len(other.rows(other_video)) > 0
        for number, other_number in zip(shard.rows(video), other.rows(other_video), strict=True):
            row, found = shard.read_row(video, number), other.read_row(other_video, other_number)
            assert row.frame == found.frame
            valid = row.valid.all(axis=1) & found.valid.all(axis=1)
            agreeing.append((row.valid == found.valid).mean())
            differences.append(np.linalg.norm(row.positions - found.positions, axis=-1)[valid, -1].mean())
            moved.append(np.linalg.norm(row.positions[valid, -1] - row.positions[valid, 0], axis=-1).mean())
    assert np.mean(differences) < 0.1, "after six steps"
    assert np.mean(agreeing) > 0.99
    assert np.mean(moved) > 3
    assert extract(clips, tmp_path / "cpu", *few, "--device", "cuda") == 0
    assert "was begun without device, this is pretended" in caplog.text


def test_a_device_that_breaks_down_stops_the_run_and_blames_no_video(clips, tmp_path, pretended, capsys, monkeypatch):
    def broken(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")

    with monkeypatch.context() as patch:
        patch.setattr("extraction.motion.gpu.two_pass.TwoPass.measure", broken)
        arguments = ["--recipe", "mme-object-gpu", "--device", "cuda", "--limit", "1"]
        assert extract(clips, tmp_path / "s", *arguments) == 1
    error = capsys.readouterr().err
    assert re.search(r"out of memory over 5 pairs of 72x104; .*--workers-per-gpu.*: CUDA out of memory", error)
    assert "goes on from here once that is mended" in error
    assert not list((tmp_path / "s").rglob("*.failed"))
    assert extract(clips, tmp_path / "s", *arguments) == 0


@without_cuda
def test_a_worker_that_sees_no_device_stops_the_run(clips, tmp_path):
    """Ray shares out a GPU that it was told of and that is not there."""
    arguments = [
        "--dataset", str(clips / "list.txt"), "--root", str(clips), "--shards", "1", "--out", str(tmp_path / "s"),
        "--recipe", "mme-object-gpu", "--device", "cuda", "--executor", "ray", "--workers", "2",
        "--workers-per-gpu", "2",
    ]  # fmt: skip
    driver = f"""
import sys
from extraction import cli, extract
cli.why_missing = lambda _: None
extract.device_count = lambda _: 1
sys.exit(cli.main({arguments!r}))
"""
    result = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 1, result.stderr
    assert "--device cuda: torch sees no CUDA device" in result.stderr
    assert not list((tmp_path / "s").rglob("*.failed"))
    assert json.loads((tmp_path / "s/store.json").read_text())["software"]["device"] == "cuda"


def test_names_of_devices():
    assert [device.parse_device(name) for name in ("cpu", "cuda", "cuda:12")] == ["cpu", "cuda", "cuda:12"]
    for name in ("cuda:", "cuda:-1", "mps", "CUDA", ""):
        with pytest.raises(ValueError, match="must be cpu, cuda or cuda:N"):
            device.parse_device(name)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("cuda", RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), "cuDNN error"),
        ("cuda", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "CUBLAS"),
        ("cuda", torch.OutOfMemoryError("CUDA out of memory.\nMore"), "out of memory over 3 windows"),
        ("cpu", torch._dynamo.exc.BackendCompilerFailed(print, ValueError("no compiler"), None), "no compiler"),
    ],
)
def test_what_a_device_cannot_do_is_no_video_s_fault(name, error, said):
    with pytest.raises(device.DeviceError, match=said), device.device_errors(torch.device(name), "3 windows"):
        raise error


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_other_errors_are_left_as_they_are(name):
    with pytest.raises(RuntimeError, match="must match") as raised, device.device_errors(torch.device(name), ""):
        torch.zeros(2) + torch.zeros(3)
    assert type(raised.value) is RuntimeError


def test_the_benchmark_runs_and_counts_its_work(capsys):
    small = ["--height", "40", "--width", "56", "--batches", "1", "2", "--repeats", "1"]
    assert gpu_flow.main(["--device", "cpu", *small]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^\| [12] \| [\d.]+ \| \d+ \| ", printed, flags=re.M)) == 2
    # half size 20 x 28 (the next would have a side of 10), then 20 x 28 and 40 x 56, and 40 x 56 backward
    assert gpu_flow.pair_work((40, 56), 1).pixel_iterations == 20 * 28 * 150 + (20 * 28 + 40 * 56) * 60 + 40 * 56 * 10
    counted = gpu_flow.Work()
    counted.add(FAST, (40, 56), 5)
    assert counted.pixel_iterations == (20 * 28 + 40 * 56) * 60
    assert counted.bytes == (20 * 28 + 40 * 56) * 3 * (8 + 4 + 4 * 17) * 4


@without_cuda
def test_the_benchmark_says_what_is_missing(capsys):
    assert gpu_flow.main([]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_the_cpu_needs_no_torch():
    """It takes seconds to import and half a gigabyte in every worker."""
    program = "import sys, extraction.cli, extraction.jobs; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "False\n"
