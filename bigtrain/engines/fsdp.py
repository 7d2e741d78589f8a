"""`fsdp`: torch's FSDP2 (`fully_shard`). Each rank holds a slice of the weights, the gradients, the optimizer state.

Weights are fp32 shards along the first dimension; a block is gathered when it is needed. In bf16 and fp16 it is
gathered in that precision, as DeepSpeed does it, beside the same autocast that all engines have: autocast alone would
keep a cast copy of every gathered weight alive until the backward pass. Gradients are summed in fp32.
Paper: https://arxiv.org/abs/2304.11277. Documentation: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from bigtrain.checkpoint.fragments import Fragment
from bigtrain.config.schema import RunConfig
from bigtrain.distributed import Ranks, sum_over_ranks
from bigtrain.engines import state
from bigtrain.engines.base import Objective
from bigtrain.engines.plain import PlainEngine
from bigtrain.engines.sharded_init import build_once
from bigtrain.errors import UserError


class FsdpEngine(PlainEngine):
    """FSDP2: every block is a unit that is gathered and freed by itself, and what remains is the last one.

    The optimizer sees the parameters with their whole shapes when it is made, and this rank's slices, as ordinary
    tensors, when it steps.
    """

    def __init__(
        self,
        config: RunConfig,
        build_model: Callable[[], nn.Module],
        objective: Objective,
        build_optimizer: Callable[[nn.Module], Optimizer],
        ranks: Ranks,
    ) -> None:
        super().__init__(config, build_model, objective, build_optimizer, ranks)
        # Held here, as the model shows the gathered weights while a unit is not sharded.
        self._sharded: dict[str, DTensor] = dict(self.model.named_parameters())  # type: ignore[arg-type]
        self._own = {p: nn.Parameter(_local(p), requires_grad=p.requires_grad) for p in self._sharded.values()}
        self._parameters = [own for own in self._own.values() if own.requires_grad]
        _hand_over(self.optimizer, self._own)

    def _make_scaler(self) -> torch.amp.GradScaler:
        precision = self._config.precision
        return ShardedGradScaler(  # an overflow on one rank is known to all
            self.device.type,
            enabled=self._dtype is torch.float16,
            init_scale=precision.initial_loss_scale,
            growth_interval=precision.loss_scale_window,
            process_group=dist.group.WORLD,
        )

    def _build(self, build_model: Callable[[], nn.Module]) -> nn.Module:
        model = build_once(build_model, self.ranks) if self._config.engine.sharded_init else build_model()
        for name, parameter in model.named_parameters():
            if parameter.dim() == 0:
                raise UserError(
                    f"engine=fsdp cuts parameters along their first dimension, and {name} has none: give it the shape "
                    "(1,), or take engine=ddp or zero1 to zero3."
                )
        return model

    def _spread(self) -> nn.Module:
        self.multiplier = 1.0  # the reduction is a sum
        mesh = init_device_mesh(self.device.type, (self.ranks.world_size,))
        low = self._dtype is not torch.float32
        precision = MixedPrecisionPolicy(
            param_dtype=self._dtype if low else None,
            reduce_dtype=torch.float32 if low else None,
            cast_forward_inputs=False,  # autocast does it where it is right: positions and masks stay as they are
        )
        self._units: list[FSDPModule] = []
        for unit in (*blocks(self.model), self._step):
            if self._config.trainer.compile and unit is not self._step:
                unit.forward = torch.compile(unit.forward)
            self._units.append(_shard(unit, self.ranks, mesh=mesh, mp_policy=precision))
        for one in self._units:
            one.set_gradient_divide_factor(1.0)
            one.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        if hasattr(self._units[-1], "set_reduce_scatter_unused_params"):  # from torch 2.13
            self._units[-1].set_reduce_scatter_unused_params(True)  # else ranks that use other weights would hang
        for buffer in self.model.buffers():
            buffer.data = buffer.data.to(self.device).contiguous()
        return self._step

    def _reduced(self) -> None:
        for parameter, own in self._own.items():
            assert parameter.to_local().data_ptr() == own.data_ptr(), "FSDP has moved its slice"
            own.grad = None if parameter.grad is None else _local(parameter.grad)
            parameter.grad = None

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        square = get_total_norm(gradients).to(self.device, torch.float64).square()
        return sum_over_ranks(square).sqrt().float()

    def fragments(self, stateful: Collection[str] = ()) -> list[Fragment]:
        """This rank's slices: rows, and so flat ranges; it may hold nothing of a small parameter."""
        wanted = [self._own[self._sharded[name]] for name in stateful if name in self._sharded]
        state.make_state(self.optimizer, wanted)
        self._states = {name: self.optimizer.state.get(self._own[p], {}) for name, p in self._sharded.items()}
        self._handed = [*self._slices(), *state.persistent_buffers(self.model, self.ranks.rank)]
        return self._handed

    def _slices(self) -> Iterator[Fragment]:
        for name, parameter in self._sharded.items():
            own = self._own[parameter]
            if own.numel():
                rows = -(-parameter.shape[0] // self.ranks.world_size)  # as torch.chunk cuts
                start = rows * self.ranks.rank * (own.numel() // own.shape[0])
                yield state.fragment(name, parameter.shape, start, own, 0, own.numel(), self._states[name])

    def loaded(self) -> None:
        """See `Engine.loaded`: the slices are the weights; what was gathered of the old ones is dropped."""
        super().loaded()
        for unit in self._units:
            unit.reshard()

    def settings(self) -> dict[str, Any]:
        """See `Engine.settings`."""
        root = self._units[-1]._get_fsdp_state()
        one = next(iter(self._sharded.values()))
        return super().settings() | {
            "world_size": one.device_mesh.size(),
            "placement": str(one.placements[0]),
            "units": sum(isinstance(module, FSDPModule) for module in self._step.modules()),
            "gathered_in": str(root._mp_policy.param_dtype or one.dtype).removeprefix("torch."),
            "gradient_precision": str(root._mp_policy.reduce_dtype or one.dtype).removeprefix("torch."),
        }

    def _kind(self) -> str:
        return "fsdp" if all(isinstance(p, DTensor) for p in self._sharded.values()) else "local"


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of the largest ModuleLists that are not in another one: a transformer's layers, whosever it is.

    Without those that share a weight with another part: a weight can be in one unit only.
    """
    lists = _outermost_lists(model)
    sizes = [sum(p.numel() for p in one.parameters()) for one in lists]
    found = Counter(
        block
        for one, size in zip(lists, sizes, strict=True)
        if 2 * size >= max(sizes)
        for block in one
        if next(block.parameters(), None) is not None
    )
    inside = {module for block in found for module in block.modules()}
    outside = {p for module in model.modules() if module not in inside for p in module.parameters(recurse=False)}
    holders = Counter(p for block, times in found.items() for p in set(block.parameters()) for _ in range(times))
    return [block for block in found if all(holders[p] == 1 and p not in outside for p in block.parameters())]


def _outermost_lists(module: nn.Module) -> list[nn.ModuleList]:
    if isinstance(module, nn.ModuleList):
        return [module]
    return [one for child in module.children() for one in _outermost_lists(child)]


def _shard(unit: nn.Module, ranks: Ranks, **options: Any) -> FSDPModule:
    """Put rank 0's weights of the unit on every rank, and keep this rank's slices: no more is ever whole."""
    whole = {name: p for name, p in unit.named_parameters() if not isinstance(p, DTensor)}
    for parameter in whole.values():
        held = ranks.first or ranks.world_size == 1
        data = parameter.data.to(ranks.device) if held else torch.empty(parameter.shape, dtype=parameter.dtype)
        parameter.data = data.to(ranks.device).contiguous()
        if ranks.world_size > 1:
            dist.broadcast(parameter.data, 0)
    sharded: FSDPModule = fully_shard(unit, **options)
    now = dict(unit.named_parameters())
    for name, parameter in whole.items():
        vars(now[name]).update(vars(parameter))  # what an optimizer may want to see of it
    return sharded


def _local(tensor: Tensor) -> Tensor:
    """This rank's slice, in the same memory."""
    detached: Any = tensor.detach()
    local: Tensor = detached.to_local()
    return local


def _hand_over(optimizer: Optimizer, own: dict[DTensor, nn.Parameter]) -> None:
    """Let the optimizer step this rank's slices; state that it has made already is cut alike."""
    for group in optimizer.param_groups:
        group["params"] = [own[p] for p in group["params"]]
    made = {own[p]: values for p, values in optimizer.state.items()}  # type: ignore[index]
    optimizer.state = defaultdict(dict)
    for parameter, values in made.items():
        optimizer.state[parameter] = {
            key: _local(value) if isinstance(value, DTensor) else value for key, value in values.items()
        }
