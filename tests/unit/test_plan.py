"""`bigtrain plan`: counted against the real model, told in time, refused in one message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bigtrain.cli import main
from bigtrain.config.compose import compose
from bigtrain.errors import UserError
from bigtrain.models import decoder
from bigtrain.models.shapes import PRESETS, resolve
from bigtrain.plan import here
from bigtrain.plan.choose import choose, decided
from bigtrain.plan.decoder import counts, flops_per_token, kept
from bigtrain.plan.pace import REACHED, block_bytes
from bigtrain.plan.plan import GIB, plan
from bigtrain.plan.subject import Cluster

GPT2 = {"positions": "learned", "norm": "layer_norm", "activation": "gelu", "bias": True, "tied": True}
GROUPED = {"heads": 4, "kv_heads": 2, "mlp_width": 192}
SMALL = {"vocab_size": 512, "sequence_length": 64, "layers": 3, "heads": 4, "width": 64}
TRILLION = [
    "model.layers=128",
    "model.width=25600",
    "model.heads=160",
    "model.kv_heads=160",
    "model.mlp_width=102400",
    "model.activation=gelu",
    "model.vocab_size=51200",
    "trainer.global_batch_size=4096",
]
"""The largest model of arXiv:2104.04473, table 1."""


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameters_are_those_of_the_model(name: str) -> None:
    with torch.device("meta"):
        model = decoder(preset=name)
    count = counts(resolve(name, {}))
    assert count.total == sum(p.numel() for p in model.parameters())
    products, _ = flops_per_token(resolve(name, {}))
    tables = count.embedding - (0 if count.head else model.embedding.weight.numel())
    rest = count.layers * count.rest + count.norm
    assert products == 2 * (count.total - tables - rest)


@pytest.mark.parametrize("settings", [GPT2, GROUPED, {}], ids=["gpt2", "grouped", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_keeps_what_torch_saves(settings: dict[str, object], dtype: torch.dtype) -> None:
    found = [_saved(SMALL | settings | {"layers": layers}, dtype) for layers in (2, 3)]
    shape = resolve(None, SMALL | settings)
    cast = 2 * counts(shape).products if dtype is torch.bfloat16 else 0  # what autocast keeps of the weights
    size = 4 if dtype is torch.float32 else 2
    expected = 2 * 64 * kept(shape, size=size, residual=4, device="cpu", samples=2).none + cast
    assert found[1] - found[0] == pytest.approx(expected, rel=0.01)


def _saved(settings: dict[str, object], dtype: torch.dtype) -> int:
    """Bytes that a forward pass of 2 x 64 tokens saves, each piece of memory once, without the weights."""
    model = decoder(**settings)  # type: ignore[arg-type]
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    pieces: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            pieces[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(512, (2, 64))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        model.loss_sum(ids, ids)  # type: ignore[operator]
    return sum(pieces.values())


def test_a_plan_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys, time; from bigtrain.cli import main; "
        f"code = main(['plan', 'recipe=pretrain/llama_8b', 'hardware=h100x8', 'nodes=512', *{TRILLION}]); "
        "assert 'torch' not in sys.modules and code in (0, 1); print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 2, done.stdout
    assert "1.01 T parameters" in done.stdout


def test_json_has_bytes_seconds_and_dollars(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe=pretrain/llama_8b", "hardware=h100x8", "nodes=4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    kinds = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers")
    assert told["memory"]["total"] == pytest.approx(sum(told["memory"][kind] for kind in kinds))
    assert told["parameters"] == 8_030_261_248  # of Llama 3.1 8B
    assert told["fits"] is True and 0.2 < told["step"]["mfu"] < 0.7
    assert told["dollars"] == pytest.approx(told["seconds"] / 3600 * 32 * told["hardware"]["price"])


def test_small_models_are_told_in_mebibytes_and_what_is_not_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe=quickstart", "hardware=h100"]) == 0
    said = capsys.readouterr().out
    assert "4.07 MiB" in said and "note: the GPU will wait for Python" in said
    assert main(["plan", "recipe=quickstart", "--dri"]) == 2
    assert "Did you mean '--dry'?" in capsys.readouterr().err


def test_what_does_not_fit_names_the_smallest_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "recipe=pretrain/llama_8b", "model=llama_70b", "hardware=a100_40gbx8"]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "the smallest cluster of these that holds it: " in said
    nodes = int(said.split("that holds it: ")[1].split()[0])
    frugal = [*words, "engine=zero3_offload", "trainer.micro_batch_size=1"]
    assert nodes > 1 and main([*frugal, f"nodes={nodes}"]) == 0
    assert main([*frugal, f"nodes={nodes // 2}"]) == 1


def test_auto_takes_the_cheapest_that_fits() -> None:
    config = compose(["recipe=pretrain/llama_8b", "hardware=h100x8", "data.path=x", "engine=auto"]).config
    chosen = choose(config, nodes=4)
    fitting = [one for one in chosen.plans if one.fits]
    assert chosen.best.fits and chosen.best.pace is not None
    assert chosen.best.pace.step <= 1.02 * min(one.pace.step for one in fitting if one.pace)
    assert len(fitting) < len(chosen.plans)  # some do not fit
    assert "runners-up" in chosen.table() and "GiB too much" in chosen.table()


def test_auto_takes_the_simplest_of_equals_that_has_room() -> None:
    config = compose(["recipe=pretrain/llama_8b", "hardware=h100x8", "data.path=x", "engine=auto"]).config
    best, *others = choose(config, nodes=4).plans
    assert best.setup.engine == "zero3"  # ZeRO-2 takes as long, and nearly all of the memory
    assert any(one.setup.engine == "zero2" and one.needed > 0.9 * (one.room or 0) for one in others[:3])
    small = ["recipe=pretrain/gpt2_124m", "hardware=h100x8", "data.path=x", "engine=auto"]
    assert choose(compose(small).config).best.setup.engine == "zero1"  # and not ZeRO-3, which is as fast


def test_train_takes_what_auto_chose(capsys: pytest.CaptureFixture[str]) -> None:
    words = decided(["recipe=pretrain/gpt2_124m", "engine=auto", "hardware=h100x8", "data.path=x"])
    config = compose(words).config
    assert config.engine.name != "auto" and "engine=auto: engine=" in capsys.readouterr().err
    assert plan(config).fits


def test_nothing_is_called_chosen_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe=pretrain/llama_8b", *TRILLION, "hardware=rtx4090", "engine=auto"]) == 1
    said = capsys.readouterr().out
    assert "engine=auto: nothing fits; this comes nearest: " in said and "chosen by" not in said


def test_the_gradients_of_what_is_stepped_on_the_host_are_there_too() -> None:
    words = ["recipe=pretrain/llama_8b", "hardware=h100x8", "data.path=x"]
    here, away = (plan(compose([*words, f"engine={name}"]).config).memory for name in ("zero3", "zero3_offload"))
    assert away.gradients == away.optimizer == away.parameters == 0 < here.gradients
    assert away.host == pytest.approx(here.parameters + here.optimizer + 4 * 8_030_261_248 / 8)


def test_cut_sequences_and_weights_are_planned_for_the_ranks_of_the_hardware(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["plan", "recipe=pretrain/llama_1b", "hardware=h100x8", "engine=zero1"]
    assert main([*words, "engine.tensor_parallel=4"]) in (0, 1)
    assert "= 8 ranks" in capsys.readouterr().out
    assert main([*words, "launcher.processes=16"]) == 2
    assert "a node of this hardware has 8 GPUs" in capsys.readouterr().err
    assert main(["plan", "recipe=pretrain/llama_1b", "launcher=slurm", "launcher.nodes=4", "launcher.gpus=4"]) == 0
    assert "4 nodes x 4 GPU = 16 ranks" in capsys.readouterr().out


def test_a_gpu_is_planned_as_one_though_the_run_was_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "recipe=quickstart", "hardware=h100", "launcher.processes=1", "--json"]
    told = []
    for device in ("auto", "cpu"):
        assert main([*words, f"trainer.device={device}"]) == 0
        told.append(json.loads(capsys.readouterr().out)["step"])
    assert told[0] == told[1]


def test_gpus_that_stand_idle_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "recipe=quickstart", "hardware=h100x8", "engine=local"]
    assert main([*words, "launcher.processes=1"]) == 0
    assert "note: 1 of a node's 8 GPUs train here" in capsys.readouterr().out
    assert main([*words, "launcher.processes=1", "hardware=h100"]) == 0
    assert "GPUs train here" not in capsys.readouterr().out


def test_memory_alone_where_no_hardware_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe=pretrain/gpt2_124m"]) == 0
    said = capsys.readouterr().out
    assert "say hardware=NAME" in said and "MFU" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["hardware=h1000"], "Did you mean 'h100'?"),
        (["hardware=a100x4"], "Say hardware=a100 hardware.gpus=4"),
        (["launcher.processes=-3"], "launcher.processes=-3: it must be at least 1"),
        (["node=2"], "Did you mean 'launcher.nodes'?"),
        (["--hardware=h100"], "without dashes, as hardware=h100"),
        (["hardware=h100", "model.width=1e30"], "model.width must be from 1 to 1,000,000,000, not 1e+30"),
        (["hardware.gpus=8"], "hardware.gpus is of a hardware that is not chosen: say hardware=NAME"),
        (["hardware=h100", "hardware.name=Mystery"], "its peak is not known, and nothing is guessed"),
        (["hardware=v100", "nodes=1"], "has no bf16: take precision=fp32 or fp16"),
        (["hardware=cpu", "precision=fp8"], "trains on a CPU to be tried out, slower than bf16, and is not planned"),
        (["hardware=h100", "precision=fp8", "model.width=780"], "model.width=780 is no multiple of 16"),
        (["hardware=h100x8", "hardware.price=inf"], "hardware.price=inf: it must be at least 0, and finite"),
        (["hardware=a100", "precision=fp8"], "has no fp8: take precision=fp32 or fp16 or bf16"),
        (["hardware=h100x8", "nodes=0"], "a number of nodes, at least 1"),
        (["hardware=h100x8", "hardware.price=-1"], "hardware.price=-1.0: it must be at least 0"),
        (["hardware=h100x8", "hardware.products=7"], "are parts of the peak, at most 1: not 7.0"),
        (["hardware=h100x8", "hardware.gpus=0"], "hardware.gpus=0: it must be at least 1"),
        (["hardware=h100x8", "hardware.link=0"], "hardware.link=0.0: it must be above 0"),
        (["hardware=h100x8", "hardware.tflops={bf16: -3}"], "hardware.tflops.bf16=-3.0: it must be above 0"),
        (["hardware=h100x8", "trainer.global_batch_size=500"], "cannot be divided"),
        (["engine=auto"], "say hardware=NAME"),
        (["model=toy", "model.preset=null", "model.layers=2", "model.heads=2", "model.width=64"], "how many tokens?"),
    ],
)
def test_bad_input_is_one_message(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe=pretrain/gpt2_124m", *words]) == 2
    said = capsys.readouterr()
    assert told in said.err and "Traceback" not in said.err and not said.out


def test_the_engine_itself_refuses_auto() -> None:
    from bigtrain.engines import build_engine

    config = compose(["recipe=smoke", "engine=auto"]).config
    with pytest.raises(UserError, match="chosen by `bigtrain train`"):
        build_engine(config, lambda: torch.nn.Linear(1, 1), None, None, None)  # type: ignore[arg-type]


def test_more_ranks_of_zero_hold_less() -> None:
    needs = []
    for nodes in (1, 4, 16):
        config = compose(["recipe=pretrain/llama_8b", "hardware=h100x8", "data.path=x"]).config
        needs.append(plan(config, nodes=nodes).memory.total / GIB)
    assert needs == sorted(needs, reverse=True)


@pytest.mark.parametrize(
    "recipe", ["quickstart", "smoke", "pretrain/gpt2_124m", "pretrain/llama_1b", "pretrain/llama_8b"]
)
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero1", "zero2", "zero3"])
def test_every_engine_is_planned_for_1_to_1024_ranks(recipe: str, engine: str) -> None:
    config = compose(
        [f"recipe={recipe}", "data.path=x", f"engine={engine}", "hardware=h100x8", "precision=bf16"]
    ).config
    config.trainer.micro_batch_size = 1
    needs, sent = [], []
    for ranks in (1, 8, 64, 1024):
        config.trainer.global_batch_size = 1024
        found = plan(config, where=Cluster(max(1, ranks // 8), min(ranks, 8)))
        assert found.pace is not None and found.setup.accumulation == 1024 // ranks
        assert found.pace.tokens == 1024 * config.data["sequence_length"]
        needs.append(found.memory.total)
        sent.append(found.pace.messages)
    assert sent[0] == 0 < sent[1]  # one rank tells nobody anything
    if engine != "ddp":
        assert needs[3] < needs[0]


def test_published_throughput_is_predicted() -> None:
    """Rows that nothing was fitted to, of six projects' own tables."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from plan_pace import CALIBRATED, compared, group, summary

    rows = [row for row in compared() if group(row) != CALIBRATED]
    of_80gb = summary([row for row in rows if row["device"] == "A100 80GB"])
    assert of_80gb["within_15_percent"] >= 60 and of_80gb["median"] < 0.08, of_80gb
    found = summary(rows)
    assert found["rows"] >= 140 and found["within_15_percent"] >= 105 and found["median"] < 0.10, found


def test_an_optimizer_of_whole_matrices_is_not_advised_to_be_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe=pretrain/llama_8b", "hardware=h100x8", "engine=auto", "optimizer=muon"]) == 1
    said = capsys.readouterr().out
    assert "muon needs whole matrices, and optimizer=adamw lets them be cut" in said and "it would fit" not in said


def test_a_model_of_any_number_of_blocks_is_planned_at_once() -> None:
    words = ["recipe=pretrain/llama_8b", "hardware=h100x8", "data.path=x"]
    few, many = (plan(compose([*words, f"model.layers={layers}"]).config) for layers in (2, 10**8))
    assert few.memory.points.keys() == {*many.memory.points} - {"backward of block 100000000"} | {"backward of block 2"}


def test_weights_that_lie_on_the_host_are_fetched_twice_a_micro_batch() -> None:
    words = ["recipe=pretrain/llama_8b", "hardware=rtx4090", "data.path=x", "launcher.processes=1",
             "trainer.micro_batch_size=1", "trainer.global_batch_size=1"]  # fmt: skip
    there, here_ = (plan(compose([*words, f"engine={name}"]).config) for name in ("zero3_offload", "zero3"))
    assert there.pace and here_.pace and there.hardware and here_.pace.messages == 0
    once = 2 * there.parameters / (there.hardware.host_link * 1e9 * REACHED)
    forward = (there.pace.products + there.pace.attention) / 3
    hidden = [min(0.9 * computing, 0.9 * once) for computing in (forward, 2 * forward)]
    assert there.pace.messages == pytest.approx(2 * once - sum(hidden))


def test_products_in_fp8_gain_what_torchao_published() -> None:
    """Llama 3 8B on 8 H100s, 1 x 8192 tokens, compiled (torchao/float8/README.md): +25.0 % and +10.1 % over bf16."""
    words = ["recipe=pretrain/llama_8b", "hardware=h100x8", "engine=fsdp", "data.path=x", "data.sequence_length=8192",
             "trainer.micro_batch_size=1", "trainer.global_batch_size=8", "trainer.compile=true",
             "trainer.activation_checkpointing=selective"]  # fmt: skip
    kinds = (["precision=bf16"], ["precision=fp8", "precision.fp8=tensorwise"], ["precision=fp8"])
    plans = [plan(compose([*words, *kind]).config) for kind in kinds]
    assert all(one.pace for one in plans)
    bf16, tensorwise, rowwise = (one.pace.tokens_per_s for one in plans if one.pace)
    assert tensorwise / bf16 == pytest.approx(1.25, rel=0.05)  # predicted
    assert rowwise / bf16 == pytest.approx(1.10, rel=0.05)  # the constant was read off it
    assert plans[0].memory.total == plans[2].memory.total  # 47.65 and 47.79 GB there


def test_a_cpu_is_measured_at_the_models_sizes_and_shared_by_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[here.Sizes] = []
    rates = {"fp32": (100e9, 25e9, 1e5), "bf16": (20e9, 5e9, 5e4)}
    monkeypatch.setattr(here, "_rates", lambda precision, sizes: found.append(sizes) or rates[precision])
    words = ["recipe=quickstart", "hardware=cpu", "model.kv_heads=2", "data.sequence_length=256"]
    one, two = (plan(compose([*words, f"launcher.processes={ranks}"]).config) for ranks in (1, 2))
    assert one.hardware is not None and two.hardware is not None and one.pace is not None and two.pace is not None
    assert found[0] == here.Sizes(
        2048, 256, 128, 352, heads=4, kv_heads=2, head_width=32, gated=True, layer_norm=False, threads=1
    )
    assert one.hardware.tflops == {"fp32": 0.1} and two.hardware.tflops == {"fp32": 0.05}
    assert one.hardware.attention == two.hardware.attention == 0.25
    # By the measured rate of norms, residuals and activation these take as long as they were seen to.
    assert one.setup.accumulation == 2
    block = block_bytes(resolve("toy", {"kv_heads": 2}), one.setup)
    assert block / (one.hardware.bandwidth * 1e9 * REACHED) == pytest.approx(1e-5)
    # A rank of two has half of everything, half of the samples, and sends what its cores carry.
    assert two.setup.accumulation == 1 and two.pace.products == pytest.approx(one.pace.products)
    assert two.pace.messages == pytest.approx(two.pace.sent / (0.7e9 * REACHED))


def test_what_this_cpu_reaches_is_measured_with_all_cores() -> None:
    threads = torch.get_num_threads()
    sizes = here.Sizes(512, 512, 512, 512, heads=8, kv_heads=4, head_width=64, gated=True, layer_norm=True, threads=2)
    products, attention, rest = here._rates("fp32", sizes)
    assert products > 1e9 and 1e8 < attention < 2 * products and rest > 1e3
    assert torch.get_num_threads() == threads


def test_other_models_are_planned_by_the_rate_at_which_a_block_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "_rates", lambda precision, sizes: (100e9, 25e9, 1e5))
    words = ["recipe=vision/mnist_cnn", "data.path=x", "hardware=cpu", "launcher.processes=1"]
    found = plan(compose(words).config)
    assert found.hardware is not None and found.hardware.bandwidth is not None
    moved = 4 * 3 * (2 * 3 * 512 + 2 * 3 * 512 + 2 * 512)  # bytes a token of here.OTHERS, forward and backward
    assert moved / (found.hardware.bandwidth * 1e9 * REACHED) == pytest.approx(1e-5)
