"""Matrix products of a model's blocks in fp8, through torchao (arXiv:2209.05433): precision=fp8.

Weights, gradients and the optimizer stay as bf16 has them; what a linear layer multiplies is scaled and rounded to 8
bits on its way in, forward and backward. Parameters keep their names: checkpoints and exports are as without it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from bigtrain.config.schema import FP8_MULTIPLE, Precision
from bigtrain.errors import UserError


def check_installed(precision: Precision) -> None:
    """A `UserError` where torchao is asked for and missing."""
    if precision.fp8 and importlib.util.find_spec("torchao") is None:
        raise UserError("precision=fp8 needs torchao: pip install 'bigtrain[gpu]'; or take precision=bf16.")


def fp8_products(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """`model` with the linear layers of its blocks in fp8, where `precision.fp8` says how they are scaled.

    Embeddings, norms, attention and the head stay in bf16, and so do layers with sides that are no multiple of 16.

    Raises:
        UserError: torchao is missing, the GPU has no fp8, or no layer fits.
    """
    check_installed(precision)
    if precision.fp8 is None:
        return model
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"{name} has no fp8, which came with the H100 and the L40S: take precision=bf16.")
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    from bigtrain.engines.fsdp import blocks

    linear = {
        module
        for block in blocks(model)
        for module in block.modules()
        if isinstance(module, nn.Linear) and module.weight.is_floating_point()
    }
    if not linear:
        raise UserError(
            f"precision=fp8: {type(model).__name__} has no torch.nn.Linear in blocks (modules of an nn.ModuleList), "
            "and nothing else is computed in fp8: take precision=bf16."
        )
    fits = {each for each in linear if not (each.in_features % FP8_MULTIPLE or each.out_features % FP8_MULTIPLE)}
    if not fits:
        raise UserError(
            "precision=fp8: no linear layer of the model's blocks has sides that are multiples of "
            f"{FP8_MULTIPLE}: take precision=bf16, or another width."
        )
    config = Float8LinearConfig.from_recipe_name(precision.fp8)
    converted: nn.Module = convert_to_float8_training(model, config=config, module_filter_fn=lambda m, name: m in fits)
    return converted


def shares(model: nn.Module) -> tuple[int, int]:
    """How many of the model's linear layers are in fp8, and of how many."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(type(module).__name__ == "Float8Linear" for module in linear), len(linear)


def scaling(model: nn.Module) -> str | None:
    """How a model's products are scaled to fp8, read from its modules; None where none is."""
    module: Any
    for module in model.modules():
        if type(module).__name__ == "Float8Linear":
            return "rowwise" if module.config.cast_config_input.scaling_granularity.name == "AXISWISE" else "tensorwise"
    return None
