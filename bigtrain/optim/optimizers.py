"""The optimizers behind `bigtrain.optim`. Each group keeps its base rate as `initial_lr`; engines set `lr` from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigtrain.errors import UserError
from bigtrain.optim.groups import decay_groups, roles

Betas = tuple[float, float]


def _groups(model: nn.Module, lr: float, weight_decay: float, decay_all: bool) -> list[dict[str, Any]]:
    if lr <= 0:
        raise UserError(f"optimizer.lr must be more than 0, not {lr}.")
    if weight_decay < 0:
        raise UserError(f"optimizer.weight_decay must not be negative: {weight_decay}.")
    groups = decay_groups(model, weight_decay, decay_all)
    if not groups:
        raise UserError("The model has no parameter that requires a gradient: there is nothing to train.")
    return [{**group, "initial_lr": lr} for group in groups]


def _fused(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether torch's one-kernel step, which needs no temporary tensors, can run."""
    held = [p for group in groups for p in group["params"]]
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in held)


def _check_betas(betas: Betas) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optimizer.betas must be at least 0 and less than 1, not {list(betas)}.")


def adamw(
    model: nn.Module, lr: float, weight_decay: float, betas: Betas, eps: float, decay_all: bool
) -> torch.optim.AdamW:
    """`bigtrain.optim.adamw`."""
    _check_betas(betas)
    groups = _groups(model, lr, weight_decay, decay_all)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=_fused(groups) or None)


def adafactor(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    beta2_decay: float,
    eps: tuple[float | None, float],
    clip_threshold: float,
    decay_all: bool,
) -> torch.optim.Adafactor:
    """`bigtrain.optim.adafactor`."""
    groups = _groups(model, lr, weight_decay, decay_all)
    return torch.optim.Adafactor(groups, lr=lr, beta2_decay=beta2_decay, eps=eps, d=clip_threshold)


def sgd(
    model: nn.Module, lr: float, weight_decay: float, momentum: float, nesterov: bool, decay_all: bool
) -> torch.optim.SGD:
    """`bigtrain.optim.sgd`."""
    if nesterov and momentum <= 0:
        raise UserError("optimizer.nesterov=true needs optimizer.momentum more than 0.")
    groups = _groups(model, lr, weight_decay, decay_all)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=_fused(groups) or None)


class _EachWeight(Optimizer):
    """An optimizer whose step is a function of one weight, its gradient and its state."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Move `p`, and the state along."""
        raise NotImplementedError

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, self.state[p], group)
        return loss


class Lion(_EachWeight):
    """Lion (arXiv:2302.06675, algorithm 2): each weight moves by lr in the direction of its interpolated momentum."""

    def __init__(self, params: Any, lr: float, betas: Betas, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """The sign is taken of the momentum before it has moved all the way."""
        lr, (beta1, beta2) = group["lr"], group["betas"]
        if not state:
            state["exp_avg"] = torch.zeros_like(p)
        momentum = state["exp_avg"]
        p.mul_(1 - lr * group["weight_decay"])
        p.add_(momentum.lerp(grad, 1 - beta1).sign_(), alpha=-lr)
        momentum.lerp_(grad, 1 - beta2)


def lion(model: nn.Module, lr: float, weight_decay: float, betas: Betas, decay_all: bool) -> Lion:
    """`bigtrain.optim.lion`."""
    _check_betas(betas)
    return Lion(_groups(model, lr, weight_decay, decay_all), lr, betas)


class Muon(_EachWeight):
    """Muon (Jordan et al. 2024), as torch's but for a CPU, where it orthogonalises in fp32: without bf16 instructions
    bf16 is 60 times slower there, and with them its last digits would be those of the CPU."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """A step of the momentum's nearest orthogonal matrix."""
        lr, momentum = group["lr"], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"]
        buffer.lerp_(grad, 1 - momentum)
        moved = grad.lerp(buffer, momentum) if group["nesterov"] else buffer
        direction = orthogonal(moved.float() if p.device.type == "cpu" else moved.bfloat16(), group["ns_steps"])
        rows, columns = p.shape
        as_adamw = group["adjust_lr_fn"] == "match_rms_adamw"  # a step as large as AdamW's (arXiv:2502.16982)
        scale = 0.2 * max(rows, columns) ** 0.5 if as_adamw else max(1.0, rows / columns) ** 0.5
        p.mul_(1 - lr * group["weight_decay"])
        p.add_(direction, alpha=-lr * scale)


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """(M, N) -> nearly the nearest orthogonal matrix, by Newton-Schulz iterations of Jordan's quintic, whose slope at
    zero is as large as can be."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonAndAdamW(Optimizer):
    """Muon and AdamW as one optimizer: each steps its own groups, and the groups and the state are shared."""

    def __init__(self, hidden: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
        # Each of the two fills in what its own groups lack.
        self._two = [Muon(hidden), torch.optim.AdamW(others, fused=_fused(others) or None)]
        marked = zip(("muon", "adamw"), self._two, strict=True)
        super().__init__([{**g, "algorithm": name} for name, one in marked for g in one.param_groups], {})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, one in zip(("muon", "adamw"), self._two, strict=True):
            # Afresh, as loading a state dict puts new groups and a new state in their place.
            one.param_groups = [group for group in self.param_groups if group["algorithm"] == name]
            one.state = self.state
            one.step()
        return loss


def muon(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_steps: int,
    adjust_lr: str,
    betas: Betas,
    eps: float,
    decay_all: bool,
) -> MuonAndAdamW:
    """`bigtrain.optim.muon`."""
    _check_betas(betas)
    role = roles(model)
    hidden: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    of_muon = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr}
    for group in _groups(model, lr, weight_decay, decay_all):
        matrices = [p for p in group["params"] if role[p] == "matrix" and p.ndim == 2]
        chosen = set(matrices)
        rest = [p for p in group["params"] if p not in chosen]
        if matrices:
            hidden.append({**group, "lr": lr, "params": matrices, **of_muon})
        if rest:
            others.append({**group, "lr": lr, "params": rest, "betas": betas, "eps": eps})
    if not hidden or not others:
        raise UserError("optimizer=muon needs hidden matrices and other weights; this model lacks one: use adamw.")
    return MuonAndAdamW(hidden, others)
