"""A rank's data go away in the middle of a run: all ranks end with a reason, and nothing that was trained is lost."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigtrain.distributed import Ranks
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_trace import chapters

GLOBAL, STEPS, FAULT = 4, 14, 11
"""The fault is met in step FAULT, counted from 0; it is planted in step 2, before the loader is so far."""
WORDS = [
    "recipe=smoke", "engine=ddp", "model.width=16", "model.layers=1", "model.heads=2", "trainer.device=cpu",
    f"trainer.global_batch_size={GLOBAL}", "trainer.micro_batch_size=1", "trainer.log_every=1",
    "trainer.eval_every=null", "trainer.eval_batches=null", f"trainer.max_steps={STEPS}", "trainer.epochs=null",
    "trainer.max_tokens=null", "checkpoint.every=null", "data.held_out=0", "data.vocab_size=300",
    "data.sequence_length=16", "data.shard_tokens=200", "data.document_separator=null",
]  # fmt: skip


class End(NamedTuple):
    """Of one rank."""

    losses: dict[int, float]
    error: str
    said: str


def train(ranks: Ranks, words: list[str], remove: str | None) -> End:
    """A run up to its end or a fault; with `remove`, rank 0 takes that file away after two steps."""
    from bigtrain import assembly
    from bigtrain.config.compose import compose
    from bigtrain.data import loader, shards
    from bigtrain.trainer import Stop

    shards.WAITS_S, loader.TOGETHER_S = (0.01, 0.02), 0.0
    config = compose(words, world_size=ranks.world_size).config
    losses: dict[int, float] = {}
    said = io.StringIO()
    error = ""

    def log(step: int, split: str, numbers: Mapping[str, Any]) -> None:
        losses[step] = numbers["loss"]

    def stepped(step: int) -> None:
        if remove and step == 2 and ranks.first:
            Path(remove).unlink()

    with contextlib.redirect_stderr(said):
        schedule, objective = assembly.check_parts(config)
        data = assembly.prepared_data(config)
        parts = assembly.assemble(config, ranks, data, schedule, objective)
        try:
            assembly.run_loop(parts, Stop(), log, stepped)
        except Exception as fault:
            error = f"{type(fault).__name__}: {fault}"
    return End(losses, error, said.getvalue())


def only_read_by_the_second_rank(words: list[str]) -> Path:
    """A shard whose first reader is rank 1, in step FAULT."""
    from bigtrain.assembly import build
    from bigtrain.config.compose import compose

    config = compose(words, world_size=2).config
    data = build(config.data, "data")
    data.prepare()
    (folder,) = {path.parent for path in Path(config.data["cache"]).rglob("manifest.json")}
    entry = json.loads((folder / "manifest.json").read_text())["splits"]["train"]["shards"]
    starts = np.cumsum([0, *(shard["bytes"] // 2 for shard in entry)])
    length = 16
    order = data.train.order(config.seed)(np.arange(GLOBAL * STEPS))
    first: dict[int, tuple[int, set[int]]] = {}  # shard -> its first step, and its readers in it
    for position, index in enumerate(order.tolist()):
        step, rank = position // GLOBAL, position % 2
        ends = (index * length, index * length + length)
        for shard in range(*(np.searchsorted(starts, ends, side="right") - (1, 0)).tolist()):
            when, who = first.setdefault(shard, (step, set()))
            if when == step:
                who.add(rank)
    return next(folder / entry[shard]["file"] for shard, at in first.items() if at == (FAULT, {1}))


def test_a_shard_that_vanishes_ends_all_ranks_after_a_checkpoint_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in chapters(0, 6)))
    words = [*WORDS, f"data.path={tmp_path / 'text.jsonl'}", f"data.cache={tmp_path / 'cache'}"]
    shard = only_read_by_the_second_rank([*words, f"run.dir={tmp_path}"])
    kept = shard.read_bytes()
    straight, _ = run_on_ranks(train, 2, [*words, f"run.dir={tmp_path / 'straight'}"], None)
    assert not straight.error and sorted(straight.losses) == list(range(1, STEPS + 1))

    first, second = run_on_ranks(train, 2, [*words, f"run.dir={tmp_path / 'run'}"], str(shard))
    assert second.error.startswith(f"RunError: {shard} cannot be read any more: No such file or directory. Bring it")
    assert second.said.count(f"data: {shard}: FileNotFoundError") == 2 and "trying again in 0.02 s" in second.said
    assert first.error == "RunError: another rank cannot read its data any more: see its message."
    assert sorted(first.losses) == list(range(1, FAULT + 1))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [f"step_{FAULT:08}"]

    shard.write_bytes(kept)
    then, _ = run_on_ranks(train, 2, [*words, f"run.dir={tmp_path / 'run'}"], None)
    assert not then.error
    assert first.losses | then.losses == straight.losses  # bit by bit
    assert sorted(then.losses) == list(range(FAULT + 1, STEPS + 1))
