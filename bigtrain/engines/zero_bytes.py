"""Bytes of parameters, gradients and optimizer state on one rank under ZeRO. Pure: no torch.

The formulae are the ZeRO paper's (https://arxiv.org/abs/1910.02054, section 3 and figure 1), for Psi trained parameters
on N ranks, and an optimizer with two states a parameter (Adam). In mixed precision a rank without ZeRO holds 2 Psi of
weights, 2 Psi of gradients and 12 Psi of optimizer state (fp32 masters, momentum, variance); in fp32 4, 4 and 8 Psi, as
the weights are the masters. Stage 1 divides the optimizer state by N, stage 2 the gradients too, stage 3 all.

DeepSpeed 0.19.8 under bigtrain's settings differs, as measured on the live tensors between backward pass and step
(`tests/distributed/test_zero_bytes.py`), so `deepspeed_bytes` is what to plan with:

- fp32, stages 1 to 3: the flat partition that the optimizer steps on is a copy of the weights, so that there are fp32
  masters beside them: 4 Psi / N more.
- bf16 and fp16, stages 2 and 3: gradients are summed over micro-batches and ranks in fp32, which bigtrain asks for:
  4 Psi / N, not 2.
- bf16, stage 1 (its `BF16_Optimizer`): the sum in fp32 is whole on every rank, and the gradients of the last
  micro-batch are still there in bf16: 6 Psi, not 2. Stage 2 holds less of everything.
- fp16, stage 1: as stage 2, but that the fp32 sum is whole while micro-batches are added up: 4 Psi.

Not counted: padding (a few elements a group), parameters of less than 100 000 elements, which stage 3 keeps whole on
every rank, and the buckets (`engine.bucket_size` elements, once or twice).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

Kind = Literal["parameters", "gradients", "optimizer"]
KINDS: tuple[Kind, ...] = ("parameters", "gradients", "optimizer")
FIRST_DIVIDED: dict[Kind, int] = {"optimizer": 1, "gradients": 2, "parameters": 3}
"""The stage from which on each kind is divided by the ranks."""


def paper_bytes(parameters: int, stage: int, ranks: int, precision: str, states: int = 2) -> dict[Kind, int]:
    """The paper's formulae.

    Args:
        parameters: trained parameters of the model.
        stage: 0 to 3.
        ranks: that share them.
        precision: fp32, bf16 or fp16.
        states: fp32 numbers a parameter that the optimizer keeps: 2 for Adam, 1 for Lion or momentum, 0 for plain SGD.

    Returns:
        Bytes on one rank, by kind.
    """
    return {kind: _bytes(_paper(kind, precision, states), kind, parameters, stage, ranks) for kind in KINDS}


def deepspeed_bytes(parameters: int, stage: int, ranks: int, precision: str, states: int = 2) -> dict[Kind, int]:
    """What DeepSpeed holds; arguments and result as in `paper_bytes`."""
    found = paper_bytes(parameters, stage, ranks, precision, states)
    if precision == "fp32" and stage > 0:
        found["optimizer"] = _bytes(4 + 4 * states, "optimizer", parameters, stage, ranks)
    if precision != "fp32" and stage > 0:
        summed = 6 if precision == "bf16" and stage == 1 else 4
        found["gradients"] = _bytes(summed, "gradients", parameters, stage, ranks)
    return found


def formula(kind: Kind, stage: int, precision: str, states: int = 2) -> str:
    """The paper's formula in words: `12 Psi / N`."""
    divided = " / N" if stage >= FIRST_DIVIDED[kind] else ""
    return f"{_paper(kind, precision, states)} Psi{divided}"


def _paper(kind: Kind, precision: str, states: int) -> int:
    low = 4 if precision == "fp32" else 2
    masters = 0 if precision == "fp32" else 4
    return masters + 4 * states if kind == "optimizer" else low


def _bytes(each: int, kind: Kind, parameters: int, stage: int, ranks: int) -> int:
    return round(Fraction(each * parameters, ranks if stage >= FIRST_DIVIDED[kind] else 1))
