"""`horovod`: the whole model on every rank, and Horovod (0.28.1, https://arxiv.org/abs/1802.05799) sums the gradients.

Only its allreduce and broadcast are used, on gradients that this engine hooks itself: `DistributedOptimizer` hides
steps of its own when state is broadcast, and knows nothing of our clipping and loss scale. Horovod has no bf16, so what
is reduced is fp32, like the weights; bf16 and fp16 go through autocast.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigtrain.config.schema import RunConfig
from bigtrain.distributed import Ranks
from bigtrain.engines.base import Objective
from bigtrain.engines.horovod_start import start
from bigtrain.engines.plain import PlainEngine
from bigtrain.errors import RunError, UserError


class HorovodEngine(PlainEngine):
    """One allreduce for each gradient, started as soon as the last backward pass has made it."""

    def __init__(
        self,
        config: RunConfig,
        build_model: Callable[[], nn.Module],
        objective: Objective,
        build_optimizer: Callable[[nn.Module], Optimizer],
        ranks: Ranks,
    ) -> None:
        self._timeout_s = config.trainer.timeout_s
        self._hvd = start(ranks, self._timeout_s)
        super().__init__(config, build_model, objective, build_optimizer, ranks)

    def _spread(self) -> nn.Module:
        if self._config.trainer.compile:
            self._step.compile()
        self.multiplier = 1.0  # the reduction is a sum
        self._named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for name, held in self._named.items():
            if held.dtype is torch.bfloat16:
                raise UserError(
                    f"Horovod cannot reduce bfloat16, and the model's {name} is in it: build the model in fp32 "
                    "(precision=bf16 then computes in bf16), or take engine=ddp."
                )
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            self._hvd.broadcast_(tensor.data, 0, name=f"start.{name}")  # whatever a rank built by itself
        self._last = False
        self._started: dict[str, int] = {}
        trained: dict[str, Any] = dict(self._named)
        self._hooks = [p.register_post_accumulate_grad_hook(partial(self._start, name)) for name, p in trained.items()]
        return self._step

    def _micro_step(self, last: bool) -> AbstractContextManager[None]:
        self._last = last
        return nullcontext()

    def _start(self, name: str, parameter: Tensor) -> None:
        if self._last:
            self._started[name] = self._allreduce(name, parameter.grad)

    def _allreduce(self, name: str, tensor: Tensor | None) -> int:
        handle: int = self._hvd.allreduce_async_(tensor, name=name, op=self._hvd.Sum)
        return handle

    def _reduced(self) -> None:
        # Every rank must take part in every reduction; and a weight that got no gradient on any rank is not stepped.
        has = torch.tensor([p.grad is not None for p in self._named.values()], dtype=torch.int32)
        for name, parameter in self._named.items():
            if name not in self._started:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                self._started[name] = self._allreduce(name, parameter.grad)
        self._wait(self._allreduce("bigtrain.has_gradient", has))
        for handle in self._started.values():
            self._wait(handle)
        self._started.clear()
        for parameter, holders in zip(self._named.values(), has.tolist(), strict=True):
            if not holders:
                parameter.grad = None

    def _wait(self, handle: int) -> None:
        """Horovod's own watch on stalls is silent under gloo: here is one."""
        deadline = time.monotonic() + self._timeout_s
        while not self._hvd.poll(handle):
            if time.monotonic() > deadline:
                raise RunError(
                    f"Horovod waited {self._timeout_s:.0f} s (trainer.timeout_s) for a gradient of another rank."
                )
            time.sleep(1e-4)
        try:
            self._hvd.synchronize(handle)
        except Exception as error:  # HorovodInternalError, from wherever this version keeps it
            raise RunError(
                f"Horovod could not reduce the gradients, another rank has probably died: {error}"
            ) from error

    def settings(self) -> dict[str, Any]:
        """See `Engine.settings`."""
        return super().settings() | {
            "world_size": self._hvd.size(),
            "controller": "mpi" if self._hvd.mpi_enabled() else "gloo",
            "gradient_precision": str(self._parameters[0].dtype).removeprefix("torch."),
            "interface": os.environ.get("HOROVOD_GLOO_IFACE"),
        }

    def _kind(self) -> str:
        return "horovod" if len(self._hooks) == len(self._parameters) else "local"

    def close(self) -> None:
        """Remove the hooks. Horovod itself runs to the end of the process: it cannot be started twice."""
        for hook in self._hooks:
            hook.remove()
        super().close()
