"""Near-deduplication of real documents with planted near-copies: what is found, what is dropped wrongly, at what cost.

    python benchmarks/data_dedup.py --text FOLDER --out benchmarks/results/data_dedup.json

Documents are pieces of 190 words of the shipped Moby Dick and of the text files under FOLDER (the State of the Union
addresses bring them to 10,000; with less text there are fewer). A quarter as many near-copies are planted: words
replaced one by one or in a run, left out, put in, Jaccard similarity 0.7 to 0.95. What should go is known exactly: the
similarity of all pairs is computed from sets of words, by other code than the step's. Then

- recall: of the documents that should go, those that went; precision: of those that went, those that should;
- the error curve: pairs of every similarity from 0.3 to 1, found or not, beside 1 - (1 - J^rows)^bands, and the plot;
- time and memory for 1, 2, 4 and 8 times the set, each in a process of its own. The further sets are the first one with
  every letter moved on by 1, 2, … in the alphabet: as real, and unlike each other;
- datasketch beside rensa: speed, and the error of their estimates.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import random
import re
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from _common import parser, table, write
from numpy.typing import NDArray

from bigtrain.data.clean import near_dedup
from bigtrain.data.clean.near import NearDedup, found

WORDS, SEED, THRESHOLD = 190, 0, 0.8
BINS = [(0.3 + 0.05 * n, 0.35 + 0.05 * n) for n in range(14)]


def documents(folders: Sequence[Path], most: int) -> list[str]:
    """Pieces of real text of 190 words each."""
    shipped = resources.files("bigtrain.data") / "corpus" / "moby-dick.txt.xz"
    texts = [lzma.decompress(shipped.read_bytes()).decode()]
    for folder in folders:
        files = sorted(folder.rglob("*.txt")) if folder.is_dir() else [folder]
        texts += [file.read_text(encoding="utf-8", errors="replace") for file in files]
    pieces = []
    for text in texts:
        words = re.findall(r"\S+\s*", text)
        pieces += ["".join(words[at : at + WORDS]) for at in range(0, len(words) - WORDS + 1, WORDS)]
    return pieces[:most] if len(pieces) < most else random.Random(SEED).sample(pieces, most)


def shingles(text: str) -> set[tuple[str, ...]]:
    """The set of 5-grams of words, spelt out: the definition."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


def jaccard(a: str, b: str) -> float:
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


def near_copy(text: str, similarity: float, draw: random.Random, others: Sequence[str]) -> str:
    """The text changed in one of four ways until its similarity is about what is asked for."""
    words = text.split()
    lost = len(words) * (1 - similarity) / (1 + similarity)  # shingles to lose, of n: J = (n - lost) / (n + lost)
    kind, fresh = draw.randrange(4), draw.choice(others).split()
    if kind == 0:  # single words, far apart: each takes five shingles with it
        for at in draw.sample(range(len(words)), max(1, round(lost / 5))):
            words[at] = draw.choice(fresh)
    elif kind == 1:  # a run of words
        length = max(1, round(lost - 4))
        start = draw.randrange(len(words) - length)
        words[start : start + length] = fresh[:length]
    elif kind == 2:  # left out at the end: none are new, so twice as many are lost
        del words[len(words) - max(1, round(len(words) * (1 - similarity))) :]
    else:  # put in: J = n / (n + new)
        words[0:0] = fresh[: max(1, round(len(words) * (1 / similarity - 1)))]
    return " ".join(words)


def clusters(texts: Sequence[str], threshold: float) -> NDArray[np.int64]:
    """The first document of each document's true cluster: all pairs, by an index of all shingles."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    number: dict[tuple[str, ...], int] = {}
    rows = [[number.setdefault(s, len(number)) for s in shingles(text)] for text in texts]
    sizes = np.array([len(row) for row in rows])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    columns = np.concatenate(rows)
    has = csr_matrix((np.ones(len(columns), np.int32), columns, ends), shape=(len(texts), len(number)))
    transposed, pairs = has.T.tocsr(), []
    for start in range(0, len(texts), 1000):
        common = (has[start : start + 1000] @ transposed).tocoo()
        left, right = common.row + start, common.col
        near = common.data >= threshold * (sizes[left] + sizes[right] - common.data) - 1e-9
        pairs.append(np.stack([left[near], right[near]]))
    a, b = np.concatenate(pairs, axis=1)
    _, label = connected_components(csr_matrix((np.ones(len(a)), (a, b)), shape=(len(texts), len(texts))))
    _, first = np.unique(label, return_index=True)
    return first[label]  # type: ignore[no-any-return]


def accuracy(step: NearDedup, originals: Sequence[str], draw: random.Random) -> dict[str, Any]:
    """Recall and precision on the documents with planted copies."""
    copies = [
        near_copy(text, draw.uniform(0.7, 0.95), draw, originals)
        for text in draw.sample(list(originals), len(originals) // 4)
    ]
    texts = [*originals, *copies]
    draw.shuffle(texts)
    first = clusters(texts, THRESHOLD)
    should = first != np.arange(len(texts))
    answer = step.duplicates(step.sketch(texts), np.ones(len(texts), bool), texts.__getitem__)
    gone = answer >= 0
    right = gone & (first == first[answer])  # in one true cluster with the document that stays instead
    return {
        "documents": len(originals),
        "planted": len(copies),
        "should_go": int(should.sum()),
        "gone": int(gone.sum()),
        "recall": float((right & should).sum() / should.sum()),
        "precision": float(right.sum() / gone.sum()),
    }


def curve(step: NearDedup, originals: Sequence[str], draw: random.Random, pairs: int) -> list[dict[str, Any]]:
    """The share of pairs that become candidates, by their exact similarity."""
    chosen = draw.choices(originals, k=pairs)
    copies = [near_copy(text, draw.uniform(0.3, 1.0), draw, originals) for text in chosen]
    similarity = np.array([jaccard(a, b) for a, b in zip(chosen, copies, strict=True)])
    hit = (step.sketch(chosen) == step.sketch(copies)).any(axis=1)
    points = []
    for low, high in BINS:
        inside = (similarity >= low) & (similarity < high)
        expected = [found(j, step.bands, step.rows) for j in similarity[inside]]
        points.append({
            "jaccard": float(similarity[inside].mean()), "pairs": int(inside.sum()),
            "found": float(hit[inside].mean()), "theory": float(np.mean(expected)),
        })  # fmt: skip
    return points


def libraries(texts: Sequence[str], draw: random.Random, permutations: int) -> dict[str, Any]:
    """MinHash of the same shingles by datasketch, as the step uses it, and by rensa."""
    import datasketch
    import rensa

    step = near_dedup()
    copies = [near_copy(text, draw.uniform(0.5, 0.95), draw, texts) for text in texts]
    sets = [step.shingles(text) for text in [*texts, *copies]]
    exact = np.array([jaccard(a, b) for a, b in zip(texts, copies, strict=True)])
    characters = sum(map(len, [*texts, *copies]))

    def by_datasketch() -> NDArray[np.uint64]:
        empty = datasketch.MinHash(permutations, seed=1, hashfunc=int, scheme="affine64")
        values = []
        for some in sets:
            minhash = empty.copy()
            minhash.update_batch(some.tolist())
            values.append(minhash.hashvalues)
        return np.stack(values)

    def by_rensa() -> NDArray[np.uint32]:
        ends = np.concatenate([[0], np.cumsum([len(some) for some in sets])]).astype(np.uint64)
        flat = np.concatenate(sets)
        rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, permutations, 1).to_rows()
        return np.array(rows, np.uint32)

    results = {}
    for name, sketch in (("datasketch", by_datasketch), ("rensa", by_rensa)):
        started = time.process_time()
        values = sketch()
        seconds = time.process_time() - started
        error = (values[: len(texts)] == values[len(texts) :]).mean(axis=1) - exact
        results[name] = {
            "megabytes_per_cpu_second": characters / seconds / 1e6,
            "bias": float(error.mean()),
            "rms_error": float((error**2).mean() ** 0.5),
            "bytes_a_document": permutations * values.itemsize,
        }
    return results


def cost(file: Path, ends: Path) -> dict[str, Any]:
    """In a process of its own: the step's two halves, the texts on the disk."""
    step, places = near_dedup(), np.load(ends)
    step.sketch(["to import what it needs"])
    with file.open("rb") as texts:

        def text_of(index: int) -> str:
            texts.seek(places[index])
            return texts.read(places[index + 1] - places[index]).decode()

        count, started, base = len(places) - 1, time.process_time(), _status("VmRSS")
        batches = [
            step.sketch([text_of(n) for n in range(start, min(count, start + 256))]) for start in range(0, count, 256)
        ]
        sketches = np.concatenate(batches)
        del batches
        sketched = time.process_time()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        gone = step.duplicates(sketches, np.ones(count, bool), text_of) >= 0
        ended = time.process_time()
    return {
        "documents": count,
        "megabytes": float(places[-1] / 1e6),
        "gone": int(gone.sum()),
        "sketch_cpu_s": sketched - started,
        "sketch_mb_per_cpu_s": float(places[-1] / 1e6 / (sketched - started)),
        "duplicates_cpu_s": ended - sketched,
        "sketches_bytes_a_document": sketches.itemsize * sketches.shape[1],
        "duplicates_peak_bytes": _status("VmHWM") - before,
        "all_bytes": _status("VmHWM") - base,
    }


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def growth(originals: Sequence[str], draw: random.Random, times: Sequence[int]) -> list[dict[str, Any]]:
    """The cost of 1, 2, 4, 8 times the set, with its planted copies."""
    texts = [*originals]
    texts += [near_copy(t, draw.uniform(0.7, 0.95), draw, originals) for t in originals[::4]]
    low, high, results = string.ascii_lowercase, string.ascii_uppercase, []
    with tempfile.TemporaryDirectory() as folder:
        file, ends = Path(folder, "texts"), Path(folder, "ends.npy")
        for size in times:
            place = [0]
            with file.open("wb") as out:
                for k in range(size):
                    moved = str.maketrans(low + high, low[k:] + low[:k] + high[k:] + high[:k])
                    for text in texts:
                        place.append(place[-1] + out.write(text.translate(moved).encode()))
            np.save(ends, np.array(place))
            done = subprocess.run(
                [sys.executable, __file__, "--cost", str(file), str(ends)], capture_output=True, text=True, check=True
            )
            results.append({"times": size} | json.loads(done.stdout.splitlines()[-1]))
    return results


def plot(path: Path, step: NearDedup, points: Sequence[dict[str, Any]]) -> None:
    """The curve, what was measured with its 95 % intervals (Wilson), and the curves of other bands and rows."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    j = np.linspace(0, 1, 400)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for bands, rows, where, line in ((14, 8, "FineWeb", "--"), (9, 13, "SlimPajama", "-.")):
        other = [found(x, bands, rows) for x in j]
        axes.plot(j, other, line, color="0.65", linewidth=1.2, label=f"{bands} x {rows} ({where})")
    axes.plot(j, [found(x, step.bands, step.rows) for x in j], color="#1f5fa8", linewidth=2,
              label=f"{step.bands} bands x {step.rows} rows: 1 - (1 - J^{step.rows})^{step.bands}")  # fmt: skip
    for point in points:
        n, p, z = point["pairs"], point["found"], 1.96
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        axes.plot([point["jaccard"]] * 2, [middle - half, middle + half], color="#c23b22", linewidth=1.2)
        axes.plot(point["jaccard"], p, "o", color="#c23b22", markersize=4,
                  label="measured, real documents" if point is points[0] else None)  # fmt: skip
    axes.axvline(THRESHOLD, color="0.4", linestyle=":", linewidth=1)
    axes.set(xlabel="Jaccard similarity J of two documents (5-grams of words)", ylabel="share of pairs found",
             xlim=(0.2, 1.0), ylim=(0, 1.02), title="near_dedup: which pairs are found")  # fmt: skip
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    arguments = parser((__doc__ or "").split("\n")[0])
    arguments.add_argument("--text", type=Path, nargs="*", default=[], help="text files, or folders of .txt files")
    arguments.add_argument("--documents", type=int, default=10_000, help="at most so many")
    arguments.add_argument("--pairs", type=int, default=6_000, help="of the error curve")
    arguments.add_argument("--times", type=int, nargs="*", default=[1, 2, 4, 8], help="sizes of the set")
    arguments.add_argument("--plot", type=Path, help="where the curve goes; beside --out by default")
    arguments.add_argument("--cost", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.cost:
        print(json.dumps(cost(*args.cost)))
        return
    draw, step = random.Random(SEED), near_dedup()
    originals = documents(args.text, args.documents)
    if len(originals) < args.documents:
        print(f"There is text for {len(originals):,} of {args.documents:,} documents only: give more with --text.")
    results: dict[str, Any] = {"bands": step.bands, "rows": step.rows}
    results["accuracy"] = a = accuracy(step, originals, draw)
    print(f"{a['documents']:,} documents and {a['planted']:,} planted copies, {a['should_go']:,} of all should go: "
          f"recall {a['recall']:.2%}, precision {a['precision']:.2%}")  # fmt: skip
    results["curve"] = points = curve(step, originals, draw, args.pairs)
    print(table(["J", "pairs", "found", "1-(1-J^r)^b"], [
        [f"{p['jaccard']:.3f}", p["pairs"], f"{p['found']:.4f}", f"{p['theory']:.4f}"] for p in points
    ]))  # fmt: skip
    results["libraries"] = libraries(originals[:2000], draw, step.bands * step.rows)
    print(table(["library", "MB/CPU s", "bias", "RMS error"], [
        [name, f"{r['megabytes_per_cpu_second']:.1f}", f"{r['bias']:+.4f}", f"{r['rms_error']:.4f}"]
        for name, r in results["libraries"].items()
    ]))  # fmt: skip
    results["growth"] = growth(originals, draw, args.times)
    header = ["set", "documents", "MB", "sketches, CPU s", "MB/CPU s", "duplicates, CPU s", "peak, MiB", "bytes/doc"]
    print(table(header, [
        [f"x {g['times']}", f"{g['documents']:,}", f"{g['megabytes']:.1f}", f"{g['sketch_cpu_s']:.1f}",
         f"{g['sketch_mb_per_cpu_s']:.1f}", f"{g['duplicates_cpu_s']:.1f}", f"{g['all_bytes'] / 2**20:.0f}",
         f"{g['all_bytes'] / g['documents']:.0f}"]
        for g in results["growth"]
    ]))  # fmt: skip
    where = args.plot or (args.out.with_suffix(".png") if args.out else None)
    if where:
        plot(where, step, points)
    config = {"words": WORDS, "threshold": THRESHOLD, "seed": SEED, "documents": args.documents, "pairs": args.pairs}
    write(args.out, "data_dedup", config, results)


if __name__ == "__main__":
    main()
