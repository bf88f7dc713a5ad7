"""finetune-motion and probe-motion on small videos: training, resuming, the test, refusals, and two processes."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from small_vit import SMALL
from test_training_loop import free_port

from data_specs.dataset import VideoEntry, VideoList
from data_specs.labels import LabelledVideos
from training import checkpoint
from training.finetuning import finetune, probe
from training.finetuning.assembly import Videos, held_out
from training.interchange import export_huggingface
from training.model import MaskedVideoModel, ModelConfig
from training.run_log import RunLog

RECIPE = """
name: tiny
frames: 4
clip_stride: 1
input_size: 32
crop_area: [0.5, 1.0]
base_lr: 0.05
batch_size: 4
epochs: 2
warmup_epochs: 0
test_clips: 2
test_crops: 3
"""
RANDOM = """rand_augment: rand-m9-mstd0.5-inc1
random_erase: 0.5
mixup: 0.8
cutmix: 1.0
label_smoothing: 0.1
drop_path: 0.2
layer_decay: 0.75
clips_per_video: 2
"""
PROBE = "freeze_encoder: true\noptimizer: sgd\nhead_norm: batch\n"
ENCODER = ModelConfig(size=SMALL, heads={"flow": 8}, frames=4, input_size=(32, 32))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory, clips):
    """Lists, recipes, and a pretraining run's folder."""
    folder = tmp_path_factory.mktemp("files")
    names = [line for line in (clips / "list.txt").read_text().splitlines()]
    labelled = [f"{name} {label}" for name, label in zip(names, ("10", "2", "10", "7", "2"), strict=True)]
    (folder / "train.csv").write_text("\n".join(labelled))
    (folder / "test.csv").write_text("\n".join([*labelled[:3], "missing.avi 7"]))
    (folder / "other.csv").write_text(f"{names[0]} 10\n{names[1]} 5\n")
    for name, text in {"tiny": RECIPE, "random": RECIPE + RANDOM, "probe": RECIPE + PROBE}.items():
        (folder / f"{name}.yaml").write_text(text)
    torch.manual_seed(0)
    model = MaskedVideoModel(ENCODER)
    (folder / "pretrained" / "checkpoints").mkdir(parents=True)
    content = {
        "format": "motion-targets/checkpoint", "version": 1, "step": 3, "recipe": {"name": "mme"},
        "model": model.state_dict(), "model_config": ENCODER.to_json(),
        **{name: {} for name in ("optimizer", "scaler", "schedule", "random", "data")},
    }  # fmt: skip
    torch.save(content, checkpoint.checkpoint_path(folder / "pretrained", 3))
    return folder


@pytest.fixture
def run(files, clips, tmp_path):
    """Runs a command on the small videos, into tmp_path / the first argument."""

    def run(out, *more, main=finetune.main, recipe="tiny", test="test.csv", init=True):
        given = [
            "--dataset", files / "train.csv", "--root", clips, "--workers", "0", "--device", "cpu",
            "--out", tmp_path / out, *(["--recipe", files / f"{recipe}.yaml"] if recipe else []),
            *(["--test-list", files / test] if test else []),
            *(["--init", files / "pretrained"] if init else []), *more,
        ]  # fmt: skip
        return main([str(word) for word in given])

    return run


def lines(run, name="log.jsonl"):
    return [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]


def numbers(run):
    names = ("step", "epoch", "loss", "cross_entropy", "cross_entropy_trivial", "lr", "grad_norm", "clips", "skipped")
    return [tuple(line[name] for name in names) for line in lines(run)]


def test_a_run_trains_tests_and_says_all_that_its_figures_follow_from(run, tmp_path, files, caplog):
    caplog.set_level("INFO")
    assert run("a", "--steps", "3", "--validate-every", "2") == 0
    said = json.loads((tmp_path / "a" / "test.json").read_text())
    assert (said["videos"], said["views"], said["clips"], said["crops"], said["classes"]) == (3, 6, 2, 3, 3)
    assert [left_out["id"] for left_out in said["skipped"]] == ["missing.avi"]
    assert (said["command"], said["step"], said["recipe"]["name"]) == ("finetune-motion", 3, "tiny")
    assert said["checkpoint"] == str(checkpoint.latest(tmp_path / "a"))
    assert said["origin"]["init"] == str(files / "pretrained" / "checkpoints" / "step-00000003.pt")
    assert (said["origin"]["recipe"], said["origin"]["kind"]) == ("mme", "pretraining")
    assert (said["test_videos"]["listed"], said["test_videos"]["list"]) == (4, str(files / "test.csv"))
    assert said["model"]["encoder"]["size"] == SMALL  # the pretraining's, for none is asked for
    rows = list(csv.DictReader((tmp_path / "a" / "predictions.csv").open()))
    assert [row["true"] for row in rows] == ["10", "2", "10"]
    assert said["top1"] == pytest.approx(sum(row["true"] == row["predicted"] for row in rows) / 3)
    assert (tmp_path / "a" / "confusion.png").stat().st_size > 1000
    (validated,) = lines(tmp_path / "a", "validation.jsonl")
    assert (validated["step"], validated["videos"], validated["skipped"], validated["views"]) == (2, 3, 1, 1)
    assert lines(tmp_path / "a")[0]["cross_entropy"] == pytest.approx(np.log(3), rel=1e-3)  # the head begins near 0
    described = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (described["kind"], described["settings"]["validate_every"]) == ("fine-tuning", 2)
    assert described["origin"] == said["origin"]
    assert "top-1" in caplog.text and "1 could not be read" in caplog.text


def test_the_learning_rate_is_scaled_by_videos_however_many_clips_each_gives(run, files, tmp_path):
    """As VideoMAE's code does: args.lr * total_batch_size / 256, where --num_sample has no part in the batch size."""
    (files / "constant.yaml").write_text((files / "random.yaml").read_text() + "min_lr: 0.05\n")
    for name, batch in (("a", "4"), ("b", "8")):
        assert run(name, "--steps", "2", "--batch-size", batch, recipe="constant", test=None) == 0
        assert [line["lr"] for line in lines(tmp_path / name)] == pytest.approx([0.05 * int(batch) / 2 / 256] * 2)
        assert [line["clips"] for line in lines(tmp_path / name)] == [int(batch)] * 2


@pytest.mark.parametrize("kind", ["random", "probe"])
def test_an_interrupted_run_resumes_to_the_bit_and_is_tested_once(run, tmp_path, monkeypatch, kind):
    """With mixing, drop path, repeated sampling and layer decay, or with a batch norm's running statistics."""
    main = probe.main if kind == "probe" else finetune.main
    assert run("whole", "--steps", "4", main=main, recipe=kind) == 0
    write = RunLog.write

    def signalling(log, line):
        write(log, line)
        if line["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", signalling)
        assert run("parts", "--steps", "4", main=main, recipe=kind) == 75
    assert not (tmp_path / "parts" / "test.json").exists()
    assert checkpoint.load(checkpoint.latest(tmp_path / "parts"))["step"] == 2
    assert run("parts", "--steps", "4", "--resume", main=main, recipe=kind, init=False) == 0
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    kept, whole = (checkpoint.load(checkpoint.latest(tmp_path / name)) for name in ("parts", "whole"))
    assert all(torch.equal(kept["model"][name], value) for name, value in whole["model"].items())
    probabilities = [np.load(tmp_path / name / "probabilities.npy") for name in ("parts", "whole")]
    np.testing.assert_array_equal(*probabilities)
    origins = [json.loads((tmp_path / name / "test.json").read_text())["origin"] for name in ("parts", "whole")]
    assert origins[0] == origins[1] != {}


def test_a_run_that_is_done_is_only_tested_and_only_once(run, tmp_path, caplog):
    caplog.set_level("INFO")
    assert run("a", "--steps", "2") == 0
    test, log = tmp_path / "a" / "test.json", (tmp_path / "a" / "log.jsonl").read_bytes()
    before = json.loads(test.read_text())
    test.unlink()
    assert run("a", "--steps", "2", "--resume") == 0
    assert json.loads(test.read_text()) == before
    stamp = test.stat().st_mtime_ns
    assert run("a", "--steps", "2", "--resume") == 0
    assert f"{tmp_path / 'a'} is done: 2 steps" in caplog.text
    assert test.stat().st_mtime_ns == stamp
    assert (tmp_path / "a" / "log.jsonl").read_bytes() == log
    # more views, by the run's own recipe and classes
    assert run("a", "--test-only", "--test-clips", "1", "--test-crops", "1", init=False) == 0
    again = json.loads(test.read_text())
    assert (again["views"], again["step"], again["origin"]) == (1, 2, before["origin"])
    # and more steps are tested again
    assert run("a", "--steps", "3", "--resume", "--test-clips", "1") == 0
    assert json.loads(test.read_text())["step"] == 3


def test_fresh_weights_are_drawn_from_the_seed(run, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(name, "--steps", "1", "--seed", seed, "--model", SMALL, init=False, test=None) == 0
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b") != numbers(tmp_path / "c")


def test_a_probe_leaves_the_encoder_alone(run, tmp_path, files):
    assert run("a", "--steps", "3", main=probe.main, recipe="probe") == 0
    kept = checkpoint.load(checkpoint.latest(tmp_path / "a"))
    pretrained = torch.load(files / "pretrained" / "checkpoints" / "step-00000003.pt", weights_only=True)["model"]
    encoder = {name: value for name, value in kept["model"].items() if name.startswith("encoder.")}
    assert len(encoder) > 30 and all(torch.equal(value, pretrained[name]) for name, value in encoder.items())
    assert kept["model"]["head_norm.num_batches_tracked"].item() == 3
    assert json.loads((tmp_path / "a" / "test.json").read_text())["command"] == "probe-motion"


def test_a_probe_at_once_keeps_the_choice_away_from_the_test(run, tmp_path, files):
    assert run("a", "--once", "--validate-list", files / "test.csv", main=probe.main, recipe="probe") == 0
    said = json.loads((tmp_path / "a" / "test.json").read_text())
    assert said["command"] == "probe-motion --once"
    linear = said["linear"]
    assert (linear["training_videos"], linear["validation_videos"], linear["validation_skipped"]) == (5, 3, 1)
    assert linear["validation"] == str(files / "test.csv")
    assert max(linear["validation_top1"].values()) == linear["validation_top1"][f"{linear['l2']:g}"]
    kept = np.load(tmp_path / "a" / probe.LINEAR)
    assert {name: value.shape for name, value in kept.items()} == {
        "weight": (3, 60), "bias": (3,), "mean": (60,), "std": (60,),
    }  # fmt: skip
    assert run("a", "--once", main=probe.main, recipe="probe") == 2  # it holds a run
    assert run("a", "--once", "--resume", main=probe.main, recipe="probe") == 0


def test_every_fifth_video_of_each_class_is_held_out():
    labels = [0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 2, 1, 0, 0, 0, 0]
    entries = tuple(VideoEntry(n, f"v{n}", f"v{n}") for n in range(len(labels)))
    videos = VideoList(dataset="d", split="train", root=Path(), entries=entries, start_stride=4)
    both = held_out(LabelledVideos(videos=videos, labels=np.array(labels), classes=("a", "b", "c")))
    kept, apart = ([(entry.id, label) for entry, label in zip(part.videos.entries, part.labels, strict=True)]
                   for part in both)  # fmt: skip
    assert apart == [("v6", 0), ("v10", 1), ("v16", 0)]
    assert sorted(kept + apart) == sorted((f"v{n}", label) for n, label in enumerate(labels))
    with pytest.raises(ValueError, match="no class has 5 training videos"):
        held_out(both[1])


@pytest.fixture
def ucf101(tmp_path, clips):
    """Two of UCF101's splits, of the same videos: those of one's test are in the other's training."""
    root = tmp_path / "ucf"
    places = [f"{label}/v{n}.avi" for n, label in enumerate(("Bowling", "Archery", "Bowling", "Archery"))]
    for place, source in zip(places, (clips / "list.txt").read_text().splitlines(), strict=False):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes((clips / source).read_bytes())
    for split, (train, test) in {"01": (places[:2], places[2:]), "02": (places[2:], places[:2])}.items():
        (root / f"trainlist{split}.txt").write_text("".join(f"{place} 1\n" for place in train))
        (root / f"testlist{split}.txt").write_text("\n".join(test))
    return root


@pytest.mark.parametrize(
    ("given", "tested"),
    [({}, "test"), ({"split": "train2"}, "test2"), ({"split": "train2", "test_split": "test"}, "test")],
)
def test_the_test_s_split_is_that_of_the_training(ucf101, given, tested):
    videos = Videos(dataset="ucf101", root=str(ucf101), **given)
    test = videos.test(videos.training().classes)
    assert (test.videos.split, test.classes) == (tested, ("Archery", "Bowling"))


def test_a_run_is_tested_again_on_its_own_split(ucf101, files, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    common = [
        "--dataset", "ucf101", "--root", ucf101, "--recipe", files / "tiny.yaml", "--workers", "0", "--device", "cpu",
        "--model", SMALL, "--out",
    ]  # fmt: skip

    def main(*words):
        return finetune.main([str(word) for word in (*common, *words)])

    assert main(tmp_path / "a", "--steps", "1", "--split", "train2") == 0
    assert main(tmp_path / "a", "--test-only", "--test-clips", "1") == 0
    tested = json.loads((tmp_path / "a" / "test.json").read_text())["test_videos"]
    assert tested["split"] == "test2"
    assert "training videos too" not in caplog.text
    assert main(tmp_path / "b", "--steps", "1", "--split", "train2", "--test-split", "test") == 0
    assert "2 of the 2 test videos are training videos too" in caplog.text
    (ucf101 / "testlist02.txt").unlink()
    assert main(tmp_path / "c", "--steps", "1", "--split", "train2") == 2
    assert "the test2 list of ucf101; another one is given with --test-list)" in capsys.readouterr().err


def test_a_published_model_is_tested_with_its_own_head(run, tmp_path, files):
    """Of a run's checkpoint and of a folder of transformers: the same figures."""
    assert run("a", "--steps", "2") == 0
    probabilities = np.load(tmp_path / "a" / "probabilities.npy")
    assert run("b", "--test-only", "--init", tmp_path / "a", init=False) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "b" / "probabilities.npy"), probabilities)
    assert json.loads((tmp_path / "b" / "test.json").read_text())["origin"]["kind"] == "fine-tuning"
    # its recipe need not be named: its clips are those that it was trained on
    assert run("c", "--test-only", "--init", tmp_path / "a", init=False, recipe=None) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c" / "probabilities.npy"), probabilities)


def test_refusals_say_what_to_do(run, tmp_path, files, capsys):
    assert run("a", "--steps", "2") == 0

    def refused(*arguments, **options):
        assert run(*arguments, **options) == 2
        return capsys.readouterr().err

    capsys.readouterr()
    assert "holds a run already" in refused("a", "--steps", "3")
    said = refused("a", "--steps", "3", "--resume", "--list", files / "test.csv", "--seed", "1", recipe="random")
    assert "clips' videos: the checkpoint has" in said and "clips' seed: the checkpoint has 0" in said
    assert "recipe's mixup: the checkpoint has 0.0, asked for is 0.8" in said
    assert "recipe probe freezes" not in said
    assert "recipe tiny freezes the encoder, which is probe-motion's" in refused("b", recipe="probe")
    assert "recipe tiny does not freeze the encoder, which is finetune-motion's" in refused("b", main=probe.main)
    assert "has the label '5'" in refused("b", test="other.csv")
    assert "must be a multiple of 1 processes x 1 micro-batches x 2 clips" in refused(
        "b", "--batch-size", "3", recipe="random"
    )
    assert "has no checkpoint, and no --init names a fine-tuned model" in refused("b", "--test-only", init=False)
    assert "has no head for the 3 classes" in refused("b", "--test-only", test="train.csv")
    assert "--test-only has no videos" in refused("b", "--test-only", test=None)
    assert "--validate-every has no videos" in refused("b", "--validate-every", "2", test=None)
    assert "test_clips is 0, must be 1 or more" in refused("b", "--test-clips", "0")
    assert "--steps has no meaning with --once" in refused(
        "b", "--once", "--steps", "2", main=probe.main, recipe="probe"
    )
    assert "no class has 5 training videos" in refused("b", "--once", main=probe.main, recipe="probe")
    assert not (tmp_path / "b").exists()


def test_a_pretraining_run_s_folder_is_refused(run, tmp_path, files, capsys):
    (tmp_path / "a").symlink_to(files / "pretrained")
    for more in (["--resume"], ["--test-only"]):
        assert run("a", *more) == 2
        assert "is of pretraining, not of fine-tuning; take another folder" in capsys.readouterr().err


def test_a_test_without_a_video_that_can_be_read_ends_with_1(run, files, tmp_path, capsys):
    (files / "gone.csv").write_text("gone.avi 7\n")
    assert run("a", "--steps", "1", test="gone.csv") == 1
    assert "no video could be read" in capsys.readouterr().err
    assert not (tmp_path / "a" / "test.json").exists()


def test_a_validation_without_a_video_that_can_be_read_ends_with_1(run, files, tmp_path, capsys):
    (files / "gone.csv").write_text("gone.avi 7\n")
    more = ["--steps", "3", "--save-every", "1", "--validate-every", "2", "--validate-list", files / "gone.csv"]
    assert run("a", *more) == 1
    said = capsys.readouterr().err
    assert "the validation: no video could be read" in said
    assert f"Newest checkpoint: {checkpoint.checkpoint_path(tmp_path / 'a', 1)}" in said


def test_a_signal_in_the_test_ends_with_75(run, tmp_path, monkeypatch):
    from training.finetuning.views import VideoViews

    read = VideoViews.__getitem__

    def signalling(views, video):
        os.kill(os.getpid(), signal.SIGTERM)
        return read(views, video)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(VideoViews, "__getitem__", signalling)
        assert run("a", "--steps", "1") == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "a" / "test.json").exists()
    assert run("a", "--steps", "1", "--resume") == 0
    assert (tmp_path / "a" / "test.json").exists()


@pytest.mark.parametrize("name", ["finetune", "probe"])
def test_a_signal_to_every_process_ends_a_test_of_its_own_with_75(run, files, clips, tmp_path, name):
    """As Slurm sends it: a loader's worker that died of it would be taken for a failure."""
    given = [
        "--dataset", files / "train.csv", "--root", clips, "--test-list", files / "test.csv", "--workers", "1",
        "--device", "cpu", "--out", tmp_path / "b",
    ]  # fmt: skip
    if name == "finetune":
        assert run("a", "--steps", "1", "--model", "vit_micro", init=False) == 0
        given += ["--init", tmp_path / "a", "--test-only"]
    else:
        given += ["--model", "vit_micro", "--recipe", files / "probe.yaml", "--once", "--validate-list",
                  files / "test.csv"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", f"training.finetuning.{name}", *map(str, given)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    said = ""
    while not said.endswith(" of each\n") and (line := process.stderr.readline()):
        said += line
    time.sleep(0.5)  # the worker is starting, which takes longer
    os.killpg(process.pid, signal.SIGTERM)
    said += process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "interrupted" in said and not (tmp_path / "b" / "test.json").exists()


BOTH = """
import json, sys
from training.finetuning import finetune, probe
for name, arguments in json.loads(sys.argv[1]).items():
    status = {"finetune": finetune, "probe": probe}[name].main(arguments)
    if status:
        sys.exit(status)
"""


def test_two_ranks_are_one_of_twice_the_batch(run, files, clips, tmp_path):
    """Losses and the test's probabilities; the missing video is rank 1's. A batch norm would see its rank's alone."""
    (files / "ranks.yaml").write_text((files / "probe.yaml").read_text().replace("norm: batch", "norm: none"))
    recipes = {"finetune": "tiny", "probe": "ranks"}
    mains = {"finetune": finetune.main, "probe": probe.main}
    arguments = {
        name: [
            "--dataset", files / "train.csv", "--root", clips, "--recipe", files / f"{recipe}.yaml", "--model",
            "vit_micro", "--test-list", files / "test.csv", "--workers", "0", "--device", "cpu", "--steps", "3",
            "--batch-size", "4", "--out", tmp_path / "two" / name,
        ]
        for name, recipe in recipes.items()
    }  # fmt: skip
    given = json.dumps({name: [str(word) for word in words] for name, words in arguments.items()})
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BOTH, given], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **common, "RANK": r,
                 "LOCAL_RANK": r},
        )
        for r in "01"
    ]  # fmt: skip
    for name, recipe in recipes.items():
        more = ["--model", "vit_micro", "--steps", "3", "--batch-size", "4"]
        assert run(f"one/{name}", *more, main=mains[name], recipe=recipe, init=False) == 0
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for name in recipes:
        one, two = (torch.tensor([line[1:] for line in numbers(tmp_path / n / name)]) for n in ("one", "two"))
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)  # float32, sums in another order
        probabilities = [np.load(tmp_path / n / name / "probabilities.npy") for n in ("one", "two")]
        np.testing.assert_allclose(*probabilities, rtol=1e-4)
        described = json.loads((tmp_path / "two" / name / "test.json").read_text())
        assert (described["processes"], described["videos"], len(described["skipped"])) == (2, 3, 1)


def test_a_hugging_face_folder_is_a_beginning_too(run, tmp_path):
    torch.manual_seed(1)
    export_huggingface(MaskedVideoModel(dataclasses.replace(ENCODER, norm_eps=1e-12)), tmp_path / "hf")
    assert run("a", "--steps", "1", "--init", tmp_path / "hf", "--model", SMALL, init=False, test=None) == 0
    origin = checkpoint.load(checkpoint.latest(tmp_path / "a"))["origin"]
    assert origin["init"] == str(tmp_path / "hf") and "layer_norm_eps is 1e-12 there" in origin["notes"][0]
