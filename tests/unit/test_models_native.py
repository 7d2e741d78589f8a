"""The native decoder: shapes, presets, refusals, first loss, positions, checkpointing, sharded birth."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.models import decoder, hugging_face
from bigtrain.models.native import Decoder, Rotary
from bigtrain.models.shapes import PRESETS, resolve

TINY = {"vocab_size": 97, "sequence_length": 32, "layers": 2, "heads": 4, "width": 32}
GPT2 = {"positions": "learned", "norm": "layer_norm", "activation": "gelu", "bias": True, "tied": True}
STYLES = {"gpt2": GPT2, "llama": {"kv_heads": 2}, "llama_tied": {"tied": True}, "mixed": {"norm": "layer_norm"}}


def tokens(vocab, batch=2, length=17, seed=0):
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("style", STYLES)
def test_logits_and_loss_sum_agree(style):
    torch.manual_seed(0)
    model = decoder(**TINY, **STYLES[style])
    ids, labels = tokens(97), tokens(97, seed=1)
    labels[0, 3:9] = -100
    logits = model(ids)
    assert logits.shape == (2, 17, 97)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    ours = model.loss_sum(ids, labels)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    named = dict(model.named_parameters())
    ours = torch.autograd.grad(ours, list(named.values()))
    for name, a, b in zip(named, ours, torch.autograd.grad(expected, list(named.values())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("style", STYLES)
def test_a_token_sees_nothing_of_what_follows(style):
    model = decoder(**TINY, **STYLES[style])
    ids = tokens(97)
    other = ids.clone()
    other[:, 10] = (other[:, 10] + 1) % 97
    a, b = model(ids), model(other)
    torch.testing.assert_close(a[:, :10], b[:, :10])
    assert (a[:, 10:] - b[:, 10:]).abs().amax(dim=(0, 2)).min() > 0


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "llama_70b"])
def test_first_loss_is_ln_of_the_vocabulary(preset):
    """At the preset's own width and vocabulary; two layers, as depth only shrinks what the embedding adds."""
    torch.manual_seed(0)
    thin = {"mlp_width": 512} if preset.startswith("llama") else {}
    vocab = min(PRESETS[preset]["vocab_size"], 8000)  # the fewer, the harder
    model = decoder(preset=preset, layers=2, sequence_length=64, vocab_size=vocab, **thin)
    ids = tokens(vocab, 2, 65)
    with torch.no_grad():
        loss = model.loss_sum(ids[:, :-1], ids[:, 1:]).item() / 128
    assert abs(loss / math.log(vocab) - 1) < 0.02


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("toy", 1.06), ("gpt2_124m", 124.4), ("gpt2_350m", 354.8), ("gpt2_774m", 774.0), ("gpt2_1.5b", 1557.6),
     ("llama_1b", 1235.8), ("llama_3b", 3212.7), ("llama_8b", 8030.3), ("llama_70b", 70553.7)],
)  # fmt: skip
def test_presets_have_the_published_number_of_parameters(preset, millions):
    with torch.device("meta"):
        model = decoder(preset=preset)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_weights_start_as_gpt2s_and_what_is_added_up_starts_smaller():
    model = decoder(preset="toy", positions="learned", bias=True, norm="layer_norm")
    for name, p in model.named_parameters():
        if p.ndim == 2:
            small = name.endswith(("attention.out.weight", "mlp.down.weight"))
            assert p.std().item() == pytest.approx(0.02 / math.sqrt(2 * 4) if small else 0.02, rel=0.05), name
        else:
            assert (p == (1 if "norm" in name and name.endswith("weight") else 0)).all(), name


def test_what_is_set_wins_over_the_preset():
    model = decoder(preset="toy", layers=1, vocab_size=300, tied=False)
    assert len(model.blocks) == 1
    assert model.embedding.weight.shape == (300, 128)
    assert model.head.weight is not model.embedding.weight


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "gtp2_124m"}, "Did you mean 'gpt2_124m'"),
        ({"width": 32}, "needs model.vocab_size"),
        (TINY | {"heads": 5}, "does not divide into model.heads=5; 4 heads would"),
        (TINY | {"kv_heads": 3}, "must divide model.heads=4"),
        (TINY | {"layers": 0}, "model.layers must be from 1 to"),
        (TINY | {"head_width": 7}, "must be even"),
        (TINY | {"dropout": 1.0}, "model.dropout"),
        (TINY | GPT2 | {"rope_scaling": {"factor": 2}}, "positions=rotary only"),
        (TINY | {"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope_type: llama3"),
    ],
)
def test_bad_settings_are_refused_with_the_nearest_right_thing(settings, message):
    with pytest.raises(UserError, match=message):
        decoder(**settings)


def test_learned_positions_end():
    model = decoder(**TINY, **GPT2)
    with pytest.raises(UserError, match="model.sequence_length=32"):
        model(tokens(97, 1, 33))


def test_rotary_positions_go_on_and_keep_fp32_when_the_model_is_cast():
    model = decoder(**TINY)
    with torch.inference_mode():
        model(tokens(97, 1, 8))
    model.loss_sum(tokens(97, 1, 8), tokens(97, 1, 8)).backward()  # the table made above is no inference tensor
    model.to(torch.bfloat16)
    assert model.rotary.table[0].dtype == torch.float32
    assert not list(model.buffers())
    assert model(tokens(97, 1, 70)).shape[1] == 70


def test_rotary_scores_depend_on_the_distance_only():
    from bigtrain.models.native import rotate

    cos, sin = Rotary(8, 10000.0, None)(40, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 40, 8)
    scores = (rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2))[0, 0]
    for distance in (0, 3, 11):
        line = scores.diagonal(-distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_activation_checkpointing_changes_memory_only(style):
    ids, labels = tokens(97), tokens(97, seed=1)
    results = []
    for on in (False, True):
        torch.manual_seed(0)
        model = decoder(**TINY, **STYLES[style], dropout=0.2)
        if on:
            model.enable_activation_checkpointing()
        torch.manual_seed(1)
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.loss_sum(ids, labels)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()], kept))
    (loss_a, grads_a, kept_a), (loss_b, grads_b, kept_b) = results
    assert loss_a == loss_b
    assert all(torch.equal(a, b) for a, b in zip(grads_a, grads_b, strict=True))
    assert kept_b < 0.6 * kept_a


def test_the_same_seed_gives_the_same_model():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(decoder(preset="toy").state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_compiled_it_is_the_same():
    torch.manual_seed(0)
    model = decoder(**TINY, kv_heads=2)
    ids, labels = tokens(97), tokens(97, seed=1)
    eager = model.loss_sum(ids, labels)
    compiled = torch.compile(model.loss_sum, backend="aot_eager")(ids, labels)
    torch.testing.assert_close(compiled, eager)
    compiled.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_default_shape_is_llamas():
    shape = resolve(None, TINY)
    assert (shape.positions, shape.norm, shape.activation, shape.kv_heads) == ("rotary", "rms_norm", "swiglu", 4)
    assert Decoder(replace(shape, layers=1)).shape.layers == 1


SHARDED = """
import math, os, sys, torch
os.environ |= dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
torch.set_num_threads(1)
import torch.distributed as dist
store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
import deepspeed
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
from bigtrain.models import decoder, hugging_face
PATH = sys.argv[1]
config = dict(model_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=32)
builds = [
    lambda: decoder(vocab_size=500, sequence_length=32, layers=2, heads=4, width=32),
    lambda: decoder(preset="toy", layers=2, positions="learned", tied=True),
    lambda: hugging_face(config=config, vocab_size=500),
    lambda: decoder(path=PATH),
    lambda: hugging_face(path=PATH),
]
for build in builds:
    torch.manual_seed(0)
    plain = build()
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path={"train_batch_size": 1, "zero_optimization": {"stage": 3}}):
        sharded = build()
    names = dict(sharded.named_parameters())
    assert len(names) == len(dict(plain.named_parameters()))
    if type(plain).__name__ == "Decoder":
        assert all(p.numel() == 0 for p in names.values()), "nothing was sharded"
    for name, p in plain.named_parameters():
        with deepspeed.zero.GatheredParameters([q for q in [names[name]] if hasattr(q, "ds_id")]):
            assert torch.equal(names[name].data.to(p.dtype), p.data), (name, names[name].shape)
print("the same")
"""


def test_born_in_shards_or_whole_the_weights_are_the_same(tmp_path):
    """Inside DeepSpeed's zero.Init, where a root's later initialisation does nothing (transformers#43847)."""
    from bigtrain.models.hf import save_hugging_face

    save_hugging_face(decoder(**TINY, kv_heads=2), tmp_path / "export")
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path / "export")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same" in done.stdout


def test_the_door_is_light():
    code = "import sys, bigtrain.models, bigtrain.optim, bigtrain.objectives; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("tied", [True, False])
def test_flops_per_token_count_what_a_token_is_multiplied_with(tied):
    shape = {"vocab_size": 64, "sequence_length": 16, "layers": 2, "heads": 2, "width": 8, "tied": tied}
    native = decoder(preset="toy", **shape)
    hf = hugging_face(
        config={"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8,
                "num_key_value_heads": native.shape.kv_heads, "intermediate_size": native.shape.mlp_width,
                "max_position_embeddings": 99, "tie_word_embeddings": tied},
        vocab_size=64, sequence_length=16,
    )  # fmt: skip
    multiplied = sum(p.numel() for p in native.parameters()) - (0 if tied else 64 * 8)
    assert native.flops_per_token == hf.flops_per_token == 6 * multiplied + 12 * 2 * 8 * 16
