"""`bigtrain verify` catches planted faults, says what they are, and raises no false alarm without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigtrain.config.compose import compose
from bigtrain.config.schema import Engine
from bigtrain.verify import cases
from bigtrain.verify.cases import Settings
from bigtrain.verify.judge import Row
from bigtrain.verify.suite import verify
from tests.distributed import verify_faults as faults

TINY = [
    "recipe=smoke",
    "trainer.device=cpu",
    "launcher.threads=1",
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "model.tied=true",
    "data.sequence_length=32",
    "data.vocab_size=512",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.cache={tmp_path_factory.mktemp('prepared')}"


def rows(
    prepared: str, out: Path, only: str, plant: Any = None, engines: list[str] | None = None, steps: int = 4
) -> dict[str, Row]:
    """The table of the tiny recipe, by group and name; `engines` leaves the others out."""
    settings = Settings(steps=steps, ranks=2, timeout_s=200, only=tuple(only.split(",")))
    known = dict(cases.ENGINES)
    if engines is not None:
        for name in set(known) - set(engines):
            del cases.ENGINES[name]
    try:
        found, _ = verify(compose([*TINY, prepared]).config, settings, out, plant=plant)
    finally:
        cases.ENGINES.clear()
        cases.ENGINES.update(known)
    return {f"{row.group}: {row.name}": row for row in found}


SAME, CROSS = "resume: left after step 2, the same set-up with dropout", "resume: ddp x 2 to ddp x 1"

PLANTED = [
    ("average_of_averages", "engine", "engine: ddp", "divided by"),
    ("objective_of_means", "probe", "probe: normaliser: plain PyTorch, a sample at a time", "divided by"),
    ("missing_clip", "engine", "engine: ddp", "clipping"),
    ("missing_clip_in_the_reference", "probe", "probe: normaliser: plain PyTorch, a sample at a time", "clipping"),
    ("all_ones_mask", "probe", "probe: leak: an earlier token, another sample", "attention mask"),
    (
        "documents_in_one",
        "packing",
        "probe: leak with document masks: an earlier token, another sample, another document",
        "another document",
    ),
    ("untied", "engine", "engine: ddp", "tied no more"),
    ("dropout_reused", "dropout", "dropout: another mask every time", "used again"),
    ("dropout_reused_in_every_step", "dropout", "dropout: another mask every time", "used again"),
    ("lost_optimizer_state", "resume", SAME, "optimizer state"),
    ("lost_optimizer_state", "resume", CROSS, "optimizer state"),
    ("skipped_batch", "resume", SAME, "a batch was skipped"),
    ("stale_lr", "resume", SAME, "learning rate"),
    ("wrong_loss_scale", "precision", "precision: fp16, ddp", "factor of 2"),
    ("sharded_init_left_out", "engine", "engine: zero3", "sharded initialisation"),
    ("dies", "engine", "engine: ddp", "rank 1: ended with exit code 7"),
]
FAULTS = list(dict.fromkeys((fault, group) for fault, group, _, _ in PLANTED))


@pytest.mark.parametrize(("fault", "group"), FAULTS)
def test_a_planted_fault_is_caught_and_named(prepared: str, tmp_path: Path, fault: str, group: str) -> None:
    wanted = [(name, words) for planted, _, name, words in PLANTED if planted == fault]
    engines = [name.removeprefix("engine: ") for name, _ in wanted]
    found = rows(prepared, tmp_path, group, getattr(faults, fault), engines)
    for name, words in wanted:
        row = found[name]
        assert row.verdict == "FAIL", (row, found)
        assert words in row.note, row


def test_no_false_alarm_and_what_is_refused_is_not_here(prepared: str, tmp_path: Path) -> None:
    only = "probe,engine,accumulation,activation,precision,packing,dropout,resume"
    found = rows(prepared, tmp_path, only, engines=["ddp", "zero3"])
    assert {row.verdict for row in found.values()} == {"ok"}, found
    cases.ENGINES["refused"] = Engine("ddp", offload_optimizer="cpu")
    try:
        (refused,) = (row for row in rows(prepared, tmp_path, "engine", engines=["refused"]).values() if row.note)
    finally:
        del cases.ENGINES["refused"]
    assert refused.verdict == "not here"
    assert "offload_optimizer" in refused.note
