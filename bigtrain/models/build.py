"""Building the native decoder, with random or with pretrained weights, whole or in ZeRO-3's shards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.models.native import Decoder
from bigtrain.models.shapes import check_architecture, laid_over, resolve


def build_decoder(preset: str | None, path: str | None, given: dict[str, Any], dropout: float) -> Decoder:
    """`bigtrain.models.decoder` with the settings that were given."""
    if not 0 <= dropout < 1:
        raise UserError(f"model.dropout must be at least 0 and less than 1, not {dropout}.")
    if path is None:
        return Decoder(resolve(preset, given), dropout)
    from bigtrain.models.hf import shape_of, tensors_of
    from bigtrain.models.pretrained import load_gguf
    from bigtrain.models.source import Source, locate, read_config

    place = locate(path)
    if place.is_file():
        whole = load_gguf(place, "eager")
        source = Source(whole.config, loaded=dict(whole.state_dict()))
        shape = shape_of(source.config, path)
        check_architecture(preset, shape, path)
    else:
        source = Source(read_config(place, path))
        shape = shape_of(source.config, path)  # refuses another architecture before its weights are looked for
        check_architecture(preset, shape, path)
        source.open(place, path)
    model = Decoder(laid_over(shape, given, path), dropout)
    load_tensors(model, tensors_of(shape, source, path))
    return model


def load_tensors(model: nn.Module, read: Callable[[str], Tensor]) -> None:
    """Copy `read(name)` into every parameter, module by module.

    Through `Module.apply`, which DeepSpeed wraps inside `zero.Init` so that each module's parameters are gathered
    before and sharded again after; a `state_dict` loaded there would find empty tensors.
    """
    names = {id(module): name for name, module in model.named_modules()}
    done: set[int] = set()  # a tied weight is read once

    @torch.no_grad()
    def copy(module: nn.Module) -> None:
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) in done:
                continue
            done.add(id(parameter))
            name = f"{names[id(module)]}.{leaf}".removeprefix(".")
            tensor = read(name)
            if tensor.shape != parameter.shape:
                raise UserError(
                    f"The pretrained weights do not fit their own config: {name} is {tuple(tensor.shape)}, "
                    f"and the config says {tuple(parameter.shape)}."
                )
            parameter.copy_(tensor)

    model.apply(copy)


@contextmanager
def whole_modules() -> Iterator[None]:
    """Leave DeepSpeed's `zero.Init` for a while, where it is on: modules built inside are whole on every rank.

    transformers sets its weights from the root down, when the leaves are sharded already, and that does nothing, in
    silence (transformers#43847). DeepSpeed shards what it was not given in shards when the engine is made.
    """
    zero = sys.modules.get("deepspeed.runtime.zero.partition_parameters")  # the engines import it, not this room
    if zero is None:
        yield
        return
    zero.shutdown_init_context()
    try:
        yield
    finally:
        zero.restore_init_context()
