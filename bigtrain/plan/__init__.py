"""`bigtrain plan`: memory, time and cost of a recipe on a cluster, before anything is launched. Allocates nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from bigtrain.config.schema import RunConfig
from bigtrain.errors import EXIT_DONE, EXIT_FAILED, UserError, nearest

FLAGS = ("--json", "--dry")


def main(argv: Sequence[str]) -> int:
    """Exit 1 where it does not fit."""
    from bigtrain.plan.choose import choose, smallest
    from bigtrain.plan.past import quote
    from bigtrain.plan.plan import plan
    from bigtrain.plan.show import text

    words, nodes = [word for word in argv if not word.startswith("nodes=") and word not in FLAGS], None
    for word in argv:
        if word.startswith("nodes="):
            nodes = _number(word)
        if word.startswith("--") and "=" not in word and word not in (*FLAGS, "--config-dir"):
            raise UserError(f"bigtrain plan has no option '{word}'.{nearest(word, (*FLAGS, '--config-dir'))}")
    words, config = _composed(words, nodes)
    if config.engine.name == "auto":
        chosen = choose(config, nodes)
        found = chosen.best
        words = [*(word for word in words if word != "engine=auto"), *chosen.overrides()]
        said = f"{text(found)}\n\n{chosen.table()}"
    else:
        found = plan(config, nodes=nodes)
        said = text(found)
    if (past := quote(found.hardware)) is not None:
        said += f"\n{past}"
    if found.fits is False:
        said += f"\n\n{smallest(config, found.where.nodes)}"
    told, as_json = found.as_dict(), "--json" in argv
    if not as_json:
        print(said, flush=True)
    if "--dry" in argv:
        from bigtrain.plan.dry import dry

        step = dry(words, found)
        told |= {"dry": asdict(step)}
        if not as_json:
            print(f"\n{step.text()}")
    if as_json:
        print(json.dumps(told, indent=2))
    return EXIT_FAILED if found.fits is False else EXIT_DONE


def _composed(words: list[str], nodes: int | None) -> tuple[list[str], RunConfig]:
    """The words and their configuration; what the data are does not matter here, but for their tokenizer."""
    from bigtrain.config.compose import compose
    from bigtrain.plan.subject import cluster

    def ranks(config: RunConfig) -> int:
        return cluster(config, config.hardware, nodes).ranks

    world = None if "engine=auto" in words else ranks  # which looks for what divides the batch itself
    try:
        return words, compose(words, world).config
    except UserError as error:
        if not str(error).startswith("data.path has no value"):
            raise
    words = [*words, "data.path=not-said"]
    return words, compose(words, world).config


def _number(word: str) -> int:
    value = word.partition("=")[2]
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"'{word}': a number of nodes, at least 1.")
    return int(value)
