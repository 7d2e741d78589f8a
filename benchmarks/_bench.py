"""What `bigtrain bench` does in a checkout: the suites in turn, their JSON, one page with pictures, the comparison."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from _common import ROOT, write_json
from _figures import Result, regressions, targets
from _pages import comparison, markdown, picture
from _suite import Suite

from bigtrain.errors import EXIT_DONE, EXIT_FAILED, UserError, nearest, nearest_path

DEFAULT = ("peers", "overhead", "imports", "checkpoint", "throughput", "memory", "scaling")
SUITES = (*DEFAULT, "gpu")
PAGE = "README.md"
BEGIN, END = "<!-- benchmarks: written by `make bench` from its JSON files -->", "<!-- benchmarks end -->"
IN_README = ("peers", "overhead", "imports", "checkpoint")


def suite(name: str) -> Suite:
    """The suite of a file of this folder."""
    found: Suite = importlib.import_module(name).SUITE
    return found


def read(file: Path) -> Result:
    """A result that an earlier call wrote; a `UserError` where it is none."""
    try:
        found: Result = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--against {file} cannot be read: {error.strerror}.{nearest_path(file)}") from error
    except ValueError as error:
        raise UserError(f"--against {file} is not JSON: {error}") from error
    if not isinstance(found, dict) or not {"suite", "groups", "metrics", "hardware"} <= found.keys():
        raise UserError(
            f"--against {file} is not a result of bigtrain bench: it needs suite, groups, metrics, hardware."
        )
    return found


def baselines(against: Path | None, names: Sequence[str]) -> dict[str, Result]:
    """Earlier results by suite: of one file, or of a folder that an earlier call wrote (--out)."""
    if against is None:
        return {}
    files = [file for name in names if (file := against / f"{name}.json").is_file()] if against.is_dir() else [against]
    found = {result["suite"]: result for result in map(read, files)}
    if not found.keys() & set(names):
        held = f"is of suite {', '.join(found)}" if found else "holds no result"
        raise UserError(f"--against {against} {held}, and {', '.join(names)} will run: name the same suite.")
    return found


def bench(names: Sequence[str], out: Path | None, against: Path | None, rounds: int | None, small: bool) -> int:
    """Run the suites; 1 where one has become worse than `against`.

    Raises:
        UserError: a suite that is none, a baseline that cannot be read, rounds below 1.
    """
    for name in names:
        if name not in SUITES:
            raise UserError(f"there is no suite '{name}'.{nearest(name, SUITES)}")
    if rounds is not None and rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {rounds}.")
    names = names or DEFAULT
    before = baselines(against, names)
    out = out or ROOT / "benchmarks" / "results"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be a folder: {error.strerror}.") from error
    worse: list[str] = []
    results = {}
    for number, name in enumerate(names):
        began = time.monotonic()

        def say(text: str, at: str = f"{number + 1}/{len(names)} {name}", began: float = began) -> None:
            print(f"[{at}, {time.monotonic() - began:.0f} s] {text}", file=sys.stderr, flush=True)

        result = results[name] = suite(name).run(rounds, small, say)
        write_json(out / f"{name}.json", result)
        draw(result, out)
        print(page_of(result, out), flush=True)
        if name in before:
            print(comparison(result, before[name]))
            worse += regressions(result, before[name])
    write_pages(out)
    if out == ROOT / "benchmarks" / "results":
        into_readme(results)
    for line in worse:
        print(f"regression: {line}", file=sys.stderr)
    print(out)
    return EXIT_FAILED if worse else EXIT_DONE


def write_pages(out: Path) -> None:
    """One page of every suite that has its figures there, of this run or of an earlier one."""
    pages = [page_of(read(file), out) for name in SUITES if (file := out / f"{name}.json").is_file()]
    (out / PAGE).write_text("\n".join(pages), encoding="utf-8")


def draw(result: Result, out: Path) -> None:
    """The suite's picture beside its JSON; none is left of before where there is nothing to draw."""
    file = out / f"{result['suite']}.png"
    file.unlink(missing_ok=True)
    picture(result, file)


def page_of(result: Result, out: Path) -> str:
    """The suite's Markdown, with its picture where there is one."""
    name = f"{result['suite']}.png"
    return markdown(result) + (f"\n![{result['suite']}]({name})\n" if (out / name).exists() else "")


def into_readme(results: dict[str, Result]) -> None:
    """The targets of the suites that have been measured, between the README's two marks; the others' stay."""
    file = ROOT / "README.md"
    content = file.read_text(encoding="utf-8")
    if BEGIN not in content:
        return
    known = ROOT / "benchmarks" / "results"
    for name in IN_README:
        if name not in results and (known / f"{name}.json").is_file():
            results[name] = read(known / f"{name}.json")
    before, _, rest = content.partition(BEGIN)
    text = summary({name: results[name] for name in IN_README if name in results})
    file.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def summary(results: dict[str, Result]) -> str:
    """One table of targets, with the machine they were measured on, and the picture of the peers."""
    from _common import table
    from _pages import load

    rows = [
        [f"[{name}](benchmarks/results/{name}.json)", held.text, held.found.text() if held.found else "not measured",
         {True: "✔", False: "✘", None: ""}[held.reached]]
        for name, result in results.items()
        for held in targets(result)
    ]  # fmt: skip
    parts = [table(["suite", "to reach", "found", ""], rows)]
    for name, result in results.items():
        hardware = result["hardware"]
        parts.append(f"{name}: {hardware['cpu']}, {hardware['cores']} cores, {result['date'][:10]}. {load(result)}")
    if "peers" in results:
        parts.append("![The peers](benchmarks/results/peers.png)")
    return "\n\n".join(parts)
