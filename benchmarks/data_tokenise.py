"""Raw text to shards: CPU-seconds of bigtrain's preparation beside `datasets.map`, and the ids of both compared.

The same JSON lines and the same tokenizer, one after the other in each round, each in a fresh process. What is counted
is user and system time of that process and its children, once its libraries are imported: opening the tokenizer,
reading, tokenising and writing (bigtrain: with the proof of its library, checksums, held-out split and index). Every
id of every document is compared. Then the tokenising alone.

A document is a few paragraphs drawn from Moby Dick, or from the files of `--text`. A tokenizer that keeps the words
that it has met has it easier than with new text, on either side.

    python benchmarks/data_tokenise.py --text sotu/*.txt --tokenizer gpt2 --out benchmarks/results/data_tokenise.json
"""

from __future__ import annotations

import json
import lzma
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from _common import parser, table, write

COUNT = """
import json, resource, sys, time
def used():
    of = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in of)
text, tokenizer, out = sys.argv[1:]
"""
BIGTRAIN = """
import awkward, gigatoken, numpy, pyarrow, tokenizers
from transformers import AutoTokenizer
import bigtrain.data.prepare
from bigtrain.data import text as data_of
if __name__ == "__main__":
    cpu, wall = used(), time.perf_counter()
    data = data_of(path=text, tokenizer=tokenizer, sequence_length=1024, cache=out, workers=1)
    data.prepare()
    print(json.dumps({"cpu": used() - cpu, "wall": time.perf_counter() - wall, "folder": str(data.folder)}))
"""
MAP = """
import datasets
from transformers import PreTrainedTokenizerFast
datasets.disable_progress_bars()
cpu, wall = used(), time.perf_counter()
fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
rows = datasets.load_dataset("json", data_files=text, split="train", cache_dir=out)
def ids(batch):
    return {"input_ids": fast(batch["text"], return_attention_mask=False)["input_ids"]}
mapped = rows.map(ids, batched=True, remove_columns=rows.column_names)
cpu, wall = used() - cpu, time.perf_counter() - wall
mapped.save_to_disk(out + "/mapped")
print(json.dumps({"cpu": cpu, "wall": wall, "folder": out + "/mapped"}))
"""
ALONE = """
from bigtrain.data.encode import CANDIDATES
from bigtrain.data.tokenising import BATCH_CHARACTERS
from pathlib import Path
texts = [json.loads(line)["text"] for line in open(text, encoding="utf-8")]
size = max(1, BATCH_CHARACTERS * len(texts) // sum(map(len, texts)))
encode = CANDIDATES[out](Path(tokenizer))
encode(["warm"])
cpu, wall = used(), time.perf_counter()
tokens = sum(len(encode(texts[at : at + size])[0]) for at in range(0, len(texts), size))
print(json.dumps({"cpu": used() - cpu, "wall": time.perf_counter() - wall, "tokens": tokens}))
"""
WAYS = {"bigtrain": BIGTRAIN, "datasets.map": MAP}
LIBRARIES = ("gigatoken", "tokenizers")


def documents(files: list[Path], megabytes: int) -> list[str]:
    """So much text: 1 to 8 paragraphs each, drawn from the files, or from Moby Dick."""
    if files:
        whole = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    else:
        packed = resources.files("bigtrain").joinpath("data/corpus/moby-dick.txt.xz").read_bytes()
        whole = lzma.decompress(packed).decode()
    paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", whole) if paragraph]
    chance, drawn, size = random.Random(0), [], 0
    while size < megabytes * 10**6:
        drawn.append("\n\n".join(chance.choices(paragraphs, k=chance.randint(1, 8))))
        size += len(drawn[-1])
    return drawn


def tokenizer_of(given: Path | None, texts: list[str], folder: Path) -> Path:
    """The given one, or one of 32,000 entries trained on the text, as a folder for both."""
    from bigtrain.data import tokenizer

    if given is None:
        tokenizer.save(tokenizer.train(iter(texts), 32_000), folder)
    else:
        tokenizer.take(str(given), folder)
    return folder


def run(code: str, *arguments: object) -> dict[str, Any]:
    """What the last line of a fresh process says."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(COUNT + code)
        script.flush()
        done = subprocess.run([sys.executable, script.name, *map(str, arguments)], check=True, stdout=subprocess.PIPE,
                              text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def compare(shards: Path, mapped: Path, text: Path) -> tuple[int, int, int]:
    """(documents, ids, documents that differ): each document of the text in the shards and in the mapped set."""
    import datasets

    from bigtrain.data.shards import Shards, read_manifest

    manifest, number, offset = read_manifest(shards), {}, 0
    with text.open("rb") as file:
        for line, content in enumerate(file):
            number[offset] = line
            offset += len(content)
    reference = datasets.load_from_disk(str(mapped)).with_format("numpy")["input_ids"][:]
    found, ids, differ = set(), 0, 0
    for entry in manifest["splits"].values():
        split = Shards(shards, manifest["token_type"], entry)
        for document in range(split.documents):
            start, stop = split.bounds(document)
            here, line = split.read(start, stop), number[split.place(document)[1]]
            found.add(line)
            ids += len(here) - 1
            differ += here[:-1].tolist() != reference[line].tolist() or here[-1] != manifest["eos_id"]
    return len(found), ids, differ + len(number) - len(found)


def main() -> None:
    """Measures, prints tables, and writes it down."""
    options = parser(__doc__ or "")
    options.add_argument("--text", type=Path, nargs="+", default=[], help="files to draw from instead of Moby Dick")
    options.add_argument("--tokenizer", type=Path, help="its folder; else one is trained on the text")
    options.add_argument("--megabytes", type=int, default=40, help="of text")
    options.add_argument("--rounds", type=int, default=1)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = documents(arguments.text, arguments.megabytes)
        text = folder / "text.jsonl"
        text.write_text("".join(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in texts), "utf-8")
        megabytes = text.stat().st_size / 1e6
        tokenizer = tokenizer_of(arguments.tokenizer, texts, folder / "tokenizer")
        whole: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
        for number in range(arguments.rounds):
            for name, code in WAYS.items():
                whole[name].append(run(code, text, tokenizer, folder / f"{name}-{number}"))
        alone = {library: [run(ALONE, text, tokenizer, library)] for library in LIBRARIES}
        ours, theirs = (Path(whole[name][-1]["folder"]) for name in WAYS)
        count, ids, differ = compare(ours, theirs, text)
    print(f"{megabytes:.1f} MB, {count:,} documents, {ids:,} tokens; documents whose ids differ: {differ}\n")
    results: dict[str, Any] = {"megabytes": megabytes, "documents": count, "tokens": ids, "differ": int(differ)}
    for title, measured in (("raw text to shards", whole), ("tokenising alone", alone)):
        cpu = {name: statistics.median(one["cpu"] for one in runs) for name, runs in measured.items()}
        wall = {name: statistics.median(one["wall"] for one in runs) for name, runs in measured.items()}
        first, peer = cpu
        rows = [(name, f"{cpu[name]:.2f}", f"{megabytes / cpu[name]:.1f}", f"{wall[name]:.2f}",
                 f"{cpu[peer] / cpu[name]:.1f}") for name in cpu]  # fmt: skip
        print(table((title, "CPU-s", "MB per CPU-s", "wall s", f"times {peer}"), rows) + "\n")
        results[title] = {"cpu_s": cpu, "wall_s": wall, "ratio": cpu[peer] / cpu[first], "runs": measured}
    config = {"text": [file.name for file in arguments.text] or "Moby Dick",
              "tokenizer": arguments.tokenizer.name if arguments.tokenizer else "trained, 32,000 entries",
              "rounds": arguments.rounds}  # fmt: skip
    write(arguments.out, "data_tokenise", config, results)
    if differ:
        sys.exit("The ids differ.")


if __name__ == "__main__":
    main()
