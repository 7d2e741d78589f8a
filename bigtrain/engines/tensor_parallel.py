"""Tensor parallelism (arXiv:1909.08053) through DeepSpeed's AutoTP: neighbouring ranks hold parts of the same weights.

The first linear layer of a pair is cut by its rows, the second by its columns; one all-reduce after the pair, and one
before it in backward, and every rank of the group has the same activations. A model says how it is to be cut: the
native decoder itself (`tensor_parallel_plan`), a transformers model by its own plan.

Checkpoints know whole weights only. A cut by rows is a flat range of the whole weight, a live view. A cut by columns is
not: ranks trade columns for whole rows when a checkpoint is made, and back when one was loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigtrain.checkpoint.fragments import Fragment
from bigtrain.distributed import Ranks
from bigtrain.errors import UserError

META = "ds_autotp_universal_checkpoint_meta"
"""Where AutoTP notes on a parameter how it was cut."""


@dataclass(slots=True)
class Cut:
    """How one parameter was cut."""

    shape: tuple[int, ...]
    """Of the whole."""
    dimension: int
    sections: tuple[int, ...]
    """Sizes of what lies one after the other along that dimension, each cut by itself: q, k and v."""


@dataclass(slots=True)
class _Rows:
    """Whole rows that stand for this rank's columns of more rows."""

    mine: Tensor
    """Live, (rows, columns of this rank)."""
    whole: Tensor
    """A copy, flat: this rank's share of the rows, whole."""


class TensorParallel:
    """The group of ranks that hold one model together."""

    def __init__(self, model: nn.Module, ranks: Ranks, size: int) -> None:
        """Cut the model's weights; every rank has built the same ones, and calls it.

        Raises:
            UserError: a model that says nothing of how it is to be cut, or that cannot be cut evenly.
        """
        from deepspeed.module_inject import set_autotp_mode
        from deepspeed.module_inject.auto_tp import AutoTP
        from deepspeed.module_inject.autotp_config import AutoTPConfig
        from deepspeed.utils import groups

        plan = getattr(model, "tensor_parallel_plan", None)
        if plan is None:
            raise UserError(
                f"engine.tensor_parallel={size}, but {type(model).__name__} does not say how it is to be cut: take "
                "model=decoder, or model=hugging_face with a model that has a plan for it, such as llama or qwen3."
            )
        specs, config = plan(size)
        set_autotp_mode(training=True)
        groups._init_tp_mesh_device(tensor_model_parallel_size=size)
        self.mesh: Any = groups
        """What DeepSpeed calls `mpu`."""
        self.group = groups.get_tensor_model_parallel_group()
        self.size, self.index = dist.get_world_size(self.group), dist.get_rank(self.group)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        cutter = AutoTP(
            module=model,
            all_reduce_linears=(),
            prefix="",
            state_dict=None,
            linear_layer_setting=(nn.Linear,),
            orig_layer_impl=None,
            partition_config=AutoTPConfig.from_dict({"tp_size": size, "layer_specs": specs}),
            model_config=config,
            training_mode=True,
        )
        cutter.set_tensor_parallel_config(size, self.group)
        cutter.update_linear_policies()
        cutter._replace_module(model)
        cutter.register_replicated_grad_hooks(model)
        self.cuts = dict(self._cuts(model, shapes))
        self._model = model
        self._rows: list[_Rows] = []

    def _cuts(self, model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Cut]]:
        for name, parameter in model.named_parameters():
            shape = shapes[name]
            if tuple(parameter.shape) == shape:
                continue
            dimension = next(d for d, (now, was) in enumerate(zip(parameter.shape, shape, strict=True)) if now != was)
            sections = getattr(parameter, META)["sub_param_sizes"] or (shape[dimension],)
            if any(section % self.size for section in sections):
                raise UserError(f"engine.tensor_parallel={self.size} does not divide {name}, {shape}, evenly.")
            yield name, Cut(shape, dimension, tuple(sections))
        if not any(hasattr(parameter, META) for parameter in model.parameters()):
            raise UserError(f"engine.tensor_parallel={self.size}: nothing in {type(model).__name__} could be cut.")

    def note_whole_shapes(self) -> None:
        """On the parameters, where ZeRO-3 notes them too: who counts parameters looks there."""
        for name, parameter in self._model.named_parameters():
            if name in self.cuts:
                noted: Any = parameter
                noted.ds_shape, noted.ds_numel = torch.Size(self.cuts[name].shape), math.prod(self.cuts[name].shape)

    def data_ranks(self, ranks: Ranks) -> Ranks:
        """This rank among those that hold the same part of the model."""
        return replace(ranks, rank=ranks.rank // self.size, world_size=ranks.world_size // self.size)

    def grad_norm(self) -> Tensor:
        """Global L2 norm of gradients that are already summed over the data; what all hold counts once."""
        cut: list[Tensor] = []
        alike: list[Tensor] = []
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                (cut if name in self.cuts else alike).append(parameter.grad)
        square = torch.nn.utils.get_total_norm(cut).square()
        dist.all_reduce(square, group=self.group)
        return (square + torch.nn.utils.get_total_norm(alike).square()).sqrt()

    # -------------------------------------------------------------------------------------------------- checkpoints

    def fragments(self, held: Sequence[Fragment]) -> list[Fragment]:
        """Fragments of whole weights, for those of this rank's parts. All ranks of the group call it."""
        self._rows = []
        found: list[Fragment] = []
        for one in held:
            cut = self.cuts.get(one.name)
            if cut is None:
                found.append(replace(one, owner=one.owner and self.index == 0))
            elif cut.dimension == 0:
                found += self._by_rows(one, cut)
            else:
                found += self._by_columns(one, cut)
        return found

    def loaded(self) -> None:
        """Whole rows were loaded: give the others their columns of them. All ranks of the group call it."""
        for rows in self._rows:
            rows.mine.copy_(self._to_columns(rows.whole, *rows.mine.shape))
        self._rows = []

    def forget(self) -> None:
        """Let go of the copies that a checkpoint was made from."""
        self._rows = []

    def _by_rows(self, one: Fragment, cut: Cut) -> Iterator[Fragment]:
        """Of each section this rank has one range."""
        width = math.prod(cut.shape[1:])
        here, there = 0, 0  # offsets of the section, in the part and in the whole
        for section in cut.sections:
            length = section // self.size * width
            first, last = max(one.start, here), min(one.start + one.numel, here + length)
            if first < last:
                yield _piece(one, cut, first, last - first, there + self.index * length + first - here)
            here, there = here + length, there + section * width

    def _by_columns(self, one: Fragment, cut: Cut) -> Iterator[Fragment]:
        """Rows that are whole in this slice are traded; a row that begins or ends in another slice stays a piece."""
        width, whole = cut.shape[1] // self.size, cut.shape[1]
        end = one.start + one.numel
        first, last = -(-one.start // width), end // width  # whole rows of this rank's columns
        if first > last:  # a piece of one row
            row, column = divmod(one.start, width)
            yield _piece(one, cut, one.start, one.numel, row * whole + self.index * width + column)
            return
        if head := first * width - one.start:
            yield _piece(one, cut, one.start, head, (first - 1) * whole + (self.index + 1) * width - head)
        if first < last:
            tensors = {}
            share = self._shares(last - first)
            for kind, tensor in one.tensors.items():
                mine = tensor.narrow(0, first * width - one.start, (last - first) * width).view(-1, width)
                tensors[kind] = self._to_rows(mine)
                self._rows.append(_Rows(mine, tensors[kind]))
            start = (first + sum(share[: self.index])) * whole
            yield replace(one, shape=cut.shape, start=start, numel=share[self.index] * whole, tensors=tensors)
        if tail := end - last * width:
            yield _piece(one, cut, last * width, tail, last * whole + self.index * width)

    def _shares(self, rows: int) -> list[int]:
        return [rows // self.size + (index < rows % self.size) for index in range(self.size)]

    def _to_rows(self, mine: Tensor) -> Tensor:
        """(rows, width) of this rank's columns -> flat, this rank's share of the rows with everyone's columns."""
        share, width = self._shares(len(mine)), mine.shape[1]
        own = share[self.index]
        received = mine.new_empty(self.size * own * width)
        sent = [count * width for count in share]
        dist.all_to_all_single(received, mine.reshape(-1), [own * width] * self.size, sent, group=self.group)
        return received.view(self.size, own, width).transpose(0, 1).reshape(-1)

    def _to_columns(self, whole: Tensor, rows: int, width: int) -> Tensor:
        """The inverse of `_to_rows`."""
        share = self._shares(rows)
        own = share[self.index]
        sent = whole.view(own, self.size, width).transpose(0, 1).reshape(-1)
        received = whole.new_empty(rows * width)
        counts = [count * width for count in share]
        dist.all_to_all_single(received, sent, counts, [own * width] * self.size, group=self.group)
        return received.view(rows, width)

    def close(self) -> None:
        """Leave DeepSpeed as if it had never heard of tensor parallelism."""
        from deepspeed.module_inject import set_autotp_mode

        set_autotp_mode(training=False)
        for name in ("_TENSOR_MODEL_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP", "_DATA_PARALLEL_GROUP", "mpu"):
            setattr(self.mesh, name, None)


def _piece(one: Fragment, cut: Cut, first: int, numel: int, start: int) -> Fragment:
    """`numel` elements of a fragment of a part, from offset `first` of the part on: at `start` of the whole."""
    tensors = {kind: tensor.narrow(0, first - one.start, numel) for kind, tensor in one.tensors.items()}
    return replace(one, shape=cut.shape, start=start, numel=numel, tensors=tensors)
