"""What this machine's CPU reaches, measured in a second: a plan of it needs torch, and no number is guessed."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import cache

from bigtrain.config.schema import Hardware
from bigtrain.plan.subject import Cluster


def measured(hardware: Hardware, precision: str, where: Cluster) -> Hardware:
    """The hardware with what it leaves open filled in for one rank, of as many on a node as `where` has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    host = hardware.host_memory_gib or total / 2**30
    found = replace(hardware, host_memory_gib=host, memory_gib=hardware.memory_gib or host / where.each)
    if found.tflops and found.bandwidth:
        return found
    flops, bandwidth = _rates(precision, where.each)
    return replace(
        found,
        tflops=found.tflops or {precision: flops / 1e12},
        bandwidth=found.bandwidth or bandwidth / 1e9,
    )


@cache  # engine=auto asks for hundreds of plans
def _rates(precision: str, ranks: int) -> tuple[float, float]:
    """FLOP/s and bytes a second of one of so many ranks."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    try:
        flops = 2 * 512**3 / _fastest(lambda a, b: a @ b, torch.randn(512, 512, dtype=dtype))
        numbers = torch.zeros(2**23)
        return flops, 3 * numbers.nbytes / _fastest(torch.add, numbers)
    finally:
        torch.set_num_threads(threads)


def _fastest(work: object, operand: object) -> float:
    """Seconds of the fastest call within a quarter of a second."""
    best, end = float("inf"), time.perf_counter() + 0.25
    while time.perf_counter() < end:
        start = time.perf_counter()
        work(operand, operand)  # type: ignore[operator]
        best = min(best, time.perf_counter() - start)
    return best
