"""`bigtrain plan … --dry`: one step of rank 0 among ranks that do not exist, through the engine's own code.

Torch's fake process group takes the messages and sends them nowhere. So the batch is divided, the model is sharded and
the messages are counted as they would be on a real cluster of that size, on this machine's CPU; what they say is not
right, and so is no loss. It is a first step: what ZeRO-3 has gathered it keeps, up to a billion parameters, so that
small models send less in later micro-batches than is planned.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from bigtrain.assembly import build_optimizer
from bigtrain.config.components import build
from bigtrain.config.compose import compose
from bigtrain.config.rules import accumulation, replicas
from bigtrain.distributed import Ranks
from bigtrain.engines import build_engine
from bigtrain.errors import UserError
from bigtrain.plan import traced
from bigtrain.plan.pace import sent
from bigtrain.plan.plan import GIB, Plan
from bigtrain.plan.plan import plan as planned

TIMES = {"allreduce_": 2}
"""A sum for all goes round the ring twice, all else once."""
MOST = 4
"""Micro-batches of the step: more of them are the same again."""
A_PARAMETER = 20
"""Bytes at most that a rank needs while it builds: weights, gradients, two moments, a copy."""


@dataclass(frozen=True, slots=True)
class Dry:
    """What a step was seen to do."""

    ranks: int
    micro_batches: int
    of: int
    """Micro-batches of a whole step."""
    samples: int
    """Of a micro-batch."""
    trained: int
    """Parameters that are trained."""
    held: int
    """Of them, those that this rank steps."""
    sent: dict[str, float]
    """Bytes that a rank sends, by collective."""
    planned: float
    """Bytes that a rank sends, by `bigtrain plan`."""

    def text(self) -> str:
        """In words."""
        kinds = ", ".join(f"{name.strip('_')} {size / 1e6:,.4g} MB" for name, size in sorted(self.sent.items()) if size)
        counted = sum(self.sent.values())
        return (
            f"dry run: a step of rank 0 of {self.ranks:,}, {self.micro_batches} of its {self.of} micro-batches "
            f"of {self.samples} samples\n  it steps {self.held:,} of {self.trained:,} parameters\n"
            f"  sent: {counted / 1e6:,.4g} MB ({kinds or 'nothing'}); planned: {self.planned / 1e6:,.4g} MB"
        )


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes that a rank sends in rings, by collective."""

    def __init__(self, ranks: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share, self.found = (ranks - 1) / ranks, Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.partition("c10d::")[2]
        if name:  # the larger of what goes in and what comes out
            sizes = [_bytes(part) for part in args]
            self.found[name] += TIMES.get(name, 1) * self.share * max(sizes, default=0)  # type: ignore[assignment]
        return function(*args, **(kwargs or {}))


def _bytes(part: Any) -> int:
    if isinstance(part, Tensor):
        return part.numel() * part.element_size()
    return sum(map(_bytes, part)) if isinstance(part, list | tuple) else 0


def dry(words: Sequence[str], plan: Plan) -> Dry:
    """A step of what was planned.

    Raises:
        UserError: the model is too large for this machine; the engine does not run on a CPU.
    """
    ranks = plan.where.ranks
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    needed = A_PARAMETER * plan.parameters
    if needed > room:
        raise UserError(
            f"--dry builds the model here: {plan.parameters:,} parameters need {needed / GIB:.0f} GiB, and "
            f"{room / GIB:.0f} are free. Take fewer layers, as model.layers=2."
        )
    config = compose([*words, "trainer.device=cpu"], ranks).config
    data_ranks = ranks // replicas(config.engine)
    whole = accumulation(config.trainer, data_ranks)
    count = min(whole, MOST)
    batch_size = config.trainer.micro_batch_size * data_ranks * count
    config = replace(config, trainer=replace(config.trainer, global_batch_size=batch_size))
    shorter = planned(config, model=plan.model, where=plan.where)
    objective = build(config.objective, "objective")
    place = Ranks(0, ranks, 0, ranks, torch.device("cpu"), replicas(config.engine))
    os.environ |= {"RANK": "0", "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(ranks)}
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        engine = build_engine(
            config, lambda: traced.model(config), objective, lambda model: build_optimizer(config, model), place
        )
        _answer(engine)
        batch: Mapping[str, Tensor] = traced.batch(config)
        micro_batches = [dict(batch)] * count
        with _Counted(ranks) as counted:
            engine.train_step(micro_batches, max(1, objective.count(batch)) * len(micro_batches), 1.0)
        trained = {name for name, p in engine.model.named_parameters() if p.requires_grad}
        held = sum(one.numel for one in engine.fragments() if one.name in trained)
    finally:
        dist.destroy_process_group()
    return Dry(
        ranks, count, whole, config.trainer.micro_batch_size, plan.trained, held, dict(counted.found),
        shorter.pace.sent if shorter.pace else sent(plan.trained, shorter.setup, plan.parameters - plan.trained),
    )  # fmt: skip


def _answer(engine: Any) -> None:
    """DDP's own messages want an answer, which the fake group has not."""
    forward = getattr(engine, "_forward", None)
    if isinstance(forward, DistributedDataParallel):
        forward.register_comm_hook(None, lambda state, bucket: _summed(bucket))


def _summed(bucket: Any) -> torch.futures.Future[Tensor]:
    dist.all_reduce(bucket.buffer())
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
