"""Native <-> Hugging Face: the same logits both ways, folders in and out; any transformers model, wrapped."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bigtrain.errors import UserError
from bigtrain.models import decoder, hugging_face
from bigtrain.models.hf import from_hugging_face, save_hugging_face, to_hugging_face

IDS = torch.randint(0, 120, (2, 40), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 120, (2, 40), generator=torch.Generator().manual_seed(1))
LABELS[0, :7] = -100
TINY = {"vocab_size": 120, "sequence_length": 64, "layers": 3, "heads": 4, "width": 32}
GPT2 = {"positions": "learned", "norm": "layer_norm", "activation": "gelu", "bias": True}
SCALING = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
NATIVE = {
    "gpt2": GPT2 | {"tied": True},
    "gpt2_untied": GPT2 | {"mlp_width": 48, "norm_eps": 1e-6},
    "gpt2_without_biases": GPT2 | {"bias": False, "tied": True},
    "llama_grouped": {"kv_heads": 2},
    "llama_tied_scaled": {"kv_heads": 1, "tied": True, "rope_theta": 5e5, "rope_scaling": SCALING},
    "llama_biased_wide_heads": {"bias": True, "head_width": 16},
}
LLAMA = {
    "vocab_size": 120, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
THEIRS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=120, n_positions=64, n_embd=32, n_layer=3, n_head=4)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "llama_scaled": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, rope_parameters=SCALING | {"rope_theta": 1e4})),
}


def stirred(model, seed=0):
    """Weights large enough that every part of the model shows in the logits, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.eval()


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("style", NATIVE)
def test_an_export_has_the_same_logits_and_comes_back_in(style, tmp_path):
    model = stirred(decoder(**TINY, **NATIVE[style]))
    save_hugging_face(model, tmp_path / "export")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    with torch.no_grad():
        expected = model(IDS)
        close(theirs(IDS).logits, expected)
        back = decoder(path=str(tmp_path / "export"))
        close(back.eval()(IDS), expected)
    if style != "gpt2_without_biases":  # which are zeros on the way back
        assert back.shape == model.shape
        assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("style", THEIRS)
def test_their_model_as_ours(style, tmp_path):
    torch.manual_seed(0)
    theirs = stirred(THEIRS[style]())
    theirs.save_pretrained(tmp_path / "hf")
    ours = decoder(path=str(tmp_path / "hf")).eval()
    config, state = to_hugging_face(from_hugging_face(theirs.config, theirs.state_dict()))
    with torch.no_grad():
        expected = theirs(IDS).logits
        close(ours(IDS), expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items() if name in state)
    assert config.model_type == theirs.config.model_type


def test_the_comparison_notices_a_wrong_rotation_and_a_wrong_epsilon(tmp_path):
    """Planted faults: the tests above would see them."""
    theirs = stirred(THEIRS["llama_scaled"]())
    theirs.save_pretrained(tmp_path / "hf")
    right = decoder(path=str(tmp_path / "hf"))
    with torch.no_grad():
        expected = right(IDS)
        right.rotary.scaling = None
        right.rotary.table = None
        assert (right(IDS) - expected).abs().max() > 1e-3


def test_sharded_files_and_pickles_without_code_are_read(tmp_path):
    theirs = stirred(THEIRS["llama"]())
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    (tmp_path / "bin").mkdir()
    shutil.copy(tmp_path / "sharded" / "config.json", tmp_path / "bin")
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    with torch.no_grad():
        for folder in ("sharded", "bin"):
            close(decoder(path=str(tmp_path / folder))(IDS), theirs(IDS).logits)


def test_gpt2s_own_files_have_no_prefix(tmp_path):
    from safetensors.torch import save_file

    theirs = stirred(THEIRS["gpt2"]())
    theirs.save_pretrained(tmp_path)
    bare = {k.removeprefix("transformer."): v.clone() for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    save_file(bare, tmp_path / "model.safetensors")
    with torch.no_grad():
        close(decoder(path=str(tmp_path))(IDS), theirs(IDS).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "layer_norm"}, "model.norm=rms_norm, not layer_norm"),
        ({"positions": "learned", "norm": "layer_norm"}, "model.activation=gelu, not swiglu"),
        (GPT2 | {"kv_heads": 2}, "model.kv_heads=4, not 2"),
        (GPT2 | {"head_width": 4}, "model.head_width=8, not 4"),
    ],
)
def test_a_shape_that_neither_architecture_has_is_refused(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        save_hugging_face(decoder(**TINY, **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.iterdir())


def test_a_large_model_is_written_in_shards_in_its_own_dtype(tmp_path, monkeypatch):
    import bigtrain.models.hf as hf

    monkeypatch.setattr(hf, "SHARD", "20KB")
    model = stirred(decoder(**TINY, **NATIVE["llama_tied_scaled"])).to(torch.bfloat16)
    save_hugging_face(model, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    back = decoder(path=str(tmp_path / "out"))
    assert all(torch.equal(a, b.float()) for a, b in zip(back.parameters(), model.parameters(), strict=True))


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path):
    save_hugging_face(decoder(**TINY), tmp_path / "out")
    save_hugging_face(decoder(**(TINY | {"layers": 1})), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not an earlier export"):
        save_hugging_face(decoder(**TINY), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_tokenizer_goes_with_the_model(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<eos>": 0, "call": 1, "me": 2}, unk_token="<eos>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>").save_pretrained(tmp_path / "tokenizer")
    save_hugging_face(decoder(**TINY), tmp_path / "out", tmp_path / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("call me")["input_ids"] == [1, 2]
    assert model.config.eos_token_id == 0
    assert model.generation_config.eos_token_id == 0
    assert model.config.bos_token_id is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "llama"
    stirred(THEIRS["llama"]()).save_pretrained(path)
    return path


def test_settings_beside_a_path_may_not_contradict_it(folder):
    path = str(folder)
    assert decoder(preset="toy", path=path, vocab_size=100, sequence_length=500).shape.sequence_length == 500
    assert decoder(path=path, vocab_size=100).embedding.weight.shape[0] == 120
    with pytest.raises(UserError, match="know 120 tokens"):
        decoder(path=path, vocab_size=121)
    with pytest.raises(UserError, match="model.layers=2 contradicts"):
        decoder(path=path, layers=2)
    with pytest.raises(UserError, match=r"does not fit model=gpt2_350m: positions .* is rotary.*Take model=llama_1b"):
        decoder(preset="gpt2_350m", path=path)
    assert decoder(preset="llama_8b", path=path).shape.width == decoder(path=path).shape.width


@pytest.mark.parametrize("build", [decoder, hugging_face])
def test_wrong_paths_get_one_clear_message(build, folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        build(path=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no config.json"):
        build(path=str(tmp_path))
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        build(path=str(tmp_path / "file.txt"))
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 8}))
    with pytest.raises(UserError, match="t5"):
        build(path=str(bert))
    (bert / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot read its config.json"):
        build(path=str(bert))
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(folder / "config.json", empty)
    with pytest.raises(UserError, match=r"model.safetensors"):
        build(path=str(empty))
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(UserError, match=r"damaged|cannot load it"):
        build(path=str(damaged))


def test_weights_that_do_not_fit_their_config_are_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"intermediate_size": 60}))
    with pytest.raises(UserError, match="do not fit their own config: blocks.0.mlp.up.weight"):
        decoder(path=str(other))
    with pytest.raises(UserError, match="cannot load it|another shape"):
        hugging_face(path=str(other))
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"lack model.layers.3"):
        hugging_face(path=str(other))
    with pytest.raises(UserError, match=r"lack model.layers.3"):
        decoder(path=str(other))
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(UserError, match="hidden_act=relu; model=hugging_face"):
        decoder(path=str(other))


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
CONFIGS = {
    "llama": SMALL | {"num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, **NO_DROPOUT},
    "qwen3": SMALL | {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": SMALL,
    # logits that are not hidden states x weight: soft-capped, scaled, biased
    "gemma2": SMALL | {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 5.0, "pad_token_id": 0},
    "cohere": SMALL | {"logit_scale": 0.0625, "num_key_value_heads": 2},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, **NO_DROPOUT},
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_loss_of_any_transformers_model_is_that_of_its_own_logits(kind):
    from bigtrain.objectives import causal_lm

    torch.manual_seed(0)
    model = hugging_face(config={"model_type": kind, **CONFIGS[kind]}, vocab_size=120, attention="eager").train()
    stirred(model).train()
    assert hasattr(model, "loss_sum") == (kind not in ("gemma2", "cohere", "gptj"))
    logits = model(IDS)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), reduction="sum")
    ours = causal_lm().loss(model, {"input_ids": IDS, "labels": LABELS})
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    weights = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_wrapped_activation_checkpointing_changes_nothing():
    grads = []
    for on in (False, True):
        torch.manual_seed(0)
        model = hugging_face(config={"model_type": "llama", **CONFIGS["llama"]}, vocab_size=120).train()
        if on:
            model.enable_activation_checkpointing()
        model.loss_sum(IDS, LABELS).backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_a_wrapped_model_loads_trains_and_is_exported(folder, tmp_path):
    theirs = LlamaForCausalLM.from_pretrained(folder).eval()
    model = hugging_face(path=str(folder), vocab_size=100, sequence_length=64).eval()
    with torch.no_grad():
        close(model(IDS), theirs(IDS).logits)
    with torch.no_grad():
        model.hf.lm_head.weight.mul_(2)
    save_hugging_face(model, tmp_path / "out")
    with torch.no_grad():
        close(AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits, 2 * theirs(IDS).logits)
        close(decoder(path=str(tmp_path / "out"))(IDS), 2 * theirs(IDS).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs model.path"),
        ({"config": {"model_type": "lama"}}, "Did you mean 'llama'"),
        ({"config": {"n_embd": 3}}, "Give one, such as llama"),
        ({"config": {"model_type": "llama", "hiden_size": 32}}, "Did you mean 'hidden_size'"),
        ({"config": {"model_type": "llama"} | SMALL | {"hidden_size": 33}}, "cannot make this llama"),
        ({"config": {"model_type": "vit"}}, "not a causal language model"),
        ({"config": {"model_type": "bert"} | SMALL}, "not causal: tokens see what follows"),
    ],
)
def test_bad_settings_of_the_wrapper(settings, message):
    with pytest.raises(UserError, match=message):
        hugging_face(**settings)


def test_a_tokenizer_or_sequence_too_large_for_pretrained_weights_is_refused(folder):
    with pytest.raises(UserError, match="knows 120 tokens"):
        hugging_face(path=str(folder), vocab_size=121)
    with pytest.raises(UserError, match="takes 64 tokens"):
        hugging_face(path=str(folder), sequence_length=65)


@pytest.mark.parametrize("build", [decoder, hugging_face])
def test_a_gguf_file_needs_its_package_or_is_judged_by_it(build, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF but no more")
    wanted = "cannot load it" if importlib.util.find_spec("gguf") else r"pip install 'bigtrain\[gguf\]'"
    with pytest.raises(UserError, match=wanted):
        build(path=str(tmp_path))


def test_a_real_gguf_model_is_the_same_through_both_doors():
    """SmolLM2-135M, in the folder `smollm2` of $BIGTRAIN_DATA."""
    pytest.importorskip("gguf")
    folder = Path(os.environ.get("BIGTRAIN_DATA", ""), "smollm2")
    if not folder.is_dir():
        pytest.skip("set BIGTRAIN_DATA to a folder with smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    with torch.no_grad():
        close(decoder(path=str(folder)).eval()(IDS), hugging_face(path=str(folder)).eval()(IDS))


def test_the_code_of_a_folder_is_never_run(folder, tmp_path):
    trap = shutil.copytree(folder, tmp_path / "trap")
    config = json.loads((trap / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (trap / "config.json").write_text(json.dumps(config))
    (trap / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for build in (decoder, hugging_face):
        with pytest.raises(UserError):
            build(path=str(trap))
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_calls_is_not_obeyed(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    trap = tmp_path / "trap"
    trap.mkdir()
    shutil.copy(folder / "config.json", trap)
    torch.save({"model.norm.weight": Trap()}, trap / "pytorch_model.bin")
    for build in (decoder, hugging_face):
        with pytest.raises(UserError):
            build(path=str(trap))
    assert not (tmp_path / "ran").exists()
