"""Optimizers: which weights decay, what a step does, state in and out; schedules: their values and refusals."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
from torch import nn

from bigtrain import optim
from bigtrain.errors import UserError
from bigtrain.models import decoder, hugging_face
from bigtrain.optim.groups import decay_groups
from bigtrain.optim.optimizers import Muon

TINY = {"vocab_size": 60, "sequence_length": 16, "layers": 2, "heads": 2, "width": 16}
GPT2 = {"positions": "learned", "norm": "layer_norm", "activation": "gelu", "bias": True, "tied": True}
RATES = {"adamw": 1e-2, "lion": 1e-3, "adafactor": 3e-2, "sgd": 0.3, "muon": 1e-2}


def names_of(model, group):
    name = {id(p): n for n, p in model.named_parameters()}
    return {name[id(p)] for p in group["params"]}


@pytest.mark.parametrize("style", ["gpt2", "llama_untied"])
def test_matrices_decay_and_norms_biases_and_embeddings_do_not(style):
    model = decoder(**TINY, **(GPT2 if style == "gpt2" else {}))
    decaying, others = decay_groups(model, 0.1)
    blocks = {
        f"blocks.{i}.{part}.weight"
        for i in range(2)
        for part in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    }
    assert names_of(model, decaying) == blocks | (set() if style == "gpt2" else {"head.weight"})
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    every = [p for group in (decaying, others) for p in group["params"]]
    assert len(every) == len(set(every)) == len(list(model.parameters()))  # a tied weight once


def test_a_transformers_model_is_divided_the_same_way():
    config = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = hugging_face(config={"model_type": "llama", **config}, vocab_size=60)
    decaying, _ = decay_groups(model, 0.1)
    names = names_of(model, decaying)
    assert len(names) == 8  # q k v o, gate up down, and the untied head
    assert "hf.lm_head.weight" in names
    assert not any("norm" in name or "embed" in name for name in names)


def test_sharded_parameters_are_judged_by_their_whole_shape():
    """As under ZeRO-3, where a sharded parameter is empty and says what it is in ds_shape."""
    model = decoder(**TINY, **GPT2)
    expected = [names_of(model, group) for group in decay_groups(model, 0.1)]
    for p in model.parameters():
        p.ds_shape, p.data = p.shape, torch.empty(0)
    assert [names_of(model, group) for group in decay_groups(model, 0.1)] == expected


def test_frozen_parameters_are_left_out_and_decay_all_means_all():
    model = decoder(**TINY)
    model.embedding.requires_grad_(False)
    (group,) = decay_groups(model, 0.1, decay_all=True)
    assert names_of(model, group) == {n for n, p in model.named_parameters() if p.requires_grad}
    model.requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train"):
        optim.adamw(model, lr=1e-3)


@pytest.mark.parametrize("name", RATES)
def test_each_learns_and_its_state_goes_on_exactly(name):
    """Six steps are the same as three, a state dict through a file's worth of copying, and three more."""
    ids = torch.randint(0, 60, (4, 16), generator=torch.Generator().manual_seed(0))

    def step(model, optimizer):
        loss = model.loss_sum(ids[:, :-1], ids[:, 1:]) / 60
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    torch.manual_seed(0)
    model = decoder(**TINY)
    optimizer = getattr(optim, name)(model, lr=RATES[name])
    assert all(group["initial_lr"] == RATES[name] for group in optimizer.param_groups)
    losses = [step(model, optimizer) for _ in range(3)]
    twin = copy.deepcopy(model)
    second = getattr(optim, name)(twin, lr=RATES[name])
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    losses += [step(model, optimizer) for _ in range(5)]
    again = [step(twin, second) for _ in range(5)]
    assert losses[3:] == again
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert losses[-1] < losses[0] - 0.05
    assert len(optimizer.param_groups) == len(second.param_groups)


@pytest.mark.parametrize("name", RATES)
def test_a_group_with_no_rate_stands_still(name):
    """Engines set `lr` in each group; every algorithm must obey it."""
    torch.manual_seed(0)
    model = decoder(**TINY)
    optimizer = getattr(optim, name)(model, lr=RATES[name])
    before = copy.deepcopy(model.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    ids = torch.randint(0, 60, (2, 16))
    model.loss_sum(ids, ids).backward()
    optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_lion_by_hand():
    p = nn.Linear(2, 1, bias=False)
    p.weight.data = torch.tensor([[1.0, -2.0]])
    optimizer = optim.lion(p, lr=0.1, weight_decay=0.5, betas=(0.9, 0.99))
    p.weight.grad = torch.tensor([[3.0, -4.0]])
    optimizer.step()  # w (1 - 0.1 * 0.5) - 0.1 sign(0.1 g); then m = 0.01 g
    torch.testing.assert_close(p.weight.data, torch.tensor([[0.85, -1.8]]))
    p.weight.grad = torch.tensor([[-0.1, 1.0]])
    optimizer.step()  # 0.9 m + 0.1 g = [0.017, 0.064]
    torch.testing.assert_close(p.weight.data, torch.tensor([[0.85 * 0.95 - 0.1, -1.8 * 0.95 - 0.1]]))
    torch.testing.assert_close(optimizer.state[p.weight]["exp_avg"], torch.tensor([[0.0287, -0.0296]]))


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = decoder(**TINY)
    optimizer = optim.muon(model, lr=1e-2)
    taken = {kind: set() for kind in ("muon", "adamw")}
    for group in optimizer.param_groups:
        taken[group["algorithm"]] |= names_of(model, group)
    assert taken["muon"] == {n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    assert {"embedding.weight", "head.weight", "norm.weight"} <= taken["adamw"]
    ids = torch.randint(0, 60, (2, 16))
    model.loss_sum(ids, ids).backward()
    optimizer.step()
    qkv, head = model.blocks[0].attention.qkv.weight, model.head.weight
    assert set(optimizer.state[qkv]) == {"momentum_buffer"}
    assert set(optimizer.state[head]) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("adamw", {"lr": 0.0}, "optimizer.lr must be more than 0"),
        ("lion", {"lr": 1e-3, "weight_decay": -1.0}, "weight_decay must not be negative"),
        ("adamw", {"lr": 1e-3, "betas": (0.9, 1.0)}, "optimizer.betas"),
        ("sgd", {"lr": 1e-3, "momentum": 0.0, "nesterov": True}, "needs optimizer.momentum"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(UserError, match=message):
        getattr(optim, name)(decoder(**TINY), **settings)


SCHEDULES = ("warmup_cosine", "linear", "constant", "wsd", "inverse_sqrt")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 50), (1, 1), (10, 50), (7, 100)])
def test_schedules_warm_up_from_more_than_zero_reach_the_base_and_stay_in_bounds(name, warmup, total):
    schedule = getattr(optim, name)(warmup_steps=warmup)
    factors = [schedule(step, total) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[:warmup] == [(i + 1) / warmup for i in range(warmup)]
    assert max(factors) == 1
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


def test_schedules_by_hand():
    cosine = optim.warmup_cosine(warmup_steps=10, min_factor=0.1)
    assert cosine(10, 110) == 1
    assert cosine(60, 110) == pytest.approx(0.55)
    assert cosine(110, 110) == pytest.approx(0.1)
    line = optim.linear(warmup_steps=0, min_factor=0.2)
    assert [line(step, 4) for step in range(4)] == pytest.approx([1, 0.8, 0.6, 0.4])
    assert optim.constant()(5, 10) == 1
    wsd = optim.wsd(warmup_steps=10, decay_fraction=0.2)
    assert [wsd(step, 100) for step in (10, 79, 80, 90, 99)] == pytest.approx([1, 1, 1, 0.5, 0.05])
    root = optim.inverse_sqrt(warmup_steps=100, min_factor=0.4)
    assert [root(step, 10**6) for step in (100, 300, 10**5)] == pytest.approx([1, math.sqrt(1 / 3), 0.4])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_refuse_a_warm_up_that_cannot_be(name):
    with pytest.raises(UserError, match="must not be negative"):
        getattr(optim, name)(warmup_steps=-1)
    if "min_factor" in inspect.signature(getattr(optim, name)).parameters:
        with pytest.raises(UserError, match="min_factor"):
            getattr(optim, name)(min_factor=1.5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_that_ends_within_its_warm_up_only_climbs(name):
    schedule = getattr(optim, name)(warmup_steps=100)
    assert [schedule(step, 50) for step in range(50)] == [(step + 1) / 100 for step in range(50)]


def test_wsd_decays_in_what_the_warm_up_leaves():
    wsd = optim.wsd(warmup_steps=50, decay_fraction=0.6)
    assert wsd(49, 100) == 1.0 and wsd(50, 100) == 1.0 and wsd(75, 100) == 0.5


def test_wsd_refuses_a_decay_that_cannot_be():
    with pytest.raises(UserError, match="decay_fraction"):
        optim.wsd(decay_fraction=2.0)


def test_a_range_test_rises_by_one_ratio_up_to_the_base():
    schedule = optim.lr_range(warmup_steps=2, min_factor=1e-3)
    assert [schedule(step, 6) for step in range(6)] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-2, 1e-1, 1])
    assert schedule(5, 6) == schedule(9, 6) == 1 and optim.lr_range()(0, 100) == pytest.approx(1e-7)
    assert optim.lr_range()(0, 1) == pytest.approx(1e-7)
    for bad in ({"min_factor": 0.0}, {"min_factor": 1.0}, {"warmup_steps": -1}):
        with pytest.raises(UserError, match=next(iter(bad))):
            optim.lr_range(**bad)


def test_the_yaml_options_build_with_every_setting_named():
    """Each option of these groups names exactly the settings of its target, and can be built as it stands."""
    from pathlib import Path

    import yaml

    import bigtrain.models
    import bigtrain.objectives

    rooms = {"model": bigtrain.models, "optimizer": optim, "schedule": optim, "objective": bigtrain.objectives}
    for group, room in rooms.items():
        options = sorted(Path(__file__).parents[2].joinpath("conf", group).glob("*.yaml"))
        assert options
        for option in options:
            text = option.read_text()
            assert text.startswith("# bigtrain train "), option
            settings = yaml.safe_load(text)
            function = getattr(room, settings.pop("_target_").rpartition(".")[2])
            assert function.__name__ in room.__all__
            known = set(inspect.signature(function).parameters) - {"model"}
            assert set(settings) == known, option
            if group == "optimizer":
                assert function(decoder(**TINY), **settings)
            elif group == "schedule":
                assert function(**settings)(0, 1000) > 0


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_on_a_cpu_is_torchs_but_for_bf16s_rounding(adjust, nesterov):
    torch.manual_seed(0)
    starts = [torch.randn(24, 8), torch.randn(8, 24), torch.randn(16, 16)]
    ended = []
    settings = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9, "nesterov": nesterov, "ns_steps": 5}
    for one in (torch.optim.Muon, Muon):
        weights = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = one([{"params": weights, **settings, "adjust_lr_fn": adjust}])
        torch.manual_seed(1)
        for _ in range(4):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        assert all(optimizer.state[weight].keys() == {"momentum_buffer"} for weight in weights)
        ended.append(weights)
    for start, theirs, ours in zip(starts, *ended, strict=True):
        assert (theirs - start).norm() > 1
        assert (theirs - ours).norm() < 0.02 * (theirs - start).norm()
