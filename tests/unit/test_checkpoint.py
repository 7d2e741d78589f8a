"""Save, find, verify, load, rotate, compare: real files, one process."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bigtrain.checkpoint import manifest, tensorfile
from bigtrain.checkpoint import save as writing
from bigtrain.checkpoint.diff import diff
from bigtrain.checkpoint.find import Checkpoint, find, verify
from bigtrain.checkpoint.fragments import Fragment
from bigtrain.checkpoint.load import Reader, load, load_weights
from bigtrain.checkpoint.save import save
from bigtrain.distributed import Ranks, rng_state, seed_all, set_rng_state
from bigtrain.errors import UserError

ONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
SHAPES = {"wte.weight": (7, 5), "norm.weight": (5,), "scale": (), "head.weight": (5, 3, 2)}


def model(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Fragment]:
    """One rank that holds everything, with the state of an AdamW."""
    torch.manual_seed(seed)
    made = []
    for name, shape in shapes.items():
        size = math.prod(shape)
        tensors = {kind: torch.randn(size) for kind in ("weight", "exp_avg", "exp_avg_sq")}
        made.append(Fragment(name, shape, 0, size, tensors, {"step": torch.tensor(float(seed))}))
    return made


def put(run: Path, step: int, seed: int | None = None, **settings: Any) -> Path:
    settings = {"keep_last": None} | settings
    return save(run, step, model(seed or step), {"loop": {"tokens": step * 10}}, {}, ONE, **settings)


def same(a: list[Fragment], b: list[Fragment]) -> bool:
    return all(
        torch.equal(x.tensors[kind], y.tensors[kind]) and torch.equal(x.extra["step"], y.extra["step"])  # type: ignore[arg-type]
        for x, y in zip(a, b, strict=True)
        for kind in x.tensors
    )


def silent(message: str) -> None:
    raise AssertionError(f"an unexpected warning: {message}")


def newest(run: Path) -> Checkpoint:
    found = find(run, silent)
    assert found is not None
    return found


def test_everything_comes_back_exactly(tmp_path: Path) -> None:
    state = {
        "position": 2**53 + 1,
        "loss": 0.1 + 0.2,
        "tiny": 5e-324,
        "best": math.inf,
        "bad": [math.nan, -math.inf],
        "zero": -0.0,
        "pair": (1, 1.0, None, True, "é\n"),
        "nested": {"a": {}, "b": []},
    }
    rng = {"torch": torch.get_rng_state(), "python": random.getstate(), "several": [torch.arange(3), {"x": (1.5,)}]}
    path = save(tmp_path, 12, model(1), state, rng, ONE, metric=2.5, engine="local", parent="step_00000010")
    assert path == tmp_path / "checkpoints/step_00000012"
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "rank_00000.safetensors"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["step_00000012"]

    live = model(2)
    back, states = load(newest(tmp_path), live, ONE, warn=silent)
    assert same(live, model(1))
    assert repr(back) == repr(state)  # as text: NaN, -0.0, tuples and the difference of 1 and 1.0 included
    assert states is not None
    assert torch.equal(states["torch"], rng["torch"]) and states["python"] == rng["python"]
    assert torch.equal(states["several"][0], torch.arange(3)) and states["several"][1] == {"x": (1.5,)}
    table = newest(tmp_path).manifest
    assert (table.step, table.world_size, table.metric, table.engine, table.parent) == (
        12,
        1,
        2.5,
        "local",
        "step_00000010",
    )


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    weights = model(1)
    seed_all(3, rank=0)
    save(tmp_path, 1, weights, {}, rng_state(), ONE)
    expected = (torch.rand(4).tolist(), random.random())
    torch.rand(9)
    _, states = load(newest(tmp_path), model(2), ONE)
    assert states is not None
    set_rng_state(states)
    assert (torch.rand(4).tolist(), random.random()) == expected


def test_files_are_plain_safetensors_and_json(tmp_path: Path) -> None:
    path = put(tmp_path, 3)
    tensors = load_file(path / "rank_00000.safetensors")
    assert torch.equal(tensors["weight|wte.weight|0"], model(3)[0].tensors["weight"])
    table = json.loads((path / "manifest.json").read_text())
    assert table["tensors"]["weight|wte.weight"]["shape"] == [7, 5]


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in manifest.DTYPES])
def test_every_type_of_number(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(-3, 4).to(dtype) if dtype != torch.bool else torch.tensor([True, False, True])
    odd = torch.ones(3, dtype=torch.uint8)  # an odd number of bytes beside it must not put anything out of line
    parts = [
        Fragment("odd", (3,), 0, 3, {"weight": odd}),
        Fragment("x", tuple(values.shape), 0, values.numel(), {"weight": values}),
    ]
    save(tmp_path, 1, parts, {}, {}, ONE)
    where = tensorfile.header(tmp_path / "checkpoints/step_00000001/rank_00000.safetensors")["weight|x|0"]
    assert where["data_offsets"][0] % values.element_size() == 0
    back = load_weights(newest(tmp_path))["x"]
    assert back.dtype == dtype
    assert torch.equal(back.view(torch.uint8), values.view(torch.uint8))


def test_whole_weights_by_name(tmp_path: Path) -> None:
    put(tmp_path, 4)
    weights = load_weights(newest(tmp_path))
    assert {name: tuple(value.shape) for name, value in weights.items()} == SHAPES
    for fragment in model(4):
        assert torch.equal(weights[fragment.name].reshape(-1), fragment.tensors["weight"])


def test_numbers_and_tensors_of_optimizer_state_stand_for_each_other(tmp_path: Path) -> None:
    """One engine counts steps in a tensor, another in an int: each reads the other's."""
    weight = {"weight": torch.zeros(2)}
    save(tmp_path, 1, [Fragment("a", (2,), 0, 2, weight, {"step": 7, "rate": 0.1})], {}, {}, ONE)
    as_tensor = Fragment("a", (2,), 0, 2, weight, {"step": torch.zeros(1), "rate": 0.0})
    load(newest(tmp_path), [as_tensor], ONE)
    assert as_tensor.extra == {"step": torch.tensor([7.0]), "rate": 0.1}
    save(tmp_path, 2, [as_tensor], {}, {}, ONE)
    as_number = Fragment("a", (2,), 0, 2, weight, {"step": 0, "rate": 0.0})
    load(newest(tmp_path), [as_number], ONE)
    assert as_number.extra == {"step": 7.0, "rate": 0.1}
    assert newest(tmp_path).stateful == {"a"}


# ------------------------------------------------------------------------------------------------ splits over ranks


@st.composite
def splits(draw: st.DrawFn, world_size: int) -> dict[str, list[tuple[int, int, int]]]:
    """For each tensor the slices (rank, start, end) that make it up."""
    cut = {}
    for name, shape in SHAPES.items():
        size = math.prod(shape)
        edges = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=4))})
        owner = st.integers(0, world_size - 1)
        cut[name] = [(draw(owner), a, b) for a, b in pairwise(edges)]
    return cut


def held(cut: dict[str, list[tuple[int, int, int]]], rank: int, source: list[Fragment] | None) -> list[Fragment]:
    """The fragments of one rank: views of `source`, or zeros to be filled."""
    by_name = {fragment.name: fragment for fragment in source or []}
    made = []
    for name, slices in cut.items():
        for owner, a, b in slices:
            if owner == rank:
                views = (
                    {kind: whole[a:b] for kind, whole in by_name[name].tensors.items()}
                    if source
                    else {kind: torch.zeros(b - a) for kind in ("weight", "exp_avg", "exp_avg_sq")}
                )
                step = by_name[name].extra["step"] if source else torch.zeros(())
                made.append(Fragment(name, SHAPES[name], a, b - a, views, {"step": step}))
    return made


def write_as(run: Path, cut: dict[str, list[tuple[int, int, int]]], world_size: int, source: list[Fragment]) -> None:
    """What `save` does on `world_size` ranks, one after the other in this process."""
    temporary, final = run / "checkpoints/.step_00000005.tmp", run / "checkpoints/step_00000005"
    temporary.mkdir(parents=True)
    tables = [writing._write_rank(temporary, held(cut, rank, source), {}, rank) for rank in range(world_size)]
    writing._write_manifest(temporary, writing._join(tables, 5, {}, None, None, None))
    writing._publish(temporary, final)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_split_over_ranks_reads_any_other(tmp_path: Path, data: st.DataObject) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    writers, readers = data.draw(st.integers(1, 4), "writers"), data.draw(st.integers(1, 4), "readers")
    source = model(5)
    write_as(run, data.draw(splits(writers), "written"), writers, source)
    assert verify(run / "checkpoints/step_00000005") == []
    checkpoint, cut = newest(run), data.draw(splits(readers), "read")
    whole = {(f.name, kind): torch.full_like(t, math.nan) for f in source for kind, t in f.tensors.items()}
    for rank in range(readers):
        reader = Reader(checkpoint)
        for fragment in held(cut, rank, None):
            for kind, view in fragment.tensors.items():
                reader.copy(checkpoint.manifest.tensors[f"{kind}|{fragment.name}"], fragment.start, view)
                whole[fragment.name, kind][fragment.start : fragment.start + fragment.numel] = view
    for fragment in source:
        for kind, tensor in fragment.tensors.items():
            assert torch.equal(whole[fragment.name, kind], tensor)
    everything = held({name: [(0, a, b) for _, a, b in slices] for name, slices in cut.items()}, 0, None)
    load(checkpoint, everything, ONE)
    for fragment in everything:
        start, end = fragment.start, fragment.start + fragment.numel
        origin = next(f for f in source if f.name == fragment.name)
        assert torch.equal(fragment.tensors["exp_avg"], origin.tensors["exp_avg"][start:end])
        assert fragment.extra["step"] == 5


def test_another_number_of_ranks_is_said_and_keeps_its_own_random_numbers(tmp_path: Path) -> None:
    cut = {name: [(0, 0, 1), (1, 1, math.prod(shape))][: math.prod(shape)] for name, shape in SHAPES.items()}
    write_as(tmp_path, cut, 2, model(5))
    said: list[str] = []
    live = model(6)
    _, states = load(newest(tmp_path), live, ONE, warn=said.append)
    assert same(live, model(5)) and states is None
    assert len(said) == 1 and "written by 2 ranks and read by 1" in said[0]


@pytest.mark.parametrize(
    ("slices", "fault"),
    [
        ([(0, 2), (3, 5)], "elements 2 to 3 are missing"),
        ([(0, 3), (2, 5)], "element 2 is there twice"),
        ([(0, 4)], "elements 4 to 5 are missing"),
    ],
)
def test_an_engine_that_forgets_or_repeats_elements_is_found_before_it_counts(
    tmp_path: Path, slices: list[tuple[int, int]], fault: str
) -> None:
    put(tmp_path, 1)
    parts = [Fragment("a", (5,), a, b - a, {"weight": torch.zeros(b - a)}) for a, b in slices]
    with pytest.raises(RuntimeError, match=fault):
        save(tmp_path, 2, parts, {}, {}, ONE)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


# ---------------------------------------------------------------------------------------- other models, nothing copied


def other(change: Callable[[list[Fragment]], object]) -> list[Fragment]:
    live = model(9)
    change(live)
    return live


def rename(live: list[Fragment]) -> None:
    live[0].name = "emb.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "another model: emb.weight are not in it"),
        (lambda live: live.pop(), "another model: this one has no head.weight"),
        (lambda live: setattr(live[0], "shape", (5, 7)), r"another model: wte.weight is \[7, 5\] in it, here \[5, 7\]"),
        (lambda live: [f.tensors.pop("exp_avg_sq") for f in live], r"optimizer state \(exp_avg, exp_avg_sq, step\)"),
        (
            lambda live: [f.tensors.update(row=torch.zeros(f.numel)) for f in live],
            r"\(exp_avg, exp_avg_sq, row, step; 4",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_before_anything_is_copied(
    tmp_path: Path, change: Callable[[list[Fragment]], object], message: str
) -> None:
    put(tmp_path, 1)
    live = other(change)
    before = [{kind: tensor.clone() for kind, tensor in fragment.tensors.items()} for fragment in live]
    with pytest.raises(UserError, match=message):
        load(newest(tmp_path), live, ONE)
    for fragment, old in zip(live, before, strict=True):
        assert all(torch.equal(fragment.tensors[kind], old[kind]) for kind in old)


# -------------------------------------------------------------------------------------------------- damage is found


def test_a_flipped_byte_anywhere_is_found_and_named(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    chance = random.Random(0)
    for file in path.iterdir():
        good = file.read_bytes()
        for position in {0, len(good) - 1, *(chance.randrange(len(good)) for _ in range(60))}:
            bad = bytearray(good)
            bad[position] ^= 1 << chance.randrange(8)
            file.write_bytes(bad)
            problems = verify(path)
            assert len(problems) == 1 and file.name in problems[0], (file.name, position, problems)
        file.write_bytes(good)
    assert verify(path) == []


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_the_newest_intact_one_is_used_and_that_is_said(tmp_path: Path) -> None:
    put(tmp_path, 1), put(tmp_path, 2), put(tmp_path, 3)
    damage(tmp_path / "checkpoints/step_00000003/rank_00000.safetensors")
    said: list[str] = []
    found = find(tmp_path, said.append)
    assert found is not None and found.step == 2
    assert "step_00000003: rank_00000.safetensors is damaged" in said[0]
    assert said[1].endswith("step_00000002") and "newest intact" in said[1] and len(said) == 2


def test_none_intact_is_never_a_start_from_zero(tmp_path: Path) -> None:
    put(tmp_path, 1), put(tmp_path, 2), put(tmp_path, 3)
    damage(tmp_path / "checkpoints/step_00000001/manifest.json")
    (tmp_path / "checkpoints/step_00000002/rank_00000.safetensors").unlink()
    (tmp_path / "checkpoints/step_00000003/manifest.json").unlink()
    with pytest.raises(UserError) as caught:
        find(tmp_path, lambda message: None)
    message = str(caught.value)
    assert "step_00000001: manifest.json is damaged" in message
    assert "step_00000002: rank_00000.safetensors is missing" in message
    assert "step_00000003: manifest.json is missing" in message


def test_no_checkpoint_is_no_fault(tmp_path: Path) -> None:
    assert find(tmp_path / "nowhere", silent) is None
    assert find(tmp_path, silent) is None
    (tmp_path / "checkpoints/.step_00000007.tmp").mkdir(parents=True)
    assert find(tmp_path, silent) is None


# ------------------------------------------------------------------------------------------------ hostile manifests


def forge(path: Path, change: Callable[[Any], object], text: Callable[[str], str] = lambda text: text) -> None:
    """Change the manifest and give it the right checksum again, as an attacker would."""
    table = json.loads((path / "manifest.json").read_text())
    del table["sha256_of_the_lines_below"]
    change(table)
    below = text(json.dumps(table)[1:]).encode() + b"\n"
    guard = f'{{"sha256_of_the_lines_below": "{hashlib.sha256(below).hexdigest()}",\n'.encode()
    (path / "manifest.json").write_bytes(guard + below)


def entry(table: Any) -> Any:
    return table["tensors"]["weight|wte.weight"]


def move(table: Any, name: str) -> None:
    table["files"][name] = table["files"].pop("rank_00000.safetensors")
    for group in ("tensors", "extra"):
        for value in table[group].values():
            for part in value.get("slices", ()):
                part["file"] = name


FORGERIES: list[tuple[Callable[[Any], object], str]] = [
    (lambda t: move(t, "../../secret.safetensors"), "is not a file that a checkpoint may hold"),
    (lambda t: move(t, "/etc/passwd"), "is not a file that a checkpoint may hold"),
    (lambda t: move(t, "rank_00000.safetensors/../x"), "is not a file that a checkpoint may hold"),
    (lambda t: move(t, "rank_00000.pt"), "is not a file that a checkpoint may hold"),
    (lambda t: entry(t)["slices"][0].update(file="../x"), "which is not listed"),
    (lambda t: entry(t)["slices"][0].update(key="__metadata__"), "does not hold '__metadata__'"),
    (lambda t: entry(t)["slices"][0].update(end=34), "elements 34 to 35 are missing"),
    (lambda t: entry(t)["slices"][0].update(start=-1), "'start' should be int"),
    (lambda t: entry(t)["slices"].append(entry(t)["slices"][0]), "is there twice"),
    (lambda t: entry(t).update(shape=[7, True]), "has the shape"),
    (lambda t: entry(t).update(shape=[2**60]), "has the shape"),
    (lambda t: entry(t).update(shape=[2**40], slices=[entry(t)["slices"][0] | {"end": 2**40}]), "would hold"),
    (lambda t: entry(t).update(shape=[1] * 999), "has the shape"),
    (lambda t: entry(t).update(dtype="object"), "has the data type 'object'"),
    (lambda t: entry(t).update(dtype="int32"), "does not hold 'weight|wte.weight|0'"),
    (lambda t: t["tensors"].update(x=[1]), "'shape' should be list"),
    (lambda t: t["extra"].update(x={"value": "os.system"}), "should be a number"),
    (lambda t: t["files"]["rank_00000.safetensors"].update(bytes="8"), "'bytes' should be int"),
    (lambda t: t.update(state=[]), "'state' should be dict"),
    (lambda t: t.update(state={"x": {"$tensor": 0}}), "is not a value that bigtrain writes"),
    (lambda t: t.update(state={"x": {"$eval": "1"}}), "is not a value that bigtrain writes"),
    (lambda t: t.update(version=2), "it is of format 2; this bigtrain reads format 1"),
    (lambda t: t.update(step=-1), "'step' should be int"),
    (lambda t: t.update(step=None), "'step' should be int"),
    (lambda t: t.update(parent=3), "'parent' should be str or null"),
    (lambda t: t.pop("files"), "'files' should be dict"),
]


@pytest.mark.parametrize(("change", "message"), FORGERIES)
def test_a_hostile_manifest_is_one_clear_message(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    path = put(tmp_path, 1)
    (tmp_path / "secret.safetensors").write_bytes((path / "rank_00000.safetensors").read_bytes())
    forge(path, change)
    problems = verify(path)
    assert len(problems) == 1 and message in problems[0]
    with pytest.raises(UserError, match=r"step_00000001: "):
        find(tmp_path, lambda message: None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda t: t.replace('"step": 1', '"step": NaN'), "NaN is not JSON"),
        (lambda t: t.replace('"step": 1', '"step": ' + "9" * 9999), "not valid JSON"),
        (lambda t: t.replace('"step": 1', '"step": ' + "[" * 200_000), "not valid JSON"),
        (lambda t: t[:-9], "not valid JSON"),
        (lambda t: t + "[]", "not valid JSON"),
    ],
)
def test_text_that_is_no_json(tmp_path: Path, text: Callable[[str], str], message: str) -> None:
    path = put(tmp_path, 1)
    forge(path, lambda table: None, text)
    problems = verify(path)
    assert len(problems) == 1 and message in problems[0]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    path = put(tmp_path, 1)
    file = path / "rank_00000.safetensors"
    file.rename(tmp_path / "elsewhere")
    if kind == "link":
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.mkdir()
    assert verify(path) == ["rank_00000.safetensors is not a regular file"]


def test_a_file_with_the_right_checksum_that_is_no_safetensors(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    content = b"\xff" * (path / "rank_00000.safetensors").stat().st_size
    (path / "rank_00000.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    forge(path, lambda t: t["files"]["rank_00000.safetensors"].update(sha256=digest))
    assert verify(path) == ["rank_00000.safetensors is not a safetensors file"]


# -------------------------------------------------------------------------------------------------------- rotation


def kept(run: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step_")) for p in (run / "checkpoints").iterdir())


def test_keep_last_and_keep_best(tmp_path: Path) -> None:
    for step, metric in enumerate([3.0, 1.0, math.nan, None, 2.0, 5.0, 4.0], start=1):
        put(tmp_path, step, metric=metric, keep_last=2, keep_best=2)
    assert kept(tmp_path) == [2, 5, 6, 7]


@pytest.mark.parametrize(("keep_last", "left"), [(None, [1, 2, 3]), (1, [3]), (0, [3]), (2, [2, 3])])
def test_keep_last(tmp_path: Path, keep_last: int | None, left: list[int]) -> None:
    for step in (1, 2, 3):
        put(tmp_path, step, keep_last=keep_last)
    assert kept(tmp_path) == left


def test_the_one_just_written_outlives_damaged_later_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        put(tmp_path, step)
    damage(tmp_path / "checkpoints/step_00000003/manifest.json")
    put(tmp_path, 2, seed=7, keep_last=1)
    assert kept(tmp_path) == [2, 3]
    put(tmp_path, 3, keep_last=1)
    assert kept(tmp_path) == [3] and newest(tmp_path).step == 3


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    put(tmp_path, 1, seed=1)
    put(tmp_path, 1, seed=2, metric=1.5)
    live = model(0)
    load(newest(tmp_path), live, ONE)
    assert same(live, model(2)) and kept(tmp_path) == [1] and newest(tmp_path).manifest.metric == 1.5


def test_what_killed_writers_left_is_cleared_by_the_next_save(tmp_path: Path) -> None:
    put(tmp_path, 1), put(tmp_path, 2)
    root = tmp_path / "checkpoints"
    (root / "step_00000002").rename(root / ".step_00000002.old")  # killed between the two renames of a replacement
    (root / ".step_00000003.tmp").mkdir()
    (root / ".step_00000001.gone").mkdir()
    assert newest(tmp_path).step == 2
    put(tmp_path, 4)
    assert sorted(p.name for p in root.iterdir()) == ["step_00000001", "step_00000002", "step_00000004"]


def test_a_state_that_is_no_json_is_the_programmers_fault_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold a Tensor"):
        save(tmp_path, 1, model(1), {"loss": torch.zeros(())}, {}, ONE)
    with pytest.raises(TypeError, match="cannot have the key 3"):
        save(tmp_path, 1, model(1), {"by_rank": {3: 1}}, {}, ONE)
    assert list((tmp_path / "checkpoints").iterdir()) == []


# ------------------------------------------------------------------------------------------------------- comparing


def test_diff(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    changed = model(1)
    changed[0].tensors["weight"][3] += 0.5
    changed[3].name, changed[1].shape = "lm_head.weight", (1, 5)
    save(a, 1, model(1), {"tokens": 5, "nan": math.nan, "engine": {"scale": 1}}, {}, ONE)
    save(b, 1, changed, {"tokens": 6, "nan": math.nan, "engine": {"scale": 1.0}}, {}, ONE)
    found = diff(newest(a), newest(b))
    assert found.tensors == {"weight|wte.weight": pytest.approx(0.5)}
    assert found.reshaped.keys() == {f"{kind}|norm.weight" for kind in ("weight", "exp_avg", "exp_avg_sq")}
    assert len(found.only_a) == len(found.only_b) == 4 and "weight|lm_head.weight" in found.only_b
    assert found.state == {"tokens": (5, 6), "engine.scale": (1, 1.0)}
    assert not diff(newest(a), newest(a))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigtrain", "checkpoint", *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "160"})


def test_commands(tmp_path: Path) -> None:
    put(tmp_path, 1000, seed=1), put(tmp_path, 2000, seed=2, parent="step_00001000", metric=1.25, engine="zero2")
    listing = run("list", str(tmp_path))
    assert listing.returncode == 0, listing.stderr
    for word in ("2,000", "20,000", "1.2500", "1 zero2", "yes", "step_00001000", "kB"):
        assert word in listing.stdout
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints/step_00001000"):
        assert run("verify", str(path)).returncode == 0
    compared = run("diff", str(tmp_path / "checkpoints/step_00001000"), str(tmp_path))
    assert (
        compared.returncode == 0 and "16 of 16 tensors differ" in compared.stdout and "loop.tokens" in compared.stdout
    )

    damage(tmp_path / "checkpoints/step_00002000/rank_00000.safetensors")
    verified = run("verify", str(tmp_path))
    assert verified.returncode == 1
    assert "step_00002000: rank_00000.safetensors is damaged" in verified.stdout
    assert "intact" in verified.stdout
    assert "no: rank_00000.safetensors" in run("list", str(tmp_path)).stdout
    assert run("--help").stdout.startswith("usage: bigtrain checkpoint")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "/nowhere/at/all"], "There is no run folder or checkpoint /nowhere/at/all"),
        (["list", __file__], "is a file"),
        (["verify"], "needs a path"),
        (["verfy", "x"], "Did you mean 'verify'?"),
        (["diff", "x"], "needs two paths, not 1"),
        (["list", "--all"], "has no option --all"),
    ],
)
def test_commands_refuse(words: list[str], message: str) -> None:
    from bigtrain.checkpoint.commands import main

    with pytest.raises(UserError) as caught:
        main(words)
    assert message in str(caught.value)


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bigtrain.checkpoint.commands import main

    path = put(tmp_path, 1)
    forge(path, lambda t: t.update(parent="\x1b[31m[/red][bold]x", state={"loop": 1, "[/x]\x1b": 1}))
    put(tmp_path, 2)
    assert main(["list", str(tmp_path)]) == 0
    assert main(["diff", str(path), str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "[/x]?" in out


def test_listing_needs_no_torch() -> None:
    code = "import sys, bigtrain.checkpoint.commands, bigtrain.checkpoint.folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_second_copy_of_the_tensors(tmp_path: Path) -> None:
    """A process that saves a 256 MB tensor must not need another 256 MB."""
    code = f"""
import resource, torch
from bigtrain.checkpoint.fragments import Fragment
from bigtrain.checkpoint.save import save
from bigtrain.distributed import Ranks
big = torch.ones(64_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
half = 32_000_000
parts = [Fragment("a", (2 * half,), i * half, half, {{"weight": big[i * half : (i + 1) * half]}}) for i in range(2)]
save({str(tmp_path)!r}, 1, parts, {{}}, {{}}, Ranks(0, 1, 0, 1, torch.device("cpu")))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60  # MB
