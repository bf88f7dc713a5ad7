"""The documentation's commands are run, or at least parsed."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from data_specs import motion_set_cli
from data_specs.demo_clips import render_demo_clips
from data_specs.track_store import TrackStore
from extraction import cli, inspect_cli
from extraction.array_plan import add_plan_options
from extraction.evaluation import cli as evaluation_cli
from training import export_cli, pretrain
from training.finetuning import finetune, probe
from training.finetuning.recipe import load_finetune_recipe

PARSERS = {
    "extract-tracks": cli.build_parser,
    "inspect-tracks": inspect_cli.build_parser,
    "render-motion-set": motion_set_cli.build_parser,
    "evaluate-tracks": evaluation_cli.build_parser,
    "pretrain-motion": pretrain.build_parser,
    "training.pretrain": pretrain.build_parser,
    "finetune-motion": finetune.build_parser,
    "training.finetuning.finetune": finetune.build_parser,
    "probe-motion": probe.build_parser,
    "training.finetuning.probe": probe.build_parser,
    "export-encoder": export_cli.build_parser,
}
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("*/*.md")])


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / name).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The README's commands, run in one folder as they stand there."""
    folder = tmp_path_factory.mktemp("readme")
    make, commands, _ = blocks("README.md", "sh")
    assert set(re.findall(r"^make (\w+)", make, flags=re.M)) == {"demo", "test"}
    render_demo_clips(folder / "clips")
    return folder, run_all(commands, folder, MOTION_TARGETS_DEMO_ROOT=str(folder / "clips"))


def run_all(commands, folder, **environment):
    """Run a block's commands, of this tree, and nothing but them on the path; returns what they write."""
    result = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=folder,
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_readme_s_commands_run(demo):
    folder, output = demo
    assert "5 done, 0 failed" in output
    assert "0 problem(s) in 2 shards" in output
    assert (folder / "hand_held.png").stat().st_size > 10_000
    assert TrackStore(folder / "demo.tracks").complete_shards == [0, 1]
    steps = [json.loads(line) for line in (folder / "demo.run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert (folder / "demo.encoder" / "model.safetensors").stat().st_size > 1e6


def test_the_readme_s_motion_set_is_pretrained_on_fine_tuned_and_probed(tmp_path):
    run_all(blocks("README.md", "sh")[2], tmp_path)
    origin = tmp_path.resolve() / "motion.run" / "checkpoints" / "step-00000010.pt"
    for name, command in {"finetuned": "finetune-motion", "probed": "probe-motion --once"}.items():
        tested = json.loads((tmp_path / f"motion.{name}" / "test.json").read_text())
        assert (tested["command"], tested["classes"], tested["videos"]) == (command, 12, 12)
        assert (tmp_path / tested["origin"]["init"]).resolve() == origin
        assert (tmp_path / f"motion.{name}" / "confusion.png").exists()


def test_the_readme_s_python_runs(demo, monkeypatch):
    monkeypatch.chdir(demo[0])
    (code,) = blocks("README.md", "python")
    names = {}
    exec(code, names)
    row = names["row"]
    assert row.positions.shape == (17 * 23, 7, 2)
    assert row.compensated.shape == (17 * 23, 6, 2)
    assert row.hog.shape == (17 * 23, 6, 9)


def test_the_motion_set_s_python_runs_and_its_recipe_loads(tmp_path):
    (code,), (recipe,) = (blocks("docs/motion-set.md", language) for language in ("python", "yaml"))
    names = {}
    exec(code, names)
    assert (names["picture"].shape, names["moved"].shape, names["on_shape"].shape) == ((48, 64, 3), (2, 2), (2,))
    (tmp_path / "control.yaml").write_text(recipe)
    assert load_finetune_recipe(str(tmp_path / "control.yaml")).frame_order == "shuffled"


def test_the_demo_s_tracks_are_the_scene_s(demo):
    """The demo's clips have known motion: what comes out of a compressed file is what was rendered."""
    from data_specs.demo_clips import demo_scenes

    store = TrackStore(demo[0] / "demo.tracks")
    for name, scene in demo_scenes().items():
        shard, video = store.find(f"{name}.avi")
        errors = []
        for number in shard.rows(video):
            row = shard.read_row(video, number)
            truth, visible = scene.track(row.positions[:, 0], row.frame, 6)
            seen = visible.all(axis=1) & row.valid.all(axis=1)
            errors.append(np.linalg.norm(row.positions[seen, 6] - truth[seen, 6], axis=1).mean())
        assert np.mean(errors) < 0.6, name


def submitted(words):
    """The command that a line of sbatch comes to."""
    (place,) = [number for number, word in enumerate(words) if word.endswith(".sbatch")]
    script = REPOSITORY / words[place]
    assert script.exists(), words
    rest = words[place + 1 :]
    if script.name == "pretrain.sbatch":
        return ["pretrain-motion", *rest, "--resume"]
    if script.name == "finetune.sbatch":
        name, options = ("probe", rest[1:]) if rest[0] == "--probe" else ("finetune", rest)
        return [f"{name}-motion", *options, "--resume"]
    return ["extract-tracks", *(rest[2:] if rest[0] == "--parts" else rest), "--part", "0/4"]


def test_every_documented_command_line_parses():
    lines = [
        line.split("#")[0].strip()
        for document in DOCUMENTS
        for block in re.findall(r"```(?:sh|console)?\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        for line in block.splitlines()
    ]
    parsed = 0
    for line in lines:
        words = list(itertools.takewhile(lambda word: word != "|", shlex.split(line)))
        words = words[1:] if words and "=" in words[0] else words
        if words[:1] == ["sbatch"]:
            words = submitted(words)
        if "-m" in words:  # of torchrun
            words = words[words.index("-m") + 1 :]
        if words[:2] == ["extract-tracks", "plan"]:
            parser, words = cli.build_parser(), words[1:]
            add_plan_options(parser)
        elif words and words[0] in PARSERS:
            parser = PARSERS[words[0]]()
        else:
            continue
        parser.parse_args(words[1:])
        parsed += 1
    assert parsed >= 60


def test_help_names_every_option_and_the_exit_status(capsys):
    for main, options in [
        (cli.main, ["--dataset", "--root", "--shards", "--out", "--recipe", "--start-stride", "--only-shards", "--part",
                    "--workers", "--executor", "--limit", "--retry-failed", "--dry-run", "Exit status"]),
        (inspect_cli.main, ["STORE", "--verify", "--failures", "--render", "--out", "Exit status"]),
        (pretrain.main, ["--store", "--root", "--recipe", "--model", "--out", "--epochs", "--steps", "--batch-size",
                         "--lr", "--warmup-steps", "--seed", "--workers", "--resume", "--device", "Exit status"]),
        (finetune.main, ["--dataset", "--root", "--test-list", "--init", "--recipe", "--out", "--resume", "--test-only",
                         "--validate-every", "Exit status"]),
        (probe.main, ["--dataset", "--init", "--recipe", "--out", "--once", "Exit status"]),
        (motion_set_cli.main, ["--out", "--train", "--frames", "--seed", "--workers", "Exit status"]),
        (evaluation_cli.main, ["--tracker", "--data", "--queries", "--size", "--videos", "--json", "Exit status"]),
        (export_cli.main, ["RUN", "--to", "--out", "Exit status"]),
    ]:  # fmt: skip
        with pytest.raises(SystemExit) as exit_:
            main(["--help"])
        assert exit_.value.code == 0
        text = capsys.readouterr().out
        assert [option for option in options if option not in text] == []


def test_links_in_the_documents_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document}: {target}"
