"""What an engine hands to a checkpoint: flat views of parameters and optimizer state, under the model's own names."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Fragment:
    """The elements `[start, start + numel)`, in row-major order, of one parameter or persistent buffer, live.

    Because a slice is flat, any engine on any number of ranks can pick the elements that it needs from any other's.
    """

    name: str
    """The model's own name of the parameter or persistent buffer."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    """Offset of this slice's first element in the whole tensor, flattened."""
    numel: int
    """Elements in this slice."""
    tensors: dict[str, Tensor]
    """"weight" (the fp32 master where there is one) and each optimizer state of the parameter's own shape ("exp_avg"),
    as a flat live view of `numel` elements: loading is `tensor.copy_()`."""
    extra: dict[str, Tensor | float | int] = field(default_factory=dict)
    """Optimizer state of any other shape ("step", Adafactor's "row_var"), whole and the same on every holder. Tensors
    are live (load in place); plain numbers are set in this dict, from where `Engine.loaded` takes them."""
    owner: bool = True
    """Over the ranks each element has exactly one owner: owners write, every holder loads."""
