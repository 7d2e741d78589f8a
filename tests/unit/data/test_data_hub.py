"""Hub names: the same road after reading as local files, and a quick, clear end where there is no hub."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from bigtrain.data.hub import tables
from bigtrain.data.text_data import TextData
from bigtrain.errors import RunError

from .conftest import Make, left_in, python
from .hub_server import SHA, serve

NOWHERE = "http://127.0.0.1:9"
"""A port where nobody listens."""


@pytest.fixture(scope="module")
def hub(chapters: list[str], prepared: TextData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A hub with the data set melville/whales (two Parquet files) and the tokenizer melville/bpe."""
    root = tmp_path_factory.mktemp("hub")
    data = root / "datasets/melville/whales/data"
    data.mkdir(parents=True)
    for number, part in enumerate((chapters[:20], chapters[20:])):
        table = pyarrow.table({"id": list(range(len(part))), "text": part})
        pyarrow.parquet.write_table(table, data / f"train-{number:05d}-of-00002.parquet")
    bpe = root / "models/melville/bpe"
    bpe.mkdir(parents=True)
    for file in prepared.tokenizer_path.iterdir():
        (bpe / file.name).write_bytes(file.read_bytes())
    with serve(root) as (address, seen):
        yield address, seen, root


def prepare(make: Make, home: Path, endpoint: str, offline: bool = False, **settings: Any) -> str:
    """Prepares in a process of its own, which is told of this hub; returns a hash of the tokens, or what was wrong."""
    data = make(**settings)
    given = {"path": data.preparation.corpus.path[0], "sequence_length": 64, "vocab_size": 512, "held_out": 0.1}
    given |= {"cache": str(data.cache), **settings}
    process = python(
        f"""
import hashlib, bigtrain.data
from bigtrain.errors import UserError
if __name__ == "__main__":
    try:
        data = bigtrain.data.text(**{given!r})
        data.prepare()
        print(hashlib.sha256(data.train.shards.read(0, data.train.shards.tokens).tobytes()).hexdigest())
    except UserError as error:
        print("UserError:", error)
""",
        HF_ENDPOINT=endpoint,
        HF_HOME=str(home),
        HF_HUB_OFFLINE=str(int(offline)),
        HF_DATASETS_OFFLINE=str(int(offline)),
    )
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err[-3000:]
    return out.strip()


def test_a_data_set_and_a_tokenizer_by_name_give_the_same_tokens_as_files(
    make: Make, hub: Any, prepared: TextData, tmp_path: Path
) -> None:
    address, seen, root = hub
    by_name = prepare(make, tmp_path, address, path="melville/whales", tokenizer="melville/bpe")
    local = make(path=str(root / "datasets/melville/whales"), tokenizer=str(prepared.tokenizer_path))
    local.prepare()
    shards = local.train.shards  # cut otherwise: a hub's file is a unit
    assert by_name == hashlib.sha256(shards.read(0, shards.tokens).tobytes()).hexdigest()
    assert any("data/train-00001-of-00002.parquet" in request for request in seen)
    assert not list(tmp_path.rglob("*.parquet")) and not list(tmp_path.rglob("*.arrow"))  # streamed, not kept

    again = len(seen)
    assert prepare(make, tmp_path, NOWHERE, path="melville/whales", tokenizer="melville/bpe") == by_name
    assert len(seen) == again  # prepared already: nobody is asked


def test_each_file_of_a_hub_set_is_a_unit_and_each_row_has_its_place(
    hub: Any, chapters: list[str], tmp_path: Path
) -> None:
    process = python(
        """
import json
from bigtrain.data.readers import Reader
from bigtrain.data.settings import Reading
from bigtrain.data.sources import find_sources
from bigtrain.data.units import plan_units

sources, reading = find_sources(["melville/whales"]), Reading()
plan = plan_units(sources, reading)
last, first = [list(Reader(sources, reading, unit)) for unit in reversed(plan)]
assert list(Reader(sources, reading)) == first + last
few = Reading(max_documents=3)
assert list(Reader(sources, few, *plan_units(sources, few))) == first[:3]
print(json.dumps([[len(plan), plan[0].slices[0].commit], [document[::2] for document in first + last]]))
""",
        HF_ENDPOINT=hub[0],
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="0",
        HF_DATASETS_OFFLINE="0",
    )
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err[-3000:]
    plan, documents = json.loads(out)
    assert plan == [2, SHA]
    assert documents == [[text, ((number >= 20) << 40) + number % 20] for number, text in enumerate(chapters)]
    assert not list(tmp_path.rglob("*.parquet")) and not list(tmp_path.rglob("*.arrow"))


def test_a_stream_that_breaks_is_taken_up_where_it_broke(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    broken: list[int] = []

    def rows(files: list[int]) -> Iterator[dict[str, str]]:
        for file in files:
            for number in range(3500):
                if file == 1 and number == 2222 and len(broken) < 2:
                    broken.append(number)
                    raise ConnectionError("reset by peer")
                yield {"text": f"file {file}, row {number}"}

    dataset = datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": [0, 1, 2]})
    monkeypatch.setattr("bigtrain.data.hub._opened", lambda *_: dataset)
    monkeypatch.setattr("bigtrain.data.remote.WAITS_S", (0.01, 0.02))
    texts = [text for table in tables("a/b", None, "train", None, 1) for text in table.column("text").to_pylist()]
    assert texts == [f"file 1, row {number}" for number in range(3500)]
    said = capfd.readouterr().err
    assert "data: data.path=a/b, file 1: ConnectionError: reset by peer; trying again in 0.01 s" in said
    broken[:] = []
    monkeypatch.setattr("bigtrain.data.remote.WAITS_S", (0.01,))
    with pytest.raises(RunError, match="data.path=a/b, file 1 cannot be read .*reset by peer.*tried 2 times"):
        list(tables("a/b", None, "train", None, 1))


def test_the_recipe_of_gpt2_streams_its_data_set_by_name_and_takes_a_local_path_instead(
    chapters: list[str], prepared: TextData, tmp_path: Path
) -> None:
    """recipe=pretrain/gpt2_124m as it ships: a named subset of several files, and a tokenizer, both from the hub."""
    owner = tmp_path / "datasets/HuggingFaceFW/fineweb-edu"
    subset = owner / "sample/10BT"
    subset.mkdir(parents=True)
    files = [chapters[at : at + 8] for at in range(0, len(chapters), 8)]
    for number, texts in enumerate(files):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "id": texts}), subset / f"{number:03d}_00000.parquet")
    configs = "configs:\n- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n"
    (owner / "README.md").write_text(f"---\n{configs}---\n")
    tokenizer = tmp_path / "models/gpt2"
    shutil.copytree(prepared.tokenizer_path, tokenizer)

    def run(name: str, *words: str, endpoint: str) -> list[Any]:
        given = ["recipe=pretrain/gpt2_124m", f"data.cache={tmp_path / name}", "data.held_out=0.2", *words]
        environment = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
        }
        process = python(
            f"import sys; from bigtrain.cli import main; sys.exit(main({['prepare', *given]!r}))", **environment
        )
        out, err = process.communicate(timeout=150)
        assert process.returncode == 0, err[-3000:]
        splits = json.loads((Path(out.strip()) / "manifest.json").read_text())["splits"]
        return [[splits[split]["documents"], splits[split]["tokens"]] for split in ("train", "eval")]

    with serve(tmp_path) as (address, seen):
        by_name = run("by_name", endpoint=address)
        for number in range(len(files)):
            assert any(f"/sample/10BT/{number:03d}_00000.parquet" in request for request in seen)
    assert not list((tmp_path / "home").rglob("*.parquet")) and not list((tmp_path / "home").rglob("*.arrow"))
    assert sum(documents for documents, _ in by_name) == len(chapters)
    local = run("local", f"data.path={subset}", f"data.tokenizer={tokenizer}", endpoint=NOWHERE)
    assert local == by_name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": "melville/wales"}, "neither a local path nor a dataset of http://127.0.0.1"),
        ({"path": "melville/whales", "split": "test"}, "data.split=test"),
        ({"path": "melville/whales", "name": "big"}, "data.name=big"),
        (
            {"path": "melville/whales", "text_column": "txt"},
            "melville/whales: no column 'txt' (data.text_column). Did you mean 'text'?",
        ),
        ({"tokenizer": "melville/bpp"}, "neither a local path nor a model of http://127.0.0.1"),
    ],
)
def test_what_the_hub_does_not_have(make: Make, hub: Any, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    said = prepare(make, tmp_path / "home", hub[0], **settings)
    assert said.startswith("UserError:") and words in said
    assert left_in(make().cache) == []


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("setting", ["path", "tokenizer"])
def test_no_network_is_said_in_seconds_with_both_possibilities(
    make: Make, tmp_path: Path, setting: str, offline: bool
) -> None:
    start = time.monotonic()
    said = prepare(make, tmp_path, NOWHERE, offline=offline, **{setting: "melville/whales"})
    assert said.startswith(f"UserError: data.{setting}=melville/whales") and "no such local path" in said
    assert ("HF_HUB_OFFLINE" if offline else f"the hub ({NOWHERE}) cannot be reached") in said
    assert time.monotonic() - start < 60  # seconds on an idle machine; the libraries' own retries take 47 s more
    assert left_in(make().cache) == []
