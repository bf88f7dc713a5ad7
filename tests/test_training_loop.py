"""The loop: exact losses, resuming to the bit, signals, and batches that cannot be trained on.

The oracle is a plain loop over whole batches with PyTorch's own AdamW and boolean indexing.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY
from stand_in_training import (
    RECIPE,
    Clips,
    TinyModel,
    log_lines,
    numbers,
    stand_in_loader,
    stand_in_objective,
    train_stand_in,
)
from torch import nn

from training import checkpoint
from training.distributed import Group
from training.frames import normalise_frames
from training.optim import make_optimizer
from training.step import StepInput, StoppedError, optimise, share_running_statistics
from training.step_batches import StepBatches
from training.task import Task


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain_losses(steps, batch_size, rates, *, clip_grad=None, unread=()):
    """Losses and gradient norms of a plain loop over whole batches, at given learning rates."""
    torch.manual_seed(0)
    model = TinyModel(dropout=0.0)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.05}], betas=RECIPE.betas
    )
    found = []
    for step in range(steps):
        clips = Clips(0, batch_size, 0, 1, unread=unread).batch(range(step * batch_size, (step + 1) * batch_size))
        frames = (clips["frames"] / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        predictions = model(frames.movedim(-1, 1), clips["visible"], clips["predict"])
        errors = (torch.cat([predictions["pixels"], predictions["flow"]], dim=-1) - clips["values"]) ** 2
        pixels, flow = (errors[..., part][clips["valid"][..., part]].mean() for part in (slice(4), slice(4, 6)))
        loss = 1.0 * pixels + 0.25 * flow
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_grad or 1e9)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        found.append([loss.item(), pixels.item(), flow.item(), norm.item()])
    return found


def logged(run):
    return [[line[name] for name in ("loss", "pixels", "flow", "grad_norm")] for line in log_lines(run)]


@pytest.mark.parametrize(("accumulate", "clip_grad"), [(1, None), (2, 0.7), (6, None)])
def test_accumulation_is_one_large_batch(tmp_path, accumulate, clip_grad):
    outcome, _ = train_stand_in(
        tmp_path, steps=6, batch_size=6, accumulate=accumulate, dropout=0.0, clip_grad=clip_grad
    )
    assert outcome == "done"
    rates = [line["lr"] for line in log_lines(tmp_path)]
    # float32: sums in another order, seven digits, over six steps
    expected = plain_losses(6, 6, rates, clip_grad=clip_grad)
    torch.testing.assert_close(torch.tensor(logged(tmp_path)), torch.tensor(expected), rtol=2e-5, atol=1e-6)


def launch(run, **options):
    """The stand-in's training in a process of its own, and in a process group, as a Slurm step is."""
    script = [sys.executable, str(REPOSITORY / "tests" / "stand_in_training.py"), str(run), json.dumps(options)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return lambda **ranks: subprocess.Popen(
        script, env={**env, **ranks}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def launch_two(run, port, **options):
    """Two ranks, with the environment that torchrun gives them."""
    start = launch(run, **options)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start(RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in (0, 1)]


def wait_for_step(run, step, processes):
    deadline = time.monotonic() + 120
    while not (run / "log.jsonl").exists() or len(log_lines(run)) < step:
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def test_two_ranks_are_one_of_twice_the_batch_through_signals_and_bad_numbers(tmp_path):
    """Ranks and micro-batches have different counts of valid targets: clips of a third of the videos have none.

    In the first step rank 1 has no clip that can be read, in the second rank 0.
    """
    unread = [2, 3, 6, 7, 8, 9, 12, 13]
    options = {"steps": 30, "batch_size": 8, "accumulate": 2, "dropout": 0.0, "unread": unread}
    processes = launch_two(tmp_path, free_port(), **options, delay=0.1)
    wait_for_step(tmp_path, 2, processes)
    processes[1].send_signal(signal.SIGUSR1)  # one rank alone is told
    assert [process.wait(60) for process in processes] == [75, 75]
    saved = checkpoint.load(checkpoint.latest(tmp_path))
    assert saved["step"] == log_lines(tmp_path)[-1]["step"] < 30
    assert len(saved["random"]) == 2
    # clip 244 is of step 31, and of the other rank
    processes = launch_two(tmp_path, free_port(), **{**options, "steps": 40}, resume=True, save_every=10, bad=244)
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    for text in said:
        assert "step 31: stopped by numbers that are not finite" in text
        # each rank's two times two clips of the eleven videos
        assert "video-9, video-10, video-2, video-3, video-0, video-1, video-4, video-5" in text
    assert checkpoint.load(checkpoint.latest(tmp_path))["step"] == 30
    # one process goes on where two left off
    train_stand_in(tmp_path, **{**options, "steps": 31}, resume=True)
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 32))
    assert [line["clips"] for line in lines[:3]] == [4, 4, 8]
    expected = plain_losses(31, 8, [line["lr"] for line in lines], unread=unread)
    # float32, thirty steps, gradients that are summed in another order: 1e-4 of the loss
    torch.testing.assert_close(torch.tensor(logged(tmp_path)), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second"),
    [({}, {}), ({"accumulate": 2}, {"accumulate": 2}), ({"workers": 2}, {"workers": 1})],
    ids=["plain", "accumulated", "workers"],
)
def test_a_resumed_run_has_the_losses_of_an_undisturbed_one_to_the_bit(tmp_path, first, second):
    train_stand_in(tmp_path / "whole", steps=9, **first)
    train_stand_in(tmp_path / "parts", steps=4, schedule_steps=9, **first)
    torch.rand(5)  # somebody else draws in between
    _, model = train_stand_in(tmp_path / "parts", steps=9, resume=True, **second)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    whole = checkpoint.load(checkpoint.latest(tmp_path / "whole"))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, whole["model"][name], rtol=0, atol=0)


def test_dropout_is_random_from_step_to_step(tmp_path):
    """Without which the test above would not see the random states."""
    for name, dropout in (("a", 0.2), ("b", 0.0)):
        train_stand_in(tmp_path / name, steps=2, dropout=dropout)
    assert numbers(tmp_path / "a") != numbers(tmp_path / "b")


def test_a_run_that_fell_back_to_an_older_checkpoint_repeats_its_steps(tmp_path):
    train_stand_in(tmp_path / "whole", steps=7)
    train_stand_in(tmp_path / "parts", steps=6, schedule_steps=7, save_every=2)
    for step in (4, 6):
        checkpoint.checkpoint_path(tmp_path / "parts", step).unlink()
    train_stand_in(tmp_path / "parts", steps=7, resume=True)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_at_the_end_of_the_step_and_another_one_does_no_harm(tmp_path, monkeypatch, number):
    train_stand_in(tmp_path / "whole", steps=6)
    write = torch.save

    def disturbed(*arguments):
        os.kill(os.getpid(), number)
        write(*arguments)
        os.kill(os.getpid(), number)

    def draw(step, *_):
        if step == 3:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", disturbed)
        outcome, _ = train_stand_in(tmp_path / "parts", steps=6, draw=draw, figure_every=1)
    assert outcome == "interrupted"
    assert signal.getsignal(number) is handler
    # the picture is drawn after step 3, so step 4 is the one that it comes to
    assert checkpoint.load(checkpoint.latest(tmp_path / "parts"))["step"] == 4
    assert train_stand_in(tmp_path / "parts", steps=6, resume=True)[0] == "done"
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_a_signal_to_every_process_of_the_job_saves_and_exits(tmp_path):
    """As Slurm sends it: the loader's workers get it too, and must live until the step is done."""
    start = launch(tmp_path / "parts", steps=2000, batch_size=4, workers=2, delay=0.02, schedule_steps=2000)
    process = start()
    wait_for_step(tmp_path / "parts", 3, [process])
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 75, process.communicate()
    done = checkpoint.load(checkpoint.latest(tmp_path / "parts"))["step"]
    assert log_lines(tmp_path / "parts")[-1]["step"] == done < 2000
    train_stand_in(tmp_path / "whole", steps=done + 3, schedule_steps=2000)
    train_stand_in(tmp_path / "parts", steps=done + 3, schedule_steps=2000, resume=True)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_bad_numbers_stop_the_run_and_leave_the_good_checkpoints(tmp_path):
    with pytest.raises(StoppedError, match=r"step 3: .*loss nan.*videos: video-8, video-9, video-10, video-0$"):
        train_stand_in(tmp_path, steps=9, save_every=1, bad=9)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-00000001.pt", "step-00000002.pt"]
    assert [line["step"] for line in log_lines(tmp_path)] == [1, 2]


def test_a_head_without_a_valid_target_is_null_and_adds_nothing(tmp_path):
    _, model = train_stand_in(tmp_path, steps=3, without=("flow",), dropout=0.0)
    for line in log_lines(tmp_path):
        assert line["flow"] is None
        assert line["loss"] == line["pixels"] > 0
    torch.manual_seed(0)
    start = TinyModel().decoders["flow"].bias
    torch.testing.assert_close(model.decoders["flow"].bias, start, rtol=0, atol=0)  # no gradient, and no decay


def test_clips_that_cannot_be_read_are_left_out_and_written_down(tmp_path):
    train_stand_in(tmp_path, steps=2, batch_size=4, unread=[1, 5, 6])
    assert [(line["clips"], line["skipped"]) for line in log_lines(tmp_path)] == [(3, 1), (2, 2)]
    skipped = (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert skipped == [
        f'{{"step": {step}, "id": "video-{clip}", "reason": "decode: no frame"}}'
        for step, clip in ((1, 1), (2, 5), (2, 6))
    ]


def test_a_micro_batch_without_clips_is_passed_over_and_a_step_without_any_stops(tmp_path):
    drawn = []
    train_stand_in(
        tmp_path / "some", steps=2, batch_size=6, accumulate=3, unread=[6, 7], dropout=0.0, figure_every=2,
        draw=lambda step, batch, *_: drawn.extend(clip.id for clip in batch["clip"]),
    )  # fmt: skip
    assert drawn == ["video-8", "video-9"]
    # the same clips in one batch
    train_stand_in(tmp_path / "one", steps=2, batch_size=6, unread=[6, 7], dropout=0.0)
    torch.testing.assert_close(torch.tensor(logged(tmp_path / "some")), torch.tensor(logged(tmp_path / "one")))
    said = r"step 2: no clip .* video-4 \(decode: no frame\), .* video-7 \(dec.*\)\. Mend"
    with pytest.raises(StoppedError, match=said):
        train_stand_in(tmp_path / "none", steps=2, batch_size=4, accumulate=2, unread=[4, 5, 6, 7])


def test_the_log_says_how_long_a_step_waited(tmp_path):
    train_stand_in(tmp_path, steps=4, delay=0.05)
    for line in log_lines(tmp_path):
        assert line["wait_share"] * line["seconds"] >= 0.05
        assert line["clips_per_s"] == pytest.approx(4 / line["seconds"])
    assert [line["epoch"] for line in log_lines(tmp_path)] == pytest.approx(
        [4 / 11, 8 / 11, 12 / 11, 16 / 11], abs=1e-5
    )


def test_pictures_are_drawn_of_what_was_trained_on(tmp_path):
    drawn = {}

    def draw(step, batch, predictions, targets):
        drawn[step] = [clip.id for clip in batch["clip"]], predictions["flow"].shape, sorted(targets)

    train_stand_in(tmp_path, steps=7, batch_size=4, accumulate=2, draw=draw, figure_every=3)
    assert drawn == {
        3: (["video-8", "video-9"], (2, 5, 2), ["flow", "pixels"]),
        6: (["video-9", "video-10"], (2, 5, 2), ["flow", "pixels"]),
    }


def test_validation_leaves_the_training_as_it_was(tmp_path):
    seen = []

    def validate(model):
        seen.append(model.training)
        torch.rand(3)
        return {"top1": float(len(seen)), "left_out": []}

    train_stand_in(tmp_path / "plain", steps=7)
    train_stand_in(tmp_path / "validated", steps=5, schedule_steps=7, validate=validate, validate_every=2)
    assert seen == [False] * 2
    train_stand_in(tmp_path / "validated", steps=7, resume=True, validate=validate, validate_every=2)
    assert numbers(tmp_path / "validated") == numbers(tmp_path / "plain")
    lines = [json.loads(line) for line in (tmp_path / "validated" / "validation.jsonl").read_text().splitlines()]
    assert lines == [{"step": 2 * n, "top1": float(n), "left_out": []} for n in (1, 2, 3)]


def test_running_statistics_are_the_mean_of_the_ranks(monkeypatch):
    """The other rank's are twice this one's."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    mean, var = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.0, 2.0, 0.5])
    model[1].running_mean, model[1].running_var = mean.clone(), var.clone()
    share_running_statistics(model, Group(0, 1, torch.device("cpu")))
    torch.testing.assert_close(model[1].running_mean, mean)
    monkeypatch.setattr("training.step.sum_over_ranks", lambda own: 3 * own)
    share_running_statistics(model, Group(0, 2, torch.device("cpu")))
    torch.testing.assert_close(model[1].running_mean, 1.5 * mean)
    torch.testing.assert_close(model[1].running_var, 1.5 * var)


def test_there_is_nothing_to_do_once_it_is_done(tmp_path):
    train_stand_in(tmp_path, steps=2)
    with pytest.raises(ValueError, match="2 of 2 steps are done"):
        train_stand_in(tmp_path, steps=2, resume=True)


def test_loading_ahead_gives_the_same_batches_and_passes_errors_on():
    plain, ahead = (
        StepBatches(iter(stand_in_loader(0, batch_size=2)), 3, torch.device("cpu"), ahead=ahead)
        for ahead in (False, True)
    )
    for _ in range(4):
        (ours, _), (theirs, _) = plain.take(), ahead.take()
        assert [batch["clip"] for batch in ours] == [batch["clip"] for batch in theirs]
    ahead.close()
    assert not ahead._thread.is_alive()
    broken = StepBatches(iter([{}, None]), 1, torch.device("cpu"), ahead=True)
    broken.take()
    with pytest.raises(AttributeError):
        broken.take()


def test_frames_are_normalised_as_imagenet_s():
    frames = torch.zeros(2, 3, 4, 5, 3, dtype=torch.uint8)
    frames[1, 2, 3, 4] = torch.tensor([255, 51, 0], dtype=torch.uint8)
    found = normalise_frames(frames)
    assert found.shape == (2, 3, 3, 4, 5)
    assert found.dtype == torch.float32
    expected = torch.tensor([(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(found[1, :, 2, 3, 4], expected)
    torch.testing.assert_close(found[0, :, 0, 0, 0], torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))


def test_bf16_is_near_to_single_precision(tmp_path):
    for precision in ("fp32", "bf16"):
        train_stand_in(tmp_path / precision, steps=4, dropout=0.0, precision=precision)
    # bf16 has three digits, the loss averages over some hundred values
    single, half = (torch.tensor(logged(tmp_path / name)) for name in ("fp32", "bf16"))
    torch.testing.assert_close(half, single, rtol=2e-2, atol=1e-3)
    assert not torch.equal(half, single)


def test_fp16_resumes_with_its_scale(tmp_path):
    train_stand_in(tmp_path / "whole", steps=6, precision="fp16")
    train_stand_in(tmp_path / "parts", steps=4, precision="fp16", schedule_steps=6)
    train_stand_in(tmp_path / "parts", steps=6, precision="fp16", resume=True)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    parts, whole = (checkpoint.load(checkpoint.latest(tmp_path / name))["scaler"] for name in ("parts", "whole"))
    assert parts == whole
    assert parts["scale"] > 1


def test_another_precision_goes_on(tmp_path):
    for steps, precision in ((2, "fp32"), (3, "fp16"), (4, "bf16")):
        train_stand_in(tmp_path, steps=steps, precision=precision, resume=True)
    assert [line["step"] for line in log_lines(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("scale", [2.0**60, 0.75])
def test_fp16_skips_a_step_that_overflows_while_its_scale_can_go_down(scale):
    torch.manual_seed(0)
    model = TinyModel()
    clips = Clips(0, 4, 0, 1).batch(range(4))
    if scale < 1:
        model.decoders["flow"].weight.register_hook(lambda grad: grad * torch.inf)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    task = Task(
        model=model, objective=stand_in_objective({"flow": 1.0}), model_config={}, recipe={}, clip_grad=None,
        clips_per_epoch=4, data={}, loader=lambda position: [],
    )  # fmt: skip
    optimizer = make_optimizer(model, RECIPE, batch_size=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    given = StepInput(number=1, micro_batches=[clips], waited=0.0, signalled=lambda: False)
    group = Group(0, 1, torch.device("cpu"))
    if scale < 1:
        with pytest.raises(StoppedError, match=r"step 1: .*grad_norm (inf|nan).*video-0, video-1"):
            optimise(task, model, optimizer, scaler, given, group, "fp16")
        return
    result = optimise(task, model, optimizer, scaler, given, group, "fp16")
    assert not math.isfinite(result.grad_norm)
    assert scaler.get_scale() == scale / 2
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_cuda_losses_are_those_of_the_cpu(tmp_path, precision):
    for device in ("cpu", "cuda"):
        train_stand_in(
            tmp_path / device, steps=5, dropout=0.0, accumulate=2, workers=1, device=device,
            precision=precision if device == "cuda" else "fp32", clip_grad=1.0,
        )  # fmt: skip
    cpu, cuda = (torch.tensor(logged(tmp_path / device))[:, :3] for device in ("cpu", "cuda"))
    tolerance = 1e-4 if precision == "fp32" else 2e-2  # TF32 is off by default; bf16 has three digits
    torch.testing.assert_close(cuda, cpu, rtol=tolerance, atol=1e-3)
    saved = checkpoint.load(checkpoint.latest(tmp_path / "cuda"))
    assert {tensor.dtype for tensor in saved["model"].values()} == {torch.float32}
    outcome, _ = train_stand_in(tmp_path / "cuda", steps=6, device="cpu", resume=True, schedule_steps=5)
    assert outcome == "done"
