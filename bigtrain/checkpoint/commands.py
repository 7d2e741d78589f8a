"""`bigtrain checkpoint list|verify|diff PATH…`: what is there, whether every byte is right, how two differ."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bigtrain.checkpoint import manifest
from bigtrain.checkpoint.find import Checkpoint, find, listed, verify
from bigtrain.checkpoint.folder import human
from bigtrain.errors import EXIT_DONE, EXIT_FAILED, UserError, nearest

USAGE = """\
usage: bigtrain checkpoint list PATH…      every checkpoint: step, tokens, size, age, held-out loss, intact, parent
       bigtrain checkpoint verify PATH…    read every byte and compare it with its checksum
       bigtrain checkpoint diff A B        the largest difference of each tensor, and what differs in the state

PATH is a run folder, its checkpoints/ folder, or one checkpoint. diff takes a folder's newest intact checkpoint.
Exit: 0 done (list and diff: whatever they show), 1 verify found a damaged checkpoint, 2 wrong input."""

MOST = 30
"""Rows of tensors that diff shows."""


def main(argv: Sequence[str]) -> int:
    """The command. Returns the exit code; raises UserError for wrong input."""
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return EXIT_DONE
    action, *paths = argv
    actions = {"list": _list, "verify": _verify, "diff": _diff}
    if action not in actions:
        raise UserError(f"there is no 'checkpoint {action}'.{nearest(action, actions)}")
    if options := [path for path in paths if path.startswith("-")]:
        raise UserError(
            f"'checkpoint {action}' has no option {options[0]}. Write ./{options[0]} for a path of that name"
        )
    if not paths:
        raise UserError(f"'checkpoint {action}' needs a path: a run folder, its checkpoints folder, or a checkpoint")
    return actions[action](paths, Console())


def _folders(path: str) -> list[Path]:
    if not (found := listed(path)):
        raise UserError(f"There is no checkpoint in {path}")
    return found


def _list(paths: Sequence[str], console: Console) -> int:
    for path in paths:
        table = Table(title=_plain(path), title_justify="left")
        for column in ("step", "tokens", "size", "age", "loss"):
            table.add_column(column, justify="right", no_wrap=True)
        for column in ("ranks", "intact", "parent"):
            table.add_column(column)
        for folder in _folders(path):
            problems = verify(folder)
            try:
                cells = _cells(manifest.read(folder))
            except UserError:
                cells = [folder.name, *[""] * 6]
            intact = "[red]no: " + _plain("; ".join(problems)) if problems else "[green]yes"
            table.add_row(*cells[:6], intact, *cells[6:])
        console.print(table)
    return EXIT_DONE


def _cells(it: manifest.Manifest) -> list[str]:
    return [
        f"{it.step:,}",
        "" if it.tokens is None else f"{it.tokens:,}",
        human(it.bytes),
        _age(time.time() - it.written),
        "" if it.metric is None else f"{it.metric:.4f}",
        _plain(f"{it.world_size} {it.engine or ''}".strip()),
        _plain(it.parent or ""),
    ]


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _verify(paths: Sequence[str], console: Console) -> int:
    worst = EXIT_DONE
    for path in paths:
        for folder in _folders(path):
            problems = verify(folder)
            worst = EXIT_FAILED if problems else worst
            for problem in problems:
                console.print(f"[red]damaged[/]  {_plain(f'{folder}: {problem}')}", soft_wrap=True, highlight=False)
            if not problems:
                console.print(f"[green]intact[/]   {_plain(str(folder))}", soft_wrap=True, highlight=False)
    return worst


def _diff(paths: Sequence[str], console: Console) -> int:
    if len(paths) != 2:
        raise UserError(f"'checkpoint diff' needs two paths, not {len(paths)}")
    a, b = (_newest(path, console) for path in paths)
    from bigtrain.checkpoint.diff import diff, largest  # torch, and so only now

    found = diff(a, b)
    console.print(f"a  {a.path}\nb  {b.path}", soft_wrap=True, highlight=False, markup=False)
    if not found:
        console.print(f"[green]The same[/]: {found.compared} tensors bit for bit, and the state.", highlight=False)
        return EXIT_DONE
    table = Table("tensor", title_justify="left", title=f"{len(found.tensors)} of {found.compared} tensors differ")
    table.add_column("largest difference", justify="right")
    for key, value in largest(found.tensors, MOST):
        table.add_row(_plain(key), f"{value:.3e}")
    if len(found.tensors) > MOST:
        table.add_row(f"and {len(found.tensors) - MOST} more", "")
    console.print(table)
    for key, (left, right) in found.reshaped.items():
        console.print(_plain(f"{key}: {list(left)} in a, {list(right)} in b"), highlight=False)
    for title, names in (("a", found.only_a), ("b", found.only_b)):
        if names:
            more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
            console.print(_plain(f"only in {title}: {', '.join(names[:MOST])}{more}"), highlight=False)
    if found.state:
        table = Table("state", "a", "b", title=f"State: {len(found.state)} differing", title_justify="left")
        for name, pair in found.state.items():
            table.add_row(_plain(name), *(_short(value) for value in pair))
        console.print(table)
    return EXIT_DONE


def _newest(path: str, console: Console) -> Checkpoint:
    listed(path)  # a path that is not there is its own fault
    found = find(path, lambda message: console.print(f"[yellow]{_plain(message)}", soft_wrap=True, highlight=False))
    if found is None:
        raise UserError(f"There is no checkpoint in {path}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return _plain(text if len(text) <= 60 else text[:57] + "...")


def _plain(text: str) -> str:
    """Names come from a file: neither rich's markup nor a terminal's control characters are obeyed."""
    return escape("".join(char if char.isprintable() else "?" for char in text))
