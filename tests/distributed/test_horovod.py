"""Horovod: whichever launcher started the ranks, whatever a rank lacks, and what is said where it is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from bigtrain.distributed import Ranks
from bigtrain.engines.horovod_start import import_horovod
from bigtrain.errors import RunError, UserError
from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_fsdp import Sides

built = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed here: `make horovod` builds it"
)


def test_missing_or_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod.torch", None)  # as where it is not installed
    with pytest.raises(UserError, match="make horovod"):
        import_horovod()
    hollow = ModuleType("horovod.torch")  # as its import swallows the fault
    package = ModuleType("horovod")
    package.torch = hollow  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "horovod", package)  # where it is not built, too
    monkeypatch.setitem(sys.modules, "horovod.torch", hollow)
    with pytest.raises(UserError, match=r"without a native library.*make horovod"):
        import_horovod()


class InBfloat16(tiny.Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.up.to(torch.bfloat16)


def two_ranks(ranks: Ranks) -> dict[str, Any]:
    from bigtrain.distributed import barrier
    from bigtrain.engines import build_engine
    from bigtrain.engines.horovod_start import start

    def build(model: Any, **changes: Any) -> Any:
        config = tiny.config("horovod", ranks.world_size, 2, **changes)
        return build_engine(config, model, tiny.NextToken(), tiny.adamw, ranks)

    def step(engine: Any, number: int) -> None:
        targets = tiny.NextToken().count(tiny.batch_of(number))
        engine.train_step(tiny.micro_batches(number, ranks.rank, ranks.world_size, 2), targets, 1.0)

    def differs() -> nn.Module:
        torch.manual_seed(ranks.rank)  # a model whose code asks the clock
        return Sides()

    engine = build(differs)
    for number in range(2):
        step(engine, number)
    answers: dict[str, Any] = {"weights": {key: value.clone() for key, value in engine.model.state_dict().items()}}
    answers["settings"] = engine.settings()
    engine.close()
    with pytest.raises(UserError, match=r"bfloat16.*up\.weight"):
        build(InBfloat16)
    with pytest.raises(UserError, match=r"built for the CPU.*engine=ddp"):
        start(replace(ranks, device=torch.device("cuda", 0)), 1.0)

    engine = build(tiny.Tiny, timeout_s=2.0)
    if ranks.rank == 0:  # the other never comes
        with pytest.raises(RunError, match=r"waited 2 s \(trainer.timeout_s\)"):
            step(engine, 0)
    barrier()
    answers["environment"] = {key: value for key, value in os.environ.items() if key.startswith("HOROVOD")}
    return answers


@built
def test_two_ranks() -> None:
    first, second = run_on_ranks(two_ranks, 2)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    moved = [not torch.equal(first["weights"][f"sides.{index}"], torch.ones(tiny.HIDDEN)) for index in range(3)]
    assert moved == [True, True, False]  # used by the first, by the second, by none
    said = first["settings"]
    assert (said["engine.name"], said["world_size"], said["controller"], said["interface"]) == (
        "horovod",
        2,
        "gloo",
        "lo",
    )
    assert second["environment"]["HOROVOD_GLOO_RENDEZVOUS_ADDR"] == "127.0.0.1"


UNDER_HOROVODRUN = """
import os
given = os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"]
from bigtrain.distributed import setup, teardown
from bigtrain.engines.horovod_start import start
import torch
ranks = setup("cpu", 60)
hvd = start(ranks, 60)
total = hvd.allreduce(torch.tensor([1.0 + ranks.rank]), op=hvd.Sum)
print("sum", total.item(), "of", ranks.world_size, given == os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])
teardown()
"""


@built
def test_horovodrun_keeps_its_own_rendezvous(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(UNDER_HOROVODRUN)
    run = shutil.which("horovodrun", path=str(Path(sys.executable).parent)) or "horovodrun"
    command = [run, "--gloo", "-np", "2", "-H", "localhost:2", sys.executable, str(script)]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sum 3.0 of 2 True") == 2, done.stdout + done.stderr
