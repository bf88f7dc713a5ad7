import json
import re

import pytest

from data_specs.dataset import load_spec
from data_specs.recipe import Recipe, RecipeError, load_recipe, recipe_names


def test_the_shipped_recipes():
    assert recipe_names() == ["mme", "mme-object", "mme-object-gpu", "trackmae", "trackmae-dense"]
    published, default = load_recipe("mme"), load_recipe("mme-object")
    assert (published.positions_in, default.positions_in) == ("stabilised", "image")
    assert (published.length, published.frame_step, published.grid_stride) == (6, 1, 8)
    assert default.start_stride is None
    assert default.resolved(2).start_stride == 2


def test_trackmae_follows_the_patches_through_every_second_frame_of_a_clip():
    """16 frames at stride 4 are frames 0, 4, … 60 of the video; every second one is 0, 8, … 56."""
    recipe, dense = load_recipe("trackmae"), load_recipe("trackmae-dense")
    clip = [4 * frame for frame in range(16)]
    assert [recipe.frame_step * k for k in range(recipe.length + 1)] == clip[::2]
    assert (recipe.grid_stride, dense.grid_stride) == (16, 8)
    for each in (recipe, dense):
        assert (each.tracker, each.motion) == ("cotracker3", "tracker cotracker3")
        assert each.keep_short
        assert (each.length, each.hog, each.remove_camera, each.visible_above) == (7, False, False, 0.6)
        assert each.camera_features == ("surf", "tracks")
        assert Recipe.from_json(json.loads(json.dumps(each.to_json())), "a store") == each
    assert load_recipe("mme").motion == "flow tvl1"


@pytest.mark.parametrize(("dataset", "step"), [("k400", 8), ("ssv2", 6)])
def test_trackmae_steps_with_the_tubelets_of_the_data_set_s_clips(dataset, step):
    assert load_recipe("trackmae", load_spec(dataset).clip_stride).frame_step == step
    assert load_recipe("trackmae-dense", load_spec(dataset).clip_stride).frame_step == step
    assert load_recipe("mme", load_spec(dataset).clip_stride).frame_step == 1


def test_a_store_says_its_step():
    with pytest.raises(RecipeError, match="frame_step: must not be null"):
        Recipe.from_json({**load_recipe("trackmae").to_json(), "frame_step": None}, "a store")


def test_trackmae_with_histograms_and_without_the_camera(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "extends: trackmae\nname: mine\nhog: true\nremove_camera: true\nsupport_grid: 6\nrefinements: 4\n"
        "precision: bf16\ncompiled: true\nvisible_above: 0.9\ncamera_features: [orb]\n"
    )
    recipe = load_recipe(str(file))
    assert (recipe.hog, recipe.remove_camera, recipe.support_grid, recipe.refinements) == (True, True, 6, 4)
    assert (recipe.precision, recipe.compiled, recipe.visible_above) == ("bf16", True, 0.9)


def test_everything_that_a_tracker_lacks_is_said_at_once(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: mme-object-gpu\nname: mine\ntracker: cotracker3\ndescriptors: [hof]\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(str(file))
    for problem in (
        "flow is tvl1-pyramid, tracker cotracker3 measures none",
        "forward_backward is true",
        "camera_features names corners",
        "descriptors names hof",
    ):
        assert problem in str(error.value)


def test_a_recipe_from_before_there_were_trackers_is_one_of_flow():
    fields = load_recipe("mme-object").to_json()
    for later in ("keep_short", "tracker", "support_grid", "refinements", "visible_above", "precision", "compiled"):
        del fields[later]
    assert Recipe.from_json(fields, "a store") == load_recipe("mme-object")


def test_a_recipe_file_changes_some_fields_of_another(tmp_path):
    file = tmp_path / "long.yaml"
    file.write_text(
        "extends: mme\nname: long\nlength: 10\ncamera_features: [orb]\nhog_channels: 3\ndescriptors: [mbh]\n"
    )
    recipe = load_recipe(str(file))
    assert (recipe.name, recipe.length, recipe.positions_in) == ("long", 10, "stabilised")
    assert recipe.camera_features == ("orb",)
    assert recipe.hog_channels == 3
    assert recipe.descriptors == ("mbh",)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json())), "a store") == recipe


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("extends: mme\nlenght: 7\n", "lenght"),
        ("extends: mme\nlength: six\n", "length"),
        ("extends: mme\nlength: 0\ngrid_stride: -1\n", "length is 0, must be 1 or more; grid_stride is -1"),
        ("extends: mme\nflow: raft\n", "flow"),
        ("extends: mme\ncamera_features: [surf, brisk]\n", "camera_features"),
        ("extends: mme\ncamera_features: [orb, orb]\n", "names a feature twice"),
        ("extends: mme\ndescriptors: [hof, hog]\n", "descriptors"),
        ("extends: mme\ndescriptors: [hof, hof]\n", "descriptors names one twice: hof, hof"),
        ("extends: mme\nhof_still_px: -1\n", "hof_still_px is -1"),
        ("extends: mme\nremove_camera: false\n", "positions_in is stabilised, which needs remove_camera"),
        ("extends: nothing\n", "shipped are mme, mme-object"),
        ("extends: mme\ntracker: raft\n", "tracker"),
        ("extends: mme\nsupport_grid: 6\n", "support_grid: of tracker cotracker3 alone, tracker is flow"),
        (
            "extends: mme\nrefinements: 4\nvisible_above: 0.5\nprecision: bf16\ncompiled: true\n",
            "refinements, visible_above, precision, compiled: of tracker cotracker3 alone",
        ),
        ("extends: mme\ncamera_features: [surf, tracks]\n", "camera_features names tracks"),
        ("extends: mme\ncamera_features: []\n", "name at least one of surf, sift, orb, corners"),
        ("extends: trackmae\nflow: dis\n", "flow is dis, tracker cotracker3 measures none"),
        ("extends: trackmae\nforward_backward: true\n", "forward_backward is true"),
        ("extends: trackmae\ndescriptors: [mbh]\n", "descriptors names mbh"),
        ("extends: trackmae\ncamera_features: [corners]\n", "camera_features names corners"),
        (
            "extends: trackmae\nremove_camera: true\npositions_in: stabilised\n",
            "positions_in is stabilised, those of tracker cotracker3 are in the image",
        ),
        (
            "extends: trackmae\nremove_camera: true\ncamera_features: []\n",
            "name at least one of surf, sift, orb, tracks",
        ),
        ("extends: trackmae\nsupport_grid: -1\nrefinements: 0\n", "support_grid is -1, must be 0 or more; refinements"),
        ("extends: trackmae\nvisible_above: 1.0\n", "visible_above is 1.0, must be 0 or more and less than 1"),
        ("extends: trackmae\nvisible_above: .nan\n", "visible_above is nan"),
        ("extends: trackmae\nprecision: fp16\n", "precision"),
        ("extends: mme\nlength: null\nhog: null\n", "length, hog: must not be null"),
        ("extends: mme\nhog_channels: 2\n", "hog_channels"),
        ("length: 3\n", "name"),
        ("just text\n", "must be a mapping"),
    ],
)
def test_bad_recipes_are_refused_with_field_and_value(tmp_path, text, problem):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=re.escape(problem)):
        load_recipe(str(file))


def test_a_recipe_that_extends_itself_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: {file}\n")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(str(file))
