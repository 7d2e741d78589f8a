"""The native decoder as a Hugging Face model, and back: GPT-2 and Llama, exact to the last bit of every weight."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.models.native import Decoder
from bigtrain.models.shapes import Shape, checked
from bigtrain.models.source import Source

INSTEAD = "model=hugging_face trains it as it is"
SHARD = "5GB"
"""A model.safetensors that is larger becomes several, with an index, as everywhere on the hub."""


@dataclass(slots=True)
class Entry:
    """One native tensor and the Hugging Face tensors that make it, joined along their outputs."""

    names: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    """Rows of each, where they are several."""
    transposed: bool = False
    """GPT-2 keeps its matrices as (inputs, outputs)."""


def entries(shape: Shape) -> dict[str, Entry]:
    """Native parameter name -> where its values are in the Hugging Face model."""
    if shape.positions == "learned":
        table = {"embedding.weight": Entry(("transformer.wte.weight",))}
        table["positions.weight"] = Entry(("transformer.wpe.weight",))
        pairs = {"attention_norm": "ln_1", "mlp_norm": "ln_2", "attention.qkv": "attn.c_attn"}
        pairs |= {"attention.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
        for layer in range(shape.layers):
            for ours, single in pairs.items():
                for kind in ("weight", "bias"):
                    turned = kind == "weight" and "norm" not in ours
                    name = f"transformer.h.{layer}.{single}.{kind}"
                    table[f"blocks.{layer}.{ours}.{kind}"] = Entry((name,), transposed=turned)
        table |= {f"norm.{kind}": Entry((f"transformer.ln_f.{kind}",)) for kind in ("weight", "bias")}
    else:
        table = {"embedding.weight": Entry(("model.embed_tokens.weight",))}
        keys = shape.kv_heads * shape.head_width
        qkv = (shape.heads * shape.head_width, keys, keys)
        joined: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
            "attention.qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), qkv),
            "attention.out": (("self_attn.o_proj",), ()),
            "mlp.up": (("mlp.gate_proj", "mlp.up_proj"), (shape.mlp_width, shape.mlp_width)),
            "mlp.down": (("mlp.down_proj",), ()),
        }
        for layer in range(shape.layers):
            at = f"model.layers.{layer}"
            table[f"blocks.{layer}.attention_norm.weight"] = Entry((f"{at}.input_layernorm.weight",))
            table[f"blocks.{layer}.mlp_norm.weight"] = Entry((f"{at}.post_attention_layernorm.weight",))
            for ours, (theirs, sizes) in joined.items():
                for kind in ("weight", "bias") if shape.bias else ("weight",):
                    names = tuple(f"{at}.{name}.{kind}" for name in theirs)
                    table[f"blocks.{layer}.{ours}.{kind}"] = Entry(names, sizes)
        table["norm.weight"] = Entry(("model.norm.weight",))
    if not shape.tied:
        table["head.weight"] = Entry(("lm_head.weight",))
    return table


def config_of(shape: Shape, dropout: float = 0.0) -> Any:
    """The transformers configuration of a shape; a `UserError` naming the setting that neither architecture has."""
    from transformers import GPT2Config, LlamaConfig

    learned = shape.positions == "learned"
    needed: dict[str, Any] = {"norm": "layer_norm", "activation": "gelu"} if learned else {}
    needed |= {"kv_heads": shape.heads, "head_width": shape.width // shape.heads} if learned else {}
    needed |= {} if learned else {"norm": "rms_norm", "activation": "swiglu"}
    for name, value in needed.items():
        if getattr(shape, name) != value:
            raise UserError(
                f"A Hugging Face folder cannot hold this model: with model.positions={shape.positions} "
                f"({'GPT-2' if learned else 'Llama'}) it needs model.{name}={value}, not {getattr(shape, name)}."
            )
    common = {
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    if learned:
        return GPT2Config(
            n_positions=shape.sequence_length,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_inner=shape.mlp_width,
            layer_norm_epsilon=shape.norm_eps,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=0.0,  # the fast kernels of attention have none
            architectures=["GPT2LMHeadModel"],
            **common,
        )
    return LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=shape.sequence_length,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default"} | dict(shape.rope_scaling or {}) | {"rope_theta": shape.rope_theta},
        attention_bias=shape.bias,
        mlp_bias=shape.bias,
        architectures=["LlamaForCausalLM"],
        **common,
    )


def shape_of(config: Any, path: str) -> Shape:
    """The shape of a transformers configuration; a `UserError` where the native decoder has no such part."""

    def refuse(what: str) -> UserError:
        return UserError(f"model.path={path}: the native decoder has no {what}; {INSTEAD}.")

    if config.model_type == "gpt2":
        if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
            raise refuse(f"activation_function={config.activation_function}")
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights or config.add_cross_attention:
            raise refuse("other scaling of attention, nor cross-attention")
        return checked(
            Shape(
                vocab_size=config.vocab_size,
                sequence_length=config.n_positions,
                layers=config.n_layer,
                heads=config.n_head,
                kv_heads=config.n_head,
                width=config.n_embd,
                head_width=config.n_embd // config.n_head,
                mlp_width=config.n_inner or 4 * config.n_embd,
                positions="learned",
                norm="layer_norm",
                activation="gelu",
                bias=True,
                tied=config.tie_word_embeddings,
                norm_eps=config.layer_norm_epsilon,
            )
        )
    if config.model_type != "llama":
        raise refuse(f"architecture '{config.model_type}' (it has gpt2 and llama)")
    rope = dict(config.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope.get("rope_type", "default")
    if kind not in ("default", "llama3"):
        raise refuse(f"rope_type={kind}")
    if config.hidden_act not in ("silu", "swish"):
        raise refuse(f"hidden_act={config.hidden_act}")
    if config.attention_bias != config.mlp_bias:
        raise refuse("biases in attention or MLP alone")
    return checked(
        Shape(
            vocab_size=config.vocab_size,
            sequence_length=config.max_position_embeddings,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            width=config.hidden_size,
            head_width=config.head_dim,
            mlp_width=config.intermediate_size,
            bias=config.attention_bias,
            tied=config.tie_word_embeddings,
            norm_eps=config.rms_norm_eps,
            rope_theta=float(theta),
            rope_scaling=rope if kind == "llama3" else None,
        )
    )


def tensors_of(shape: Shape, source: Source, path: str) -> Callable[[str], Tensor]:
    """A reader of native tensors (by the decoder's parameter names) out of Hugging Face weights."""
    table = entries(shape)

    def read_one(name: str) -> Tensor:
        bare = name.removeprefix("transformer.").removeprefix("model.")  # GPT-2's own files have no prefix
        for candidate in (name, bare):
            if candidate in source:
                return source.read(candidate)
        raise UserError(f"model.path={path}: the weights lack {name}.")

    def read(name: str) -> Tensor:
        entry = table[name]
        parts = [read_one(part) for part in entry.names]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        return tensor.t() if entry.transposed else tensor

    return read


def to_hugging_face(model: Decoder) -> tuple[Any, dict[str, Tensor]]:
    """(transformers configuration, state dict on the CPU) of the same function.

    GPT-2 without biases is written with biases of zero, as Hugging Face's GPT-2 always has them.
    """
    shape = model.shape
    config = config_of(shape, model.dropout.p)
    config.dtype = str(model.head.weight.dtype).removeprefix("torch.")
    state: dict[str, Tensor] = {}
    held = {name: p.detach().cpu() for name, p in model.named_parameters()}
    for name, entry in entries(shape).items():
        tensor = held.get(name)
        if tensor is None:
            tensor = torch.zeros(held[name.removesuffix("bias") + "weight"].shape[0])
        parts = torch.split(tensor, list(entry.sizes)) if entry.sizes else (tensor,)
        for theirs, part in zip(entry.names, parts, strict=True):
            # A part is a view of the joined tensor, and what is saved must own its storage.
            state[theirs] = (part.t() if entry.transposed else part).clone(memory_format=torch.contiguous_format)
    return config, state


def from_hugging_face(config: Any, state: dict[str, Tensor], dropout: float = 0.0) -> Decoder:
    """The native decoder of a GPT-2 or Llama configuration and state dict."""
    from bigtrain.models.build import load_tensors

    shape = shape_of(config, config.model_type)
    model = Decoder(shape, dropout)
    load_tensors(model, tensors_of(shape, Source(config, loaded=state), config.model_type))
    return model


def save_hugging_face(model: nn.Module, out: str | Path, tokenizer_path: str | Path | None = None) -> None:
    """Write `out` as a Hugging Face folder: config, generation config, weights (in shards if large), tokenizer.

    The folder appears whole or not at all; an earlier export in the same place is replaced, anything else is left
    alone with a `UserError`.
    """
    from bigtrain.models.tasks import HuggingFaceTask
    from bigtrain.models.wrapped import HuggingFace

    out = Path(out)
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "config.json").is_file())):
        raise UserError(f"{out} exists and is not an earlier export: choose another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        fresh, old = Path(scratch, "new"), Path(scratch, "old")
        fresh.mkdir()
        if isinstance(model, HuggingFace | HuggingFaceTask):
            config, generation = model.config, getattr(model.hf, "generation_config", None)
            _name_special_tokens(config, generation, fresh, tokenizer_path)
            model.hf.save_pretrained(fresh, max_shard_size=SHARD)
        elif isinstance(model, Decoder):
            from huggingface_hub import save_torch_state_dict
            from transformers import GenerationConfig

            config, state = to_hugging_face(model)
            generation = GenerationConfig()
            _name_special_tokens(config, generation, fresh, tokenizer_path)
            config.save_pretrained(fresh)
            generation.save_pretrained(fresh)
            save_torch_state_dict(state, fresh, max_shard_size=SHARD, metadata={"format": "pt"})
        else:
            raise UserError(f"A {type(model).__name__} cannot be exported: only bigtrain's own models know how.")
        if out.exists():
            shutil.move(out, old)
        fresh.rename(out)


def _name_special_tokens(config: Any, generation: Any, out: Path, tokenizer_path: str | Path | None) -> None:
    """Save the tokenizer and tell the model which of its tokens begin, end and pad a text."""
    if tokenizer_path is None:
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, trust_remote_code=False)
    tokenizer.save_pretrained(out)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for told in (config, generation):
            if told is not None and getattr(told, name, None) is None:
                setattr(told, name, getattr(tokenizer, name))
