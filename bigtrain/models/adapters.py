"""Low-rank adapters through peft: LoRA (arXiv:2106.09685) and DoRA (arXiv:2402.09353), merged on export."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from torch import nn

from bigtrain.errors import UserError
from bigtrain.models.lora import Lora


def add_adapters(hf: Any, lora: Lora, fresh_heads: list[str]) -> None:
    """Put adapters into a transformers model, in place, and freeze all else but the modules that are trained whole.

    Raises:
        UserError: peft is missing, a number cannot be, or the targets match nothing: then with what there is.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("model.lora needs peft: pip install 'bigtrain[finetune]'.") from error
    if lora.rank < 1 or not 0 <= lora.dropout < 1 or lora.alpha <= 0:
        raise UserError("model.lora: rank at least 1, alpha above 0, dropout at least 0 and below 1.")
    whole = fresh_heads if lora.train is None else lora.train
    linear = {name: module for name, module in hf.named_modules() if isinstance(module, nn.Linear) or _conv1d(module)}
    head = hf.get_output_embeddings()
    names = [name for name, module in linear.items() if module is not head and not _within(name, whole)]
    given = [lora.targets] if isinstance(lora.targets, str) else lora.targets
    targets = [".*"] if given == ["all-linear"] else given
    chosen = [name for name in names if any(_matches(name, target) for target in targets)]
    unmatched = [target for target in targets if not any(_matches(name, target) for name in names)]
    if unmatched or not chosen:
        there = Counter(name.rpartition(".")[2] for name in names)
        raise UserError(
            f"model.lora.targets: {', '.join(unmatched) or given} matches no linear layer; there are "
            f"{', '.join(f'{name} ({count})' for name, count in there.items())}."
        )
    settings: dict[str, Any] = {"lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_dora": lora.dora}
    config = LoraConfig(r=lora.rank, target_modules=chosen, **settings)
    inject_adapter_in_model(config, hf)
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_("lora_" in name or _within(name, whole))


def merged(hf: Any) -> Any:
    """The model with the adapters added into its weights, in place: a plain transformers model again."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return hf
    for name, module in list(hf.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            hf.set_submodule(name, module.get_base_layer())
    return hf


def _conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # GPT-2's linear layers


def _within(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") or f".{module}." in f".{name}." for module in modules)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}") or re.fullmatch(target, name) is not None
