"""`launch/prepare.sbatch` on a Slurm of two nodes: an array prepares what one process does, byte by byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bigtrain.data.readers import Reader
from bigtrain.data.settings import Reading
from bigtrain.data.sources import find_sources
from tests.cluster.lab import wait_for
from tests.cluster.slurm import SlurmLab

SCRIPT = Path(__file__).parents[2] / "launch/prepare.sbatch"
MOBY = "pkg://bigtrain/data/corpus/moby-dick.txt.xz"
CLEAN = ["normalise", "exact_dedup", "near_dedup"]


def contents(folder: Path) -> dict[str, str | bytes]:
    """All that must be equal: the shards by the checksums in the manifest, index and tokenizer."""
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    files = {file.name: file.read_bytes() for file in folder.rglob("*") if file.suffix == ".bin"}
    sums = {entry["file"]: entry["sha256"] for split in splits.values() for entry in split["shards"]}
    return {**files, **sums, "tokenizer": (folder / "tokenizer/tokenizer.json").read_bytes()}


@pytest.mark.timeout(300)
def test_an_array_prepares_what_one_process_does(slurm: SlurmLab, tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    reading = Reading(document_separator=r"\n\s*\n")
    paragraphs = [document.text for document in Reader(find_sources([MOBY], None), reading)]
    lines = [json.dumps({"text": f"{copy} {text} {copy}"}) + "\n" for copy in range(5) for text in paragraphs]
    (tmp_path / "book.jsonl").write_text("".join(lines))
    clean = ",".join(f"{{_target_: bigtrain.data.clean.{step}}}" for step in CLEAN)
    words = [f"data.path={tmp_path / 'book.jsonl'}", "data.document_separator=null", f"data.clean=[{clean}]"]
    options = ["--array=0-1", "--cpus-per-task=3", "--time=10", "--partition=high"]
    done = slurm.run(
        "sbatch", "--parsable", *options, str(SCRIPT), *words, f"data.cache={tmp_path / 'there'}",
        folder=tmp_path, RECIPE="smoke",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logs = [tmp_path / f"prepare-{done.stdout.strip()}_{task}.out" for task in range(2)]

    def said() -> str:
        return "".join(log.read_text() for log in logs if log.exists())

    def states() -> set[str]:
        return {slurm.job(f"{done.stdout.strip()}_{task}").get("JobState", "") for task in range(2)}

    def failed() -> str | None:
        return said() if "FAILED" in states() else None

    wait_for("both tasks to end", 200, lambda: states() == {"COMPLETED"}, failed, said)

    here = subprocess.run(
        [Path(sys.prefix) / "bin/bigtrain", "prepare", "recipe=smoke", *words, f"data.cache={tmp_path / 'here'}"],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    ).stdout.splitlines()[-1]  # fmt: skip
    there = str(tmp_path / "there" / Path(here).name)
    assert [log.read_text().splitlines()[-1] for log in logs] == [there, there]
    assert contents(Path(there)) == contents(Path(here))
    assert not list((tmp_path / "there").glob(".*.work"))
