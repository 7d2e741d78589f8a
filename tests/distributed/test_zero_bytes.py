"""What ZeRO's stages hold on a rank, measured on the live tensors between the backward pass and the step, against the
formulae."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigtrain.engines.zero_bytes import KINDS, deepspeed_bytes, formula, paper_bytes
from tests.distributed import deepspeed_runs as runs
from tests.distributed.ranks import run_on_ranks

CASES = [(stage, precision) for precision in ("fp32", "bf16") for stage in range(4)]


SIZE = 360


class Wide(nn.Module):
    """Eight equal matrices, so that a rank's share on 1, 2 and 4 ranks is whole ones; each above ZeRO-3's threshold of
    100 000 elements, below which every rank keeps the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE, bias=False) for _ in range(8))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = nn.functional.one_hot(input_ids, SIZE).float()
        for layer in self.layers:
            x = layer(torch.tanh(x))
        return x


def held(*tensors: Any) -> int:
    """Bytes of the memory behind tensors (or lists of them), each piece once."""
    storages: dict[int, int] = {}

    def add(one: Any) -> None:
        if isinstance(one, Tensor):
            if one.numel():
                storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, dict):
            add(list(one.values()))
        elif isinstance(one, list | tuple):
            for inner in one:
                add(inner)

    add(list(tensors))
    return sum(storages.values())


def parts(engine: Any) -> dict[str, int]:
    """Bytes by kind that DeepSpeed holds now."""
    wrapped, parameters = engine._engine.optimizer, list(engine.model.parameters())
    masters = [getattr(wrapped, name, []) for name in (
        "fp32_groups", "fp32_groups_flat_partition", "single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"
    )]  # fmt: skip
    weights = [[p.data, getattr(p, "ds_tensor", None)] for p in parameters]
    states = [dict(state) for state in engine.optimizer.state.values()]
    gradients = [
        [p.grad for p in parameters],
        [getattr(p, "grad_accum", None) for p in parameters],
        [getattr(wrapped, "averaged_gradients", {}), getattr(wrapped, "all_grad_tensors", {})],
        getattr(wrapped, "fp32_groups_gradients_flat", []),  # zero1 in bf16
        getattr(wrapped, "grad_partitions_flat_buffer", None),  # zero3
    ]
    both = held(masters, weights)
    return {
        "parameters": held(weights),
        "gradients": held(gradients),
        "optimizer": both - held(weights) + held(states),  # zero0 and zero3 in fp32: the weights are the masters
    }


def measured(ranks: Any) -> dict[tuple[int, str], dict[str, int]]:
    """The most of each kind that is held after the backward pass of the first micro-batch or of the last."""
    found = {}
    for stage, precision in CASES:
        engine = runs.build(ranks, f"zero{stage}", precision=precision, model=Wide, bucket_size=200_000)
        runs.step(ranks, engine, 0, 1)  # which makes the optimizer's state
        inner, seen = engine._engine, dict.fromkeys(KINDS, 0)

        def step(real: Any = inner.step, engine: Any = engine, seen: dict[Any, int] = seen) -> None:
            for kind, size in parts(engine).items():
                seen[kind] = max(seen[kind], size)
            real()

        inner.step = step
        runs.step(ranks, engine, 1, 2)
        found[stage, precision] = seen
        engine.close()
    return found


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_bytes_are_those_of_the_formulae(world_size: int) -> None:
    numel = sum(p.numel() for p in Wide().parameters())
    wrong = []
    for rank, found in enumerate(run_on_ranks(measured, world_size)):
        for (stage, precision), bytes_ in found.items():
            paper = paper_bytes(numel, stage, world_size, precision)
            expected = deepspeed_bytes(numel, stage, world_size, precision)
            for kind in KINDS:
                off = bytes_[kind] / expected[kind] - 1
                line = (
                    f"zero{stage} {precision} rank {rank} of {world_size}, {kind}: the paper's "
                    f"{formula(kind, stage, precision)} = {paper[kind]}, DeepSpeed's {expected[kind]}, "
                    f"measured {bytes_[kind]} ({off:+.2%})"
                )
                print(line)
                if abs(off) > 0.02:
                    wrong.append(line)
    assert not wrong, "\n".join(wrong)
