import json
import re

import pytest

from data_specs.recipe import Recipe, RecipeError, load_recipe, recipe_names


def test_the_shipped_recipes():
    assert recipe_names() == ["mme", "mme-object", "mme-object-gpu"]
    published, default = load_recipe("mme"), load_recipe("mme-object")
    assert (published.positions_in, default.positions_in) == ("stabilised", "image")
    assert (published.length, published.frame_step, published.grid_stride) == (6, 1, 8)
    assert default.start_stride is None
    assert default.resolved(2).start_stride == 2


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
