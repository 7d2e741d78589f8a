"""Meters against a clock, FLOPs against a count by hand, peaks against datasheets, the terminal against its text."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from bigtrain.telemetry.meters import Meters, device_peak_flops, peak_memory_bytes, training_flops_per_token
from bigtrain.telemetry.peaks import peak_flops
from bigtrain.telemetry.progress import TrainProgress, clock, console, say, setup_logging, short

CPU = torch.device("cpu")


def test_window_is_the_mean_over_its_steps() -> None:
    meters = Meters(CPU, flops_per_token=100.0, peak_flops=1e6)
    for _ in range(4):
        with meters.waiting():
            time.sleep(0.01)
        time.sleep(0.02)
        meters.step(tokens=300)
    with meters.paused():
        time.sleep(0.3)  # an evaluation
    window = meters.window()
    assert window["step_time_s"] == pytest.approx(0.03, rel=0.5) and window["step_time_s"] < 0.07
    assert window["data_wait_s"] == pytest.approx(0.01, rel=0.8)
    assert window["tokens_per_s"] == pytest.approx(300 / window["step_time_s"])
    assert window["mfu"] == pytest.approx(window["tokens_per_s"] * 100 / 1e6)
    meters.step(tokens=10)
    assert meters.window()["data_wait_s"] == 0.0  # a window begins anew
    assert Meters(CPU, flops_per_token=1.0, peak_flops=None).window()["mfu"] is None


def test_flops_equal_a_count_by_torch() -> None:
    """6 N + 12 L H Q S, against torch's own counter on one attention layer with its projections."""
    from torch.utils.flop_counter import FlopCounterMode

    sequence, heads, head_dim = 32, 4, 8
    width = heads * head_dim
    projections = [torch.nn.Linear(width, width, bias=False) for _ in range(4)]
    x = torch.randn(1, sequence, width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        q, k, v = (p(x).view(1, sequence, heads, head_dim).transpose(1, 2) for p in projections[:3])
        weights = torch.softmax(q @ k.transpose(-1, -2), -1)
        projections[3]((weights @ v).transpose(1, 2).reshape(1, sequence, width)).sum().backward()
    n = sum(p.weight.numel() for p in projections)
    expected = training_flops_per_token(n, layers=1, heads=heads, head_dim=head_dim, sequence_length=sequence)
    assert counter.get_total_flops() == expected * sequence


@pytest.mark.parametrize(
    ("name", "arithmetic", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "fp16", 835.5),
        ("NVIDIA H200", "fp8", 1978.9),
        ("NVIDIA H200 NVL", "bf16", 835.5),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA GB200", "bf16", 2500),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("Tesla T4", "fp16", 65),
        ("AMD Instinct MI300X", "bf16", 1307.4),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16", None),
        ("NVIDIA Z9000", "bf16", None),
        ("", "bf16", None),
    ],
)
def test_peaks(name: str, arithmetic: str, tflops: float | None) -> None:
    peak = peak_flops(name, arithmetic)  # type: ignore[arg-type]
    assert peak == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_a_cpu_has_no_assumed_peak() -> None:
    assert device_peak_flops(CPU, "fp32") is None


def test_peak_memory_sees_what_was_held_and_let_go() -> None:
    before = peak_memory_bytes(CPU)
    block = torch.ones(100_000_000 // 4)
    del block
    assert peak_memory_bytes(CPU) >= max(before, 100_000_000)


def test_plain_lines_where_there_is_no_terminal() -> None:
    output = io.StringIO()
    progress = TrainProgress(400, output=output)
    for step in range(1, 11):
        progress.step(step)
    metrics = {"loss": 5.25, "lr": 3e-4, "grad_norm": 1.5, "tokens_per_s": 12345.0, "mfu": 0.41, "step_time_s": 0.5}
    progress.log(10, "train", metrics)
    progress.log(10, "eval", {"loss": 5.5, "perplexity": 244.69, "tokens": 20480})
    progress.close()
    train, evaluation = output.getvalue().splitlines()
    assert train == "train  step  10/400  loss 5.2500  lr 3.00e-04  grad 1.5  12.3k tok/s  mfu 41.0%  left 3:15"
    assert evaluation == "eval   step  10/400  loss 5.5000  perplexity 244.69"


def test_logs_of_ranks(tmp_path: Path) -> None:
    """Rank 0 speaks; rank 1 has its file, which takes child processes and Python warnings too; a crash is seen."""
    code = """
import logging, os, sys, warnings, pathlib
from bigtrain.telemetry.progress import adopt_libraries, setup_logging
rank = int(sys.argv[2])
setup_logging(pathlib.Path(sys.argv[1]), rank)
library = logging.getLogger("DeepSpeed")  # as deepspeed does it when it is imported
library.propagate = False
library.addHandler(logging.StreamHandler(sys.stdout))
adopt_libraries()
library.warning("from the library")
logging.getLogger("bigtrain.trainer").info("from bigtrain [not markup]")
logging.getLogger("urllib3").info("chatter")
warnings.warn("a warning")
print("printed")
os.system("echo child")
raise SystemExit("crashed")
"""
    outputs = []
    for rank in (0, 1):
        command = [sys.executable, "-c", code, str(tmp_path), str(rank)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stderr == "crashed\n"
        outputs.append(done.stdout)
    assert outputs[1] == ""
    for text in (
        "warning: from the library",
        "from bigtrain [not markup]",
        "UserWarning: a warning",
        "printed",
        "child",
    ):
        assert text in outputs[0]
    assert "chatter" not in outputs[0]
    for rank in (0, 1):
        log = (tmp_path / "logs" / f"rank_{rank}.log").read_text()
        for text in ("WARNING DeepSpeed: from the library", "INFO urllib3: chatter", "UserWarning: a warning"):
            assert text in log
        assert ("printed" in log and "child" in log) == (rank == 1)


def test_logging_twice_in_a_process_does_not_double(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console.cache_clear()
    root, level = logging.getLogger(), logging.getLogger().level
    try:
        setup_logging(tmp_path / "a", 0)
        path = setup_logging(tmp_path / "b", 0)
        logging.getLogger("bigtrain").info("once")
        say("said [once]")
        assert path.read_text().count("INFO bigtrain: once") == 1
        assert path.read_text().count("said [once]") == 1
        assert capsys.readouterr().out == "once\nsaid [once]\n"
        assert (tmp_path / "a" / "logs" / "rank_0.log").read_text() == ""
    finally:
        for handler in [handler for handler in root.handlers if getattr(handler, "bigtrain", False)]:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
        logging.captureWarnings(False)
        warnings.resetwarnings()


def test_short_and_clock() -> None:
    assert [short(x) for x in (7, 1234, 5.6e9, 2.5e6)] == ["7", "1.23k", "5.6B", "2.5M"]
    assert [clock(x) for x in (5, 75, 7261)] == ["0:05", "1:15", "2:01:01"]
