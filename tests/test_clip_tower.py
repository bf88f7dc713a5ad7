"""CLIP's tower: transformers' features with the same weights, every naming of them, and what is refused."""

import hashlib
import re

import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from training import clip_tower
from training.clip_tower import ClipTower, ClipWeightsError, build_tower, fetch_weights, load_weights, open_clip_tower
from training.interchange import InterchangeError
from training.recipe import CLIP_TOWERS, HeadOptions, PretrainRecipe

CPU = torch.device("cpu")
TOWERS = {"vit_base_patch16": (16, 768, 12), "vit_large_patch14": (14, 1024, 16)}  # patch, width, attention heads
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def small_tower(size=(32, 48), seed=None, **options):
    """A tower without anything that is zero or one."""
    model = build_tower("vit_base_patch16", size, **{**SMALL, **options})
    if seed is not None:
        rng = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=rng) * 0.2
    return model


def frames_of(size, count=2, seed=0):
    return torch.randint(0, 256, (count, *size, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def transformers_tower(patch, width, heads, side):
    torch.manual_seed(1)
    config = transformers.CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2, num_attention_heads=heads,
        image_size=side, patch_size=patch, hidden_act="quick_gelu",
    )  # fmt: skip
    model = transformers.CLIPVisionModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)  # its biases are zero
    return model


def openai_names(model):
    """The weights of transformers' tower as OpenAI's code names them."""
    theirs = {key.removeprefix("vision_model."): value for key, value in model.state_dict().items()}
    simple = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        **{f"{a}.{end}": f"{b}.{end}" for end in ("weight", "bias")
           for a, b in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"))},
    }  # fmt: skip
    named = {f"visual.{to}": theirs[key] for key, to in simple.items()}
    for layer in range(2):
        old, new = f"encoder.layers.{layer}", f"visual.transformer.resblocks.{layer}"
        for end in ("weight", "bias"):
            qkv = [theirs[f"{old}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            named[f"{new}.attn.in_proj_{end}"] = torch.cat(qkv)
            for a, b in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                         ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
                named[f"{new}.{b}.{end}"] = theirs[f"{old}.{a}.{end}"]
    width = named["visual.class_embedding"].shape[0]
    text = {"text_projection": torch.ones(8, 8), "transformer.resblocks.0.ln_1.weight": torch.ones(8),
            "logit_scale": torch.ones(()), "positional_embedding": torch.ones(77, 8)}  # fmt: skip
    return {**named, "visual.proj": torch.ones(width, 8), **text}


@pytest.mark.parametrize("name", TOWERS)
def test_features_are_those_of_transformers_with_the_same_weights(name, tmp_path):
    """After the final norm, without class token and projection; QuickGELU, and CLIP's own mean and deviation."""
    patch, width, heads = TOWERS[name]
    oracle = transformers_tower(patch, width, heads, side=4 * patch)
    torch.save(openai_names(oracle), tmp_path / "clip.pt")
    model = build_tower(name, (4 * patch, 4 * patch), depth=2)
    load_weights(model, tmp_path / "clip.pt")
    frames = frames_of((4 * patch, 4 * patch))
    mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
    pixels = ((frames / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = oracle.post_layernorm(oracle(pixels).last_hidden_state)[:, 1:]
    found = ClipTower(model, (4, 4))(frames)
    assert found.shape == (2, 16, width)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (patch, width) == CLIP_TOWERS[name]


def in_openai_names(weights):
    """timm's names to OpenAI's."""
    named = {}
    for key, value in weights.items():
        new = key.replace("blocks.", "transformer.resblocks.").replace("norm_pre.", "ln_pre.")
        new = new.replace(".norm1.", ".ln_1.").replace(".norm2.", ".ln_2.").replace("norm.", "ln_post.")
        new = new.replace("attn.qkv.", "attn.in_proj_").replace("attn.proj.", "attn.out_proj.")
        new = new.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        new = new.replace("patch_embed.proj", "conv1").replace("cls_token", "class_embedding")
        new = new.replace("pos_embed", "positional_embedding")
        flat = {"class_embedding": (48,), "positional_embedding": value.shape[1:]}.get(new, value.shape)
        named[f"visual.{new}"] = value.reshape(flat)
    return {**named, "visual.proj": torch.ones(48, 8), "text_projection": torch.ones(8, 8)}


def write_timm(weights, folder):
    save_file({**weights, "head.weight": torch.ones(8, 48), "head.bias": torch.ones(8)}, folder / "a.safetensors")
    return folder / "a.safetensors"


def write_torch(content, folder):
    torch.save(content, folder / "a.pt")
    return folder / "a.pt"


@pytest.mark.parametrize(
    "write",
    [
        write_timm,
        lambda weights, folder: write_torch({"state_dict": weights, "epoch": 3}, folder),
        lambda weights, folder: write_torch(in_openai_names(weights), folder),
        lambda weights, folder: write_torch(
            {"state_dict": {f"module.{k}": v for k, v in in_openai_names(weights).items()}}, folder
        ),
        lambda weights, folder: write_torch(
            {**{f"visual.trunk.{k}": v for k, v in weights.items()}, "visual.head.proj.weight": torch.ones(8, 48)},
            folder,
        ),
    ],
    ids=["timm safetensors", "timm training", "OpenAI", "OpenCLIP training", "OpenCLIP around timm"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_naming_gives_the_same_features(write, dtype, tmp_path):
    source = small_tower(seed=3).to(dtype)
    file = write(source.state_dict(), tmp_path)
    model = small_tower()
    load_weights(model, file)
    frames = frames_of((32, 48))
    torch.testing.assert_close(
        ClipTower(model, (2, 3))(frames), ClipTower(source.float(), (2, 3))(frames), rtol=0, atol=0
    )
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_torchscript_archive_is_refused_and_what_the_message_says_mends_it(tmp_path):
    """OpenAI's files are archives with code; their weights alone load."""
    source = small_tower(seed=3)

    class Scripted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    def module_of(weights):
        module = Scripted()
        for key, value in weights.items():
            *path, name = key.split(".")
            at = module
            for part in path:
                if not hasattr(at, part):
                    at.add_module(part, Scripted())
                at = getattr(at, part)
            at.register_parameter(name, nn.Parameter(value.detach().clone()))
        return module

    archive = tmp_path / "ViT-B-16.pt"
    torch.jit.save(torch.jit.script(module_of(in_openai_names(source.state_dict()))), archive)
    model = small_tower()
    with pytest.raises(ClipWeightsError, match="is a TorchScript archive") as refused:
        load_weights(model, archive)
    command = re.search(r'python -c "(.*?)"; ', str(refused.value))[1]
    exec(command, {})
    load_weights(model, tmp_path / "ViT-B-16-weights.pt")
    frames = frames_of((32, 48))
    torch.testing.assert_close(ClipTower(model, (2, 3))(frames), ClipTower(source, (2, 3))(frames), rtol=0, atol=0)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('run')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: small_tower(patch_size=8).state_dict(), r"its patches are \(3, 8, 8\), this tower's \(3, 16, 16\)"),
        (
            lambda: small_tower(embed_dim=60).state_dict(),
            r"cls_token is \(1, 1, 60\), this tower's is \(1, 1, 48\).* and \d+ more",
        ),
        (lambda: small_tower(depth=3).state_dict(), r"blocks\.2\.\S+ has no place"),
        (lambda: small_tower(depth=1).state_dict(), r"blocks\.1\.\S+ is missing"),
        (lambda: small_tower().state_dict() | {"cls_token": torch.full((1, 1, 48), torch.nan)}, "cls_token has values"),
        (
            lambda: {"encoder.patch_embed.proj.weight": torch.ones(48, 3, 2, 16, 16)},
            r"its patches are \(3, 2, 16, 16\)",
        ),
        (lambda: {"model": {"mask_token": torch.ones(48)}}, "cls_token is missing.*it holds mask_token"),
        (lambda: [1, 2], "it holds no weights"),
        (lambda: {"model": Evil()}, "could run code"),
    ],
    ids=["patch", "width", "deeper", "shallower", "nan", "VideoMAE", "ours", "list", "code"],
)
def test_other_weights_are_refused_and_change_nothing(content, message, tmp_path):
    torch.save(content(), tmp_path / "a.pt")
    model = small_tower()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises((ClipWeightsError, InterchangeError), match=message) as refused:
        load_weights(model, tmp_path / "a.pt")
    assert str(tmp_path / "a.pt") in str(refused.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_files_that_are_cut_off_or_missing(name, tmp_path):
    file = write_timm(small_tower().state_dict(), tmp_path)
    if name.endswith(".pt"):
        file = write_torch(small_tower().state_dict(), tmp_path)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises((ClipWeightsError, InterchangeError), match=f"{name}: damaged"):
        load_weights(small_tower(), file)
    with pytest.raises(ClipWeightsError, match="there is no such file"):
        load_weights(small_tower(), tmp_path / "none.pt")


def test_views_of_another_size_take_resampled_positions(tmp_path):
    """4 x 4 positions to 2 x 3, with the antialiased bicubic filter; the class token's stays."""
    source = small_tower((64, 64), seed=3)
    model = small_tower((32, 48))
    load_weights(model, write_timm(source.state_dict(), tmp_path))
    grid = source.pos_embed[:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    expected = functional.interpolate(grid, size=(2, 3), mode="bicubic", antialias=True)
    torch.testing.assert_close(model.pos_embed[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 6, 48))
    torch.testing.assert_close(model.pos_embed[:, :1], source.pos_embed[:, :1])


class Places(nn.Module):
    """Stands in for a tower: a token's features are its row and column, and the class token's 99."""

    num_prefix_tokens = 1

    def __init__(self, grid):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.grid_size = grid

    def forward_features(self, video):
        rows, columns = self.patch_embed.grid_size
        places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
        with_class = torch.cat([torch.full((1, 2), 99), places.reshape(-1, 2)]).float()
        return with_class.expand(len(video), -1, -1)


def test_patches_are_resized_to_tokens_by_the_half_pixel_rule():
    """ViT-L/14's 16 x 16 to 14 x 14: token i takes place (i + 0.5) * 16 / 14 - 0.5."""
    found = ClipTower(Places((16, 24)), (14, 20))(frames_of((224, 336), count=1)).reshape(14, 20, 2)
    rows, columns = ((torch.arange(n) + 0.5) * m / n - 0.5 for n, m in ((14, 16), (20, 24)))
    torch.testing.assert_close(found[..., 0], rows[:, None].expand(14, 20))
    torch.testing.assert_close(found[..., 1], columns.expand(14, 20))
    same = ClipTower(Places((2, 3)), (2, 3))(frames_of((32, 48), count=1))
    assert same[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_a_tower_is_frozen_and_draws_no_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = small_tower(), small_tower()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    first.train()
    found = ClipTower(first, (2, 3))(frames_of((32, 48)))
    assert not found.requires_grad and not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_frames_are_taken_in_portions_and_in_the_precision_asked_for(monkeypatch):
    model, frames = small_tower(seed=3), frames_of((32, 48), count=5)
    whole = ClipTower(model, (2, 3))(frames)
    half = ClipTower(model, (2, 3), "bf16")(frames)
    assert half.dtype == torch.float32
    assert 1e-4 < (half - whole).abs().max() < 0.05  # bf16 has 8 bits
    monkeypatch.setattr(clip_tower, "_FRAMES_AT_ONCE", 2)
    torch.testing.assert_close(ClipTower(model, (2, 3))(frames), whole)


def recipe(**fields):
    heads = {"clip": HeadOptions(normalise="clip")}
    return PretrainRecipe(name="mine", **{"heads": heads, "frames": 4, "input_size": 48, **fields})


@pytest.fixture
def shallow(monkeypatch):
    """Towers of their real width, one block deep."""
    monkeypatch.setattr(
        clip_tower, "build_tower", lambda name, size: build_tower(name, size, depth=1, num_heads=4)
    )  # fmt: skip


def test_a_recipe_s_tower_and_the_digest_of_its_weights(shallow, tmp_path, monkeypatch):
    tower, digest = open_clip_tower(recipe(), "random", "fp32", CPU)
    assert digest == "random"
    frames = frames_of((48, 48))
    again, _ = open_clip_tower(recipe(), "random", "fp32", CPU)
    torch.testing.assert_close(tower(frames), again(frames), rtol=0, atol=0)
    assert tower(frames).shape == (2, 9, 768)

    file = tmp_path / "a.safetensors"
    save_file(build_tower("vit_base_patch16", (80, 80), depth=1, num_heads=4).state_dict(), file)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert open_clip_tower(recipe(), str(file), "fp32", CPU)[1] == expected
    asked = []
    monkeypatch.setattr(clip_tower, "hf_hub_download", lambda repository, name: asked.append(repository) or str(file))
    assert open_clip_tower(recipe(), "hub", "fp32", CPU)[1] == expected
    assert asked == ["timm/vit_base_patch16_clip_224.openai"]  # not the default of timm's name, which is MetaCLIP's
    assert open_clip_tower(recipe(heads={"pixels": HeadOptions()}), None, "fp32", CPU) is None


def test_weights_that_are_not_given_and_those_that_nobody_needs_are_refused(shallow):
    with pytest.raises(
        ClipWeightsError, match=r"recipe mine predicts features .* --clip-weights hub .* FILE .* random"
    ):
        open_clip_tower(recipe(), None, "fp32", CPU)
    with pytest.raises(ClipWeightsError, match="--clip-weights random: there is no head clip"):
        open_clip_tower(recipe(heads={"pixels": HeadOptions()}), "random", "fp32", CPU)


def test_without_a_network_the_hub_s_weights_are_an_error_with_a_way_out(monkeypatch):
    def offline(repository, file):
        raise LocalEntryNotFoundError("cannot find the requested files\nmore")

    monkeypatch.setattr(clip_tower, "hf_hub_download", offline)
    with pytest.raises(
        ClipWeightsError, match=r"vit_large_patch14_clip_224\.openai cannot be fetched .*cannot find"
    ) as error:
        fetch_weights("vit_large_patch14")
    assert "--clip-weights FILE" in str(error.value) and "more" not in str(error.value)
