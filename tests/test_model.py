"""The masked video model: positions, masking, decoders, operations; its weights are in test_interchange.py."""

import dataclasses
import math

import pytest
import torch
from small_vit import SMALL
from torch.utils.flop_counter import FlopCounterMode

from training.model import VIT_SIZES, MaskedVideoModel, ModelConfig, VideoEncoder, sinusoid_table, training_flops

# t, h, w = 3, 2, 4 tokens; every axis of a video has its own size
CONFIG = ModelConfig(
    size=SMALL, heads={"displacement": 12, "trajectory_hog": 54}, frames=6, input_size=(32, 64), decoder_depth=2
)
VISIBLE = torch.tensor([[0, 3, 7, 10, 20], [1, 2, 9, 11, 23]])
PREDICT = torch.tensor([[1, 2, 4, 5, 6, 8, 22], [0, 3, 4, 5, 6, 7, 8]])


def build(config=CONFIG):
    torch.manual_seed(3)
    model = MaskedVideoModel(config)
    with torch.no_grad():  # biases and norms away from 0 and 1, so that losing one shows
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def video(config=CONFIG, batch=2, seed=1):
    shape = (batch, 3, config.frames, *config.input_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels_of(token, config=CONFIG):
    """Where the token's pixels are in a clip (C, T, H, W)."""
    t, h, w = (int(i) for i in torch.unravel_index(torch.tensor(token), config.token_grid))
    side = config.patch
    frames = slice(t * config.tubelet, (t + 1) * config.tubelet)
    return slice(None), frames, slice(h * side, (h + 1) * side), slice(w * side, (w + 1) * side)


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def test_positions_are_the_closed_form():
    table = sinusoid_table(23, 12)
    for n in range(23):
        for i in range(6):
            angle = n / 10000 ** (2 * i / 12)
            assert float(table[n, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-7)
            assert float(table[n, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-7)


# Tong et al. 2022, table 6: 22 M, 87 M, 305 M, 633 M, with a classifier of 400; vit_tiny has 12 blocks of 192,
# vit_micro 3 of 96: 12 x 96^2 and some in each, 1536 x 96 in the patch embedding
@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("vit_micro", 0.522),
        ("vit_tiny", 5.7),
        ("vit_small", 22),
        ("vit_base", 87),
        ("vit_large", 305),
        ("vit_huge", 633),
    ],
)
def test_encoders_have_the_published_number_of_parameters(size, millions):
    with torch.device("meta"):
        encoder = VideoEncoder(ModelConfig(size=size))
    total = sum(p.numel() for p in encoder.parameters()) + 400 * (VIT_SIZES[size].width + 1)
    assert total / 1e6 == pytest.approx(millions, rel=0.01)


def test_sizes_are_sound():
    for name in ("vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"):
        size = VIT_SIZES[name]
        assert size.width % size.heads == size.decoder_width % size.decoder_heads == 0
        assert size.decoder_width * 2 == size.width


def test_predictions_have_the_shapes_of_the_heads():
    out = build()(video(), VISIBLE, PREDICT)
    assert {name: tuple(values.shape) for name, values in out.items()} == {
        "displacement": (2, 7, 12),
        "trajectory_hog": (2, 7, 54),
    }


@pytest.mark.parametrize("decoder", ["joint", "separate"])
def test_pixels_of_masked_tokens_have_no_influence(decoder):
    model, clip = build(dataclasses.replace(CONFIG, decoder=decoder)), video()
    before = model(clip, VISIBLE, PREDICT)
    other = clip.clone()
    for b in range(2):
        for token in set(range(24)) - set(VISIBLE[b].tolist()):
            other[b][pixels_of(token)] += 5
    assert not torch.equal(other, clip)
    assert_same(model(other, VISIBLE, PREDICT), before, rtol=0, atol=0)
    other[1][pixels_of(11)] += 5
    after = model(other, VISIBLE, PREDICT)
    for name in before:
        assert torch.equal(after[name][0], before[name][0])
        assert (after[name][1] != before[name][1]).any(dim=-1).all()


def test_the_encoder_sees_each_token_at_its_place():
    model, clip = build(), video()
    embedded = model.encoder.patch_embed(clip).flatten(2).transpose(1, 2)  # the convolution that it is the product of
    seen = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.encoder(clip, VISIBLE)
    model.encoder(clip)
    everywhere = embedded + sinusoid_table(24, 60)
    torch.testing.assert_close(seen[1], everywhere, rtol=1e-5, atol=1e-5)
    for b in range(2):
        torch.testing.assert_close(seen[0][b], everywhere[b, VISIBLE[b]], rtol=1e-5, atol=1e-5)


def test_order_of_the_indices_is_the_order_of_the_tokens():
    model, clip = build(), video()
    before = model(clip, VISIBLE, PREDICT)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    after = model(clip, VISIBLE[:, [2, 0, 4, 3, 1]], PREDICT[:, order])
    # sums in another order
    assert_same(after, {name: values[:, order] for name, values in before.items()}, rtol=1e-4, atol=1e-5)


def test_separate_decoders_share_the_mask_token_alone():
    model = build(dataclasses.replace(CONFIG, decoder="separate"))
    out = model(video(), VISIBLE, PREDICT)
    out["displacement"].sum().backward()
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[1] for name in used if name.startswith(("decoders", "heads"))} == {"displacement"}
    assert "mask_token" in used and "encoder.patch_embed.weight" in used


def test_a_joint_decoder_serves_all_heads():
    model = build()
    model(video(), VISIBLE, PREDICT)["trajectory_hog"].sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == {
        "heads.displacement.weight",
        "heads.displacement.bias",
    }


@pytest.mark.parametrize("decoder", ["joint", "separate"])
def test_operations_are_those_that_torch_counts(decoder):
    config = dataclasses.replace(CONFIG, decoder=decoder)
    model = build(config)
    for module in model.modules():
        if hasattr(module, "fused_attn"):  # torch counts what the fused kernel computes again, too
            module.fused_attn = False
    with FlopCounterMode(display=False) as counter:
        sum(values.sum() for values in model(video(), VISIBLE, PREDICT).values()).backward()
    assert 2 * training_flops(config, 5, 7) == counter.get_total_flops()


# MME, table 12, in 10^9 multiply-adds: it embeds masked tokens too, and its heads have a hidden layer
@pytest.mark.parametrize(
    ("decoder", "depth", "published"), [("joint", 1, 51), ("joint", 2, 55), ("separate", 1, 56), ("separate", 2, 65)]
)
def test_operations_are_those_that_mme_reports(decoder, depth, published):
    heads = {"displacement": 48, "trajectory_hog": 216}
    config = ModelConfig(size="vit_base", heads=heads, decoder=decoder, decoder_depth=depth)
    visible, masked = 8 * 59, 8 * 137  # tubes of 70 % of 196
    embed_visible, embed_masked = (2 * tokens * 1536 * 768 for tokens in (visible, masked))
    forward = (training_flops(config, visible, masked) + embed_visible) / 3 + embed_masked
    assert forward / 2e9 == pytest.approx(published, abs=0.7)


def test_drop_path_rises_linearly_and_is_for_training_alone():
    torch.manual_seed(3)
    plain = VideoEncoder(CONFIG)
    torch.manual_seed(3)
    dropping = VideoEncoder(CONFIG, drop_path=0.4)
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    paths = [(block.drop_path1, block.drop_path2) for block in dropping.blocks]
    assert [getattr(path, "drop_prob", 0.0) for pair in paths for path in pair] == [0.0, 0.0, 0.2, 0.2, 0.4, 0.4]
    assert torch.equal(plain.eval()(video()), dropping.eval()(video()))
    dropping.train()
    assert not torch.equal(dropping(video()), dropping(video()))


def test_drop_path_is_the_same_where_activations_are_computed_again():
    grads = []
    for recompute in (False, True):
        torch.manual_seed(3)
        encoder = VideoEncoder(dataclasses.replace(CONFIG, checkpoint_activations=recompute), drop_path=0.5)
        torch.manual_seed(4)
        encoder(video()).square().mean().backward()
        grads.append({name: p.grad for name, p in encoder.named_parameters()})
    assert_same(grads[0], grads[1], rtol=0, atol=0)


def test_activation_checkpointing_changes_nothing_but_memory():
    grads = []
    for recompute in (False, True):
        model = build(dataclasses.replace(CONFIG, checkpoint_activations=recompute))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss = sum(values.square().mean() for values in model(video(), VISIBLE, PREDICT).values())
        loss.backward()
        grads.append(({name: p.grad for name, p in model.named_parameters()}, sum(kept)))
    assert_same(grads[0][0], grads[1][0], rtol=0, atol=0)
    assert grads[1][1] < grads[0][1] / 5


def test_bfloat16_keeps_positions_and_predictions_close():
    model, clip = build(), video()
    exact = model(clip, VISIBLE, PREDICT)
    seen = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(clip, VISIBLE, PREDICT)
    assert seen == [torch.float32]
    for name, values in exact.items():  # 8 bits of mantissa through 5 blocks
        assert ((out[name] - values).norm() / values.norm()).item() < 0.03


def test_it_compiles_whole():
    model = build()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same(compiled(video(), VISIBLE, PREDICT), model(video(), VISIBLE, PREDICT), rtol=1e-4, atol=1e-5)


def test_positions_are_no_part_of_the_state():
    state = build().state_dict()
    assert not [name for name in state if "position" in name or "k_bias" in name]
    assert state["mask_token"].shape == (28,)


def test_start_of_the_weights():
    torch.manual_seed(0)
    model = MaskedVideoModel(CONFIG)
    qkv = model.encoder.blocks[1].attn.qkv.weight
    bound = math.sqrt(6 / (60 + 3 * 60))
    assert qkv.abs().max() <= bound and qkv.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert model.mask_token.abs().max() <= 0.02 and model.mask_token.std() > 0.006
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not parameter.any(), name


def test_a_configuration_survives_json():
    config = dataclasses.replace(CONFIG, decoder="separate", decoder_norm_eps=1e-5)
    assert ModelConfig.from_json(config.to_json(), "here") == config
    for broken in ({"size": "vit_tiny"}, {**config.to_json(), "colour": 1}, {**config.to_json(), "patch": 15}):
        with pytest.raises(ValueError, match="here: not a model's configuration"):
            ModelConfig.from_json(broken, "here")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "vit_giant"}, "size is vit_giant, must be one of vit_micro, vit_tiny"),
        ({"frames": 5}, "frames is 5, must be a multiple of tubelet, 2"),
        ({"input_size": (32, 40)}, r"input_size is \(32, 40\), must be two multiples of patch, 16"),
        ({"heads": {"flow": 0}}, "head flow has 0 values"),
        ({"decoder": "both"}, "decoder is both"),
        ({"heads": {}}, "heads is empty"),
    ],
)
def test_bad_configurations_say_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskedVideoModel(ModelConfig(**{**dataclasses.asdict(CONFIG), **fields}))


def test_a_video_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 6, 64, 32\), this model takes \(B, \*\(3, 6, 32, 64\)\)"):
        build()(video().transpose(-1, -2), VISIBLE, PREDICT)
