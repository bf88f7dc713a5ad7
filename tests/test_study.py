"""benchmarks/study.py: its rows and sizes, what it counts and reports, and one row in little."""

import csv
import dataclasses
import itertools
import json
import re
import shlex
import sys

import numpy as np
import pytest
import study
import study_data
import torch
from conftest import REPOSITORY
from study_data import Study, check_settings, prepare_data
from study_report import write_report
from study_row import CURVE, FRAME_ORDERS, Place, accuracies, run_row
from study_rows import BASE, DEFAULT_ROWS, ROWS, SIZES, Size, finetune_recipe, pretrain_recipe, row, track_recipes

from data_specs import motion_set_cli
from data_specs.motion_set import MOTIONS
from data_specs.recipe import load_recipe as load_track_recipe
from data_specs.store_info import StoreInfo
from extraction import cli
from training.finetuning.recipe import load_finetune_recipe
from training.finetuning.sampling import spread_times
from training.model import VIT_SIZES
from training.reading.store_fit import check_store_fits, with_dataset_defaults
from training.recipe import load_recipe

TINY = Size(
    train=12, val=12, test=12, height=32, width=40, set_frames=19, input_size=32, model="vit_micro", frames=4,
    clip_stride=2, patch=8, grid_stride=4, batch_size=4, pretrain_steps=3, finetune_steps=2, base_lr=1e-3,
    finetune_lr=1e-3, layer_decay=0.75, probed=12,
)  # fmt: skip
PRETRAINED = [each for each in ROWS if each.changes is not None]
sizes = pytest.mark.parametrize("size", [*SIZES.values(), TINY], ids=[*SIZES, "tiny"])


def test_rows_have_a_name_each():
    names = [each.name for each in ROWS] + list(FRAME_ORDERS[1:])
    assert len(set(names)) == len(names)
    assert {each.group for each in ROWS} == {"pretraining", "ablation", "learning rate"}
    assert set(DEFAULT_ROWS) == {each.name for each in ROWS if each.lr_factor == 1}
    assert row("mme").name == "mme"
    with pytest.raises(ValueError, match=r"no row mmm; there are none, videomae, .*mme-object"):
        row("mmm")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Gives a function that has a command's loader load fields of a recipe."""
    file = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    return lambda load, fields: load(str(Study(file.parent).write_recipe(file, fields)))


@sizes
def test_each_row_s_recipe_loads_and_fits_its_store(loaded, size):
    stores = {name: loaded(load_track_recipe, fields) for name, fields in track_recipes(size).items()}
    seen = {}
    for each in PRETRAINED:
        recipe = loaded(load_recipe, pretrain_recipe(each, size))
        tracks = stores[Study(REPOSITORY).store(clip_tracks=each.clip_tracks).name]
        info = StoreInfo(
            recipe=dataclasses.replace(tracks, start_stride=2), dataset="motion-set", clip_stride=2, flip=False,
            split="train", list_sha256="", num_videos=size.train, num_shards=4, software={},
        )  # fmt: skip
        recipe = with_dataset_defaults(recipe, info)
        check_store_fits(recipe, info, each.name)
        assert recipe.token_grid == (size.frames // 2, size.input_size // size.patch, size.input_size // size.patch)
        scale = min(size.height, size.width) / size.input_size
        assert size.patch * scale == recipe.points_per_side * size.grid_stride, (
            "MME's four trajectories of a patch are stored ones"
        )
        assert not recipe.flip
        seen[each.name] = {**recipe.to_json(), "name": None, "lr": each.lr_factor}
    for one, other in itertools.combinations(seen, 2):
        assert seen[one] != seen[other], f"{one} and {other} are the same pretraining"


@sizes
@pytest.mark.parametrize("order", FRAME_ORDERS)
def test_recipes_of_fine_tuning_load(loaded, size, order):
    for frozen in (False, True):
        recipe = loaded(load_finetune_recipe, finetune_recipe(size, frozen=frozen, frame_order=order))
        assert (recipe.freeze_encoder, recipe.frame_order, recipe.flip, recipe.rand_augment) == (
            frozen,
            order,
            False,
            None,
        )
        assert size.probed <= size.train


@sizes
def test_the_test_s_clip_lies_in_the_middle_of_the_set_s(loaded, size):
    """Else its place in time would tell a motion from its partner (docs/motion-set.md)."""
    recipe = loaded(load_finetune_recipe, finetune_recipe(size, frozen=False))
    assert (recipe.test_clips, recipe.test_crops, recipe.sampling) == (1, 1, "dense")
    ((*times,),) = spread_times(size.set_frames, recipe, 1)
    assert times[0] > 0
    assert times[0] + times[-1] == size.set_frames - 1
    assert size.model in VIT_SIZES


def write_confusion(run, counted, own=4):
    """A confusion.csv with `own` right ones of each motion, but where `counted` has another number."""
    counts = own * np.eye(12, dtype=int)
    for place, count in counted.items():
        counts[place] = count
    run.mkdir(parents=True, exist_ok=True)
    with (run / "confusion.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["", *MOTIONS], *([name, *line] for name, line in zip(MOTIONS, counts, strict=True))]
        )


def test_accuracies_of_a_confusion_by_hand(tmp_path):
    """Of four videos of each motion: three right and one for its partner, but of `right` all for `up`."""
    partners = enumerate([1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10])
    turned = {(label, other): 1 for label, other in partners}
    write_confusion(tmp_path, {**turned, (0, 1): 0, (0, 0): 0, (0, MOTIONS.index("up")): 4}, own=3)
    (tmp_path / "test.json").write_text(json.dumps({"top1": 33 / 48}))
    assert accuracies(tmp_path) == pytest.approx({"top1": 33 / 48, "motion": 44 / 48, "direction": 33 / 44})


def write_result(place, name, seed, top1, steps=(), minutes=2.0):
    """A result.json whose probe has `top1`, its fine-tuning a tenth more."""
    probe = {"top1": top1, "motion": top1 + 0.05, "direction": 0.75}
    loss = {"displacement": {"error": 0.5 + 0.1 * seed, "constant": 1.0}} if steps else {}
    curve = {str(step): top1 * step / max(steps) for step in steps} or {"0": top1}
    content = {
        "row": name, "seed": seed, "curve": curve, "probe": probe, "loss": loss,
        "finetune": {**probe, "top1": top1 + 0.1}, "seconds": {"pretrain": 30.0, "finetune": 60 * minutes - 30},
    }  # fmt: skip
    folder = place.row(name, seed)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content))


def cells(text, name):
    """Of the row in the first of the tables that have it."""
    line, *_ = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_report_has_means_and_deviations_of_what_is_there(tmp_path):
    place = Study(tmp_path)
    for seed, top1 in enumerate((0.3, 0.4, 0.5)):
        write_result(place, "none", seed, top1 / 2)
        write_result(place, "mme-object", seed, top1, steps=(150, 300, 450), minutes=1.0 + seed)
    write_result(place, "mme-clip", 2, 0.25, steps=(450,))
    write_result(place, "single", 0, 0.0833)
    place.row("mme", 0).mkdir(parents=True)  # begun
    for seed, wrong in ((0, MOTIONS.index("up")), (1, MOTIONS.index("left"))):  # of `right`: its own, and another's
        write_confusion(place.row("mme-object", seed) / "probe-450", {(0, 0): 2, (0, wrong): 2})
    text = write_report(place, SIZES["small"])
    # deviations: of (.3, .4, .5) with n - 1 it is .1
    assert cells(text, "mme-object")[2:] == [
        "3", "40.0 ± 10.0", "45.0 ± 10.0", "75.0 ± 0.0", "50.0 ± 10.0", "45.0 ± 10.0", "75.0 ± 0.0",
        "displacement 0.600", "2.0",
    ]  # fmt: skip
    assert cells(text, "none")[2:4] == ["3", "20.0 ± 5.0"]
    assert cells(text, "mme-clip")[2:4] == ["1", "25.0"]
    assert cells(text, "single")[2:4] == ["1", "8.3"]
    assert "`mme`" not in text
    assert "Chance: top-1 8.3%, pair 16.7%, direction 50 %" in text
    by_motion = text[text.index("| probe: pair / direction | right, left | down, up |") :].splitlines()
    # 8 of `right`, 6 of them in its pair, of which 4 right; 8 of `left`; of the others 8 each
    assert by_motion[2] == "| `mme-object` | 88 / 86 | 100 / 100 | 100 / 100 | 100 / 100 | 100 / 100 | 100 / 100 |"
    assert by_motion[3] == ""
    assert (tmp_path / "table.md").read_text() == text
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_a_folder_of_another_study_is_refused(tmp_path):
    check_settings(Study(tmp_path), TINY, {"device": "cpu"})
    check_settings(Study(tmp_path), TINY, {"device": "cpu"})
    with pytest.raises(ValueError, match="of a study with another size; take another --out"):
        check_settings(Study(tmp_path), SIZES["small"], {"device": "cpu"})


def test_documented_lines_of_the_study_parse(monkeypatch):
    documents = "".join(file.read_text() for file in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
    lines = re.findall(r"^python benchmarks/study\.py.*$", documents, flags=re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        monkeypatch.setattr(sys, "argv", shlex.split(line)[1:])
        assert study._options().out.name


@pytest.fixture
def in_this_process(monkeypatch):
    """Commands of the data run here, without Ray, with a quick flow and one thread."""
    mains = {"data_specs.motion_set_cli": (motion_set_cli.main, []),
             "extraction.cli": (cli.main, ["--executor", "local", "--flow", "dis"])}  # fmt: skip

    def run(module, *options):
        main, more = mains[module]
        assert main([*map(str, options), *more]) == 0

    monkeypatch.setattr(study_data, "_run", run)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_row_in_little_from_the_set_to_the_table(tmp_path, in_this_process):
    place = Place(study=Study(tmp_path), size=TINY, seed=1, device="cpu", workers=0)
    prepare_data(place.study, TINY, device="cpu", workers=1)
    for name in (BASE, "single"):
        run_row(name, place)
    folder = place.study.row(BASE, 1)
    result = json.loads((folder / "result.json").read_text())
    assert (result["row"], result["seed"], list(result["curve"])) == (
        BASE,
        1,
        [str(k + 1) for k in range(CURVE)],
    )
    assert set(result["loss"]) == {"displacement", "trajectory_hog"}
    assert result["probe"] == accuracies(folder / "probe-3")
    assert result["finetune"] == accuracies(folder / "finetune")
    tested = [json.loads(file.read_text()) for file in sorted((tmp_path / "rows").glob("*/seed-1/*/test.json"))]
    assert [each["videos"] for each in tested] == [12] * (CURVE + 1 + 2)
    assert {each["origin"]["init"] for each in tested if each["recipe"]["frame_order"] == "single"} == {
        str(folder / "pretrain" / "checkpoints" / "step-00000003.pt")
    }
    # what is done is not done again, and what is lost is
    before = (folder / "pretrain" / "log.jsonl").stat().st_mtime_ns
    (folder / "result.json").unlink()
    (folder / "finetune" / "test.json").unlink()
    run_row(BASE, place)
    again = json.loads((folder / "result.json").read_text())
    assert {**again, "seconds": None} == {**result, "seconds": None}
    assert (folder / "pretrain" / "log.jsonl").stat().st_mtime_ns == before
    assert cells(write_report(place.study, TINY), BASE)[2] == "1"
