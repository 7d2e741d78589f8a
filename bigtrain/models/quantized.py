"""Frozen linear layers whose weights have 4 bits, through bitsandbytes: what QLoRA (arXiv:2305.14314) trains beside."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch import nn

from bigtrain.errors import UserError


def quantize(hf: Any, chosen: list[str], kind: Literal["nf4", "fp4"]) -> None:
    """Put 4-bit layers in the place of these linear layers of a transformers model, and tell peft of it.

    Blocks of 64 weights have a scale, and the scales are of 8 bits with scales of their own: 4.13 bits a weight in all.
    It is done on the host, so that a resumed run has the same weights on any device.

    Raises:
        UserError: bitsandbytes is missing, the kind is unknown, or a layer is none that it knows.
    """
    if kind not in ("nf4", "fp4"):
        raise UserError(f"model.lora.quantize={kind}: there are nf4 and fp4.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("model.lora.quantize needs bitsandbytes: pip install 'bigtrain[qlora]'.")
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in chosen:
        linear = hf.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise UserError(
                f"model.lora.quantize: {name} of this {hf.config.model_type} is a {type(linear).__name__}, and only "
                "linear layers can be of 4 bits: choose others by model.lora.targets, or set model.lora.quantize=null."
            )
        layer = Linear4bit(linear.in_features, linear.out_features, bias=False, quant_type=kind, device="meta")
        layer.weight = Params4bit(linear.weight.detach(), quant_type=kind, module=layer).to("cpu")
        layer.bias = linear.bias
        layer.support_avx512bf16_for_cpu = False  # with it, an evaluation leaves the weights in another order
        hf.set_submodule(name, layer)
    hf.is_loaded_in_4bit = True  # peft asks for it


def spread(hf: Any, layer: Any) -> nn.Linear:
    """The layer that a 4-bit one of this model stands for, its weights in fp32."""
    from bitsandbytes.functional import dequantize_4bit

    hf.is_loaded_in_4bit = False
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(torch.float32)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = layer.bias
    return linear
