"""The classifier against transformers', with weights under everybody's names; layer decay against BEiT's rule."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_vit import SMALL
from test_interchange import TOLERANCE, randomise, written_by_videomae

from training.finetuning.classifier import ClassifierConfig, HeadNorm, VideoClassifier
from training.finetuning.initial_weights import head_is_loaded, load_classifier
from training.interchange import InterchangeError
from training.model import MaskedVideoModel, ModelConfig, VideoEncoder
from training.optim import make_optimizer, make_schedule, parameter_groups
from training.recipe import HeadOptions, PretrainRecipe

FRAMES, SIDE = 4, 48
CLASSES = ("wave", "run", "jump", "sit", "turn left", "turn right", "fall")
ENCODER = ModelConfig(size=SMALL, frames=FRAMES, input_size=(SIDE, SIDE), norm_eps=1e-12)
CONFIG = ClassifierConfig(encoder=ENCODER, classes=CLASSES)
PROBE = dataclasses.replace(CONFIG, pooling="tokens", frozen=True)


def build(config=CONFIG, seed=2):
    torch.manual_seed(seed)
    return VideoClassifier(config)


@pytest.fixture(scope="module")
def theirs():
    """transformers' fine-tuned model with random weights."""
    transformers = pytest.importorskip("transformers", reason="the oracle of these tests, in the extra `dev`")
    config = transformers.VideoMAEConfig(
        image_size=SIDE, num_frames=FRAMES, hidden_size=60, num_hidden_layers=3, num_attention_heads=5,
        intermediate_size=240, use_mean_pooling=True, layer_norm_eps=1e-12,
        id2label=dict(enumerate(CLASSES)), label2id={name: n for n, name in enumerate(CLASSES)},
    )  # fmt: skip
    torch.manual_seed(7)
    model = randomise(transformers.VideoMAEForVideoClassification(config), 7)
    model.fc_norm.eps = config.layer_norm_eps  # transformers leaves it at PyTorch's; VideoMAE's is the others'
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def video():
    return torch.randn((3, 3, FRAMES, SIDE, SIDE), generator=torch.Generator().manual_seed(11))


def scores(model, video):
    with torch.no_grad():
        return model.eval()(video)


def test_a_fine_tuned_folder_gives_transformers_scores(theirs, folder, video):
    model = build()
    report = load_classifier(model, folder)
    assert head_is_loaded(report) and report.fresh == report.skipped == report.notes == ()
    with torch.no_grad():
        expected = theirs(video.transpose(1, 2)).logits
    assert expected.std() > 0.05
    torch.testing.assert_close(scores(model, video), expected, **TOLERANCE)


def test_a_fine_tuned_file_of_videomae_gives_the_same_scores(theirs, video, tmp_path):
    state = theirs.state_dict()
    named = {
        name.removeprefix("encoder."): tensor
        for name, tensor in written_by_videomae(_with_a_decoder(theirs)).items()
        if name.startswith("encoder.") and "encoder.norm" not in name
    }
    named |= {f"fc_norm.{end}": state[f"fc_norm.{end}"] for end in ("weight", "bias")}
    named |= {f"head.{end}": state[f"classifier.{end}"] for end in ("weight", "bias")}
    torch.save({"module": named}, tmp_path / "tuned.pth")
    model = build()
    report = load_classifier(model, tmp_path / "tuned.pth")
    assert report.fresh == ()
    assert report.notes == ("it does not name its 7 classes: they are taken to be these",)
    with torch.no_grad():
        torch.testing.assert_close(scores(model, video), theirs(video.transpose(1, 2)).logits, **TOLERANCE)


def _with_a_decoder(theirs):
    """The same encoder in transformers' pretraining model, whose names test_interchange has written out."""
    import transformers

    settings = {
        **theirs.config.to_dict(), "use_mean_pooling": False, "decoder_hidden_size": 28, "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 112,
    }  # fmt: skip
    model = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**settings))
    model.videomae.load_state_dict(theirs.videomae.state_dict(), strict=False)
    return model


def test_a_head_of_other_classes_stays_fresh_and_says_why(folder, tmp_path):
    renamed = dataclasses.replace(CONFIG, classes=("wave", "stroll", *CLASSES[2:]))
    model = build(renamed)
    before = model.head.weight.clone()
    report = load_classifier(model, folder)
    assert report.notes == ("head as it was: its class 1 is 'run', here it is 'stroll'",)
    assert {"fc_norm.weight", "head.bias"} <= set(report.fresh) and not head_is_loaded(report)
    assert torch.equal(model.head.weight, before)
    report = load_classifier(build(dataclasses.replace(CONFIG, classes=CLASSES[:5])), folder)
    assert report.notes == ("head as it was: head.weight is (7, 60), the model's is (5, 60)",)
    settings = json.loads((folder / "config.json").read_text())
    settings["id2label"] = {str(n): f"LABEL_{n}" for n in range(7)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    weights = load_file(folder / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors")
    assert load_classifier(build(renamed), tmp_path).notes == (
        "it does not name its 7 classes: they are taken to be these",
    )
    save_file({**weights, "classifier.bias": torch.full((7,), torch.nan)}, tmp_path / "model.safetensors")
    assert load_classifier(build(renamed), tmp_path).notes == (
        "head as it was: head.bias has values that are not finite",
    )


def pretrained(run, **config):
    """A run's folder as pretraining leaves it, and its model."""
    torch.manual_seed(4)
    model = randomise(MaskedVideoModel(dataclasses.replace(ENCODER, heads={"flow": 8}, **config)), 4)
    (run / "checkpoints").mkdir(parents=True)
    for step in (3, 12):
        torch.save(
            {
                "format": "motion-targets/checkpoint", "version": 1, "step": step, "recipe": {"name": "mme"},
                "model": model.state_dict(), "model_config": model.config.to_json(),
            },
            run / "checkpoints" / f"step-{step:08d}.pt",
        )  # fmt: skip
    return model


def test_a_pretraining_run_gives_its_encoder(tmp_path, video):
    model = pretrained(tmp_path)
    tuned, probe = build(), build(PROBE)
    report = load_classifier(tuned, tmp_path)
    assert report.fresh == ("fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight")
    assert {"encoder.norm.weight", "decoders.flow.norm.bias"} & set(report.skipped) == {"encoder.norm.weight"}
    assert report.origin == {
        "init": str(tmp_path / "checkpoints" / "step-00000012.pt"), "kind": "pretraining", "recipe": "mme", "step": 12,
        "weights": len(report.loaded), "notes": [],
    }  # fmt: skip
    assert load_classifier(probe, tmp_path).fresh == ("head.bias", "head.weight")
    tuned.eval()
    with torch.no_grad():
        tokens = model.encoder(video)  # normed
        torch.testing.assert_close(probe.features(video), tokens.mean(dim=1))
        # the mean of the tokens before the norm, normed by a norm that is still fresh
        model.encoder.norm = torch.nn.Identity()
        expected = torch.nn.functional.layer_norm(model.encoder(video).mean(dim=1), (60,), eps=1e-12)
        torch.testing.assert_close(tuned.features(video), expected, rtol=1e-5, atol=1e-6)


def test_other_frames_are_noted_and_other_sizes_refused(tmp_path):
    pretrained(tmp_path, frames=6)
    assert load_classifier(build(), tmp_path).notes == (
        "frames and size are [6, 48, 48] there, [4, 48, 48] here: the same position is another place",
    )
    tiny = dataclasses.replace(CONFIG, encoder=dataclasses.replace(ENCODER, size="vit_micro"))
    with pytest.raises(
        InterchangeError, match=r"does not fit vit_micro: config.json has 5|does not fit vit_micro: enc"
    ):
        load_classifier(build(tiny), tmp_path)
    file = tmp_path / "checkpoints" / "step-00000012.pt"
    content = torch.load(file, weights_only=True)
    for config in ({"size": [1]}, {**content["model_config"], "norm_eps": None}, {"encoder": 3}, {"classes": 7}):
        torch.save({**content, "model_config": config, "recipe": 5}, file)
        report = load_classifier(build(), file)  # the weights fit, and nothing else is known
        assert report.notes == () and report.training == {"kind": "pretraining", "recipe": None, "step": 12}
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InterchangeError, match="a run without a checkpoint"):
        load_classifier(build(), tmp_path / "empty")


def test_the_head_starts_as_videomae_s_and_the_scores_near_0(video):
    model = build(dataclasses.replace(CONFIG, classes=tuple(map(str, range(400)))))
    assert model.head.weight.abs().max() <= 2 * 0.02 * 0.001 and not model.head.bias.any()
    assert model.head.weight.std().item() == pytest.approx(0.88 * 0.02 * 0.001, rel=0.02)  # normal, cut at two
    assert scores(model, video).abs().max() < 0.01


def test_a_probe_trains_the_head_alone(video):
    model = build(PROBE).train()
    model(video).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}


def test_the_batch_norm_of_a_probe_has_running_statistics_that_a_single_clip_leaves_alone():
    norm = HeadNorm(5).train()
    features = torch.randn((64, 5), generator=torch.Generator().manual_seed(0)) * 3 + 2
    out = norm(features)
    torch.testing.assert_close(out, (features - features.mean(0)) / (features.var(0, correction=0) + 1e-6).sqrt())
    kept = norm.running_mean.clone()
    torch.testing.assert_close(kept, 0.1 * features.mean(0))
    torch.testing.assert_close(
        norm(features[:1]), (features[:1] - kept) / (norm.running_var + 1e-6).sqrt(), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(norm.running_mean, kept)
    assert not list(norm.parameters())


def beit_layer(name, depth):
    """The layer of a parameter by VideoMAE's and BEiT's rule (optim_factory.py), by our names."""
    if name.startswith("encoder.patch_embed"):
        return 0
    return int(name.split(".")[2]) + 1 if name.startswith("encoder.blocks") else depth + 1


def test_layer_decay_is_beit_s():
    model = build(dataclasses.replace(CONFIG, drop_path=0.1))
    groups = parameter_groups(model, 0.05, layer_decay=0.75)
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        decay = 0.0 if parameter.ndim == 1 else 0.05
        assert found.pop(id(parameter)) == (pytest.approx(0.75 ** (4 - beit_layer(name, 3))), decay), name
    assert not found
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales == pytest.approx([0.31640625, 0.421875, 0.5625, 0.75, 1.0])  # by hand: 0.75^4 … 0.75^0


def test_layer_decay_is_timm_s_for_its_own_beit():
    """But for the final norm, which timm counts to the last block, and VideoMAE to the head."""
    from timm.models.beit import Beit
    from timm.optim import param_groups_layer_decay

    beit = Beit(img_size=32, embed_dim=60, depth=3, num_heads=5, use_abs_pos_emb=False, num_classes=7)

    def scales(model, groups):
        names = {id(p): name.removeprefix("encoder.") for name, p in model.named_parameters()}
        return {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}

    model = build()
    ours = scales(model, parameter_groups(model, 0.05, layer_decay=0.6))
    theirs = scales(beit, param_groups_layer_decay(beit, 0.05, layer_decay=0.6))
    shared = [name for name in ours if name.startswith(("blocks", "head"))]
    assert len(shared) > 30 and {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    assert ours["patch_embed.weight"] == theirs["patch_embed.proj.weight"]


def test_rates_are_the_schedule_s_times_the_layer_s():
    recipe = PretrainRecipe(name="r", heads={"pixels": HeadOptions()}, weight_decay=0.05)
    model = build()
    plain = make_optimizer(model, recipe, batch_size=128, base_lr=1e-3)
    layered = make_optimizer(model, recipe, batch_size=128, base_lr=1e-3, layer_decay=0.75)
    schedules = [make_schedule(o, steps=20, warmup_steps=4, min_lr=1e-6, batch_size=128) for o in (plain, layered)]
    for step in (0, 2, 4, 11, 19, 25):
        for schedule in schedules:
            schedule.step_update(step)
        for group in layered.param_groups:
            assert group["lr"] == pytest.approx(group["lr_scale"] * plain.param_groups[0]["lr"], rel=1e-12)
    assert len({group["lr_scale"] for group in layered.param_groups}) == 5


def test_sgd_is_torch_s():
    recipe = PretrainRecipe(name="r", heads={"pixels": HeadOptions()}, weight_decay=0.0)
    optimizer = make_optimizer(build(PROBE), recipe, batch_size=512, base_lr=1e-3, kind="sgd", momentum=0.8)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(group["lr"], group["momentum"]) for group in optimizer.param_groups} == {(2e-3, 0.8)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_a_configuration_survives_json():
    config = dataclasses.replace(PROBE, head_norm="batch", head_dropout=0.5)
    fields = json.loads(json.dumps(config.to_json()))
    assert ClassifierConfig.from_json(fields, "here") == config
    for broken in (
        {},
        {**fields, "classes": ["a", "a"]},
        {**fields, "colour": 1},
        {**fields, "encoder": {"size": "x"}},
    ):
        with pytest.raises(ValueError, match="here: not a"):
            ClassifierConfig.from_json(broken, "here")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ("one",)}, "classes are one, must be 2 or more"),
        ({"classes": ("a", "b", "a")}, "classes have a name twice"),
        ({"head_norm": "batch"}, "head_norm is batch, which is for a frozen encoder"),
        ({"encoder": dataclasses.replace(ENCODER, heads={"flow": 3})}, "encoder has the heads flow"),
    ],
)
def test_bad_configurations_say_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **fields)


def test_weights_have_the_names_of_pretraining():
    names = {name for name in build().state_dict() if name.startswith("encoder.")}
    assert names == {f"encoder.{name}" for name in VideoEncoder(ENCODER).state_dict() if not name.startswith("norm.")}
