"""Low-rank adapters through peft: LoRA (arXiv:2106.09685), DoRA (arXiv:2402.09353) and QLoRA, merged on export."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from typing import Any

import torch
from torch import nn

from bigtrain.errors import UserError, nearest
from bigtrain.models.lora import Lora


def add_adapters(hf: Any, lora: Lora, fresh_heads: list[str]) -> None:
    """Put adapters into a transformers model, in place, and freeze all else but the modules that are trained whole.

    Raises:
        UserError: peft is missing, a number cannot be, or the targets match nothing: then with what there is.
    """
    whole = fresh_heads if lora.train is None else lora.train
    chosen = chosen_layers(hf, lora, whole)
    if lora.quantize is not None:
        from bigtrain.models.quantized import quantize

        quantize(hf, chosen, lora.quantize)
    from peft import LoraConfig, inject_adapter_in_model

    settings: dict[str, Any] = {"lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_dora": lora.dora}
    config = LoraConfig(r=lora.rank, target_modules=chosen, **settings)
    inject_adapter_in_model(config, hf)
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_("lora_" in name or _within(name, whole))


def chosen_layers(hf: Any, lora: Lora, whole: list[str]) -> list[str]:
    """The linear layers that `model.lora` adapts, by name, but those of the modules that are trained `whole`. The
    model's weights are not looked at: they may be on the meta device.

    Raises:
        UserError: see `add_adapters`.
    """
    if importlib.util.find_spec("peft") is None:
        raise UserError("model.lora needs peft: pip install 'bigtrain[finetune]'.")
    if lora.rank < 1 or not 0 <= lora.dropout < 1 or lora.alpha <= 0:
        raise UserError("model.lora: rank at least 1, alpha above 0, dropout at least 0 and below 1.")
    if lora.dora and lora.quantize is not None:
        raise UserError("model.lora: dora=true needs the weights' lengths, quantize rounds them: take one of the two.")
    linear = {name: module for name, module in hf.named_modules() if isinstance(module, nn.Linear) or _conv1d(module)}
    head = hf.get_output_embeddings()
    names = [name for name, module in linear.items() if module is not head and not _within(name, whole)]
    given = [lora.targets] if isinstance(lora.targets, str) else lora.targets
    targets = [".*"] if given == ["all-linear"] else given
    chosen = [name for name in names if any(_matches(name, target) for target in targets)]
    unmatched = [target for target in targets if not any(_matches(name, target) for name in names)]
    if unmatched or not chosen:
        there = Counter(name.rpartition(".")[2] for name in names)
        hints = [hint for target in unmatched if (hint := nearest(target, there)).startswith(" Did")]
        raise UserError(
            f"model.lora.targets: {', '.join(unmatched) or given} matches no linear layer; there are "
            f"{', '.join(f'{name} ({count})' for name, count in there.items())}.{''.join(hints[:1])}"
        )
    return chosen


@torch.no_grad()
def merged(hf: Any) -> Any:
    """The model with the adapters added into its weights, in place: a plain transformers model again."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return hf
    for name, module in list(hf.named_modules()):
        if isinstance(module, BaseTunerLayer):
            tuned: Any = module
            layer = tuned.get_base_layer()
            if hasattr(layer, "quant_state"):  # peft would merge into 4 bits again: another function
                from bigtrain.models.quantized import spread

                layer = spread(hf, layer)
                layer.weight += tuned.get_delta_weight("default")
            else:
                tuned.merge()
            hf.set_submodule(name, layer)
    return hf


def _conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # GPT-2's linear layers


def _within(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") or f".{module}." in f".{name}." for module in modules)


def _matches(name: str, target: str) -> bool:
    try:
        return name == target or name.endswith(f".{target}") or re.fullmatch(target, name) is not None
    except re.error as error:
        raise UserError(f"model.lora.targets: '{target}' is no regular expression: {error}.") from error
