"""Optimizer and weights on a disk: the losses of the same engine in memory, exact resumes, and no file left behind."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import deepspeed_runs as runs
from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks
from tests.support import ran

# Even with the op in the cache: a .venv made anew has newer headers, and ninja compiles for minutes again.
compiles = pytest.mark.skipif(
    os.environ.get("BIGTRAIN_COMPILE") != "1",
    reason="compiles DeepSpeed's async_io (10 minutes of one core): BIGTRAIN_COMPILE=1 does, with libaio-dev, g++ and "
    "ninja; `make test-cluster` does it too",
)
HIDDEN = 620  # two matrices of 769 000 elements: less than 1 MiB on a rank would stay in memory
LR = 1e-4
CASES: dict[str, dict[str, Any]] = {
    "both": {"offload_optimizer": "nvme", "offload_parameters": "nvme"},
    "optimizer": {"offload_optimizer": "nvme"},
    "weights": {"offload_optimizer": "cpu", "offload_parameters": "nvme"},
}


class WithFrozenMatrix(tiny.Tiny):
    """A frozen weight that is large enough to be on the disk."""

    def __init__(self) -> None:
        super().__init__(hidden=HIDDEN)
        self.up.weight.requires_grad_(False)


def on_disk(ranks: Any, folder: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    model = partial(tiny.Tiny, hidden=HIDDEN)
    for precision in ("fp32", "bf16"):  # the masters and moments are on the disk in both
        in_memory = runs.build(ranks, "zero3", model=model, lr=LR, precision=precision, offload_optimizer="cpu")
        right = runs.step(ranks, in_memory, 0, 6)
        end = runs.whole(in_memory)
        in_memory.close()
        for case, settings in CASES.items():
            if precision == "bf16" and case != "both":
                continue
            build = partial(
                runs.build, ranks, "zero3", model=model, lr=LR, precision=precision, nvme_path=folder, **settings
            )
            engine = build()
            first = runs.step(ranks, engine, 0, 3)
            files = [path.stat().st_size for path in Path(folder).rglob("*.swp")]
            assert sum(files) > 2_000_000, files
            said = engine.settings()
            assert {f"engine.{key}": value for key, value in settings.items()}.items() <= said.items(), said
            saved = runs.whole(engine)
            found[case, precision, "like in memory"] = first + runs.step(ranks, engine, 3, 6) == right
            same = runs.whole(engine)
            found[case, precision, "same end"] = all(torch.equal(end[n]["weight"], same[n]["weight"]) for n in end)
            engine.close()
            engine = build(seed=99)
            runs.put(engine, saved)
            found[case, precision, "resumed"] = runs.step(ranks, engine, 3, 6) == right[3:]
            engine.close()
    other = runs.build(ranks, "zero2", model=model, lr=LR, seed=99, precision="bf16")
    runs.put(other, saved)
    found["zero2 goes on"] = all(
        abs(a - b) < 2e-3 for (a, _), (b, _) in zip(runs.step(ranks, other, 3, 6), right[3:], strict=True)
    )
    other.close()
    frozen = runs.build(ranks, "zero3", model=WithFrozenMatrix, lr=LR, nvme_path=folder, **CASES["both"])
    runs.step(ranks, frozen, 0, 1)
    own = runs.initial_weights(WithFrozenMatrix)["up.weight"]
    found["frozen"] = torch.equal(runs.whole(frozen)["up.weight"]["weight"], own.flatten())
    frozen.close()
    return found


@compiles
@pytest.mark.timeout(1400)
def test_the_disk_changes_nothing(tmp_path: Path) -> None:
    for found in run_on_ranks(on_disk, 2, str(tmp_path), timeout_s=1200):
        assert [case for case, right in found.items() if not right] == []
    assert list(tmp_path.iterdir()) == []
    for column in ("2 ranks", "bf16", "resumed to the bit", "elastic"):
        ran("zero3_nvme", column)


def refusals(ranks: Any, folder: str) -> None:
    from bigtrain.engines import deepspeed_nvme
    from bigtrain.errors import UserError

    with pytest.raises(UserError, match=r"engine.nvme_path=.*/file cannot be written to .*rank 0: Not a directory"):
        deepspeed_nvme.Folder(f"{folder}/file", ranks)
    os.environ["PATH"] = folder
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler: apt install g\+\+"):
        deepspeed_nvme.build_async_io(ranks)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run_on_ranks(refusals, 2, str(tmp_path))
