"""Prepared in any division of the work, and after kills: the same bytes, and no unit twice."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import bigtrain.data
from bigtrain.data.settings import Reading
from bigtrain.data.sources import find_sources
from bigtrain.data.text_data import TextData
from bigtrain.data.units import plan_units
from bigtrain.data.writing import Work

from .conftest import python

CLEAN: list[dict[str, Any]] = [
    {"_target_": "bigtrain.data.clean.normalise"},
    {"_target_": "bigtrain.data.clean.exact_dedup"},
    {"_target_": "bigtrain.data.clean.length", "min_characters": 20},
]


@pytest.fixture(scope="module")
def lines(chapters: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 MB of paragraphs as JSON lines, some of them copies."""
    path = tmp_path_factory.mktemp("lines") / "book.jsonl"
    paragraphs = [text for chapter in chapters for text in chapter.split("\n\n") if text.strip()]
    draw = random.Random(0)
    with path.open("w") as file:
        while file.tell() < 5 << 20:
            file.write(json.dumps({"text": f"{draw.randrange(99)} {draw.choice(paragraphs)}"}) + "\n")
    return path


def settings(lines: Path, cache: Path) -> dict[str, Any]:
    return {"path": str(lines), "sequence_length": 64, "vocab_size": 400, "held_out": 0.1, "cache": str(cache)}


def data(lines: Path, cache: Path, **changes: Any) -> TextData:
    return bigtrain.data.text(**{**settings(lines, cache), **changes})


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files but what tells times."""
    files = {
        f.name: f.read_bytes()
        for f in folder.rglob("*")
        if f.is_file() and f.name not in ("funnel.json", "data_report.html")
    }
    manifest = json.loads(files.pop("manifest.json"))
    for split in manifest["splits"].values():
        for entry in (*split["shards"], split["index"], split["places"]):
            del entry["mtime_ns"]
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def start(lines: Path, cache: Path, clean: Any, workers: int = 1) -> subprocess.Popen[str]:
    """A process that prepares."""
    return python(f"""
import bigtrain.data
if __name__ == "__main__":
    bigtrain.data.text(**{settings(lines, cache)!r}, clean={clean!r}, workers={workers}).prepare()
""")


@pytest.mark.parametrize("clean", [None, CLEAN])
def test_the_same_bytes_whatever_the_workers_and_processes(lines: Path, tmp_path: Path, clean: Any) -> None:
    one = data(lines, tmp_path / "one", workers=1, clean=clean)
    one.prepare()
    three = data(lines, tmp_path / "three", workers=3, clean=clean)
    three.prepare()
    both = [start(lines, tmp_path / "both", clean) for _ in range(2)]
    told = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert not list((tmp_path / "both").glob(".*.work"))
    assert bytes_of(one.folder) == bytes_of(three.folder) == bytes_of(tmp_path / "both" / one.folder.name)
    assert len(list(one.folder.glob("train-0*.bin"))) > 3


def test_two_processes_divide_the_units(lines: Path, tmp_path: Path) -> None:
    """Each unit is done once: by one process while the other does the next, and never again."""
    units, work = plan_units(find_sources([str(lines)], None), Reading()), Work(tmp_path / "artifact")
    work.begin()
    with (
        work.claim(0, "", wait=False) as mine,
        work.claim(0, "", wait=False) as too,
        work.claim(1, "", wait=False) as other,
    ):
        assert (mine, too, other) == (True, False, True) and len(units) > 3
        with work.unit(0) as (_, marker):
            marker["said"] = "done"
    with work.claim(0, "", wait=True) as again:
        assert not again
    work.data.rename(work.artifact)  # as it is finished, the markers go last
    with work.claim(2, "", wait=True) as late:
        assert not late


def test_places_say_where_each_document_came_from(lines: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = data(lines, tmp_path, workers=1)
    made.prepare()
    tokenizer, raw = AutoTokenizer.from_pretrained(str(made.tokenizer_path)), lines.read_bytes()
    shards = made.sets["data"].shards
    assert shards.documents > 1000
    for document in range(0, shards.documents, 97):
        source, offset = shards.place(document)
        start, stop = shards.bounds(document)
        text = json.loads(raw[offset : raw.index(b"\n", offset)])["text"]
        assert source == 0 and tokenizer.decode(shards.read(start, stop - 1)) == text


def test_killed_again_and_again_it_goes_on(lines: Path, tmp_path: Path) -> None:
    whole = data(lines, tmp_path / "whole", workers=1, clean=CLEAN)
    whole.prepare()
    cache, seen = tmp_path / "killed", dict[Path, int]()
    for kill in range(3):
        process = start(lines, cache, CLEAN, workers=1 + kill % 2)
        while process.poll() is None and len(list(cache.glob(".*.work/units/*.json"))) < 2 * (kill + 1):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = {path: path.stat().st_mtime_ns for path in cache.glob(".*.work/units/*.json")}
        assert seen.items() <= now.items() and len(now) > len(seen), "a finished unit was done again"
        seen = now
    process = start(lines, cache, CLEAN)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "units are done already" in err, err
    assert bytes_of(cache / whole.folder.name) == bytes_of(whole.folder)


def test_two_documents_in_two_units_are_on_both_sides(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"text": f"{number} whale " * 90_000}) + "\n")
    for held_out in (1e-9, 0.999999999):
        made = data(tmp_path / "?.jsonl", tmp_path / "cache", held_out=held_out, workers=1)
        made.prepare()
        splits = json.loads((made.folder / "manifest.json").read_text())["splits"]
        assert [splits[s]["documents"] for s in ("train", "eval")] == [1, 1]
