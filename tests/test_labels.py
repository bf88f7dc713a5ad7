"""Labels of the data sets, in the formats in which they are published and in VideoMAE's."""

import json
import re

import pytest

from data_specs import demo_clips
from data_specs.class_names import parse_class_names
from data_specs.dataset import DatasetError, DatasetSpec, list_digest, load_videos, parse_list
from data_specs.labels import load_labelled


def labelled(dataset, root, **options):
    found = load_labelled(dataset, str(root), **options)
    assert found.labels.dtype == "int64"
    return dict(zip([e.path for e in found.videos.entries], found.labels.tolist(), strict=True)), found.classes


def refused(dataset, root, **options):
    with pytest.raises(DatasetError) as error:
        load_labelled(dataset, str(root), **options)
    return str(error.value)


def test_numbers_of_videomae_s_lists_are_classes_in_the_order_of_numbers(tmp_path):
    (tmp_path / "train.csv").write_text("a b.mp4 10\nc.mp4, 2\nd.mp4\t007\ne.mp4 10\n")
    (tmp_path / "val.csv").write_text("x.mp4 10\ny.mp4 7\n")
    expected = {"a b.mp4": 2, "c.mp4": 0, "d.mp4": 1, "e.mp4": 2}, ("2", "7", "10")
    assert labelled("k400", tmp_path) == expected
    # alone, the validation list would call 7 the class 0
    assert labelled("k400", tmp_path, split="val") == ({"x.mp4": 2, "y.mp4": 1}, ("2", "7", "10"))
    assert labelled(str(tmp_path / "train.csv"), tmp_path) == expected
    classes = tuple(str(number) for number in range(400))
    assert labelled("k400", tmp_path, split="val", classes=classes)[0] == {"x.mp4": 10, "y.mp4": 7}


def test_a_list_s_digest_does_not_know_of_labels(tmp_path):
    """The digest of stores made before there were labels, from the definition of it."""
    (tmp_path / "train.csv").write_text("a b.mp4 10\nc.mp4 2\n")
    digest = load_videos("k400", str(tmp_path)).digest
    assert digest == list_digest([("a b.mp4", "a b.mp4"), ("c.mp4", "c.mp4")])
    assert digest == "65a3351dc75fbb8c5b1113edb024d52a01a43f6009ff9efbf97cd5d1ce65fc8a"  # sha256sum's


def test_the_official_lists_of_kinetics(tmp_path):
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    (tmp_path / "train.csv").write_text(
        f'{header}zumba,0123456789A,7,17,train,0\n"abseiling",-bcdefghijk,120,130,train,1\n'
    )
    (tmp_path / "validate.csv").write_text(f"{header}zumba,xyzxyzxyzxy,7,17,validate,0\n")
    assert labelled("k400", tmp_path) == (
        {"zumba/0123456789A_000007_000017.mp4": 1, "abseiling/-bcdefghijk_000120_000130.mp4": 0},
        ("abseiling", "zumba"),
    )
    validate = str(tmp_path / "validate.csv")
    assert labelled("k400", tmp_path, split="val", list_file=validate)[0] == {"zumba/xyzxyzxyzxy_000007_000017.mp4": 1}
    # the official test list has no labels
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\nabcdefghijk,7,17,test\n")
    said = refused("k400", tmp_path, split="test")
    assert "path_template" in said
    assert "'label'" in said


def test_a_class_file_numbers_names_and_names_numbers(tmp_path):
    (tmp_path / "classes.txt").write_text("zumba\nabseiling\n")
    (tmp_path / "train.csv").write_text("path,label\na.mp4,abseiling\nb.mp4,zumba\n")
    (tmp_path / "val.csv").write_text("c.mp4 1\nd.mp4 0\n")
    assert labelled("k400", tmp_path) == ({"a.mp4": 1, "b.mp4": 0}, ("zumba", "abseiling"))
    assert labelled("k400", tmp_path, split="val") == ({"c.mp4": 1, "d.mp4": 0}, ("zumba", "abseiling"))
    # a model that was trained with the names in another order keeps its own
    assert labelled("k400", tmp_path, split="val", classes=("abseiling", "zumba"))[0] == {"c.mp4": 0, "d.mp4": 1}
    (tmp_path / "classes.txt").unlink()
    said = refused("k400", tmp_path, split="val", classes=("abseiling", "zumba"))
    assert "line 1: 'c.mp4' has the label '1', which is none of the 2 classes: 'abseiling', 'zumba'" in said


SSV2 = [
    {"id": "78687", "label": "holding potato next to bottle", "template": "Holding [something] next to [something]",
     "placeholders": ["potato", "bottle"]},
    {"id": "42326", "label": "spreading margarine", "template": "Spreading [something] onto [something]",
     "placeholders": []},
    {"id": 7, "label": "", "template": "Holding [something] next to [something]", "placeholders": ["a", "b"]},
]  # fmt: skip


@pytest.mark.parametrize("indent", [None, 1])
def test_the_official_lists_of_something_something(tmp_path, indent):
    (tmp_path / "labels.json").write_text(
        '{"Spreading something onto something":"0", "Holding something next to something":"1"}'
    )
    file = tmp_path / "train.json"
    file.write_text(json.dumps(SSV2, indent=indent))
    found, classes = labelled("ssv2", tmp_path, list_file=str(file))
    assert found == {"78687.webm": 1, "42326.webm": 0, "7.webm": 1}
    assert classes == ("Spreading something onto something", "Holding something next to something")
    # VideoMAE's lists have labels.json's numbers
    (tmp_path / "val.csv").write_text("78687.mp4 1\n42326.mp4 0\n")
    assert labelled("ssv2", tmp_path, split="val") == ({"78687.mp4": 1, "42326.mp4": 0}, classes)
    (tmp_path / "test.json").write_text('[{"id": "1"}, {"id": "2"}]')
    said = refused("ssv2", tmp_path, list_file=str(tmp_path / "test.json"))
    assert "2 problem(s)" in said
    assert "video 2: '2.webm' has no label; lists with labels have a column template" in said
    (tmp_path / "labels.json").unlink()
    assert labelled("ssv2", tmp_path, list_file=str(file))[1] == tuple(reversed(classes))


def test_ucf101_has_labels_in_its_folders(tmp_path):
    (tmp_path / "trainlist02.txt").write_text("Punch/v_Punch_g08_c01.avi 70\r\nArchery/v_Archery_g08_c01.avi 3\r\n")
    (tmp_path / "testlist02.txt").write_text("Punch/v_Punch_g01_c01.avi\r\n")
    test = {"Punch/v_Punch_g01_c01.avi": 1}
    assert labelled("ucf101", tmp_path, split="train2")[0] == {
        "Punch/v_Punch_g08_c01.avi": 1, "Archery/v_Archery_g08_c01.avi": 0,
    }  # fmt: skip
    assert labelled("ucf101", tmp_path, split="test2") == (test, ("Archery", "Punch"))
    (tmp_path / "testlist02.txt").write_text("Skiing/v_Skiing_g01_c01.avi\nv_Punch_g01_c01.avi\n")
    said = refused("ucf101", tmp_path, split="test2")
    assert "line 2: 'v_Punch_g01_c01.avi' is in no folder" in said
    (tmp_path / "testlist02.txt").write_text("Skiing/v_Skiing_g01_c01.avi\n")
    assert "line 1: 'Skiing/v_Skiing_g01_c01.avi' has the label 'Skiing', which is none" in refused(
        "ucf101", tmp_path, split="test2"
    )
    (tmp_path / "classInd.txt").write_text("1 Punch\n2 Archery\n3 Skiing\n")
    assert labelled("ucf101", tmp_path, split="test2")[0] == {"Skiing/v_Skiing_g01_c01.avi": 2}


def test_hmdb51_is_read_as_it_is_published(tmp_path):
    folder = tmp_path / "testTrainMulti_7030_splits"
    folder.mkdir()
    (folder / "brush_hair_test_split1.txt").write_text("a b [1].avi 1 \n#20_x.avi 2 \nnone.avi 0 \n")
    (folder / "wave_test_split1.txt").write_text("w.avi 2\nv.avi 1\n")
    (folder / "wave_test_split2.txt").write_text("other.avi 1\n")
    train = {"brush_hair/a b [1].avi": 0, "wave/v.avi": 1}
    assert labelled("hmdb51", tmp_path, split="train1") == (train, ("brush_hair", "wave"))
    test = {"brush_hair/#20_x.avi": 0, "wave/w.avi": 1}
    assert labelled("hmdb51", tmp_path, split="test1")[0] == test
    pattern = str(folder / "*_test_split1.txt:2")
    assert labelled("hmdb51", tmp_path, split="test1", list_file=pattern)[0] == test
    (tmp_path / "train.csv").write_text("wave/v.avi 0\nbrush_hair/a.avi 1\n")  # numbers of the list's maker
    assert labelled("hmdb51", tmp_path)[0] == {"wave/v.avi": 1, "brush_hair/a.avi": 0}
    (folder / "wave_test_split1.txt").write_text("w.avi\n\n../../x.avi 2\n")
    said = refused("hmdb51", tmp_path, split="test1")
    assert "wave_test_split1.txt line 1: no mark after the video: 'w.avi'" in said
    assert "wave_test_split1.txt line 3: 'wave/../../x.avi' is not below the root" in said
    assert "have no video with the mark 2" in refused("hmdb51", tmp_path, split="test2")
    assert "has no file *_test_split3.txt" in refused("hmdb51", tmp_path, split="train3")
    (tmp_path / "empty").mkdir()
    assert "the folder cannot be read" in refused("hmdb51", tmp_path / "empty", split="train1")


def test_the_demo_has_labels(tmp_path, monkeypatch):
    """Its list is written as ever, its videos are not: rendering takes seconds."""
    monkeypatch.setattr(demo_clips, "write_clip", lambda path, scene, frames: path.touch())
    found, classes = labelled("demo", tmp_path / "demo")
    assert list(found.values()) == [0, 1, 2, 3, 4]
    assert classes == ("0", "1", "2", "3", "4")


def test_what_has_no_label_is_refused_with_its_line(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("path,label\na.mp4,x\nb.mp4,\nc.mp4,-1\nd.mp4,a\tb\n")
    said = refused(str(file), tmp_path)
    assert "the train list of list: 3 problem(s)\n  line 3: 'b.mp4' has no label; lists with labels have" in said
    assert "line 4: the label '-1' of 'c.mp4' stands for no class; leave the video out" in said
    assert "line 5: the label 'a\\tb' of 'd.mp4' holds the character '\\t'" in said
    file.write_text("a.mp4\nb.mp4\n")
    assert "a spec says label_from: folder" in refused(str(file), tmp_path)
    file.write_text("a.mp4 1\nb.mp4 2\n")
    assert "named twice" in refused(str(file), tmp_path, classes=("1", "1"))
    said = refused(str(file), tmp_path, classes=[str(n) for n in range(2, 9)])
    assert "line 1: 'a.mp4' has the label '1', which is none of the 7 classes: '2', '3', '4', '5', '6', …" in said


def test_the_line_without_a_label_is_named_and_not_all_the_others(tmp_path):
    lines = [f"a/v{number}.mp4 {number % 3}" for number in range(40)]
    lines[30] = "a/x.mp4"
    (tmp_path / "train.csv").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=r"1 problem\(s\)\n  line 31: 'a/x.mp4' has no label after the path"):
        load_labelled("k400", str(tmp_path))


def test_a_split_without_its_training_list_says_what_it_needs(tmp_path):
    (tmp_path / "val.csv").write_text("a.mp4 1\n")
    said = refused("k400", tmp_path, split="val")
    assert "its classes are those of the training list, which cannot be had" in said
    assert str(tmp_path / "train.csv") in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no class"),
        ("{}", "names no class"),
        ('{"a": 0, "b": 0}', "entry 2: the number 0 is already that of 'a'"),
        ('{"a": 0, "b": [1]}', "entry 2: the class 'b' must have a number from 0 on, has a list"),
        ('{"a": "-1"}', "has '-1'"),
        ('{"a": 0, "b": 2}', "none has the number 1"),
        ('{"a": 5}', "the first has the number 5"),
        ('{"a": 0', "is not JSON"),
        ('{"\\ud800": 0}', "holds the character"),
        ("1 a\n2 a\n", "line 2: the class 'a' is already named"),
        ("a\nb\x00\n", "line 2: the class 'b\\x00' holds the character"),
        ('{"a": ' + "[" * 10**5 + "]" * 10**5 + "}", "nested too deeply"),
    ],
)
def test_class_files_are_held_to_what_they_are_for(text, said):
    with pytest.raises(DatasetError, match=re.escape(said)) as error:
        parse_class_names(text, "class file x")
    assert str(error.value).startswith("class file x: ")


def test_class_files_of_each_kind():
    assert parse_class_names("1 A b\n2\tC\n", "x").names == ("A b", "C")
    assert parse_class_names("2 B\r\n1 A\r\n", "x").named("1") == "A"
    assert parse_class_names("1 A\nB c\n", "x").names == ("1 A", "B c")  # not all are numbered: names
    found = parse_class_names('{"b": "1", "a": 0}', "x")
    assert (found.names, found.named("1"), found.named("2"), found.named("-1")) == (("a", "b"), "b", None, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"id": "../x"}]', "'../x.webm' is not below the root"),
        ('[{"id": "x"}, 3, {"no": 1}, {"id": ["x"]}]', "entry 2: is a int, not an object"),
        ('[{"id": "x"}, {"no": 1}]', "entry 2: path_template '{id}.webm' does not fit: no column 'id'"),
        ('[{"id": "x"}, {"id": "x"}]', "entry 2: 'x.webm' is already on entry 1"),
        ('[{"id": NaN}]', "is not JSON: NaN"),
        ('[{"id": "a\\u0000b"}]', "holds the character"),
        ('[{"id": 1},]', "is not JSON"),
        ('{"id": 1}', "must be a JSON list"),
        ("[]", "must be a JSON list"),
    ],
)
def test_json_lists_by_someone_who_means_harm(tmp_path, text, said):
    spec = DatasetSpec(name="x", lists={"train": "t"}, format="json", path_template="{id}.webm")
    with pytest.raises(DatasetError, match=re.escape(said)):
        parse_list(text, spec, "list x", tmp_path)


def test_json_lists_may_name_paths(tmp_path):
    spec = DatasetSpec(name="x", lists={"train": "t"}, id_column="id")
    entries = parse_list('\n [ {"video": "a/b.mp4", "id": 3, "class": "x"}]\n', spec, "list x", tmp_path)
    assert [(e.id, e.path, e.label, e.line) for e in entries] == [("3", "a/b.mp4", "x", None)]
    with pytest.raises(DatasetError, match="entry 1: has no id"):
        parse_list('[{"video": "a/b.mp4"}]', spec, "list x", tmp_path)
    with pytest.raises(DatasetError, match="entry 1: has no path"):
        parse_list('[{"id": "a"}]', spec, "list x", tmp_path)
    # a list of paths is one, also where they begin so
    odd = DatasetSpec(name="x", lists={"train": "t"})
    assert [e.path for e in parse_list("[{a}].mp4\nb.mp4\n", odd, "list x", tmp_path)] == ["[{a}].mp4", "b.mp4"]


def test_specs_with_a_template_take_other_lists_too(tmp_path):
    spec = DatasetSpec(name="k", lists={"train": "t"}, path_template="{label}/{id}.mp4")
    assert [e.path for e in parse_list("a, b.mp4\nlabel\n", spec, "list", tmp_path)] == ["a, b.mp4", "label"]
    assert [e.path for e in parse_list("path,label\nx.mp4,2\n", spec, "list", tmp_path)] == ["x.mp4"]
    assert [e.path for e in parse_list("a, b.mp4 1\nc.mp4 2\n", spec, "list", tmp_path)] == ["a, b.mp4", "c.mp4"]
    assert [e.path for e in parse_list("id,label\n1,2\n", spec, "list", tmp_path)] == ["2/1.mp4"]
    with pytest.raises(DatasetError, match="does not fit: no column 'id'"):
        parse_list("label,name\nx,y\n", spec, "list", tmp_path)
