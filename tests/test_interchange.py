"""Weights from and for others. The oracle is transformers; VideoMAE's names are written out by hand here."""

import argparse
import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_vit import SMALL

from training.interchange import InterchangeError, export_huggingface, export_videomae, load_encoder
from training.model import MaskedVideoModel, ModelConfig, VideoEncoder, sinusoid_table

# 2 x 3 x 3 tokens; transformers' frames are square
FRAMES, SIDE, TOKENS, HIDDEN_TOKENS = 4, 48, 18, 11
CONFIG = ModelConfig(
    size=SMALL,
    heads={"pixels": 1536},
    frames=FRAMES,
    input_size=(SIDE, SIDE),
    decoder_depth=2,
    norm_eps=1e-12,
    decoder_norm_eps=1e-5,  # as transformers has them
)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def randomise(model, seed):
    """Weights that are all different from 0 and from one another, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def ours(seed=5, **changes):
    torch.manual_seed(seed)
    return randomise(MaskedVideoModel(dataclasses.replace(CONFIG, **changes)), seed)


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers", reason="the oracle of these tests, in the extra `dev`")


@pytest.fixture(scope="session")
def pretraining(transformers):
    """transformers' whole model with random weights."""
    config = transformers.VideoMAEConfig(
        image_size=SIDE, num_frames=FRAMES, hidden_size=60, num_hidden_layers=3, num_attention_heads=5,
        intermediate_size=240, decoder_hidden_size=28, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=112, use_mean_pooling=False,
    )  # fmt: skip
    torch.manual_seed(7)
    return randomise(transformers.VideoMAEForPreTraining(config), 7)


@pytest.fixture(scope="session")
def folder(pretraining, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    pretraining.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def encoder_folder(pretraining, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf-encoder")
    pretraining.videomae.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def batch():
    """(B, C, T, H, W), the visible tokens, the others, and the mask that says the same."""
    generator = torch.Generator().manual_seed(11)
    video = torch.randn((3, 3, FRAMES, SIDE, SIDE), generator=generator)
    order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(3)])
    hidden, visible = order[:, :HIDDEN_TOKENS].sort().values, order[:, HIDDEN_TOKENS:].sort().values
    mask = torch.zeros((3, TOKENS), dtype=torch.bool).scatter_(1, hidden, True)
    return video, visible, hidden, mask


def features(model, batch):
    """transformers' features of all tokens and of the visible ones; its frames are (B, T, C, H, W)."""
    frames = batch[0].transpose(1, 2)
    with torch.no_grad():
        return model(frames).last_hidden_state, model(frames, bool_masked_pos=batch[3]).last_hidden_state


def assert_same_features(encoder, expected, batch):
    with torch.no_grad():
        torch.testing.assert_close(encoder(batch[0]), expected[0], **TOLERANCE)
        torch.testing.assert_close(encoder(batch[0], batch[1]), expected[1], **TOLERANCE)


def assert_all_found(info):
    """transformers took every weight; older releases name the biases that they know by another name."""
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert all(name.endswith(("query.bias", "value.bias", "q_bias", "v_bias")) for name in info["unexpected_keys"])


def test_a_pretraining_folder_gives_the_same_predictions(pretraining, folder, batch):
    model = ours()
    report = load_encoder(model, folder)
    assert report.fresh == report.skipped == report.notes == ()
    video, visible, hidden, mask = batch
    with torch.no_grad():
        expected = pretraining(video.transpose(1, 2), bool_masked_pos=mask)
        torch.testing.assert_close(model(video, visible, hidden)["pixels"], expected.logits, **TOLERANCE)
    assert_same_features(model.encoder, features(pretraining.videomae, batch), batch)
    # and the loss that transformers finds is that of our order of pixels: frame, row, column, colour
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    picture = (video * std + mean).numpy()
    squares = []
    for b in range(3):
        for token in hidden[b].tolist():
            t, h, w = np.unravel_index(token, (2, 3, 3))
            cube = picture[b][:, 2 * t : 2 * t + 2, 16 * h : 16 * h + 16, 16 * w : 16 * w + 16]
            values = np.stack(
                [(c - c.mean()) / (c.std(ddof=1) + 1e-6) for c in cube], axis=-1
            )  # (frame, row, column, C)
            squares.append((expected.logits[b, hidden[b].tolist().index(token)].numpy() - values.reshape(-1)) ** 2)
    assert np.mean(squares) == pytest.approx(expected.loss.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["whole model", "encoder"])
def test_an_encoder_folder_gives_the_same_features(kind, pretraining, encoder_folder, batch):
    model = ours(seed=8)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    report = load_encoder(model if kind == "whole model" else model.encoder, encoder_folder)
    assert_same_features(model.encoder, features(pretraining.videomae, batch), batch)
    untouched = {name for name, t in model.state_dict().items() if torch.equal(t, before[name])}
    assert untouched == {name for name in before if not name.startswith("encoder.")}
    if kind == "whole model":
        assert "decoder.head.weight" in report.fresh and "mask_token" in report.fresh
        assert report.notes == ("decoder as it was: it has no decoder.blocks.0.attn.proj.bias",)
    else:
        assert report.fresh == report.notes == ()


def test_bin_files_and_both_names_of_the_biases_are_read(pretraining, encoder_folder, tmp_path, batch):
    expected = features(pretraining.videomae, batch)
    state = pretraining.videomae.state_dict()
    published = {n.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): t for n, t in state.items()}
    recent = {n.replace("q_bias", "query.bias").replace("v_bias", "value.bias"): t for n, t in state.items()}
    assert "encoder.layer.1.attention.attention.q_bias" in published.keys() - recent.keys()
    for number, weights in enumerate((recent, published, recent | published)):
        path = tmp_path / str(number)
        path.mkdir()
        (path / "config.json").write_text((encoder_folder / "config.json").read_text())
        torch.save(weights, path / "pytorch_model.bin")
        encoder = VideoEncoder(CONFIG)
        load_encoder(encoder, path)
        assert_same_features(encoder, expected, batch)


def test_a_decoder_that_does_not_fit_stays_fresh(folder):
    for changes, reason in [
        ({"decoder_depth": 1}, "decoder.blocks.1.attn.proj.bias has no place"),
        ({"decoder_depth": 3}, "it has no decoder.blocks.2.attn.proj.bias"),
    ]:
        model = ours(**changes)
        before = model.decoders["joint"].blocks[0].mlp.fc1.weight.clone()
        report = load_encoder(model, folder)
        assert report.notes == (f"decoder as it was: {reason}",) and "encoder.norm.weight" in report.loaded
        assert torch.equal(before, model.decoders["joint"].blocks[0].mlp.fc1.weight)
    model = ours(heads={"displacement": 12})
    report = load_encoder(model, folder)
    assert {"decoder.norm.bias", "heads.displacement.weight", "mask_token"} <= set(report.fresh)
    assert "as they were: decoder.blocks" in str(report) and "not used: decoder.blocks" in str(report)


def test_a_separate_decoder_of_pixels_is_loaded(pretraining, folder, batch):
    model = ours(decoder="separate", heads={"displacement": 12, "pixels": 1536})
    load_encoder(model, folder)
    video, visible, hidden, mask = batch
    with torch.no_grad():
        expected = pretraining(video.transpose(1, 2), bool_masked_pos=mask).logits
        torch.testing.assert_close(model(video, visible, hidden)["pixels"], expected, **TOLERANCE)


def test_exported_encoders_are_read_by_transformers(transformers, tmp_path, batch):
    model = ours(seed=9, heads={"displacement": 12}, norm_eps=1e-6)
    export_huggingface(model, tmp_path)
    with torch.no_grad():
        expected = model.encoder(batch[0]), model.encoder(batch[0], batch[1])
    read, info = transformers.VideoMAEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert_all_found(info)
    assert_same_features(lambda *a: expected[len(a) - 1], features(read, batch), batch)
    # whichever name of the biases a release of transformers knows, it finds it
    names = set(load_file(tmp_path / "model.safetensors"))
    stem = "encoder.layer.2.attention.attention."
    assert {f"{stem}query.bias", f"{stem}q_bias", f"{stem}value.bias", f"{stem}v_bias"} <= names


@pytest.mark.parametrize("eps", [1e-5, None])
def test_exported_models_are_read_by_transformers(transformers, eps, tmp_path, batch):
    model = ours(seed=10, norm_eps=1e-6, decoder_norm_eps=eps)
    export_huggingface(model, tmp_path, whole=True)
    read, info = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert_all_found(info)
    video, visible, hidden, mask = batch
    with torch.no_grad():
        logits = read(video.transpose(1, 2), bool_masked_pos=mask).logits
        # transformers' last norm has 1e-5, VideoMAE's and ours 1e-6
        tolerance = TOLERANCE if eps else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(logits, model(video, visible, hidden)["pixels"], **tolerance)


def test_the_exported_processor_normalises_as_training_does(transformers, tmp_path):
    export_huggingface(ours(), tmp_path)
    processor = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    out = np.asarray(processor(list(frames), return_tensors="np")["pixel_values"])[0]
    expected = (frames / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(out, expected.transpose(0, 3, 1, 2), atol=1e-5)
    wide = np.random.default_rng(0).integers(0, 256, (FRAMES, 96, 140, 3), dtype=np.uint8)
    assert np.asarray(processor(list(wide), return_tensors="np")["pixel_values"]).shape == (1, FRAMES, 3, SIDE, SIDE)


def written_by_videomae(model):
    """The weights of transformers' model under the names of VideoMAE's modeling_pretrain.py."""
    state = model.state_dict()
    named = {}

    def block(theirs, videomae):
        attention = f"{theirs}.attention.attention"
        named[f"{videomae}.attn.qkv.weight"] = torch.cat(
            [state[f"{attention}.query.weight"], state[f"{attention}.key.weight"], state[f"{attention}.value.weight"]]
        )
        older = f"{attention}.q_bias" in state  # before transformers 5.1 or so
        named[f"{videomae}.attn.q_bias"] = state[f"{attention}.q_bias" if older else f"{attention}.query.bias"]
        named[f"{videomae}.attn.v_bias"] = state[f"{attention}.v_bias" if older else f"{attention}.value.bias"]
        for end in ("weight", "bias"):
            named[f"{videomae}.norm1.{end}"] = state[f"{theirs}.layernorm_before.{end}"]
            named[f"{videomae}.attn.proj.{end}"] = state[f"{theirs}.attention.output.dense.{end}"]
            named[f"{videomae}.norm2.{end}"] = state[f"{theirs}.layernorm_after.{end}"]
            named[f"{videomae}.mlp.fc1.{end}"] = state[f"{theirs}.intermediate.dense.{end}"]
            named[f"{videomae}.mlp.fc2.{end}"] = state[f"{theirs}.output.dense.{end}"]

    for number in range(3):
        block(f"videomae.encoder.layer.{number}", f"encoder.blocks.{number}")
    for number in range(2):
        block(f"decoder.decoder_layers.{number}", f"decoder.blocks.{number}")
    for end in ("weight", "bias"):
        named[f"encoder.patch_embed.proj.{end}"] = state[f"videomae.embeddings.patch_embeddings.projection.{end}"]
        named[f"encoder.norm.{end}"] = state[f"videomae.layernorm.{end}"]
        named[f"decoder.norm.{end}"] = state[f"decoder.norm.{end}"]
        named[f"decoder.head.{end}"] = state[f"decoder.head.{end}"]
    named["encoder_to_decoder.weight"] = state["encoder_to_decoder.weight"]
    named["mask_token"] = state["mask_token"]
    return named


def test_a_file_of_videomae_gives_the_same_predictions(pretraining, tmp_path, batch):
    named = written_by_videomae(pretraining)
    options = argparse.Namespace(model="pretrain_videomae_base_patch16_224", opt_betas=[0.9, 0.95])
    torch.save({"model": named, "epoch": 799, "args": options}, tmp_path / "checkpoint-799.pth")
    torch.save({"module": {f"module.{n}": t for n, t in named.items()}}, tmp_path / "wrapped.pth")
    video, visible, hidden, mask = batch
    for file in ("checkpoint-799.pth", "wrapped.pth"):
        model = ours()
        report = load_encoder(model, tmp_path / file)
        assert report.fresh == report.skipped == report.notes == ()
        with torch.no_grad():
            expected = pretraining(video.transpose(1, 2), bool_masked_pos=mask).logits
            torch.testing.assert_close(model(video, visible, hidden)["pixels"], expected, **TOLERANCE)


def test_a_fine_tuned_file_is_read_without_its_classifier(pretraining, tmp_path, batch):
    named = {n.removeprefix("encoder."): t for n, t in written_by_videomae(pretraining).items() if "encoder." in n}
    del named["norm.weight"], named["norm.bias"]
    named |= {"fc_norm.weight": torch.ones(60), "head.weight": torch.ones(400, 60)}
    torch.save({"module": named}, tmp_path / "tuned.pth")
    encoder = VideoEncoder(CONFIG)
    report = load_encoder(encoder, tmp_path / "tuned.pth")
    assert report.fresh == ("encoder.norm.bias", "encoder.norm.weight")
    assert report.skipped == ("fc_norm.weight", "head.weight")
    assert "no final norm in it" in report.notes[0]
    with torch.no_grad():  # a norm that is not there is the model's own, here still without weights
        pretraining.videomae.layernorm, own = torch.nn.LayerNorm(60, eps=1e-12), pretraining.videomae.layernorm
        expected = features(pretraining.videomae, batch)
        pretraining.videomae.layernorm = own
    assert_same_features(encoder, expected, batch)


def test_exported_pth_files_have_the_names_of_videomae(pretraining, folder, tmp_path):
    model = ours()
    load_encoder(model, folder)
    export_videomae(model, tmp_path / "whole.pth", whole=True)
    export_videomae(model, tmp_path / "encoder.pth")
    expected = written_by_videomae(pretraining)
    for name, part in [("whole", ""), ("encoder", "encoder.")]:
        written = torch.load(tmp_path / f"{name}.pth", weights_only=True)["model"]
        assert written.keys() == {n for n in expected if n.startswith(part)}
        assert all(torch.equal(tensor, expected[n]) for n, tensor in written.items())
    again = ours(seed=99)
    load_encoder(again, tmp_path / "whole.pth")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for copy in ("a", "b"):
        export_huggingface(ours(), tmp_path / copy, whole=True)
        export_videomae(ours(), tmp_path / copy / "videomae.pth")
    files = sorted(f.name for f in (tmp_path / "a").iterdir())
    assert files == ["config.json", "model.safetensors", "preprocessor_config.json", "videomae.pth"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_checkpoint_of_this_project_is_read(tmp_path, batch):
    model = ours(decoder="separate", heads={"flow": 8, "pixels": 1536})
    file = tmp_path / "step-00000007.pt"
    torch.save({"format": "motion-targets/checkpoint", "version": 1, "step": 7, "model": model.state_dict()}, file)
    other = ours(seed=6, decoder="separate", heads={"hof": 9, "pixels": 1536})
    assert load_encoder(other, file).skipped[0].startswith("decoders.flow.")
    with torch.no_grad():
        a, b = (m(*batch[:3])["pixels"] for m in (model, other))
    assert torch.equal(a, b)


def test_notes_say_what_differs_in_the_settings(folder):
    report = load_encoder(ours(norm_eps=1e-6), folder)
    assert report.notes == ("layer_norm_eps is 1e-12 there, the model's 1e-06 stays",)
    report = load_encoder(ours(frames=6), folder)
    assert report.notes == (
        "frames and size are [4, 48, 48] there, [6, 48, 48] here: the same position is another place",
    )


def test_other_sizes_are_refused_naming_both_shapes(folder, tmp_path):
    tiny = MaskedVideoModel(dataclasses.replace(CONFIG, size="vit_tiny"))
    before = {name: t.clone() for name, t in tiny.state_dict().items()}
    with pytest.raises(InterchangeError) as caught:
        load_encoder(tiny, folder)
    assert "encoder.blocks.0.attn.proj.bias is (60,), the model's is (192,)" in str(caught.value)
    assert f"{folder} does not fit vit_tiny" in str(caught.value) and "more" in str(caught.value)
    assert all(torch.equal(t, before[name]) for name, t in tiny.state_dict().items())

    model = ours()
    named = {
        "encoder." + name.replace("patch_embed.", "patch_embed.proj."): tensor
        for name, tensor in model.encoder.state_dict().items()
    }
    for changes, message in [
        ({"encoder.blocks.2.attn.q_bias": None}, "encoder.blocks.2.attn.q_bias is missing"),
        ({"encoder.blocks.3.gamma_1": torch.ones(60)}, "encoder.blocks.3.gamma_1 has no place in vit_test"),
        ({"encoder.norm.bias": torch.full((60,), torch.nan)}, "encoder.norm.bias has values that are not finite"),
        ({"encoder.pos_embed": torch.ones(1, TOKENS, 60)}, "encoder.pos_embed holds learned positions"),
    ]:
        torch.save({"model": {**named, **changes}}, tmp_path / "x.pth")
        with pytest.raises(InterchangeError, match=message):
            load_encoder(model, tmp_path / "x.pth")
    torch.save({"model": {**named, "encoder.pos_embed": sinusoid_table(TOKENS, 60)[None]}}, tmp_path / "x.pth")
    load_encoder(model, tmp_path / "x.pth")


def test_other_settings_are_refused(encoder_folder, tmp_path):
    settings = json.loads((encoder_folder / "config.json").read_text())
    save_file(load_file(encoder_folder / "model.safetensors"), tmp_path / "model.safetensors")
    for field, value, message in [
        ("num_attention_heads", 16, "config.json has 16 attention heads, vit_test has 5"),
        ("hidden_act", "relu", "hidden_act relu, must be gelu"),
        ("model_type", "vit", "model_type is vit, must be videomae"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**settings, field: value}))
        with pytest.raises(InterchangeError, match=message):
            load_encoder(ours(), tmp_path)


class Unknown:
    """A class that no file of weights may name."""


def test_files_that_are_no_weights_say_so(tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"model": {"fc.weight": torch.ones(3)}}, tmp_path / "other.pth")
    torch.save({"model": {}, "args": Unknown()}, tmp_path / "objects.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    whole = tmp_path / "encoder.pth"
    export_videomae(ours(), whole)
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "empty").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text('{"model_type": "videomae"}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"model_type": "videomae"}')
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"\x10\x00\x00")
    for name, message in [
        ("text.pth", "not a file of weights"),
        ("other.pth", "not a VideoMAE encoder: no encoder.blocks.0.…, but fc.weight"),
        ("objects.pth", "Python objects beside them.*Unknown.*if you trust it"),
        ("list.pth", "holds a list"),
        ("half.pth", "damaged"),
        ("empty", "no config.json"),
        ("config", "neither model.safetensors nor pytorch_model.bin"),
        ("torn", "damaged"),
        ("a.safetensors", "give its folder"),
    ]:
        with pytest.raises(InterchangeError, match=message) as caught:
            load_encoder(ours(), tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_encoder(ours(), tmp_path / "nowhere.pth")


@pytest.mark.parametrize("export", [export_huggingface, export_videomae])
def test_other_heads_cannot_be_a_whole_videomae(export, tmp_path):
    for heads in ({"displacement": 12}, {"pixels": 1536, "hog": 27}, {"pixels": 768}):
        with pytest.raises(InterchangeError, match=f"predicts pixels alone, {{'pixels': 1536}}.*{heads}"):
            export(ours(heads=heads), tmp_path / "out", whole=True)
    assert not (tmp_path / "out").exists()


def test_frames_that_are_not_square_keep_their_size(transformers, tmp_path):
    config = dataclasses.replace(CONFIG, input_size=(32, 64), norm_eps=1e-6)
    encoder = randomise(VideoEncoder(config), 4)
    export_huggingface(encoder, tmp_path)
    video = torch.randn((1, 3, FRAMES, 32, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        read = transformers.VideoMAEModel.from_pretrained(tmp_path)(video.transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(read, encoder(video), **TOLERANCE)
    frames = np.zeros((FRAMES, 50, 70, 3), dtype=np.uint8)
    out = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path)(list(frames), return_tensors="np")
    assert np.asarray(out["pixel_values"]).shape == (1, FRAMES, 3, 32, 64)
