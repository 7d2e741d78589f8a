"""Where DeepSpeed keeps the fp32 masters and the optimizer's state, for each of its optimizers, as fragments.

DeepSpeed's own attributes are used (0.19): `bit16_groups`, `_hp_mapping` and `single_partition_of_fp32_groups` of
ZeRO 1 and 2, the same by other names in `BF16_Optimizer`, `grad_position` and `fp32_partitioned_groups_flat` of ZeRO 3.
The bit-exact resume test goes through each of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigtrain.checkpoint.fragments import Fragment
from bigtrain.distributed import Ranks
from bigtrain.engines import state
from bigtrain.engines.base import Scalar, set_lr
from bigtrain.engines.deepspeed_start import Weights


class Layout:
    """Stage 0: the whole of everything on every rank; in low precision DeepSpeed holds fp32 copies."""

    def __init__(self, engine: Any, optimizer: Optimizer, model: nn.Module, ranks: Ranks) -> None:
        self.engine, self.optimizer, self.model, self.ranks = engine, optimizer, model, ranks
        self.wrapped = engine.optimizer
        self._handed: list[Fragment] = []
        self._states: dict[str, dict[str, Any]] = {}
        self.names = {parameter: name for name, parameter in model.named_parameters()}

    def fragments(self, make_state: bool) -> list[Fragment]:
        """Live views; with `make_state` the optimizer's state is made where there is none yet."""
        if make_state:
            self.make_state()
        self._states = {}
        self._handed = [*self.parameters(), *state.persistent_buffers(self.model, self.ranks.rank)]
        return self._handed

    def loaded(self) -> None:
        """After the fragments were overwritten."""
        state.write_back(self._handed, self._states)
        self.refresh()

    @torch.no_grad()
    def start_from(self, weights: Weights) -> None:
        """Put these in the place of the masters."""
        for one in self.fragments(make_state=False):
            if one.name in weights:
                start, values = weights[one.name]
                one.tensors["weight"].copy_(values.narrow(0, one.start - start, one.numel))
        self.loaded()

    def make_state(self) -> None:
        """The optimizer's state, to be overwritten."""
        tensors = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [tensor.grad for tensor in tensors]  # offloaded ones stay for ever: buffers that others write into
        state.make_state(self.optimizer, tensors)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient

    def refresh(self) -> None:
        """The weights that the forward pass uses, from the masters."""

    def masters(self) -> dict[nn.Parameter, Tensor]:
        """The fp32 copy of each parameter that has one."""
        return {}

    def parameters(self) -> Iterator[Fragment]:
        """The fragments of all parameters."""
        return self.whole(cut=())

    def whole(self, cut: Collection[nn.Parameter]) -> Iterator[Fragment]:
        """Whole parameters, without those that are cut."""
        masters = self.masters()
        return state.whole_parameters(
            self.model,
            self.ranks.rank,
            self.ranks.world_size,
            master=lambda parameter: masters.get(parameter, parameter),
            state=lambda parameter: self.state_of(self.names[parameter], masters.get(parameter, parameter)),
            cut=cut,
        )

    def state_of(self, name: str, master: Tensor) -> dict[str, Any]:
        """The optimizer's state of a master, noted under the name of the parameter."""
        found: dict[str, Any] = self.optimizer.state.get(master, {})
        self._states[name] = found
        return found

    def scalars(self) -> dict[str, Scalar]:
        """The loss scale, and the good steps since it changed, as torch's GradScaler counts them.

        DeepSpeed looks at `cur_iter - last_overflow_iter - 1` before it counts a step, and doubles the scale where that
        is a multiple of the window; see `count_like_torch`.
        """
        scale = self.scale_holder()
        good_steps = (scale.cur_iter - scale.last_overflow_iter - 2) % scale.scale_window
        return {"loss_scale": float(scale.cur_scale), "good_steps": good_steps}

    def load_scalars(self, values: dict[str, Scalar]) -> None:
        """Put back what `scalars` returned, of whichever engine."""
        scale = self.scale_holder()
        scale.cur_scale = float(values["loss_scale"])
        scale.last_overflow_iter = scale.cur_iter - 2 - int(values.get("good_steps", 0))

    def count_like_torch(self) -> None:
        """After an overflow, and at the start, DeepSpeed takes one good step more than the window; the other engines
        take the window, so let it begin at one."""
        scale = self.scale_holder()
        if scale.last_overflow_iter == scale.cur_iter - 1:
            scale.last_overflow_iter -= 1

    def scale_holder(self) -> Any:
        """The object with DeepSpeed's loss scale."""
        return self.wrapped.loss_scale_config


class LowPrecisionStage0(Layout):
    """`FP16_UnfusedOptimizer`, which is the one for bf16 too."""

    def __init__(self, engine: Any, optimizer: Optimizer, model: nn.Module, ranks: Ranks) -> None:
        super().__init__(engine, optimizer, model, ranks)
        optimizer.state.clear()  # it made the state with a step (of lr 0) that must not be counted

    def _pairs(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for low, high in zip(self.wrapped.fp16_groups, self.wrapped.fp32_groups, strict=True):
            yield from zip(low, high, strict=True)

    def masters(self) -> dict[nn.Parameter, Tensor]:
        """One whole fp32 tensor a parameter."""
        return dict(self._pairs())

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters to the weights."""
        for low, high in self._pairs():
            low.copy_(high)


class Partitioned(Layout):
    """ZeRO 1 and 2: each group of parameters is one flat tensor, and each rank holds one slice of its fp32 master."""

    def _groups(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        wrapped = self.wrapped
        if hasattr(wrapped, "bf16_groups"):  # BF16_Optimizer: zero1 with bf16 and gradients in fp32
            return list(zip(wrapped.bf16_groups, wrapped.fp32_groups_flat_partition, strict=True))
        return list(zip(wrapped.bit16_groups, wrapped.single_partition_of_fp32_groups, strict=True))

    def parameters(self) -> Iterator[Fragment]:
        """This rank's slices; frozen parameters whole."""
        cut: set[nn.Parameter] = set()
        for parameters, flat in self._groups():
            for parameter in parameters:
                cut.add(parameter)
                mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
                if mapping is None:  # nothing of it on this rank
                    continue
                name, there, here = self.names[parameter], mapping.lp_fragment_address, mapping.hp_fragment_address
                optimizer_state = self.state_of(name, flat)
                yield state.fragment(name, parameter.shape, there.start, flat, here.start, here.numel, optimizer_state)
        yield from self.whole(cut)

    def refresh(self) -> None:
        """Round the masters to this rank's slice of the weights, and gather the others'."""
        self.wrapped.update_lp_params()

    def scale_holder(self) -> Any:
        """The object with DeepSpeed's loss scale."""
        return self.wrapped.loss_scaler


class Sharded(Layout):
    """ZeRO 3: each parameter is cut into equal parts, padded, one a rank; sub-groups of parts lie in flat tensors."""

    def make_state(self) -> None:
        """DeepSpeed shows the optimizer one flat tensor at a time; show it all of them."""
        self.wrapped._set_fp32_optimizer_param_groups()
        super().make_state()
        self.wrapped._clear_fp32_optimizer_param_groups()

    def parameters(self) -> Iterator[Fragment]:
        """This rank's part of every parameter, without the padding."""
        for parameter, name in self.names.items():
            cut: Any = parameter
            length = cut.partition_numel()
            start = length * self.ranks.rank
            numel = max(0, min(length, cut.ds_numel - start))
            if parameter.requires_grad:
                group, offset, _ = self.wrapped.grad_position[self.wrapped.get_param_id(parameter)]
                flat, optimizer_state = self.master(group)
                self.state_of(name, self.wrapped.fp32_partitioned_groups_flat[group])
            else:
                flat, offset, optimizer_state = self.flat(parameter), 0, {}
            if numel:
                yield state.fragment(name, cut.ds_shape, start, flat, offset, numel, optimizer_state)

    def flat(self, parameter: Any) -> Tensor:
        """This rank's part of a frozen parameter."""
        part: Tensor = parameter.ds_tensor
        return part

    def master(self, group: int) -> tuple[Tensor, dict[str, Any]]:
        """The flat master of a sub-group, and its optimizer state."""
        flat: Tensor = self.wrapped.fp32_partitioned_groups_flat[group]
        return flat, self.optimizer.state.get(flat, {})

    def write_low(self, group: int) -> None:
        """Round the master of a sub-group to the weights."""
        self.wrapped._reassign_or_swap_out_partitioned_parameters(group)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters to the parts, and gather the small parameters that every rank keeps whole."""
        self.wrapped._partition_all_parameters()
        for group in range(len(self.wrapped.fp16_groups)):
            self.write_low(group)
        if kept := self.wrapped.persistent_parameters:
            kept[0].all_gather(kept)

    def scale_holder(self) -> Any:
        """The object with DeepSpeed's loss scale."""
        return self.wrapped.loss_scaler


class Swapped(Sharded):
    """ZeRO 3 with weights or optimizer state on a disk: what is there is mapped into memory, so that saving it and
    loading it take none. Small sub-groups stay in the host's memory, as in `Sharded`."""

    def __init__(self, engine: Any, optimizer: Optimizer, model: nn.Module, ranks: Ranks) -> None:
        super().__init__(engine, optimizer, model, ranks)
        self._mapped: dict[str, Tensor] = {}

    def make_state(self) -> None:
        """One sub-group at a time, as in a step."""
        wrapped = self.wrapped
        rates = [group["lr"] for group in self.optimizer.param_groups]
        set_lr(self.optimizer, 0.0)
        for index, flat in enumerate(wrapped.fp32_partitioned_groups_flat):
            if self.optimizer.state.get(flat):
                continue
            with self._fetched(index, write=True):
                gradient, flat.grad = flat.grad, torch.zeros_like(flat)
                wrapped._optimizer_step(index)
                flat.grad = gradient
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def parameters(self) -> Iterator[Fragment]:
        """As `Sharded`'s, from the files."""
        self._mapped.clear()
        yield from super().parameters()

    def flat(self, parameter: Any) -> Tensor:
        """The file of a frozen parameter's part."""
        if parameter.ds_tensor.final_location != "nvme":
            return super().flat(parameter)
        return self._map(parameter.nvme_swapper.get_path(parameter), parameter.partition_numel(), parameter.dtype)

    def master(self, group: int) -> tuple[Tensor, dict[str, Any]]:
        """The files of a sub-group."""
        if not self.wrapped._swappable_optimizer_subgroup(group):
            return super().master(group)
        flat = self.wrapped.fp32_partitioned_groups_flat[group]
        info = self.wrapped.optimizer_swapper.swap_params_info[flat.ds_id]
        files = {
            id(one.compute_tensor): self._map(one.swap_path, info.numel(), one.compute_tensor.dtype)
            for one in info.tensors
        }
        found = self.optimizer.state.get(flat, {})
        return files[id(flat)], {key: files.get(id(value), value) for key, value in found.items()}

    def _map(self, path: str, numel: int, dtype: torch.dtype) -> Tensor:
        if path not in self._mapped:
            self._mapped[path] = torch.from_file(path, shared=True, size=numel, dtype=dtype)
        return self._mapped[path]

    def refresh(self) -> None:
        """Flush the files, which DeepSpeed reads past the page cache, then as `Sharded`."""
        for path in self._mapped:
            with Path(path).open("rb+") as file:
                os.fsync(file.fileno())
        super().refresh()

    def write_low(self, group: int) -> None:
        """With the masters fetched."""
        with self._fetched(group, write=False):
            super().write_low(group)

    @contextlib.contextmanager
    def _fetched(self, group: int, write: bool) -> Iterator[None]:
        """A sub-group in memory."""
        wrapped = self.wrapped
        if not wrapped._swappable_optimizer_subgroup(group):
            yield
            return
        wrapped._optimizer_states_and_gradient_swap_in(group)
        yield
        if write:
            wrapped._optimizer_states_and_gradient_swap_out(group)
        else:
            wrapped._release_swap_buffers(group)


def layout_of(engine: Any, optimizer: Optimizer, model: nn.Module, ranks: Ranks) -> Layout:
    """The layout of the optimizer that DeepSpeed chose."""
    kinds: dict[str, type[Layout]] = {
        "FP16_UnfusedOptimizer": LowPrecisionStage0,
        "BF16_Optimizer": Partitioned,
        "DeepSpeedZeroOptimizer": Partitioned,
        "DeepSpeedZeroOptimizer_Stage3": Sharded,
    }
    kind = kinds.get(type(engine.optimizer).__name__, Layout)
    if kind is Sharded and (engine.optimizer.swap_optimizer or engine.optimizer.params_in_nvme_and_cpu):
        kind = Swapped
    return kind(engine, optimizer, model, ranks)
