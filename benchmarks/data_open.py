"""Opening 10^12 tokens in 10,000 shards: time and memory up to the first batch, at position 0 and far on.

The shards are sparse files: they have their full length, and hold zeros. Each row is a fresh process; importing torch
comes before the clock starts, as every training process pays it whatever the data.

    python benchmarks/data_open.py --out benchmarks/results/data_open.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import parser, table, write

TOKENS, SHARDS = 10**12, 10_000
LENGTH, BATCH, FAR = 2048, 8, 400_000_000

OPEN = """
import json, sys, time, torch
from bigtrain.data.loader import batches
def status(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))
folder, length, batch, position = sys.argv[1], *map(int, sys.argv[2:])
before, begun = status("VmRSS"), time.perf_counter()
from bigtrain.data import text
data = text(path=folder, sequence_length=length)
data.prepare()
steps = batches(data.train, seed=0, position=position, global_batch_size=batch, micro_batch_size=batch)
first, after = next(steps)
seconds = time.perf_counter() - begun
assert first[0]["input_ids"].shape == (batch, length) and after == position + batch
state = {"position": after, "data": data.state()}
print(json.dumps({"seconds": seconds, "mib": status("VmHWM") - before, "state_bytes": len(json.dumps(state))}))
steps.close()
"""


def sparse(folder: Path) -> Path:
    """A prepared folder of so many tokens, made of a real one."""
    from bigtrain.data import text

    data = text(path="pkg://bigtrain/data/corpus/moby-dick.txt.xz", document_separator=r"\n\s*\n",
                sequence_length=LENGTH, vocab_size=512, held_out=0.01, cache=str(folder))  # fmt: skip
    data.prepare()
    path = data.folder / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    train = manifest["splits"]["train"]
    size = TOKENS // SHARDS * (2 if manifest["token_type"] == "uint16" else 4)
    train["shards"] = []
    for number in range(SHARDS):
        shard = data.folder / f"sparse-{number:05d}.bin"
        with shard.open("wb") as file:
            file.truncate(size)
        train["shards"].append(
            {"file": shard.name, "bytes": size, "sha256": f"{number:064x}", "mtime_ns": shard.stat().st_mtime_ns}
        )
    train["tokens"] = TOKENS
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return data.folder


def main() -> None:
    """Measures, prints a table, and writes it down."""
    options = parser(__doc__ or "").parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as cache:
        folder = sparse(Path(cache))
        for name, position in {"at position 0": 0, f"at position {FAR:,}": FAR}.items():
            arguments = [str(number) for number in (LENGTH, BATCH, position)]
            done = subprocess.run([sys.executable, "-c", OPEN, str(folder), *arguments],
                                  check=True, stdout=subprocess.PIPE, text=True)  # fmt: skip
            results[name] = json.loads(done.stdout)
    rows = [(name, f"{one['seconds']:.2f}", f"{one['mib']:.0f}", one["state_bytes"]) for name, one in results.items()]
    print(table([f"{TOKENS:.0e} tokens, {SHARDS:,} shards", "s to first batch", "MiB more", "state, bytes"], rows))
    config = {"tokens": TOKENS, "shards": SHARDS, "sequence_length": LENGTH, "batch": BATCH, "far": FAR}
    write(options.out, "data_open", config, results)


if __name__ == "__main__":
    main()
