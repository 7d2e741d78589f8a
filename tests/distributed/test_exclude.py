"""`data.exclude`: a new run is as if the documents had never been there; one that goes on, goes on without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.checkpoint.find import find
from bigtrain.checkpoint.load import load_weights
from bigtrain.cli import main
from bigtrain.data.tokenizer import Encoder
from tests.distributed import recorded
from tests.distributed.test_trace import chapters, check, traced


def write(file: Path, texts: list[str]) -> list[int]:
    """JSON lines; the offset of each."""
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    file.write_text("".join(lines))
    return [sum(map(len, lines[:at])) for at in range(len(lines))]


def exclude(file: Path, source: Path, offsets: list[int]) -> Path:
    file.write_text("".join(json.dumps({"file": str(source), "offset": offset}) + "\n" for offset in offsets))
    return file


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = find(run, print)
    assert found is not None
    return load_weights(found)


@pytest.mark.parametrize("tokenizer", ["trained", "given"])
def test_a_new_run_is_as_if_they_had_never_been_there(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, out = chapters(0, 30), {3, 11, 29}
    offsets = write(tmp_path / "all.jsonl", texts)
    write(tmp_path / "fewer.jsonl", [text for at, text in enumerate(texts) if at not in out])
    excluded = exclude(tmp_path / "exclude.jsonl", tmp_path / "all.jsonl", [offsets[at] for at in sorted(out)])
    words = ["trainer.max_steps=4", "checkpoint.every=4"]
    if tokenizer == "given":
        (tmp_path / "other.txt").write_text(chapters(40, 41)[0] * 3)
        monkeypatch.chdir(tmp_path)
        assert main(["prepare", "data=text", "data.path=other.txt", "data.vocab_size=300", "data.sequence_length=8",
                     "data.cache=other"]) == 0  # fmt: skip
        (made,) = tmp_path.glob("other/*/tokenizer")
        words.append(f"data.tokenizer={made}")
    seen = {}
    for name, more in {
        "with": ["data.path=all.jsonl"],
        "without": ["data.path=fewer.jsonl"],
        "excluded": ["data.path=all.jsonl", f"data.exclude={excluded}"],
    }.items():
        batches = recorded.run(tmp_path, name, 1, [*words, *more])
        (tmp_path / "run").rename(tmp_path / f"run-{name}")
        seen[name] = batches, losses(tmp_path / f"run-{name}"), weights(tmp_path / f"run-{name}")
    for at in (0, 1):
        assert seen["excluded"][at] == seen["without"][at]
        assert seen["excluded"][at] != seen["with"][at]
    for name, tensor in seen["without"][2].items():
        assert torch.equal(tensor, seen["excluded"][2][name]), name


def test_a_run_goes_on_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "all.jsonl"
    write(source, chapters(0, 30))
    words = [f"data.path={source}", "checkpoint.every=3"]
    recorded.run(tmp_path, "before", 1, [*words, "trainer.max_steps=3"])
    shutil.copytree("run", "kept")
    straight = recorded.run(tmp_path, "straight", 1, [*words, "trainer.max_steps=9"])
    parts = {step: traced(capsys, step) for step in (4, 5, 6, 7, 8, 9)}
    shutil.rmtree("run")
    shutil.copytree("kept", "run")

    # The documents of one sample of step 5, as trace itself writes them.
    bad = [part for part in parts[5] if part["sample"] == 2]
    Path("exclude.jsonl").write_text("".join(json.dumps(part) + "\n" for part in bad))
    out = {(part["file"], part["offset"]) for part in bad}
    without = recorded.run(tmp_path, "without", 2, [*words, "trainer.max_steps=9", "data.exclude=exclude.jsonl"])

    touched = 0
    encoder = Encoder(Path("run/tokenizer"))
    wholes: dict[Any, str] = {}
    for step in (4, 5, 6, 7, 8, 9):
        for number, (had, has) in enumerate(zip(straight[step], without[step], strict=True)):
            stays, at = [], 0
            for part in (part for part in parts[step] if part["sample"] == number):
                if (part["file"], part["offset"]) not in out:
                    stays += had[at : at + part["tokens"]]
                at += part["tokens"]
            touched += stays != had
            assert has == (stays if len(stays) > 1 else []), (step, number)
        now = [part for part in traced(capsys, step) if part["tokens"] > 1]
        assert not out & {(part["file"], part["offset"]) for part in now}
        kept = [sample for sample in without[step] if sample]
        numbers = sorted({part["sample"] for part in now})
        renumbered = [part | {"sample": numbers.index(part["sample"])} for part in now]
        check(renumbered, kept, encoder.tokenizer, wholes)
    assert touched, "the excluded documents were to come"
    for step in (1, 2, 3):  # what was trained before is told as it was
        assert traced(capsys, step)
