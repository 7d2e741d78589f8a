"""The shape of the native decoder: what the settings mean, the presets, and every refusal. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from bigtrain.errors import UserError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Everything that decides which function the weights are; the defaults are Llama's."""

    vocab_size: int
    sequence_length: int
    """Longest sequence in tokens: the size of the table of learned positions; advice where positions are rotary."""
    layers: int
    heads: int
    width: int
    kv_heads: int
    """Heads of keys and values; fewer than `heads` is grouped-query attention (arXiv:2305.13245)."""
    head_width: int
    mlp_width: int
    positions: Literal["learned", "rotary"] = "rotary"
    norm: Literal["layer_norm", "rms_norm"] = "rms_norm"
    activation: Literal["gelu", "swiglu"] = "swiglu"
    bias: bool = False
    """Biases in the linear layers and in LayerNorm (RMSNorm has none, nor has the head)."""
    tied: bool = False
    """The head reads its weight from the embedding."""
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    """Llama 3's stretching of the rotary wavelengths, with Hugging Face's keys; null: none."""


LARGEST = 1_000_000_000
"""Of any of its sizes: more is a slip of the keyboard."""
SETTINGS = tuple(field.name for field in fields(Shape))

_GPT2: dict[str, Any] = {
    "vocab_size": 50257,
    "sequence_length": 1024,
    "positions": "learned",
    "norm": "layer_norm",
    "activation": "gelu",
    "bias": True,
    "tied": True,
}
_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "sequence_length": 8192,
    "kv_heads": 8,
    "rope_theta": 500_000.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    # About 1 M parameters: Llama's way, small enough for one core.
    "toy": {
        "vocab_size": 2048, "sequence_length": 256, "tied": True,
        "layers": 4, "heads": 4, "width": 128, "mlp_width": 352,
    },
    # Radford et al. 2019, table 2, with the sizes as they are counted today.
    "gpt2_124m": _GPT2 | {"layers": 12, "heads": 12, "width": 768},
    "gpt2_350m": _GPT2 | {"layers": 24, "heads": 16, "width": 1024},
    "gpt2_774m": _GPT2 | {"layers": 36, "heads": 20, "width": 1280},
    "gpt2_1.5b": _GPT2 | {"layers": 48, "heads": 25, "width": 1600},
    # The config.json of Llama 3.2 1B and 3B, and of Llama 3.1 8B and 70B (arXiv:2407.21783, table 3).
    "llama_1b": _LLAMA3 | {"layers": 16, "heads": 32, "width": 2048, "mlp_width": 8192, "tied": True},
    "llama_3b": _LLAMA3 | {"layers": 28, "heads": 24, "width": 3072, "mlp_width": 8192, "tied": True},
    "llama_8b": _LLAMA3 | {"layers": 32, "heads": 32, "width": 4096, "mlp_width": 14336},
    "llama_70b": _LLAMA3 | {"layers": 80, "heads": 64, "width": 8192, "mlp_width": 28672},
}  # fmt: skip


def resolve(preset: str | None, given: Mapping[str, Any]) -> Shape:
    """The shape of a preset, or of none, with the settings that were given laid over it."""
    if preset is not None and preset not in PRESETS:
        raise UserError(f"model.preset: there is no '{preset}'.{nearest(preset, PRESETS)}")
    known = (PRESETS[preset] if preset else {}) | dict(given)
    missing = [name for name in ("vocab_size", "sequence_length", "layers", "heads", "width") if name not in known]
    if missing:
        raise UserError(f"The model needs model.{missing[0]}: give it, or a model.preset ({', '.join(PRESETS)}).")
    for name in ("vocab_size", "sequence_length", "layers", "heads", "width", "kv_heads", "head_width", "mlp_width"):
        if not 1 <= known.get(name, 1) <= LARGEST:
            raise UserError(f"model.{name} must be from 1 to {LARGEST:,}, not {known[name]:.6g}.")
    heads, width = known["heads"], known["width"]
    if "head_width" not in known and width % heads:
        near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))
        raise UserError(f"model.width={width} does not divide into model.heads={heads}; {near} heads would.")
    swiglu = known.get("activation", "swiglu") == "swiglu"
    # 8/3 of the width keeps SwiGLU's three matrices as large as GELU's two of 4 (arXiv:2002.05202).
    usual = (width * 8 // 3 + 63) // 64 * 64 if swiglu else 4 * width
    return checked(Shape(**{"kv_heads": heads, "head_width": width // heads, "mlp_width": usual} | known))


def checked(shape: Shape) -> Shape:
    """The shape itself; a `UserError` where its numbers cannot go together."""
    if shape.heads % shape.kv_heads:
        raise UserError(f"model.kv_heads={shape.kv_heads} must divide model.heads={shape.heads}.")
    if shape.positions == "rotary" and shape.head_width % 2:
        raise UserError(f"Rotary positions turn pairs: model.head_width={shape.head_width} must be even.")
    if shape.rope_scaling is not None:
        if shape.positions != "rotary":
            raise UserError("model.rope_scaling is for model.positions=rotary only.")
        keys = {"rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
        if set(shape.rope_scaling) != keys or shape.rope_scaling["rope_type"] != "llama3":
            raise UserError(f"model.rope_scaling must have rope_type: llama3 and {', '.join(sorted(keys))}.")
    return shape


def check_architecture(preset: str | None, shape: Shape, path: str) -> None:
    """A `UserError` where a preset names one architecture (gpt2_…, llama_…) and the weights at `path` have another."""
    if preset not in PRESETS or not preset.startswith(("gpt2", "llama")):
        return
    for name, usual in (("positions", "rotary"), ("norm", "rms_norm"), ("activation", "swiglu")):
        held, named = getattr(shape, name), PRESETS[preset].get(name, usual)
        if held != named:
            other = "llama_1b" if shape.positions == "rotary" else "gpt2_124m"
            raise UserError(
                f"model.path={path} does not fit model={preset}: {name} of its weights is {held}, not {named}. Take "
                f"model={other}, whose sizes give way to theirs, or model=hugging_face."
            )


def laid_over(shape: Shape, given: Mapping[str, Any], path: str) -> Shape:
    """The shape of pretrained weights at `path`; a `UserError` where a setting contradicts them.

    A smaller vocabulary (a tokenizer that leaves rows unused) and a shorter sequence fit; rotary positions stretch.
    """
    for name, value in given.items():
        held = getattr(shape, name)
        if name == "vocab_size" and value > held:
            raise UserError(
                f"The weights in {path} know {held} tokens, and model.vocab_size={value} asks for more; use the "
                "tokenizer that belongs to them."
            )
        if name == "sequence_length" and value > held and shape.positions == "learned":
            raise UserError(f"The weights in {path} have {held} positions: sequence_length={value} is too long.")
        if name not in ("vocab_size", "sequence_length") and value != held:
            raise UserError(
                f"model.{name}={value} contradicts the weights in {path}, which have {held}: leave it null."
            )
    longest = max(shape.sequence_length, given.get("sequence_length", 0))
    return Shape(**{name: getattr(shape, name) for name in SETTINGS} | {"sequence_length": longest})
