"""What `bigtrain data trace` computes is what the loop was given: every token of every batch, and its place."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from collections.abc import Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from bigtrain.cli import main
from tests.distributed import recorded

CHAPTER = r"(?m)^(?=CHAPTER \d+\.)"


def chapters(first: int, last: int) -> list[str]:
    packed = resources.files("bigtrain").joinpath("data/corpus/moby-dick.txt.xz").read_bytes()
    return [text for text in re.split(CHAPTER, lzma.decompress(packed).decode()) if text][first:last]


def jsonl(folder: Path, texts: Sequence[str]) -> str:
    for name, some in (("a.jsonl", texts[::2]), ("b.jsonl", texts[1::2])):
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    return str(folder / "*.jsonl")


def text(folder: Path, texts: Sequence[str]) -> str:
    (folder / "book.txt.gz").write_bytes(gzip.compress("".join(texts).encode()))
    return str(folder / "book.txt.gz")


def parquet(folder: Path, texts: Sequence[str]) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), folder / "table.parquet", row_group_size=3)
    return str(folder / "table.parquet")


def document(file: str, offset: int) -> str:
    """The text that begins at (file, offset), by other means than bigtrain's."""
    if file.endswith(".parquet"):
        import pyarrow.parquet

        return str(pyarrow.parquet.read_table(file)["text"][offset])
    raw = gzip.decompress(Path(file).read_bytes()) if file.endswith(".gz") else Path(file).read_bytes()
    if file.endswith(".jsonl"):
        return str(json.loads(raw[offset:].split(b"\n")[0])["text"])
    rest = raw[offset:].decode()
    following = re.compile(CHAPTER).search(rest, 1)
    return rest[: following.start()] if following else rest


def traced(capsys: pytest.CaptureFixture[str], step: int) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["data", "trace", "run", "--step", str(step), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check(parts: list[dict[str, Any]], batch: list[list[int]], tokenizer: Tokenizer, wholes: dict[Any, str]) -> None:
    """One step: what was traced against what the loop had."""
    eos = tokenizer.token_to_id("<|endoftext|>")
    samples = [list(of) for _, of in groupby(parts, key=lambda part: part["sample"])]
    assert len(samples) == len(batch)
    for number, (mine, tokens) in enumerate(zip(samples, batch, strict=True)):
        assert {part["sample"] for part in mine} == {number}
        assert sum(part["tokens"] for part in mine) == len(tokens)
        at = 0
        for part in mine:
            own = tokens[at : at + part["tokens"]]
            at += part["tokens"]
            ends = own[-1] == eos
            assert eos not in own[:-1], "a part is of one document"
            assert tokenizer.decode(own[: len(own) - ends], skip_special_tokens=False) == part["text"]
            key = part["file"], part["offset"]
            if key not in wholes:
                wholes[key] = document(*key)
            inner = part["text"].strip("\ufffd")  # a character that is cut between two samples
            assert inner in wholes[key]
            if part["start"] == 0:
                assert wholes[key].startswith(inner)
            if ends:
                assert wholes[key].endswith(inner)


CASES = {
    "concat, jsonl, 1 then 2 ranks": (jsonl, 1, 2, []),
    "best_fit with masks, gzip": (text, 1, 1, ["data.packing=best_fit", "data.document_masks=true"]),
    "a document a sample, parquet, 2 ranks then 1": (parquet, 2, 1, ["data.packing=none"]),
}


@pytest.mark.parametrize("case", CASES)
def test_trace_is_what_was_trained_on(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source, before, after, words = CASES[case]
    path = source(tmp_path, chapters(0, 40))
    words = [*words, f"data.path={path}", "checkpoint.every=3"]
    if source is text:
        words.append(f"data.document_separator='{CHAPTER}'")
    steps = recorded.run(tmp_path, "first", before, [*words, "trainer.max_steps=3"])
    steps |= recorded.run(tmp_path, "second", after, [*words, "trainer.max_steps=6"])
    tokenizer = Tokenizer.from_file("run/tokenizer/tokenizer.json")
    wholes: dict[Any, str] = {}
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    for step, batch in steps.items():
        check(traced(capsys, step), batch, tokenizer, wholes)
    assert len(wholes) > 5, "and not of one document alone"


def test_trace_of_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "data.path=null", "data.packing=best_fit", "checkpoint.every=3",
        "data.domains={sea: {path: " + jsonl(tmp_path, chapters(0, 30)) + ", weight: 0.7}, land: {path: "
        + parquet(tmp_path, chapters(30, 50)) + ", weight: 0.3}}",
    ]  # fmt: skip
    steps = recorded.run(tmp_path, "first", 2, [*words, "trainer.max_steps=3"])
    steps |= recorded.run(tmp_path, "second", 1, [*words, "trainer.max_steps=6"])
    tokenizer = Tokenizer.from_file("run/tokenizer/tokenizer.json")
    wholes: dict[Any, str] = {}
    domains = []
    for step, batch in sorted(steps.items()):
        parts = traced(capsys, step)
        check(parts, batch, tokenizer, wholes)
        assert all((part["domain"] == "sea") == part["file"].endswith(".jsonl") for part in parts)
        domains += [next(of)["domain"] for _, of in groupby(parts, key=lambda part: part["sample"])]
    assert domains.count("sea") == pytest.approx(0.7 * len(domains), abs=1.5)
