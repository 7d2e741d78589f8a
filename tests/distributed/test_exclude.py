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
from bigtrain.evaluate import evaluate
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


def kept_of(run: Path, step: int) -> Any:
    """What a checkpoint keeps of the data."""
    return json.loads((run / f"checkpoints/step_{step:08}/manifest.json").read_text())["state"]["data"]


def everything(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    own = {".lock", "environment.json"}  # of each start, whatever comes of it
    return {str(file): file.read_bytes() for file in files if file.name not in own and "logs" not in file.parts}


def is_traced(batches: dict[int, list[list[int]]], capsys: pytest.CaptureFixture[str]) -> dict[int, set[Any]]:
    """Every step is traced as it was trained on; its documents."""
    encoder, wholes, found = Encoder(Path("run/tokenizer")), dict[Any, str](), {}
    for step, batch in sorted(batches.items()):
        parts = [part for part in traced(capsys, step) if part["tokens"] > 1]  # a single token has no target
        numbers = sorted({part["sample"] for part in parts})
        renumbered = [part | {"sample": numbers.index(part["sample"])} for part in parts]
        check(renumbered, [sample for sample in batch if sample], encoder.tokenizer, wholes)
        found[step] = {(part["file"], part["offset"]) for part in parts}
    return found


def test_each_step_is_told_with_what_was_left_out_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source, file, other = tmp_path / "all.jsonl", tmp_path / "exclude.jsonl", tmp_path / "other.jsonl"
    offsets = write(source, chapters(0, 30))
    words = [f"data.path={source}", "checkpoint.every=3"]

    def go_on(name: str, upto: int, *more: str) -> dict[int, list[list[int]]]:
        return recorded.run(tmp_path, name, 2, [*words, f"trainer.max_steps={upto}", *more])

    batches = go_on("before", 6)
    assert isinstance(kept_of(Path("run"), 6), str), "as it was before there were exclusions"
    seen = is_traced(batches, capsys)
    bad = max(((str(source), offset) for offset in offsets), key=lambda place: sum(place in of for of in seen.values()))
    exclude(file, source, [bad[1]])
    batches |= go_on("straight", 14, f"data.exclude={file}")
    shutil.copytree("run", "straight-run")
    for step in (12, 14):
        shutil.rmtree(f"run/checkpoints/step_{step:08}")
    assert go_on("again", 14, f"data.exclude={file}") == {step: of for step, of in batches.items() if step > 9}
    assert losses(Path("run")) == losses(Path("straight-run"))
    for name, tensor in weights(Path("straight-run")).items():
        assert torch.equal(tensor, weights(Path("run"))[name]), name
    ((position, digest),) = kept_of(Path("run"), 14)["exclusions"]
    assert position == 48 and digest
    assert kept_of(Path("run"), 9) == kept_of(Path("run"), 14) == kept_of(Path("straight-run"), 14)

    # What is no document: said by all ranks, and nothing is changed.
    exclude(other, source, [offsets[2], offsets[4] + 1])
    was = everything(Path("run")) | everything(Path("prepared"))
    assert recorded.start(tmp_path, "wrong", 2, [*words, "trainer.max_steps=17", f"data.exclude={other}"]) == [2, 2]
    said = (tmp_path / "output.txt").read_text()
    assert f"offset {offsets[4] + 1} of {source}; the nearest begins at {offsets[4]}" in said
    assert everything(Path("run")) | everything(Path("prepared")) == was

    # Another file under the same name; then they come back; and the files are gone.
    exclude(file, source, [bad[1], *offsets[:20]])
    batches |= go_on("more", 17, f"data.exclude={file}")
    batches |= go_on("back", 20, "data.exclude=null")
    state = kept_of(Path("run"), 20)
    assert [position for position, _ in state["exclusions"]] == [48, 112, 136]
    assert state["exclusions"][0] == [48, digest] and state["exclusions"][2] == [136, None]
    assert digest != state["exclusions"][1][1]
    file.unlink()
    seen = is_traced(batches, capsys)
    out = {(str(source), offset) for offset in [bad[1], *offsets[:20]]}
    assert any(bad in seen[step] for step in range(1, 7))
    assert not any(bad in seen[step] for step in range(7, 18)) and any(out & seen[step] for step in range(7, 15))
    assert not any(out & seen[step] for step in range(15, 18))
    assert any(out & seen[step] for step in range(18, 21))
    own = ["objective._target_=tests.distributed.recorded.objective", "objective.folder=''"]
    assert evaluate("straight-run", overrides=own, device="cpu").step == 14, "of the text of its shards"
    (Path("prepared") / f"excluded-{digest}.jsonl").unlink()
    assert main(["data", "trace", "run", "--step", "6"]) == 0
    assert main(["data", "trace", "run", "--step", "7"]) == 2
    assert f"excluded-{digest}.jsonl is gone" in capsys.readouterr().err


def test_a_mixture_goes_on_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    offsets = {name: write(tmp_path / name, texts) for name, texts in
               (("sea.jsonl", chapters(0, 12)), ("land.jsonl", chapters(12, 20)))}  # fmt: skip
    words = ["data.path=null", "checkpoint.every=3", "data.packing=best_fit",
             "data.domains={sea: {path: " + f"{tmp_path}/sea.jsonl" + ", weight: 0.6}, land: {path: "
             + f"{tmp_path}/land.jsonl" + ", weight: 0.4}}"]  # fmt: skip
    batches = recorded.run(tmp_path, "before", 2, [*words, "trainer.max_steps=3"])
    out = {(str(tmp_path / "sea.jsonl"), offset) for offset in offsets["sea.jsonl"][::2]}
    out |= {(str(tmp_path / "land.jsonl"), offset) for offset in offsets["land.jsonl"][1::2]}
    Path("out.jsonl").write_text("".join(json.dumps({"file": file, "offset": at}) + "\n" for file, at in sorted(out)))
    batches |= recorded.run(tmp_path, "without", 2, [*words, "trainer.max_steps=6", "data.exclude=out.jsonl"])
    then, now = kept_of(Path("run"), 3), kept_of(Path("run"), 6)
    assert now == then | {"exclusions": [[24, now["exclusions"][0][1]]]}
    Path("out.jsonl").unlink()
    seen = is_traced(batches, capsys)
    for name in offsets:
        mine = {place for place in out if place[0].endswith(name)}
        assert any(mine & seen[step] for step in (1, 2, 3)), name
        assert not any(mine & seen[step] for step in (4, 5, 6)), name
