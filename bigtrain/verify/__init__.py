"""`bigtrain verify recipe=R`: a few steps of the user's own recipe under each engine and set-up, and one table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bigtrain.config.compose import compose
from bigtrain.config.launching import here, processes, visible_gpus
from bigtrain.errors import EXIT_DONE, EXIT_FAILED, UserError, nearest
from bigtrain.verify.cases import GROUPS, Settings

STEPS, TIMEOUT_S = 6, 600.0
OPTIONS = ("--only", "--ranks", "--steps", "--timeout")


def read_arguments(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options of `verify` itself, and what is left for Hydra."""
    options: dict[str, str] = {}
    overrides: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, sign, value = word.partition("=")
        if name in OPTIONS:
            if not sign and not words:
                raise UserError(f"{name} needs a value behind it.")
            options[name] = value if sign else words.pop(0)
        elif word.startswith("--config-dir") or word == "-cd":
            overrides += [word] if sign or not words else [word, words.pop(0)]
        elif word.startswith("-"):
            raise UserError(f"bigtrain verify has no option {name}.{nearest(name, OPTIONS)}")
        else:
            overrides.append(word)
    return options, overrides


def _number(options: dict[str, str], name: str, default: float, least: float) -> float:
    text = options.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        raise UserError(f"{name}={text}: a number is needed.") from None
    if not value >= least:
        raise UserError(f"{name}={text}: at least {least:g}.")
    return value


def main(argv: Sequence[str]) -> int:
    """The command: 0 where all agree, 1 where something differs."""
    options, overrides = read_arguments(argv)
    only = tuple(options.get("--only", ",".join(GROUPS)).split(","))
    for group in only:
        if group not in GROUPS:
            raise UserError(f"--only={group}: there is no such part of the table.{nearest(group, GROUPS)}")
    composed = compose(overrides)
    recipe = composed.config
    gpus = 0 if recipe.trainer.device == "cpu" else visible_gpus()
    usual = min(gpus, processes(recipe)) if gpus else max(2, processes(recipe) if here(recipe) else 2)
    ranks = int(_number(options, "--ranks", usual, 1))
    if gpus and ranks > gpus:
        raise UserError(f"--ranks={ranks}, but there are {gpus} GPUs: at most one rank a GPU.")
    settings = Settings(
        steps=int(_number(options, "--steps", STEPS, 2)),
        ranks=ranks,
        timeout_s=_number(options, "--timeout", TIMEOUT_S, 1),
        only=only,
    )
    run_dir = Path(recipe.run.dir or "")
    typed = any(word.lstrip("+").startswith("run.dir=") for word in overrides)
    out = run_dir / "verify" if typed else run_dir.with_name(f"verify-{run_dir.name}")
    out.mkdir(parents=True, exist_ok=True)
    return _report(recipe, settings, out, composed.notes)


def _report(recipe: object, settings: Settings, out: Path, notes: list[str]) -> int:
    from bigtrain.telemetry.progress import console, say
    from bigtrain.verify import table
    from bigtrain.verify.suite import verify

    began = time.monotonic()
    for note in notes:
        say(note)
    with console().status("preparing") as status:
        rows, said = verify(
            recipe,  # type: ignore[arg-type]
            settings,
            out,
            tell=lambda row: say(table.line(row)),
            begin=lambda name: status.update(name),
        )
    seconds = time.monotonic() - began
    verdicts = [row.verdict for row in rows]
    say("")
    table.show(rows)
    for note in said:
        say(f"note: {note}")
    table.write(out / "verify.json", rows, {"steps": settings.steps, "ranks": settings.ranks, "seconds": seconds})
    say(
        f"{verdicts.count('ok')} agree, {verdicts.count('FAIL')} differ, {verdicts.count('not here')} cannot be run "
        f"here; {seconds:.0f} s"
    )
    say(str(out))
    return EXIT_FAILED if "FAIL" in verdicts else EXIT_DONE
