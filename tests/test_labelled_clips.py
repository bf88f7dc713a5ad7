"""Clips of labelled videos: order, pixels, labels, flips against rendered truth, and what cannot be read."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from videos import sliding_frames, write_video

from data_specs.clip_frames import ClipFrames
from data_specs.demo_clips import write_clip
from data_specs.frame_access import FrameAccess
from data_specs.labels import load_labelled
from data_specs.scene import Disc, Scene, Texture, moving, random_scene, still
from data_specs.video import VideoDecodeError
from data_specs.view import View
from training.finetuning.labelled_clips import LabelledClips
from training.finetuning.recipe import FinetuneRecipe
from training.finetuning.views import VideoViews, views_loader
from training.reading.clips import clip_loader

DISC = Disc(texture=Texture(1, contrast=0, brightness=230), centre=(40, 50), radius=9, motion=moving((2.5, -0.75)))
MOVING = Scene(size=(90, 130), background=Texture(2, contrast=0, brightness=20), camera=still, discs=(DISC,))
SIZES = {"moving.avi": (90, 130), "tall.avi": (100, 72), "wide.avi": (64, 150), "short.avi": (80, 96)}
FRAMES = {"moving.avi": 20, "tall.avi": 33, "wide.avi": 41, "short.avi": 5}
RECIPE = FinetuneRecipe(name="test", frames=6, clip_stride=2, input_size=64, clips_per_video=2, batch_size=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_clip(folder / "moving.avi", MOVING, FRAMES["moving.avi"])
    for number, name in enumerate(["tall.avi", "wide.avi", "short.avi"]):
        write_clip(folder / name, random_scene(number, 1.5, SIZES[name]), FRAMES[name])
    (folder / "train.csv").write_text("moving.avi 7\ntall.avi 2\nwide.avi 7\nshort.avi 11\n")
    (folder / "bad.csv").write_text("gone.avi 2\nmoving.avi 7\ntext.avi 2\nshort.avi 11\n")
    (folder / "text.avi").write_text("no video")
    return folder


LABELS = {"moving.avi": 1, "tall.avi": 0, "wide.avi": 1, "short.avi": 2}  # of the classes 2, 7, 11


def clips_of(root, recipe=RECIPE, file="train.csv", **options):
    labelled = load_labelled("k400", str(root), list_file=str(root / file))
    return LabelledClips(labelled, recipe, **options)


def all_frames(root, name):
    with ClipFrames(root / name, source_size=SIZES[name], num_frames=FRAMES[name]) as opened:
        height, width = SIZES[name]
        return opened.read(range(FRAMES[name]), View(top=0, left=0, height=height, width=width, size=SIZES[name]))


def same(a, b):
    tensors = [key for key in a if isinstance(a[key], torch.Tensor)]
    others_match = a["clip"] == b["clip"] and a["skipped"] == b["skipped"]
    return others_match and all(torch.equal(a[key], b[key]) for key in tensors)


def test_clips_are_those_that_a_store_s_video_gives(root):
    """Frames, label, and that nothing but the order in the stream says which video it is."""
    dataset = clips_of(root)
    assert dataset.clips_per_epoch == 8
    batch = dataset.read_batch(range(8))
    assert batch["frames"].shape == (8, 6, 64, 64, 3)
    assert (batch["frames"].dtype, batch["label"].dtype) == (torch.uint8, torch.int64)
    assert batch["label"].tolist() == [LABELS[clip.id] for clip in batch["clip"]]
    assert sorted((clip.id, clip.repeat) for clip in batch["clip"]) == sorted(itertools.product(SIZES, range(2)))
    for clip, frames in zip(batch["clip"], batch["frames"].numpy(), strict=True):
        with ClipFrames(root / clip.id, source_size=SIZES[clip.id], num_frames=FRAMES[clip.id]) as opened:
            np.testing.assert_array_equal(frames, opened.read(clip.times, clip.view))
    short = [clip.times for clip in batch["clip"] if clip.id == "short.avi"]
    assert short == [(0, 2, 4, 4, 4, 4)] * 2
    of_wide = [clip for clip in batch["clip"] if clip.id == "wide.avi"]
    assert of_wide[0].times != of_wide[1].times
    assert of_wide[0].view != of_wide[1].view, "each of a video's clips is drawn for itself"


AUGMENTED = dataclasses.replace(RECIPE, rand_augment="rand-m9-mstd0.5-inc1", frame_order="shuffled")


def test_one_position_gives_one_clip_whatever_workers_ranks_and_batches(root):
    dataset = clips_of(root, AUGMENTED, seed=4)
    alone = [dataset[position] for position in range(16)]

    def check(first, **options):
        batch_size = options["batch_size"]
        for number, batch in enumerate(itertools.islice(clip_loader(clips_of(root, AUGMENTED, seed=4), **options), 2)):
            begin = first + number * batch_size * options.get("world_size", 1)
            for b, position in enumerate(range(begin, begin + batch_size)):
                assert batch["clip"][b] == alone[position]["clip"][0]
                assert torch.equal(batch["frames"][b], alone[position]["frames"][0])
                assert batch["label"][b] == alone[position]["label"][0]

    check(0, batch_size=8)
    check(0, batch_size=4, workers=2)
    check(4 + 2, batch_size=2, rank=1, world_size=2, position=4)
    assert not same(alone[0], clips_of(root, AUGMENTED, seed=5)[0])
    assert not torch.equal(alone[0]["frames"], clips_of(root, RECIPE, seed=4)[0]["frames"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_s_frames_are_counted_once_by_all_workers_together(tmp_path, monkeypatch, workers):
    """An AVI of MPEG-4 part 2, as UCF101's and HMDB51's, is decoded to its end to know how long it is."""
    for name, count in (("a.avi", 20), ("b.avi", 31)):
        write_video(tmp_path / name, sliding_frames(count, 48, 80), "mpeg4", "yuv420p", {"g": "12", "bf": "2"})
    (tmp_path / "train.csv").write_text("a.avi 7\nb.avi 2\n")
    dataset, alone = clips_of(tmp_path), clips_of(tmp_path)
    second_epoch = alone.read_batch(range(4, 8))
    list(itertools.islice(clip_loader(dataset, batch_size=4, workers=workers), 1))

    def again(access):
        raise AssertionError("counted again")

    monkeypatch.setattr(FrameAccess, "_count_all", again)
    assert same(dataset.read_batch(range(4, 8)), second_epoch)
    assert {clip.id for clip in second_epoch["clip"]} == {"a.avi", "b.avi"}


def centroids(frames):
    """Centres (T, 2) of the bright spot, x and y in pixels."""
    bright = np.maximum(frames.astype(float).mean(-1) - 60, 0)
    y, x = np.mgrid[: bright.shape[1], : bright.shape[2]]
    return np.stack([(bright * x).sum((1, 2)), (bright * y).sum((1, 2))], axis=-1) / bright.sum((1, 2))[:, None]


def test_flips_and_crops_move_things_as_they_say(root):
    """The disc's centre in each frame of clips that show all of it, against the rendered scene's truth."""
    recipe = dataclasses.replace(RECIPE, crop_area=(0.5, 1.0), flip=True)
    dataset, seen = clips_of(root, recipe), set()
    truth, _ = MOVING.track(np.array([DISC.centre], float), 0, FRAMES["moving.avi"] - 1)
    for position in range(120):
        if dataset.labelled.videos.entries[dataset.stream[position].video].id != "moving.avi":
            continue
        sample = dataset[position]
        clip = sample["clip"][0]
        at = truth[0, list(clip.times)]
        shown = clip.view.to_view(at)
        reach = 11 * max(clip.view.scale)
        if not ((shown > reach) & (shown < 63 - reach)).all():
            continue
        found = centroids(sample["frames"][0].numpy())
        np.testing.assert_allclose(found, shown, atol=0.25)
        assert (np.sign(found[-1] - found[0]) == [-1 if clip.view.flip else 1, -1]).all()
        seen.add(clip.view.flip)
    assert seen == {False, True}
    ssv2 = dataclasses.replace(dataset.labelled.videos, flip=False, clip_stride=3)
    other = LabelledClips(dataclasses.replace(dataset.labelled, videos=ssv2), dataclasses.replace(recipe, flip=None))
    assert (other.recipe.flip, other.recipe.clip_stride) == (False, 2)
    assert not any(clip.view.flip for clip in other.read_batch(range(64))["clip"])


def test_segments_and_controls_of_the_order(root):
    recipe = FinetuneRecipe(name="test", frames=6, sampling="segment", input_size=64)
    clips = clips_of(root, recipe).read_batch(range(4))["clip"]
    for clip in clips:
        parts = [time * 6 // FRAMES[clip.id] for time in clip.times]
        assert clip.id == "short.avi" or [abs(p - k) <= 1 for k, p in enumerate(parts)] == [True] * 6
        assert list(clip.times) == sorted(clip.times)
    given, shuffled, single = (
        clips_of(root, dataclasses.replace(RECIPE, frame_order=order)).read_batch(range(8))
        for order in ("given", "shuffled", "single")
    )
    for a, b, c in zip(given["clip"], shuffled["clip"], single["clip"], strict=True):
        assert sorted(a.times) == sorted(b.times)
        assert set(c.times) <= set(a.times)
        assert len(set(c.times)) == 1
    assert [clip.times for clip in given["clip"]] != [clip.times for clip in shuffled["clip"]]
    assert (single["frames"] == single["frames"][:, :1]).all()


def test_what_cannot_be_read_is_left_out_and_named(root):
    dataset = clips_of(root, file="bad.csv")
    batch = dataset.read_batch(range(8))
    assert sorted({clip.id for clip in batch["clip"]}) == ["moving.avi", "short.avi"]
    assert batch["frames"].shape[0] == batch["label"].shape[0] == len(batch["clip"]) == 4
    assert all((frames.float().std() > 1) for frames in batch["frames"])
    reasons = {skipped.id: skipped.reason for skipped in batch["skipped"]}
    assert len(batch["skipped"]) == 4
    assert "VideoOpenError" in reasons["gone.avi"]
    assert "no such file" in reasons["gone.avi"]
    assert "cannot be opened as a video" in reasons["text.avi"]
    gone = [p for p in range(8) if dataset.labelled.videos.entries[dataset.stream[p].video].id == "gone.avi"]
    assert sorted(dataset.read_batch(gone)) == ["clip", "skipped"]


def test_a_clip_is_not_lost_for_another_s_damage(tmp_path, monkeypatch):
    """Two clips of one video, of which one shows a frame that cannot be decoded: each is as it would be alone."""
    write_video(tmp_path / "v.mkv", sliding_frames(40, 72, 96))
    (tmp_path / "train.csv").write_text("v.mkv 0\n")
    recipe = dataclasses.replace(RECIPE, clips_per_video=6, batch_size=6)
    dataset = clips_of(tmp_path, recipe)
    whole = dataset.read_batch(range(6))
    read_clips = ClipFrames.read_clips

    def damaged(self, clips, out=None):
        if any(35 in times for times, _ in clips):
            raise VideoDecodeError(self.path, "frame 35 is damaged")
        return read_clips(self, clips, out)

    monkeypatch.setattr(ClipFrames, "read_clips", damaged)
    batch = dataset.read_batch(range(6))
    kept = [b for b, clip in enumerate(whole["clip"]) if 35 not in clip.times]
    assert 0 < len(kept) < 6
    assert batch["clip"] == [whole["clip"][b] for b in kept]
    assert torch.equal(batch["frames"], whole["frames"][kept])
    assert len(batch["skipped"]) == 6 - len(kept)


def test_links_lead_out_of_the_root_only_where_allowed(root, tmp_path):
    (tmp_path / "moving.avi").symlink_to(root / "moving.avi")
    (tmp_path / "train.csv").write_text("moving.avi 0\n")
    assert "symbolic link" in clips_of(tmp_path)[0]["skipped"][0].reason
    assert clips_of(tmp_path, follow_links=True)[0]["skipped"] == []


def views_of(root, recipe=RECIPE, file="train.csv", **options):
    return VideoViews(load_labelled("k400", str(root), list_file=str(root / file)), recipe, **options)


def test_the_views_of_a_test(root):
    """Clip by clip; the three crops of a frame as high as the view are its beginning, middle and end."""
    views = views_of(root, clips=2, crops=3)
    assert len(views) == 4
    wide = views[2]
    assert (wide["id"], wide["label"], wide["index"]) == ("wide.avi", 1, 2)
    assert wide["frames"].shape == (6, 6, 64, 64, 3)
    frames = all_frames(root, "wide.avi")  # 64 x 150: shown without being resized
    for clip, times in enumerate([[0, 2, 4, 6, 8, 10], [30, 32, 34, 36, 38, 40]]):
        for crop, left in enumerate([0, 43, 86]):
            np.testing.assert_array_equal(wide["frames"][3 * clip + crop], frames[times, :, left : left + 64])
    tall = views_of(root, clips=1, crops=2)[1]["frames"]
    assert tall.shape == (2, 6, 64, 64, 3)
    assert (views.clips, views.crops) == (2, 3)
    assert (views_of(root).clips, views_of(root).crops) == (5, 3)
    with pytest.raises(ValueError, match="crops is 0"):
        views_of(root, crops=0)


def test_views_do_not_depend_on_the_training_s_augmentation(root):
    plain, augmented = (
        views_of(root, r, clips=2)[0]["frames"] for r in (RECIPE, dataclasses.replace(AUGMENTED, frame_order="given"))
    )
    assert torch.equal(plain, augmented)
    for order in ("shuffled", "single"):
        recipe = dataclasses.replace(RECIPE, frame_order=order)
        one, again = (views_of(root, recipe, clips=2)[0]["frames"] for _ in range(2))
        assert torch.equal(one, again)
        assert not torch.equal(one, plain)


def test_ranks_and_workers_read_every_video_once_in_order(root):
    views = views_of(root, file="bad.csv", clips=1, crops=1)
    alone = [views[v] for v in range(4)]
    assert [("skipped" in video, "frames" in video) for video in alone] == [(True, False), (False, True)] * 2
    assert [video["skipped"].id for video in alone[::2]] == ["gone.avi", "text.avi"]
    for workers, world_size in ((0, 1), (0, 3), (1, 1)):
        for rank in range(world_size):
            found = list(views_loader(views, rank=rank, world_size=world_size, workers=workers))
            assert [video["index"] for video in found] == list(range(rank, 4, world_size))
            for video in found:
                expected = alone[video["index"]]
                assert video.keys() == expected.keys()
                assert video.get("skipped") == expected.get("skipped")
                assert "frames" not in video or torch.equal(video["frames"], expected["frames"])
    with pytest.raises(ValueError, match="rank is 2"):
        views_loader(views, rank=2, world_size=2)
