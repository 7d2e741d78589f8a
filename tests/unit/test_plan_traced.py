"""Models that are no native decoder: counted by a pass without memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bigtrain.config.compose import compose
from bigtrain.models.shapes import Shape
from bigtrain.plan.memory import memory
from bigtrain.plan.plan import plan
from bigtrain.plan.subject import Cluster, setup_of, shape_of
from bigtrain.plan.traced import Traced, traced

RECIPES = {
    "chatbot/lstm": ["data.path=x"],
    "vision/mnist_cnn": ["data.path=x"],
    "vision/vit": ["data.path=x"],
    "pretrain/bert_base": [],
    "pretrain/t5_small": [],
}


def test_it_finds_what_the_formulae_of_the_decoder_say() -> None:
    config = compose(["recipe=smoke", "model.vocab_size=1024", "trainer.device=cpu"]).config
    shape, found = shape_of(config), traced(config)
    assert isinstance(shape, Shape)
    setup = setup_of(config, Cluster(1, 1), "cpu")
    whole = memory(shape, setup)
    head = 4 * 1024 * shape.width  # the head's gradient is kept; chunks of logits come and go
    assert found.kept == pytest.approx(whole.activations + head, rel=0.02)
    tokens = setup.micro_batch_size * setup.sequence_length
    assert found.flops == pytest.approx(
        tokens * 2 * (shape.layers * 4 * 49_152 + 1024 * shape.width), rel=0.25
    )  # attention besides


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_kind_of_recipe_is_planned_for_1_to_1024_ranks(recipe: str) -> None:
    config = compose([f"recipe={recipe}", "hardware=h100x8", *RECIPES[recipe]]).config
    model = traced(config)
    assert isinstance(model, Traced) and model.trained == model.parameters > 10_000
    needs = []
    for ranks in (1, 8, 1024):
        config.trainer.global_batch_size = config.trainer.micro_batch_size * ranks
        sharded = replace(config, engine=replace(config.engine, name="zero3"))
        found = plan(sharded, model=model, where=Cluster(max(1, ranks // 8), min(ranks, 8)))
        assert found.fits and found.pace is not None and 0 < found.pace.mfu < 1
        needs.append(found.memory.total)
    assert needs == sorted(needs, reverse=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "family",
    [
        "{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32}",
        "{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}",
    ],
)
def test_causal_models_of_transformers(family: str, precision: str) -> None:
    words = ["recipe=smoke", "model=hugging_face", f"model.config={family}", f"precision={precision}"]
    found = traced(compose([*words, "model.vocab_size=1024"]).config)
    assert found.trained > 1024 * 32 and found.flops > 0 and found.kept > 0


def test_starting_kernels_is_told_where_it_takes_longer_than_running_them() -> None:
    words = ["recipe=smoke", "model=hugging_face", "hardware=h100", "model.vocab_size=1024"]
    family = (
        "{model_type: llama, hidden_size: 64, intermediate_size: 128, num_attention_heads: 2, num_hidden_layers: %d}"
    )
    small = [traced(compose([*words, f"model.config={family % layers}"]).config) for layers in (2, 4)]
    block = (small[1].kernels - small[0].kernels) / 2
    assert 20 < block < 100 and small[0].kernels > 2 * block
    config = compose([*words, f"model.config={family % 2}"]).config
    assert "the GPU will wait for Python" in " ".join(plan(config, model=small[0]).notes)
    wide = replace(small[0], flops=1e12)
    assert "Python" not in " ".join(plan(config, model=wide).notes)


def test_checkpointing_keeps_less() -> None:
    words = ["recipe=pretrain/bert_base"]
    kinds = [compose([*words, f"trainer.activation_checkpointing={kind}"]).config for kind in ("none", "full")]
    none, full = map(traced, kinds)
    assert full.kept < 0.5 * none.kept and full.parameters == none.parameters


def test_a_pretrained_folder_of_an_older_transformers(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    written = {"model_type": "bert", "vocab_size": 100, "gradient_checkpointing": False, **sizes}  # no setting any more
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = compose(["recipe=finetune/bert_classification", "data.path=x", f"model.path={tmp_path}"]).config
    assert 100 * 32 < traced(config).trained < 40_000


def test_the_weights_of_a_gguf_file_are_not_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(2)
    writer.add_context_length(64)
    writer.add_token_list([f"w{number}" for number in range(300)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    words = ["recipe=finetune/llama_lora", f"model.path={tmp_path}", "data.path=x", "data.sequence_length=32"]
    found = traced(compose(words).config)
    assert 2 * 300 * 64 < found.parameters < 200_000 and found.trained < 0.3 * found.parameters
