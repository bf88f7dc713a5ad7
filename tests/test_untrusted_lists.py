"""Lists, specs and recipes by someone who means harm, or is careless: refused with the place, or taken as they are."""

import os
import re
import threading
from pathlib import Path

import pytest

from data_specs import dataset as dataset_module
from data_specs.dataset import DatasetError, DatasetSpec, list_digest, load_spec, load_videos, parse_list
from data_specs.demo_clips import write_clip
from data_specs.plain_yaml import MOST_BYTES, PlainYamlError, parse_yaml
from data_specs.recipe import RecipeError, load_recipe
from data_specs.scene import random_scene
from data_specs.video import Video, VideoOpenError
from data_specs.video_files import VideoOutsideRootError, check_links, video_path
from training.recipe import load_recipe as load_training_recipe

ROOT = Path("/data/videos")
SPEC = DatasetSpec(name="x", lists={"train": "t"}, format="paths")
CSV = DatasetSpec(name="x", lists={"train": "t"}, format="csv", id_column="id")


def problem(text, spec=SPEC):
    with pytest.raises(DatasetError) as error:
        parse_list(text, spec, "the list", ROOT)
    return str(error.value)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a b.mp4", "-rf", "--help", "it's.mp4", 'say "hi".mp4', "é/ü.mp4", "\u202egpj.mp4", "视频/一.mp4", "a" * 255,
     "$(x)", "a%03d.mp4", "file:a.mp4", "a\\b.mp4", "~", "...", "🎬.mp4", "\u00a0x.mp4"],
)  # fmt: skip
def test_odd_names_work(tmp_path, name):
    """In the list, in its digest, and as files."""
    entries = parse_list(f"x.mp4\n{name}\ny.mp4\n", SPEC, "the list", tmp_path)
    assert [entry.path for entry in entries] == ["x.mp4", name, "y.mp4"]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert video_path(tmp_path, name, follow_links=False).read_bytes() == b"x"


@pytest.mark.parametrize(
    "character", ["\0", "\t", "\x0b", "\x0c", "\x1c", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\r"]
)
def test_characters_that_break_lines_or_steer_terminals_are_refused(character):
    """`str.splitlines` would make two videos of some of these."""
    said = problem(f"x.mp4\na{character}b.mp4\n")
    assert "line 2" in said
    assert "rename the file" in said
    assert character not in said
    assert f"holds the character {character!a}" in said


def test_what_would_make_two_lists_of_one_digest_is_refused():
    """The digest's text is `id<TAB>path<LF>` for each video."""
    assert list_digest([("a\tb", "c")]) == list_digest([("a", "b\tc")])
    assert "'a\\tb' holds the character '\\t'" in problem("id,path\na\tb,c\n", CSV)
    assert list_digest([("a", "b\nc\td")]) == list_digest([("a", "b"), ("c", "d")])
    said = problem('id,path\na,"b\nc.mp4"\n', CSV)
    assert "line 3: 'b\\nc.mp4' holds the character '\\n'" in said


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../b.mp4", "is not below the root"), ("a/../../b.mp4", "is not below"), ("a/../b.mp4", "is not below"),
        ("/etc/passwd", "is not below"), ("/data/videos/../x", "is not below"), ("/data/videosx/y", "is not below"),
        (".", "is not below"), ("/", "is not below"), ("a" * 5000, "is longer than 4096 bytes"),
        ("é" * 2049, "is longer than 4096 bytes"),
    ],
)  # fmt: skip
def test_paths_that_leave_the_root_are_refused(path, said):
    found = problem(f"x.mp4\n{path}\n")
    assert f"line 2: '{path[:200]}" in found
    assert said in found
    assert len(found) < 500


def test_one_video_under_two_names_is_refused():
    for text in ("a/b.mp4\na/./b.mp4\n", "a/b.mp4\na//b.mp4\n", "a/b.mp4\n/data/videos/a/b.mp4\n"):
        assert "line 2: 'a/b.mp4' is already on line 1" in problem(text)
    assert "line 3: the file 'a/b' is already that of line 2" in problem("id,path\n1,a/b\n2,a/./b\n", CSV)
    assert "line 3: '1' is already on line 2" in problem("id,path\n1,a\n1,b\n", CSV)
    assert "'' is empty" in problem("id,path\n,a\n", CSV)


def test_commas_and_quotes_of_csv():
    entries = parse_list('id,path\n1,"a, ""b"".mp4"\n', CSV, "the list", ROOT)
    assert entries[0].path == 'a, "b".mp4'
    for text, said in [
        ('id,path\n1,"a.mp4\n2,b.mp4\n', r"line 3: is not comma-separated text: .*must be closed"),
        ("id,path,path\n1,a,b\n", "names the column 'path' twice"),
        ("id,path\n1,a,b\n", "line 2: has not the 2 columns"),
        ("id,path\n1," + "a" * 200_000 + "\n", "field larger than field limit"),
    ]:
        assert re.search(said, problem(text, CSV))


@pytest.mark.parametrize("pad", [" ", "\t", "a ", "1", ", ", "-", "1 "])
def test_hostile_lists_take_linear_time(pad):
    """A regular expression with two greedy parts takes the square: this test would not end."""
    line = "x" + pad * 300_000 + "y"
    for spec in (
        SPEC,
        DatasetSpec(name="x", lists={"train": "t"}),
        DatasetSpec(name="x", lists={"train": "t"}, format="path_label"),
    ):
        with pytest.raises(DatasetError):
            parse_list(f"{line}\n{line}", spec, "the list", ROOT)


def test_a_million_problems_are_counted_and_twenty_shown():
    said = problem("../x\n" * 100_000)
    assert "100000 problem(s)" in said
    assert said.count("\n") == 21
    assert said.endswith("and 99980 more")


# --- templates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    ["{a.__class__}", "{a[0]}", "{a:>1000000000}", "{a:1000000000d}", "{a!r}", "{}", "{0}", "{a:{b}}", "{a", "}",
     "{a:s}", "{a:.9f}", "{a:0999d}", "{a.__init__.__globals__}"],
)  # fmt: skip
def test_templates_that_do_more_than_fill_in_are_refused(tmp_path, template):
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: x\nlists: {{train: t}}\npath_template: '{template}'\n")
    with pytest.raises(DatasetError, match=r"spec\.yaml: path_template"):
        load_spec(str(spec))


def test_a_template_is_filled_with_what_leads_nowhere_else():
    spec = DatasetSpec(name="x", lists={"train": "t"}, path_template="{a}/{b:06d}.mp4")
    text = "a,b\nx,7\n..,7\n{b},8\nx,seven\nx,1_0\nx," + "9" * 40 + "\n"
    said = problem(text, spec)
    assert "5 problem(s)" not in said
    assert "line 3: '../000007.mp4' is not below the root" in said
    for line, value in [(5, "seven"), (6, "1_0"), (7, "9" * 40)]:
        assert re.search(rf"line {line}: .*b is '{value}', not a whole number", said)
    assert parse_list("a,b\n{b},8\n", spec, "the list", ROOT)[0].path == "{b}/000008.mp4"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n",
                                  "ffconcat version 1.0\nfile '{0}'\n", "<?xml version='1.0'?>\n<MPD/>"])  # fmt: skip
@pytest.mark.parametrize("name", ["a.m3u8", "a.mp4"])
def test_a_playlist_does_not_lead_out_of_the_root(tmp_path, text, name):
    """FFmpeg decodes what one names, wherever that is."""
    write_clip(tmp_path / "secret.avi", random_scene(1, 1.5, (64, 96)), 9)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / name).write_text(text.format(tmp_path / "secret.avi"))
    with pytest.raises(VideoOpenError, match="is a playlist, which names other files"):
        video_path(tmp_path / "root", name, follow_links=False)
    with pytest.raises(VideoOpenError, match="is a playlist, which names other files"):
        Video(tmp_path / "root" / name, None)


def test_what_is_no_regular_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "pipe.yaml").symlink_to("pipe")
    done = []

    def look():
        for name, error, load in [
            ("pipe", DatasetError, lambda file: load_videos("k400", str(tmp_path), list_file=file)),
            ("/dev/zero", DatasetError, lambda file: load_videos("k400", str(tmp_path), list_file=file)),
            ("pipe.yaml", DatasetError, load_spec),
            ("pipe.yaml", RecipeError, load_recipe),
            ("pipe.yaml", RecipeError, load_training_recipe),
            ("folder.yaml", RecipeError, load_recipe),
            ("pipe", VideoOpenError, lambda file: video_path(tmp_path, "pipe", follow_links=True)),
        ]:
            with pytest.raises(error, match=r"is a (pipe|device|folder)"):
                load(str(tmp_path / name))
            done.append(name)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(60)
    assert len(done) == 7, f"hangs, or was not refused, after {done}"


def test_enormous_specs_and_recipes_are_not_read(tmp_path):
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(1 << 40)  # a hole: no disk is that large
    for error, load in [(DatasetError, load_spec), (RecipeError, load_recipe)]:
        with pytest.raises(error, match=rf"has {1 << 40} bytes, more than the {MOST_BYTES} that are read"):
            load(str(tmp_path / "big.yaml"))
    with (tmp_path / "list.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DatasetError, match=rf"more than the {dataset_module.MOST_LIST_BYTES} that are read"):
        load_videos(str(tmp_path / "list.txt"), str(tmp_path))


def test_links_that_lead_out_of_the_root_are_refused_unless_asked_for(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside, root / "inner"):
        folder.mkdir()
    for file in (outside / "a.mp4", root / "b.mp4"):
        file.write_bytes(b"x")
    (root / "a.mp4").symlink_to(outside / "a.mp4")
    (root / "linked").symlink_to(outside)
    (root / "inner" / "b.mp4").symlink_to("../b.mp4")
    (root / "loop").symlink_to("loop")
    (tmp_path / "as").symlink_to("root")
    for folder in (root, tmp_path / "as"):  # the root itself may be a link
        assert video_path(folder, "inner/b.mp4", follow_links=False).read_bytes() == b"x"
        for path in ("a.mp4", "linked/a.mp4"):
            with pytest.raises(VideoOutsideRootError, match=r"leads out of the root; .*--follow-links takes it"):
                video_path(folder, path, follow_links=False)
            assert video_path(folder, path, follow_links=True).read_bytes() == b"x"
        with pytest.raises(VideoOpenError, match=r"(?i)level|link"):
            video_path(folder, "loop", follow_links=False)
    for path in ("../outside/a.mp4", str(outside / "a.mp4"), "inner/../b.mp4", "b.mp4\0", "", "linked/../b.mp4"):
        for follow in (False, True):
            with pytest.raises(VideoOutsideRootError, match=r"the path (is|holds)"):
                video_path(root, path, follow_links=follow)
    with pytest.raises(DatasetError, match=r"links lead out of it: a\.mp4 is \S+outside/a\.mp4; --follow-links"):
        check_links(root, ["missing.mp4", "a.mp4", "linked/a.mp4"], follow_links=False)
    check_links(root, ["a.mp4", "b.mp4"], follow_links=False)  # one of them: a failure of its own
    check_links(root, ["a.mp4"], follow_links=True)


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: &x [1]\nb: *x", r"alias \*x"),
        ("a: &x [1]\nb: {<<: {c: 1}}", "merge key"),
        ("a: 1\nb: 2\na: 3", "'a' comes twice"),
        ("{a: {b: 1, b: 2}}", "'b' comes twice"),
        ("? [1]\n: 2", "a key that is not a plain value"),
        ("[" * 3000, "nested more than"),
        ("- " * 3000, "nested more than"),
        ("a: 0x" + "f" * 1000, "more than 64 bits"),
        ("a: " + "9" * 5000, "not YAML"),
        ("a: !!bool x", "not YAML"),
        ("a: !!int ''", "not YAML"),
        ("a: 2001-99-99", "not YAML"),
        ("a: !!timestamp x", "not YAML"),
        ('a: "\\U00110000"', "not YAML"),
        ("a: \x00", "not YAML"),
        (b"a: \xff", "not YAML"),
        ("a: 1\n--- 2", "not YAML"),
        ("x" * (MOST_BYTES + 1), "more than the"),
    ],
)  # fmt: skip
def test_yaml_that_is_more_than_plain_is_refused(text, said):
    with pytest.raises(PlainYamlError, match=said):
        parse_yaml(text)


def test_an_alias_bomb_is_refused_at_its_first_alias(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(lines))
    for error, load in [(DatasetError, load_spec), (RecipeError, load_recipe), (RecipeError, load_training_recipe)]:
        with pytest.raises(error, match=r"bomb\.yaml.*alias \*a0"):
            load(str(file))
    file.write_text(f"extends: mme\nlength: '{lines[0]}'\n")  # YAML in a text in YAML
    with pytest.raises(RecipeError, match="length: is 'a0: &a0"):
        load_recipe(str(file))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("length: 1000000000", "length is 1000000000, must be 1 or more, at most 1000"),
        ("length: 18446744073709551616", "more than 64 bits"),
        ("grid_stride: 0", "grid_stride is 0, must be 1 or more"),
        ("grid_stride: 1000000", "grid_stride is 1000000"),
        ("short_side: 1000000000", "short_side is"),
        ("ransac_px: 1.0e+400", "ransac_px: is inf, must be finite"),
        ("ransac_px: 1e400", "ransac_px: is inf, must be finite"),
        ("ransac_px: .nan", "ransac_px is nan"),
        ("hof_still_px: .inf", "hof_still_px: is inf"),
        ("name: ../../elsewhere", "name is '../../elsewhere', must be 1 to 100 printable characters without a slash"),
        ('name: "a\\nb"', "name is"),
        ("name: ''", "name is ''"),
        ("name: 2001-01-01", "name: is a date"),
        ("camera_features: !!set {surf}", "camera_features: is a set"),
        ("camera_features: !!binary aGk=", "camera_features: is a bytes"),
        ("1: 2", "a field is called '1'"),
        ("length: {a: 1}", "length"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_with_field_and_value(tmp_path, line, said):
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: mme\n{line}\n")
    with pytest.raises(RecipeError, match=re.escape(said)) as error:
        load_recipe(str(file))
    assert "mine.yaml" in str(error.value)


def test_recipes_extend_shipped_ones_and_files_beside_them(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    file, other = folder / "a.yaml", folder / "b.yaml"
    other.write_text("extends: mme\nlength: 9\n")
    for parent in ("b.yaml", "./b.yaml", str(other), "../mine/b.yaml"):
        file.write_text(f"extends: {parent}\nname: a\n")
        assert load_recipe(str(file)).length == 9
        monkeypatch.chdir(tmp_path)
        assert load_recipe("mine/a.yaml").length == 9
    (tmp_path / "c.yaml").write_text("extends: mme\n")
    (folder / "linked.yaml").symlink_to("../c.yaml")
    for parent in ("../c.yaml", str(tmp_path / "c.yaml"), "linked.yaml", "/etc/x.yaml"):
        file.write_text(f"extends: {parent}\nname: a\n")
        with pytest.raises(RecipeError, match=rf"a\.yaml: extends {parent}, which is not in its own folder"):
            load_recipe(str(file))
    for parent in ("[mme]", "{a: 1}", "''", "'x/y\\0'", "7"):
        file.write_text(f"extends: {parent}\nname: a\n")
        with pytest.raises(RecipeError, match=r"a\.yaml: .*(extends is|not YAML)|recipe .*: unknown"):
            load_recipe(str(file))


def test_circles_and_endless_chains_of_recipes_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: ./b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: ././a.yaml\n")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(str(tmp_path / "a.yaml"))
    for n in range(40):
        (tmp_path / f"{n}.yaml").write_text(f"extends: {n + 1}.yaml\n")
    with pytest.raises(RecipeError, match="more than 16 recipes extend one another"):
        load_recipe(str(tmp_path / "0.yaml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a/b\nlists: {train: t}\n", "name is 'a/b'"),
        ("name: x\nlists: {train: t}\nstart_stride: 1000000000\n", "start_stride is 1000000000"),
        ("name: x\nlists: {train: t}\nlists: {train: u}\n", "'lists' comes twice"),
        ("name: x\nlists: {1: t}\n", "lists: has the key '1'"),
        ("name: x\nlists: [t]\n", "lists"),
    ],
)  # fmt: skip
def test_specs_are_held_to_the_same(tmp_path, text, said):
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(DatasetError, match=re.escape(said)):
        load_spec(str(tmp_path / "spec.yaml"))


def test_a_spec_s_paths_with_nul_are_refused(tmp_path):
    (tmp_path / "spec.yaml").write_text('name: x\nlists: {train: "a\\0b"}\n')
    with pytest.raises(DatasetError, match="cannot be read"):
        load_videos(str(tmp_path / "spec.yaml"), str(tmp_path))
    (tmp_path / "spec.yaml").write_text('name: x\nlists: {train: a}\nroot: "/\\0"\n')
    with pytest.raises(DatasetError, match="is not a folder"):
        load_videos(str(tmp_path / "spec.yaml"))
