"""The profiler's page: of real steps, with the time that nothing used."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from bigtrain.cli import main
from bigtrain.config.schema import Profiler
from bigtrain.telemetry.profile import Profile, kind_of


def test_a_page_and_a_trace_of_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    profile = Profile(tmp_path, torch.device("cpu"), Profiler(start=2, steps=3))
    matrix = torch.randn(300, 300)
    for step in range(1, 8):
        for _ in range(20):
            matrix = (matrix @ matrix).tanh()
        profile(step)
    page = (tmp_path / "profile" / "summary.md").read_text()
    assert page.startswith("# 3 steps, ") and "| matrix products |" in page and "| gaps: Python, waiting |" in page
    products = next(line for line in page.splitlines() if line.startswith("| `aten::mm`"))
    assert products.split("|")[2].strip() == "20"  # calls a step
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes()))
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 60


def test_a_run_that_ends_in_between_has_its_page_too(tmp_path: Path) -> None:
    profile = Profile(tmp_path, torch.device("cpu"), Profiler(start=1, steps=50))
    for step in range(1, 4):
        torch.ones(10).sum()
        profile(step)
    profile.close()
    profile.close()
    assert (tmp_path / "profile" / "summary.md").read_text().startswith("# 2 steps, ")


def test_a_run_that_is_too_short_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = Profile(tmp_path, torch.device("cpu"), Profiler(start=10, steps=3))
    profile(1)
    profile.close()
    assert "profile: none, as this was 1 steps" in capsys.readouterr().out and not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix products"),
        ("ncclDevKernel_AllGather_RING_LL", "messages"),
        ("aten::_fused_adamw_", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("vectorized_elementwise_kernel", "elementwise and rest"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_wrong_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe=smoke", "profiler=default", "profiler.steps=0"]) == 2
    assert "profiler.steps=0: it must be at least 1" in capsys.readouterr().err
