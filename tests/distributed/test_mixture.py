"""A mixture in training: going on is as if it had never stopped, and an edit of the weights loses no sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

import bigtrain.data
from bigtrain.data.mixed import MixedSet
from tests.distributed import recorded
from tests.distributed.test_trace import chapters


def words(folder: Path, steps: int, early: float) -> list[str]:
    domains = {"early": ("early.jsonl", early), "late": ("late.jsonl", 1 - early)}
    return ["data=text", "data.path=null", f"trainer.max_steps={steps}"] + [
        word
        for name, (file, weight) in domains.items()
        for word in (f"+data.domains.{name}.path={folder / file}", f"+data.domains.{name}.weight={weight}")
    ]


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


def test_a_run_goes_on_with_the_same_samples_and_after_an_edit_with_the_next_of_each_domain(
    tmp_path: Path,
) -> None:
    for name, texts in (("early", chapters(0, 4)), ("late", chapters(4, 10))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    straight_dir, split_dir = tmp_path / "straight", tmp_path / "split"
    straight_dir.mkdir()
    settings = [f"data.cache={tmp_path / 'cache'}", "checkpoint.every=3"]
    straight = recorded.run(straight_dir, "all", 2, [*words(tmp_path, 6, 0.75), *settings])
    shutil.copytree(straight_dir, split_dir)
    shutil.rmtree(split_dir / "run/checkpoints/step_00000006")
    then = recorded.run(split_dir, "then", 2, [*words(tmp_path, 6, 0.75), *settings])
    assert then == {step: batch for step, batch in straight.items() if step > 3}
    assert len(losses(straight_dir)) == 6 and losses(straight_dir) == losses(split_dir)  # bit by bit
    edited = recorded.run(split_dir, "edited", 1, [*words(tmp_path, 10, 0.25), *settings])

    data = bigtrain.data.text(
        domains={
            "early": {"path": str(tmp_path / "early.jsonl"), "weight": 0.25},
            "late": {"path": str(tmp_path / "late.jsonl"), "weight": 0.75},
        },
        sequence_length=48, vocab_size=400, held_out=0.0, cache=str(tmp_path / "cache"),
    )  # fmt: skip
    manifest = json.loads((split_dir / "run/checkpoints/step_00000006/manifest.json").read_text())
    then_state = manifest["state"]["data"]
    assert len(json.dumps(then_state)) < 1024
    assert "another from sample 48 on" in data.resume(then_state, 48)[0]
    data.prepare()
    assert isinstance(data.train, MixedSet)
    indices = data.train.order(1)(np.arange(80)).tolist()
    assert len(set(indices)) == 80, "a sample came twice"
    seen = [sample for step in sorted(straight) for sample in straight[step]]
    seen += [sample for step in sorted(edited) if step > 6 for sample in edited[step]]
    assert len(seen) == 80
    tokens = [recorded.tokens(*(data.train[i][key].tolist() for key in ("input_ids", "labels"))) for i in indices]
    assert seen == tokens
    early = [data.train.locate(i)[0] == "early" for i in indices]
    assert (sum(early[:48]), sum(early[48:])) == (36, 8)
