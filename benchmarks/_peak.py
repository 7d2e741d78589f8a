"""One rank of `plan_memory.py` and `plan_step.py`: trains a few steps of each configuration, and counts or times them.

    python -m torch.distributed.run --nproc-per-node N benchmarks/_peak.py CASES.json OUT.json STEPS [peak|time]

CASES.json: lists of overrides of `bigtrain train`. OUT.json: for each what `measured` says on each rank. The most bytes
at once is `max_memory_allocated` on a GPU; on a CPU the same of its allocator, from the profiler's record of every
allocation, which would slow what is timed.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch


def batches(config: Any, vocabulary: int, accumulation: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens, as the native decoder takes them."""
    size = (config.trainer.micro_batch_size, config.data["sequence_length"])
    found = []
    for _ in range(accumulation):
        ids = torch.randint(vocabulary, size)
        found.append({"input_ids": ids, "labels": ids.roll(-1, 1)})
    return found


def count_on_all_threads() -> None:
    """torch counts what its CPU allocator frees on threads that are profiled only, and gloo frees on its own what it
    has sent last: without this flag of torch's such bytes would count as held for ever."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def allocated(events: Any) -> int:
    """The most that was held over the record, beyond what was held before it (a closed DeepSpeed engine stays)."""
    found: list[tuple[int, int, int]] = []
    stack = list(events)
    while stack:
        one = stack.pop()
        stack.extend(one.children)
        if one.tag == torch._C._profiler._EventType.Allocation:
            found.append((one.start_time_ns, one.extra_fields.total_allocated, one.extra_fields.alloc_size))
    _, total, size = min(found)
    return max(total for _, total, _ in found) - (total - size)


def measured(words: list[str], ranks: Any, steps: int, wanted: str) -> dict[str, Any]:
    """`peak`, the most bytes at once, or `step_s`, the median seconds of the later half of the steps; both on a GPU."""
    from bigtrain.assembly import build_optimizer
    from bigtrain.config.components import build
    from bigtrain.config.compose import compose
    from bigtrain.config.rules import accumulation
    from bigtrain.engines import build_engine

    config = compose(words, ranks.world_size).config
    vocabulary = config.model["vocab_size"]
    micro = accumulation(config.trainer, ranks.data_ranks)
    gpu = ranks.device.type == "cuda"

    def train() -> float:
        engine = build_engine(
            config,
            lambda: build(config.model, "model"),
            build(config.objective, "objective"),
            lambda model: build_optimizer(config, model),
            ranks,
        )
        torch.manual_seed(ranks.rank)
        took = []
        for _ in range(steps):
            step = batches(config, vocabulary, micro)
            start = time.perf_counter()
            targets = config.trainer.global_batch_size * config.data["sequence_length"]
            float(engine.train_step(step, targets, 1.0).loss)
            took.append(time.perf_counter() - start)
        engine.close()
        return statistics.median(took[steps // 2 :])

    gc.collect()
    gc.collect()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        took = train()
        return {"peak": torch.cuda.max_memory_allocated(), "step_s": took}
    if wanted == "time":
        return {"step_s": train()}
    record = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with record as profile:
        train()
    events = profile.profiler.kineto_results.experimental_event_tree()
    peak = allocated(events)
    del events, profile, record
    return {"peak": peak}


def main() -> None:
    from bigtrain.distributed import gather_objects, setup, teardown

    cases, out, steps, wanted = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), *sys.argv[3:5]
    ranks = setup()
    if ranks.device.type == "cpu":
        count_on_all_threads()
    found = []
    for number, words in enumerate(cases):
        mine = measured(words, ranks, int(steps), wanted)
        found.append(gather_objects(mine))
        if ranks.first:
            print(f"{number + 1}/{len(cases)} {found[-1][0]}: {' '.join(words)}", flush=True)
            out.write_text(json.dumps(found))
    teardown()


if __name__ == "__main__":
    main()
