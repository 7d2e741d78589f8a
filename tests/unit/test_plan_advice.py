"""Out of memory: what held most, and settings that would have fitted."""

from __future__ import annotations

from bigtrain.config.compose import compose
from bigtrain.models.shapes import Shape
from bigtrain.plan.advice import advice, fitting
from bigtrain.plan.plan import GIB, plan
from bigtrain.plan.subject import Cluster, shape_of

WORDS = ["recipe=pretrain/llama_1b", "data.path=x", "engine=zero1", "trainer.activation_checkpointing=none"]
WORDS += ["trainer.micro_batch_size=8", "trainer.global_batch_size=256"]


def test_it_names_the_largest_part_and_what_would_have_fitted() -> None:
    config, where = compose(WORDS).config, Cluster(1, 8)
    shape = shape_of(config)
    assert isinstance(shape, Shape)
    said = advice(config, shape, where, 40 * GIB)
    assert "most of it for activations" in said
    words = said.splitlines()[2].split("  (")[0].split()
    better = compose([*WORDS, *words]).config
    assert plan(better, model=shape, where=where).needed <= 40 * GIB < plan(config, model=shape, where=where).needed


def test_the_fewest_changes_come_first_and_each_is_less_than_before() -> None:
    config, where = compose(WORDS).config, Cluster(1, 8)
    shape = shape_of(config)
    assert isinstance(shape, Shape)
    found = fitting(config, shape, where, 30 * GIB)
    assert [len(words) for words, _ in found] == sorted(len(words) for words, _ in found)
    assert len(found[0][0]) == 1 and all(one.needed <= 30 * GIB for _, one in found)


def test_where_nothing_fits_it_says_so() -> None:
    config = compose(["recipe=pretrain/llama_8b", "data.path=x"]).config
    shape = shape_of(config)
    assert isinstance(shape, Shape)
    assert "nothing else on these ranks would fit" in advice(config, shape, Cluster(1, 1), 20 * GIB)
