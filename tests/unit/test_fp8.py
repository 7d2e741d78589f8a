"""precision=fp8: which layers it takes, and what it refuses."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from bigtrain.assembly import check_parts
from bigtrain.config.compose import compose
from bigtrain.config.schema import Precision
from bigtrain.engines.fp8 import fp8_products, shares
from bigtrain.errors import UserError
from bigtrain.models import decoder

FP8 = Precision("bf16", fp8="rowwise")
CPU = torch.device("cpu")


def model(width: int = 32) -> torch.nn.Module:
    return decoder(vocab_size=64, sequence_length=8, layers=2, heads=2, width=width, mlp_width=48, tied=True)


def test_the_linear_layers_of_blocks_and_no_others() -> None:
    plain, converted = model(), fp8_products(model(), FP8, CPU)
    kinds = {name: type(module).__name__ for name, module in converted.named_modules()}
    linear = [name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)]
    assert linear and all(kinds[name] == "Float8Linear" for name in linear)
    assert sum(kind == "Float8Linear" for kind in kinds.values()) == len(linear)
    assert converted.state_dict().keys() == plain.state_dict().keys()
    assert fp8_products(plain, Precision("bf16"), CPU) is plain
    assert not any(type(module).__name__ == "Float8Linear" for module in plain.modules())


def test_layers_that_do_not_fit_stay_and_none_is_refused() -> None:
    with pytest.raises(UserError, match="no linear layer of the model's blocks has sides that are multiples of 16"):
        fp8_products(model(width=20), FP8, CPU)


def test_a_model_without_linear_layers_in_blocks_is_told_that() -> None:
    with pytest.raises(UserError, match=r"Sequential has no torch.nn.Linear in blocks \(modules of an nn.ModuleList\)"):
        fp8_products(torch.nn.Sequential(torch.nn.Linear(32, 32)), FP8, CPU)


def test_a_part_of_the_layers_is_counted() -> None:
    part = decoder(vocab_size=64, sequence_length=8, layers=2, heads=2, width=32, mlp_width=60, tied=True)
    in_fp8, of = shares(fp8_products(part, FP8, CPU))
    assert 0 < in_fp8 < of


def test_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torchao: pip install 'bigtrain\[gpu\]'"):
        fp8_products(model(), FP8, CPU)
    with pytest.raises(UserError, match="needs torchao"):  # before the data are prepared
        check_parts(compose(["recipe=smoke", "precision=fp8"]).config)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["precision=fp16", "precision.fp8=rowwise"], "precision.fp8 goes with precision.name=bf16, not fp16"),
        (["precision=fp8", "precision.fp8=row"], "rowwise | tensorwise or null"),
        (
            ["precision=fp8", "engine=zero1", "engine.tensor_parallel=2", "launcher.processes=2"],
            "precision=fp8 and engine.tensor_parallel do not go together",
        ),
    ],
)
def test_bad_input(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        compose(["recipe=smoke", *words])
    assert told in str(error.value)
