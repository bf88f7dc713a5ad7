"""Names of the same weights in this project, in VideoMAE's code and in Hugging Face's transformers.

Between formats they go by VideoMAE's pretraining names: `encoder.blocks.0.attn.qkv.weight`, `decoder.head.bias`, …
Which parts there are differs from file to file; a name that a scheme does not know is left as it is.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_OURS = {"encoder.patch_embed.": "encoder.patch_embed.proj.", "heads.pixels.": "decoder.head."}
_OUR_DECODER = {"embed.": "encoder_to_decoder.", "": "decoder."}  # below decoders.NAME.

_HUGGING_FACE = {
    "encoder.patch_embed.proj.": "videomae.embeddings.patch_embeddings.projection.",
    "encoder.pos_embed": "videomae.embeddings.position_embeddings",
    "encoder.norm.": "videomae.layernorm.",
    "encoder.blocks.": "videomae.encoder.layer.",
    "decoder.blocks.": "decoder.decoder_layers.",
}
_HUGGING_FACE_BLOCK = {
    "norm1.": "layernorm_before.",
    "attn.proj.": "attention.output.dense.",
    "norm2.": "layernorm_after.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
_QKV = ("query", "key", "value")
_BIASES = {"attn.q_bias": ("q_bias", "query.bias"), "attn.v_bias": ("v_bias", "value.bias")}
"""Published weights and transformers up to 5.0 have the first names, later releases the second; some of these do not
know the first, and leave the biases 0 without an error (its pull request 48675). A file with both is right for all."""

_BLOCK = re.compile(r"((?:encoder|decoder)\.blocks\.\d+\.)(.+)")
_HUGGING_FACE_LAYER = re.compile(r"((?:videomae\.encoder\.layer|decoder\.decoder_layers)\.\d+\.)(.+)")
_ATTENTION = "attention.attention."


def ours_to_videomae(weights: Mapping[str, Tensor], decoder: str = "joint") -> dict[str, Tensor]:
    """Rename the weights of a model of this project; of its decoders, `decoder` becomes VideoMAE's only one.

    Tensors share their memory with those given.
    """
    scheme = {**_OURS, **{f"decoders.{decoder}.{part}": theirs for part, theirs in _OUR_DECODER.items()}}
    renamed = {_replace_start(name, scheme): tensor for name, tensor in weights.items()}
    if "mask_token" in renamed:
        renamed["mask_token"] = renamed["mask_token"].reshape(1, 1, -1)
    return renamed


def plain_videomae(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VideoMAE's pretraining names for a file of its code: wrappers' prefixes go, fine-tuned ones get `encoder.`."""
    plain = {re.sub(r"^((module|_orig_mod|backbone)\.)+", "", name): tensor for name, tensor in weights.items()}
    own = ("blocks.", "patch_embed.", "norm.", "pos_embed")
    return {f"encoder.{name}" if name.startswith(own) else name: tensor for name, tensor in plain.items()}


def huggingface_to_videomae(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a `VideoMAEModel`, `VideoMAEForPreTraining` or `VideoMAEForVideoClassification`."""
    starts = {theirs: name for name, theirs in _HUGGING_FACE.items()}
    parts = {theirs: name for name, theirs in _HUGGING_FACE_BLOCK.items()}
    parts |= {_ATTENTION + theirs: name for name, both in _BIASES.items() for theirs in both}
    renamed: dict[str, Tensor] = {}
    for own_name, tensor in weights.items():
        bare = own_name.startswith(("embeddings.", "encoder.layer.", "layernorm."))  # VideoMAEModel
        name = f"videomae.{own_name}" if bare else own_name
        if layer := _HUGGING_FACE_LAYER.fullmatch(name):
            start, part = _replace_start(layer[1], starts), layer[2]
            if part == f"{_ATTENTION}query.weight":
                stem = own_name.removesuffix("query.weight")
                pieces = [weights[f"{stem}{piece}.weight"] for piece in _QKV if f"{stem}{piece}.weight" in weights]
                renamed[f"{start}attn.qkv.weight"] = torch.cat(pieces)
            elif part not in {f"{_ATTENTION}key.weight", f"{_ATTENTION}value.weight"}:
                renamed[start + _replace_start(part, parts)] = tensor
        else:
            renamed[_replace_start(name, starts)] = tensor
    return renamed


def videomae_to_huggingface(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Rename weights with VideoMAE's names; `prefix` is `videomae.` for `VideoMAEForPreTraining`, else empty.

    Tensors are contiguous and share no memory with one another, as safetensors wants them.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        block = _BLOCK.fullmatch(name)
        start = _replace_start(block[1] if block else name, _HUGGING_FACE)
        if not block:
            renamed[start] = tensor
        elif block[2] == "attn.qkv.weight":
            renamed |= {
                f"{start}{_ATTENTION}{piece}.weight": rows for piece, rows in zip(_QKV, tensor.chunk(3), strict=True)
            }
        elif block[2] in _BIASES:
            renamed |= {f"{start}{_ATTENTION}{theirs}": tensor for theirs in _BIASES[block[2]]}
        else:
            renamed[start + _replace_start(block[2], _HUGGING_FACE_BLOCK)] = tensor
    return {
        prefix + name.removeprefix("videomae.") if name.startswith("videomae.") else name: tensor.detach().cpu().clone()
        for name, tensor in renamed.items()
    }


def _replace_start(name: str, scheme: Mapping[str, str]) -> str:
    """`name` with the longest key of `scheme` that it starts with replaced by the key's value."""
    start = max((key for key in scheme if name.startswith(key)), key=len, default=None)
    return name if start is None else scheme[start] + name[len(start) :]
