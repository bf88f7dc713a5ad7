import dataclasses
import re
from pathlib import Path

import pytest

from data_specs.dataset import DatasetError, DatasetSpec, dataset_names, load_spec, load_videos, parse_list
from data_specs.recipe import load_recipe
from data_specs.track_store import StoreError, StoreInfo
from extraction.plan import store_info
from training.reading.store_fit import with_dataset_defaults
from training.recipe import load_recipe as training_recipe

ROOT = Path("/data/videos")
SPEC = DatasetSpec(name="x", lists={"train": "train.csv"})


def paths(text: str, spec: DatasetSpec = SPEC) -> list[str]:
    return [entry.path for entry in parse_list(text, spec, "list", ROOT)]


def test_the_shipped_specs_load():
    assert dataset_names() == ["demo", "hmdb51", "k400", "k700", "ssv2", "ucf101"]
    assert {name: load_spec(name).start_stride for name in dataset_names()} == {
        "demo": 4, "hmdb51": 4, "k400": 4, "k700": 4, "ssv2": 2, "ucf101": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b.mp4 17\nc d/e f.mp4 3\n\n", ["a/b.mp4", "c d/e f.mp4"]),  # VideoMAE's, with spaces in a path
        ("a/b.mp4,17\nc.mp4, 3\n", ["a/b.mp4", "c.mp4"]),
        ("a.mp4\t1\nb x.mp4\t 2\n", ["a.mp4", "b x.mp4"]),
        ("a.mp4\nb 2.mp4\n", ["a.mp4", "b 2.mp4"]),  # one path per line
        ("ApplyEyeMakeup/v_x_g01_c01.avi\r\nb.avi\r\n", ["ApplyEyeMakeup/v_x_g01_c01.avi", "b.avi"]),
        ("label,path,split\n7,a/b.mp4,train\n3,c.mp4,val\n", ["a/b.mp4", "c.mp4"]),
        ('Path,label\n"a, b.mp4",3\n', ["a, b.mp4"]),
        ("/data/videos/a/b.mp4 0\n", ["a/b.mp4"]),  # absolute below the root
        ("./a//b.mp4\n", ["a/b.mp4"]),
    ],
)
def test_list_formats(text, expected):
    assert paths(text) == expected


def test_a_template_makes_the_path_from_columns():
    spec = DatasetSpec(
        name="k", lists={"train": "t"}, path_template="{label}/{youtube_id}_{time_start:06d}_{time_end:06d}.mp4",
        id_column="youtube_id",
    )  # fmt: skip
    text = (
        "label,youtube_id,time_start,time_end,split\n"
        "arm wrestling,0123456789A,20,30,train\nzumba,00000000001,7,17,train\n"
    )
    entries = parse_list(text, spec, "list", ROOT)
    assert [e.path for e in entries] == [
        "arm wrestling/0123456789A_000020_000030.mp4",
        "zumba/00000000001_000007_000017.mp4",
    ]
    assert [e.id for e in entries] == ["0123456789A", "00000000001"]


def test_all_problems_of_a_list_are_reported_with_their_lines():
    text = "a.mp4\n../b.mp4\n/etc/passwd\nc.mp4\n\na.mp4\n"
    with pytest.raises(DatasetError) as error:
        paths(text)
    message = str(error.value)
    assert "3 problem(s)" in message
    assert "line 2: '../b.mp4' is not below the root /data/videos" in message
    assert "line 3: '/etc/passwd'" in message
    assert "line 6: 'a.mp4' is already on line 1" in message


@pytest.mark.parametrize(
    ("text", "spec", "problem"),
    [
        ("", SPEC, "is empty"),
        ("a.mp4\n", DatasetSpec(name="x", lists={"train": "t"}, format="path_label"), "line 1: no label"),
        ("x,y\n1,2\n", DatasetSpec(name="x", lists={"train": "t"}, format="csv"), "names no path column"),
        ("label,path\n1,a.mp4\n2\n", SPEC, "line 3: has not the 2 columns"),
        ("path\na.mp4\n", DatasetSpec(name="x", lists={"train": "t"}, id_column="key"), "no column key"),
    ],
)
def test_bad_lists_are_refused(text, spec, problem):
    with pytest.raises(DatasetError, match=re.escape(problem)):
        paths(text, spec)


def test_the_root_comes_from_the_option_then_the_environment(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 1\n")
    monkeypatch.delenv("K400_ROOT", raising=False)
    with pytest.raises(DatasetError, match="Give --root DIR or set K400_ROOT"):
        load_videos("k400")
    monkeypatch.setenv("K400_ROOT", str(tmp_path))
    assert [e.path for e in load_videos("k400").entries] == ["a.mp4", "b.mp4"]
    with pytest.raises(DatasetError, match="nowhere of data set k400 is not a folder"):
        load_videos("k400", root=str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match=r"val\.csv.*another one is given with --list"):
        load_videos("k400", split="val")
    with pytest.raises(DatasetError, match="has no split dev: it has train, val, test"):
        load_videos("k400", split="dev")


def test_an_unknown_data_set_names_the_known_ones():
    with pytest.raises(DatasetError, match=r"demo, hmdb51, k400.*nor a file"):
        load_videos("kinetics", root="/")


def test_spec_files_are_checked(tmp_path):
    file = tmp_path / "mine.yaml"
    for text, problem in [
        ("name: x\nlists: {train: t}\nstart_strid: 2\n", "start_strid"),
        ("name: x\nlists: {val: t}\n", "split train has no list"),
        ("name: x\nlists: {train: t}\nstart_stride: two\n", "start_stride"),
        ("name: x\nlists: {train: t}\npath_template: '{a.__class__}'\n", "may only name columns"),
        ("- a\n", "must be a mapping"),
        ("name: !!python/object/apply:os.system [true]\n", "not YAML"),
    ]:
        file.write_text(text)
        with pytest.raises(DatasetError, match=problem) as error:
            load_spec(str(file))
        assert str(file) in str(error.value)


def test_shards_share_out_the_list_and_the_digest_follows_order(tmp_path):
    (tmp_path / "l.txt").write_text("".join(f"{i}.mp4\n" for i in range(11)))
    videos = load_videos(str(tmp_path / "l.txt"), root=str(tmp_path))
    shards = [videos.shard(i, 3) for i in range(3)]
    assert [[e.index for e in s] for s in shards] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]
    (tmp_path / "r.txt").write_text("".join(f"{i}.mp4\n" for i in reversed(range(11))))
    assert load_videos(str(tmp_path / "r.txt"), root=str(tmp_path)).digest != videos.digest
    assert videos.limited(4).digest != videos.digest


def test_how_a_data_set_is_trained_on_goes_into_the_store_and_to_the_trainer(tmp_path):
    """A spec of one's own says it; a shipped name says it for stores that do not."""
    (tmp_path / "train.csv").write_text("a.mp4\n", encoding="utf-8")
    spec = tmp_path / "mine.yaml"
    spec.write_text("name: k400\nlists: {train: train.csv}\nclip_stride: 3\nflip: false\n", encoding="utf-8")
    recipe = load_recipe("mme").resolved(2)
    info = store_info(load_videos(str(spec), str(tmp_path)), recipe, 1)
    asked = training_recipe("mme")
    for read in (info, StoreInfo.from_json(info.to_json(), "store.json")):
        found = with_dataset_defaults(asked, read)
        assert (found.clip_stride, found.flip) == (3, False)
    assert with_dataset_defaults(dataclasses.replace(asked, flip=True, clip_stride=2), info).clip_stride == 2
    older = dataclasses.replace(info, dataset="ssv2", clip_stride=None, flip=None)
    assert "flip" not in older.to_json()["dataset"]
    found = with_dataset_defaults(asked, older)
    assert (found.clip_stride, found.flip) == (3, False)
    unknown = dataclasses.replace(older, dataset="other")
    assert with_dataset_defaults(asked, unknown).clip_stride == 4
    broken = info.to_json() | {"dataset": {"name": "k400", "split": "train", "clip_stride": "3"}}
    with pytest.raises(StoreError, match="'3' is not of type int"):
        StoreInfo.from_json(broken, "store.json")
