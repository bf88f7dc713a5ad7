"""Fine-tuning recipes: the published values, and what is refused."""

import dataclasses
import json

import pytest
from timm.data.auto_augment import rand_augment_transform

from training.finetuning.recipe import FinetuneRecipe, RecipeError, finetune_recipe_names, load_finetune_recipe

# MME, table 15
TABLE_15 = {
    "optimizer": "adamw",
    "base_lr": 1.5e-4,
    "weight_decay": 0.05,
    "betas": (0.9, 0.999),
    "layer_decay": 0.75,
    "warmup_epochs": 5,
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "drop_path": 0.1,
}


@pytest.mark.parametrize("name", finetune_recipe_names())
def test_shipped_recipes_load_and_survive_json(name):
    loaded = load_finetune_recipe(name)
    assert loaded.name == name
    assert FinetuneRecipe.from_json(json.loads(json.dumps(loaded.to_json())), "test") == loaded


@pytest.mark.parametrize(
    ("name", "epochs", "flip", "sampling"),
    [("mme-ssv2", 30, False, "segment"), ("mme-k400", 75, True, "dense"), ("mme-ucf101", 100, True, "dense")],
)
def test_the_papers_fine_tuning(name, epochs, flip, sampling):
    recipe = load_finetune_recipe(name)
    assert {field: getattr(recipe, field) for field in TABLE_15} == TABLE_15
    assert (recipe.epochs, recipe.flip, recipe.sampling) == (epochs, flip, sampling)
    assert recipe.random_erase == 0.25  # the released script's
    assert recipe.batch_size // recipe.clips_per_video == 128  # videos, as the authors' code counts them
    assert (recipe.frames, recipe.input_size, recipe.token_grid) == (16, 224, (8, 14, 14))
    operations = rand_augment_transform(recipe.rand_augment, {}).ops  # timm's reading of "RandAug (9, 0.5)"
    assert {(op.magnitude, op.magnitude_std) for op in operations} == {(9, 0.5)}


def test_the_papers_linear_probe():
    recipe = load_finetune_recipe("svt-linear")
    assert recipe.freeze_encoder
    assert (recipe.epochs, recipe.optimizer, recipe.momentum, recipe.base_lr) == (20, "sgd", 0.9, 1e-3)
    assert (recipe.weight_decay, recipe.min_lr, recipe.warmup_epochs, recipe.mixes) == (0, 0, 0, False)


def test_what_is_left_to_the_data_set():
    dense, segment = load_finetune_recipe("small"), load_finetune_recipe("svt-linear")
    assert dense.resolved(clip_stride=3, flip=False).clip_stride == 2
    assert not dense.resolved(clip_stride=3, flip=False).flip
    unset = dataclasses.replace(dense, clip_stride=None, flip=True).resolved(clip_stride=3, flip=False)
    assert (unset.clip_stride, unset.flip) == (3, True)
    assert segment.resolved(clip_stride=3, flip=True).clip_stride is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 5}, "frames is 5, must be a multiple of tubelet, 2"),
        ({"input_size": 50}, "input_size is 50, must be a multiple of patch"),
        ({"sampling": "dense", "clip_stride": 0}, "clip_stride is 0, must be 1 or more"),
        ({"clip_stride": 3}, "clip_stride: segment sampling has no stride"),
        ({"crop_area": [0.5, 0.2]}, r"crop_area is \[0.5, 0.2\], must be \[low, high\]"),
        ({"crop_area": [0.5, 1.2]}, "crop_area is"),
        ({"crop_aspect": [0, 1]}, "crop_aspect is"),
        ({"crop_aspect": [1]}, "crop_aspect"),
        ({"jitter": [256, 320]}, "crop_area: jitter takes their place"),
        ({"jitter": [200, 320], "crop_area": [0.08, 1]}, "jitter is .200, 320.*input_size, 224, or more"),
        ({"rand_augment": "augmix-m3"}, "rand_augment is 'augmix-m3', must be as rand-m9"),
        ({"rand_augment": "rand-m9-x2"}, "rand_augment is 'rand-m9-x2'"),
        ({"random_erase": 1.5}, "random_erase is 1.5, must lie within 0 to 1"),
        ({"mixup": -1}, "mixup is -1"),
        ({"mixup": 0, "mixup_switch_prob": 0.2}, "mixup_switch_prob: only one of"),
        ({"mixup": 0, "cutmix": 0, "mixup_prob": 0.2}, "mixup_prob: neither"),
        ({"label_smoothing": 1}, "label_smoothing is 1"),
        ({"drop_path": 1}, "drop_path is 1"),
        ({"layer_decay": 0}, "layer_decay is 0"),
        ({"freeze_encoder": True}, "layer_decay, drop_path: the encoder is frozen"),
        ({"optimizer": "sgd", "betas": [0.9, 0.95]}, "betas: sgd has a momentum"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"momentum": 0.8}, "momentum: adamw has betas"),
        ({"betas": [0.9, 1.0]}, "betas is"),
        ({"clip_grad": 0.0}, "clip_grad is 0.0"),
        ({"batch_size": 127}, "batch_size is 127, must be a multiple of clips_per_video, 2"),
        ({"epochs": None}, "epochs: must not be null"),
        ({"test_crops": 0}, "test_crops is 0"),
        ({"frame_order": "reversed"}, "frame_order"),
        ({"mask_ratio": 0.5}, "mask_ratio"),
    ],
)
def test_wrong_recipes_are_refused_by_field_and_value(fields, message):
    with pytest.raises(RecipeError, match=message):
        FinetuneRecipe.from_json({**load_finetune_recipe("mme-ssv2").to_json(), **fields}, "recipe mine.yaml")


def test_every_problem_is_said_at_once():
    with pytest.raises(RecipeError, match=r"input_size is 90000000.*cutmix is -1.*must be a multiple of tubelet"):
        FinetuneRecipe(name="mine", frames=3, input_size=90000000, cutmix=-1)


@pytest.mark.parametrize("text", ["rand", "rand-m9-mstd0.5-inc1", "rand-m7-n4-mstd101-inc0", "rand-p0.25-mmax30-n3"])
def test_timm_reads_every_rand_augment_that_is_allowed(text):
    recipe = FinetuneRecipe(name="mine", rand_augment=text)
    assert rand_augment_transform(recipe.rand_augment, {}).ops


def test_a_recipe_file_changes_some_fields_of_a_shipped_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: mme-ssv2\nname: mine\nframe_order: single\nbase_lr: 5.0e-4\n")
    expected = dataclasses.replace(load_finetune_recipe("mme-ssv2"), name="mine", frame_order="single", base_lr=5e-4)
    assert load_finetune_recipe(str(file)) == expected
    with pytest.raises(RecipeError, match="no such file"):
        load_finetune_recipe(str(tmp_path / "nowhere.yaml"))
