"""One rank runs the model's code, and the others get an outline of it: no rank but the first holds all weights."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bigtrain.distributed import Ranks, run_on_first

log = logging.getLogger("bigtrain.sharded_init")


def build_once(build_model: Callable[[], nn.Module], ranks: Ranks) -> nn.Module:
    """The model, whole on rank 0; the others get its modules and buffers, and of its parameters the shapes only.

    So one rank runs the user's code and its random numbers, and all have what it built, pretrained weights included.
    (Building inside `deepspeed.zero.Init` instead gives other weights than those the model's code asks for: seen with
    transformers models from a config, first loss 89.9 where ln(vocabulary) = 6.9.) A model that cannot be pickled is
    built on every rank.
    """
    if ranks.world_size == 1:
        return build_model()
    built: list[nn.Module] = []

    def outline() -> bytes | None:
        built.append(build_model())
        buffer = io.BytesIO()
        with contextlib.suppress(Exception):  # lambdas and local classes: whatever pickle says, there is another way
            _Outline(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(built[0])
            return buffer.getvalue()
        return None

    pickled = run_on_first(outline)
    if pickled is not None and not built:
        with contextlib.suppress(Exception):  # a class that this rank cannot import
            built.append(pickle.loads(pickled))  # from rank 0 of this job, over its own process group
    if not built:
        log.info("the model's modules cannot be pickled: this rank builds the whole model before it is sharded")
        built.append(build_model())
    return built[0]


class _Outline(pickle.Pickler):
    """Pickles a model without the values of its parameters; shared parameters stay shared."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            attributes = {key: item for key, item in vars(value).items() if not key.startswith("_")}
            return _hollow, (type(value), tuple(value.shape), value.dtype, value.requires_grad, attributes)
        return NotImplemented


def _hollow(
    kind: type[nn.Parameter], shape: tuple[int, ...], dtype: torch.dtype, trained: bool, attributes: dict[str, Any]
) -> nn.Parameter:
    """A parameter of the right shape that takes the memory of one element."""
    parameter = kind(torch.zeros(1, dtype=dtype).expand(shape), requires_grad=trained)
    vars(parameter).update(attributes)
    return parameter
