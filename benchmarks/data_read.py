"""Reading tokens in random order: tokens per second and core of bigtrain beside litdata and mosaicml-streaming.

The same samples for each, from files in the page cache, as batches of (inputs, labels) of int64. Each reader is one
process, pinned with all its threads to one core, and reads an epoch in turn, some rounds long; a first epoch checks
that every sample comes once. The peers' environment is made in build/peers, or is that of `--peers PYTHON`.

    python benchmarks/data_read.py --out benchmarks/results/data_read.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import ROOT, parser, table, write
from _read_peer import PEERS, digest, fold, samples, serve

HERE = Path(__file__).parent
LENGTH, BATCH, SAMPLES, SHARDS = 2048, 8, 24_576, 3
ROUNDS, BAR = 5, 3.0
OWN = "bigtrain"


def write_own(folder: Path, file: Path) -> Path:
    """The tokens as a prepared folder, made of a real one."""
    from bigtrain.data import text

    data = text(path="pkg://bigtrain/data/corpus/moby-dick.txt.xz", document_separator=r"\n\s*\n",
                sequence_length=LENGTH, vocab_size=512, held_out=0.01, cache=str(folder))  # fmt: skip
    data.prepare()
    path = data.folder / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    train, tokens = manifest["splits"]["train"], np.load(file, mmap_mode="r")
    train["shards"], train["tokens"] = [], len(tokens)
    for number, part in enumerate(np.array_split(tokens, SHARDS)):
        shard = data.folder / f"random-{number}.bin"
        part.astype(manifest["token_type"]).tofile(shard)
        stat = shard.stat()
        train["shards"].append(
            {"file": shard.name, "bytes": stat.st_size, "sha256": f"{number:064x}", "mtime_ns": stat.st_mtime_ns}
        )
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return data.folder


def serve_own(folder: str, core: int) -> None:
    """bigtrain's reader: the loader that the trainer has."""
    from bigtrain.data import text
    from bigtrain.data.loader import batches

    data = text(path=folder, sequence_length=LENGTH)
    data.prepare()

    def epoch() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        steps = batches(data.train, seed=0, position=0, global_batch_size=BATCH, micro_batch_size=BATCH)
        with steps:
            for _, ([batch], _) in zip(range(SAMPLES // BATCH), steps, strict=False):
                yield batch["input_ids"], batch["labels"]

    made: Any = epoch
    serve(made, core)


def peers_python(given: Path | None) -> str:
    """The interpreter of an environment that has the peers."""
    if given is not None:
        return str(given)
    folder = ROOT / "build" / "peers"
    python, wanted = folder / "bin" / "python", HERE / "peers.txt"
    done = folder / "installed.txt"
    if not done.is_file() or done.read_bytes() != wanted.read_bytes():
        print(f"Making an environment with the peers in {folder} …", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        torch_first = f"torch=={torch.__version__.partition('+')[0]}"  # the same for all, where the peers allow it
        subprocess.run([python, "-m", "pip", "install", "-q", torch_first, "-r", wanted], check=True)
        done.write_bytes(wanted.read_bytes())
    return str(python)


class Reader:
    """A process that reads an epoch when it is asked to."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command, cwd=HERE, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def ask(self, question: str) -> dict[str, Any]:
        """Its answer to one line."""
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"A reader ended:\n{self.process.stderr.read()}")
        return json.loads(answer)  # type: ignore[no-any-return]

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def measured(readers: dict[str, Reader], expected: str) -> dict[str, Any]:
    """Of each reader, what it read in each round, after an epoch that shows that each sample comes once."""
    for name, reader in readers.items():
        found = reader.ask("check")
        if found["samples"] != expected:
            raise SystemExit(f"{name} did not read every sample of its epoch exactly once.")
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in readers}
    for _ in range(ROUNDS):
        for name, reader in readers.items():
            rounds[name].append(reader.ask("time"))
    return {
        name: {
            "tokens_per_second": median(one["tokens"] / one["seconds"] for one in found),
            "tokens_per_cpu_second": median(one["tokens"] / one["cpu_seconds"] for one in found),
            "rounds": found,
        }
        for name, found in rounds.items()
    }


def versions(python: str) -> dict[str, str]:
    """Of what lies in the peers' environment."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    names = ["torch", "numpy", *PEERS]
    found = subprocess.run([python, "-c", code, *names], check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(zip(names, found.split(), strict=True))


def main() -> None:
    """Measures, prints a table, and writes it down."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--peers", type=Path, help="the python of an environment with benchmarks/peers.txt")
    options = arguments.parse_args()
    python, core = peers_python(options.peers), str(max(os.sched_getaffinity(0)))
    readers: dict[str, Reader] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = folder / "tokens.npy"
        np.save(file, np.random.default_rng(0).integers(50_257, size=SAMPLES * LENGTH + 1, dtype=np.uint16))
        expected = fold(sorted(digest(sample) for sample in samples(str(file), LENGTH, 0, SAMPLES)))
        own = write_own(folder, file)
        peer = [python, str(HERE / "_read_peer.py")]
        for name in PEERS:
            command = [*peer, name, "write", str(folder / name), str(file), str(LENGTH)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        try:
            code = "import sys, data_read; data_read.serve_own(sys.argv[1], int(sys.argv[2]))"
            readers[OWN] = Reader(sys.executable, "-c", code, str(own), core)
            for name in PEERS:
                readers[name] = Reader(*peer, name, "read", str(folder / name), str(BATCH), str(LENGTH), core)
            results = measured(readers, expected)
        finally:
            for reader in readers.values():
                reader.end()
    rows = []
    for name, result in results.items():
        times = [results[OWN][of] / result[of] for of in ("tokens_per_second", "tokens_per_cpu_second")]
        result["times_slower"], result["times_slower_cpu"] = times
        rows.append((name, f"{result['tokens_per_second'] / 1e6:.1f}", f"{result['tokens_per_cpu_second'] / 1e6:.1f}",
                     *(f"{one:.1f}" for one in times)))  # fmt: skip
    header = ("one core", "million tokens/s", "of CPU time", "bigtrain: times", "of CPU time")
    print(table(header, rows))
    reached = all(min(results[name]["times_slower"], results[name]["times_slower_cpu"]) >= BAR for name in PEERS)
    print(f"At least {BAR:.0f} times each: {'yes' if reached else 'NO'}.")
    config = {"sequence_length": LENGTH, "batch": BATCH, "samples": SAMPLES, "rounds": ROUNDS,
              "peers": versions(python)}  # fmt: skip
    write(options.out, "data_read", config, results)


if __name__ == "__main__":
    main()
