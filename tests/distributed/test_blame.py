"""`bigtrain data blame` gets the folder of a real run, and names the document of 200 that is poisoned.

A handful of seeds; benchmarks/data_blame.py has 100 of all kinds.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks._poison import documents, poison
from bigtrain.cli import main
from bigtrain.data.exclude import read_exclusions
from bigtrain.data.sources import find_sources
from tests.distributed import recorded

WORDS = [
    "model.width=64", "model.heads=4", "optimizer.lr=3e-3", "data.path=corpus.jsonl", "data.held_out=0",
    "data.sequence_length=128", "data.vocab_size=512", "trainer.micro_batch_size=8", "trainer.max_steps=null",
    "trainer.epochs=1", "checkpoint.every=30", "checkpoint.keep_last=9",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "seed"), [("base64", 1), ("wrong encoding", 2), ("one token repeated", 3), ("another language", 4)]
)
def test_the_poisoned_document_comes_first(
    kind: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = poison(Path("corpus.jsonl"), documents(), kind, seed)
    recorded.run(tmp_path, "book", 1, [*WORDS, f"seed={seed}"])
    capsys.readouterr()
    assert main(["data", "blame", "run", "--json", "--device", "cpu", "--out", "blame.jsonl"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0]["offset"] == bad
    assert found[0]["text"] == json.loads(Path("corpus.jsonl").read_bytes()[bad:].split(b"\n")[0])["text"]
    excluded = read_exclusions("blame.jsonl", find_sources(["corpus.jsonl"]))
    assert bad in excluded[0]
    assert main(["data", "blame", "run"]) == 0
    table = capsys.readouterr().out
    assert f"corpus.jsonl:{bad}" in table and "data.exclude=run/blame.jsonl" in table
