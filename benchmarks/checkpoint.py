"""A checkpoint of about 400 MB: how long training stands still for it, until it is on the disk, and loading it again.

    python benchmarks/checkpoint.py --out benchmarks/results/checkpoint.json

The same tensors (weights and AdamW's two moments, fp32) through the run's own saver, `torch.save`, flushed to the disk
as bigtrain's is, and `torch.distributed.checkpoint`'s `save` and `async_save`. A round is a process each: one save that
does not count (folders, thread pools, staging buffers), then one that does. `blocked` ends when training may go on,
`durable` when all is flushed to the disk; bigtrain has then also read it back and compared its checksums.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _suite import SECONDS, Measured, Suite, in_turn, last_json, metric, process

PARAMETERS = {False: 35_000_000, True: 100_000}
"""Three fp32 numbers each; `True`: small."""
CASES = ("bigtrain", "torch.save", "dcp.save", "dcp.async_save")


def tensors(parameters: int) -> dict[str, dict[str, Any]]:
    """Weights of a small transformer's sizes, and two moments of each."""
    import torch

    generator = torch.Generator().manual_seed(0)
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    return {
        f"layers.{layer}.weight": {kind: torch.rand(parameters // 20, generator=generator) for kind in kinds}
        for layer in range(20)
    }


def flush(folder: Path) -> None:
    """Everything below a folder onto the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def bigtrain(state: dict[str, Any], folder: Path) -> tuple[Callable[[int], Callable[[], None]], Callable[[int], None]]:
    """Its own format, by the functions that the loop calls."""
    from bigtrain.checkpoint.background import Background
    from bigtrain.checkpoint.find import find
    from bigtrain.checkpoint.fragments import Fragment
    from bigtrain.checkpoint.load import load
    from bigtrain.distributed import setup

    ranks, background = setup("cpu"), Background()
    fragments = [
        Fragment(name, kinds["weight"].shape, 0, kinds["weight"].numel(), kinds) for name, kinds in state.items()
    ]

    def write(step: int) -> Callable[[], None]:
        background.save(folder, step, fragments, {"loop": {}}, {}, ranks)
        return background.wait

    def read(step: int) -> None:
        found = find(folder, print)
        assert found is not None and found.step == step
        load(found, fragments, ranks)

    return write, read


def torch_save(
    state: dict[str, Any], folder: Path
) -> tuple[Callable[[int], Callable[[], None]], Callable[[int], None]]:
    """One file."""
    import torch

    def write(step: int) -> Callable[[], None]:
        with (folder / f"{step}.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        return lambda: None

    def read(step: int) -> None:
        loaded = torch.load(folder / f"{step}.pt", weights_only=True)
        for name, kinds in state.items():
            for kind, tensor in kinds.items():
                tensor.copy_(loaded[name][kind])

    return write, read


def dcp(
    state: dict[str, Any], folder: Path, later: bool
) -> tuple[Callable[[int], Callable[[], None]], Callable[[int], None]]:
    """torch.distributed.checkpoint, at once or in the background."""
    import torch.distributed.checkpoint as checkpoint

    from bigtrain.distributed import setup

    setup("cpu")

    def write(step: int) -> Callable[[], None]:
        at = folder / str(step)
        if not later:
            checkpoint.save(state, checkpoint_id=at)
            flush(at)
            return lambda: None
        going: Any = checkpoint.async_save(state, checkpoint_id=at)

        def end() -> None:
            going.result()
            flush(at)

        return end

    return write, lambda step: checkpoint.load(state, checkpoint_id=folder / str(step))


SIDES: dict[str, Callable[..., Any]] = {
    "bigtrain": bigtrain,
    "torch.save": torch_save,
    "dcp.save": partial(dcp, later=False),
    "dcp.async_save": partial(dcp, later=True),
}


def run_side(case: str, parameters: int) -> dict[str, float]:
    """Seconds of one process's second save, and of loading it."""
    with tempfile.TemporaryDirectory() as name:
        folder, state = Path(name), tensors(parameters)
        write, read = SIDES[case](state, folder)
        write(1)()
        began = time.perf_counter()
        end = write(2)
        blocked = time.perf_counter() - began
        end()
        durable = time.perf_counter() - began
        right = {name: kinds["weight"].clone() for name, kinds in state.items()}
        for kinds in state.values():
            kinds["weight"].zero_()
        began = time.perf_counter()
        read(2)
        load = time.perf_counter() - began
        assert all((state[name]["weight"] == tensor).all() for name, tensor in right.items()), "other weights came back"
    return {"blocked": blocked, "durable": durable, "load": load}


def measure(rounds: int, small: bool, say: Callable[[str], None]) -> Measured:
    """See `Suite`."""
    parameters = PARAMETERS[small]
    measured = Measured({"parameters": parameters, "bytes": 12 * parameters, "folder": tempfile.gettempdir()})
    cases = {
        case: partial(lambda case: dict(last_json(process([__file__, "--side", case, str(parameters)]))), case)
        for case in CASES
    }
    measured.groups[f"{12 * parameters / 1e6:.0f} MB"] = in_turn(cases, rounds, say, measured.notes)
    return measured


def target(text: str, case: str, bound: float) -> dict[str, Any]:
    """The time that training stands still, over another way's."""
    group = f"{12 * PARAMETERS[False] / 1e6:.0f} MB"
    return {"text": text, "group": group, "of": ["bigtrain", "blocked"], "over": [case, "blocked"], "at_most": bound}


SUITE = Suite(
    about=(__doc__ or "").partition("\n")[0],
    metrics={"blocked": metric(SECONDS), "durable": metric(SECONDS), "load": metric(SECONDS)},
    pictured=("blocked", "durable"),
    targets=(
        target("training stands still at most 0.65 × as long as for dcp.async_save", "dcp.async_save", 0.65),
        target("and 0.25 × as long as for torch.save", "torch.save", 0.25),
    ),
    measure=measure,
    rounds=2,
)


def main() -> None:
    """One side in this process (`--side CASE PARAMETERS`), or the suite."""
    if sys.argv[1:2] == ["--side"]:
        print(json.dumps(run_side(sys.argv[2], int(sys.argv[3]))))
    else:
        SUITE.main()


if __name__ == "__main__":
    main()
