"""Cleaning as a user meets it: `bigtrain prepare` with the shipped lists of steps, or with one that leaves nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from bigtrain.errors import EXIT_USER

BIGTRAIN = Path(sys.executable).with_name("bigtrain")


def prepare(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    words = ("recipe=smoke", f"data.cache={tmp_path / 'cache'}", f"data.path={tmp_path / 'raw.jsonl'}", *words)
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run([BIGTRAIN, "prepare", *words], cwd=tmp_path, env=environment, capture_output=True, text=True)


def write(path: Path, chapters: list[str]) -> dict[str, int]:
    """A file of the chapters' beginnings, with copies and dirt among them; what each kind of dirt comes to."""
    draw = random.Random(0)
    good = [chapter[:6000] for chapter in chapters[1:]]
    near = [text[:3000] + " and then " + text[3010:] for text in good[:3]]
    dirty = {"copies": good[3:7], "near-copies": near, "short": ["Too short."] * 2,
             "repeated": ["the same line again and again\n" * 60], "digits": ["0 1 2 3 4 5 6 7 8 9 " * 60]}  # fmt: skip
    texts = [*good, *(text for kind in dirty.values() for text in kind)]
    draw.shuffle(texts)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"all": len(texts), "good": len(good), **{kind: len(found) for kind, found in dirty.items()}}


def test_prose_is_cleaned_on_the_way_to_the_shards(chapters: list[str], tmp_path: Path) -> None:
    count = write(tmp_path / "raw.jsonl", chapters)
    done = prepare(tmp_path, "clean=prose", "data.document_separator=null")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    assert sum(split["documents"] for split in splits.values()) == count["good"]
    funnel = json.loads((folder / "funnel.json").read_text())
    assert (funnel["before"]["documents"], funnel["after"]["documents"]) == (count["all"], count["good"])
    dropped = {step["name"]: step["documents_in"] - step["documents_out"] for step in funnel["steps"]}
    assert dropped["exact_dedup"] == count["copies"] and dropped["near_dedup"] == count["near-copies"]
    page = (folder / "data_report.html").read_text()
    assert "Too short." in page and "near_dedup" in page and "<script src" not in page


def test_nothing_left_shows_the_funnel_and_leaves_nothing(chapters: list[str], tmp_path: Path) -> None:
    write(tmp_path / "raw.jsonl", chapters)
    steps = "{_target_: bigtrain.data.clean.normalise},{_target_: bigtrain.data.clean.length,min_characters: 99999}"
    done = prepare(tmp_path, f"data.clean=[{steps}]", "data.document_separator=null")
    assert done.returncode == EXIT_USER and "Traceback" not in done.stderr
    assert "length" in done.stderr and "normalise" in done.stderr and not done.stdout
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_an_edited_step_of_the_users_own_cleans_anew(chapters: list[str], tmp_path: Path) -> None:
    write(tmp_path / "raw.jsonl", chapters)
    words = ["data.clean=[{_target_: mine.step}]", "data.document_separator=null"]
    folders = []
    for method in ("lower", "lower", "upper"):
        (tmp_path / "mine.py").write_text(f"def step(text):\n    return text.{method}()\n")
        done = prepare(tmp_path, *words)
        assert done.returncode == 0, done.stderr
        folders.append(done.stdout.splitlines()[-1])
    assert folders[0] == folders[1] != folders[2]
