"""The worker: one process of a run. Builds the parts, puts them on the checkpoint's state, calls the loop, finishes.

`bigtrain train` starts it with `--run-dir DIR`; any other launcher starts it bare, with the recipe and overrides:
`deepspeed --num_gpus 8 --module bigtrain.train recipe=R`, `torchrun --nproc-per-node 8 -m bigtrain.train recipe=R`.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bigtrain import garbage
from bigtrain.config.compose import PENDING, Composed, compose, freeze, load_frozen, load_run
from bigtrain.config.rules import replicas
from bigtrain.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, RunError, UserError, guarded
from bigtrain.launchers import report
from bigtrain.placement import read_environment
from bigtrain.terminal import quiet_libraries

if TYPE_CHECKING:
    from bigtrain.config.schema import RunConfig
    from bigtrain.distributed import Ranks
    from bigtrain.engines.base import Engine

STARTING_S = 3.0
"""How long a rank that is asked to stop before its loop may take to end by itself."""


class GoneReader:
    """Standard output that training outlives: when its reader is gone (`| head`), what is said is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def _outlive(self, action: Callable[..., Any], *arguments: str) -> Any:
        try:
            return action(*arguments)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def write(self, text: str) -> Any:
        """See `TextIO.write`."""
        return self._outlive(self._stream.write, text)

    def flush(self) -> None:
        """See `TextIO.flush`."""
        self._outlive(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def die_with_parent() -> None:
    """Ask the kernel to end this rank when the process that supervises it is gone (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def stop_while_starting(leave: Callable[[], int]) -> None:
    """Until the loop listens (`Stop`), a request to stop ends this rank with 75: there is nothing to save.

    Also where it waits for the others in C, where no handler of Python's runs; `leave` gives that exit code.
    """
    asking = (signal.SIGTERM, signal.SIGUSR1)

    def ask(number: int, frame: object) -> None:
        raise SystemExit(EXIT_STOPPED)

    def insist() -> None:
        while number := os.read(reader, 1)[0]:
            if number in asking and signal.getsignal(number) is ask:
                time.sleep(STARTING_S)
                if signal.getsignal(number) is ask:
                    os._exit(leave())

    for number in asking:
        signal.signal(number, ask)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=insist, name="stop-while-starting", daemon=True).start()


def read_arguments(argv: Sequence[str]) -> Composed:
    """The configuration that `argv` asks for; launchers' own `--local_rank=N` is taken and not needed."""
    words = [word for word in argv if not word.startswith(("--local_rank", "--local-rank"))]
    if "--run-dir" not in words:
        return compose(words, world_size=read_environment(dict(os.environ)).world_size)
    run_dir = Path(words[words.index("--run-dir") + 1])
    trusted = [words[i + 1] for i, word in enumerate(words) if word == "--trust"]
    file = run_dir / PENDING
    if not file.exists():  # started again by the launcher or the scheduler: the run has taken it up before
        file = run_dir / "config.yaml"
    ranks = read_environment(dict(os.environ)).world_size
    return Composed(load_run(file, trusted, ranks), load_frozen(file))


def work(composed: Composed, supervised: bool) -> int:
    """One rank's whole life; `supervised`: by `bigtrain train`."""
    from bigtrain import distributed
    from bigtrain.watch import Watch

    trainer = composed.config.trainer
    ranks = distributed.setup(trainer.device, trainer.timeout_s)
    watch = Watch(ranks) if ranks.world_size > 1 else None
    try:
        code = _train(composed, ranks, supervised)
    except BaseException as error:
        if watch is None:
            raise
        cause = watch.failed(error)
        raise cause from (None if cause is not error else error.__cause__)
    else:
        if watch is not None:
            watch.leave()
        return code
    finally:
        distributed.teardown()


def _train(composed: Composed, ranks: Ranks, supervised: bool) -> int:
    import torch

    from bigtrain.assembly import assemble, check_parts, describe, keep_tokenizer, prepared_data, run_loop
    from bigtrain.checkpoint.folder import lock
    from bigtrain.distributed import broadcast_object, run_on_first
    from bigtrain.outputs import Outputs, finish, keep_confusion
    from bigtrain.report.data_page import report_on
    from bigtrain.rollcall import roll_call
    from bigtrain.telemetry.environment import write_environment
    from bigtrain.telemetry.profile import Profile
    from bigtrain.telemetry.progress import say, setup_logging
    from bigtrain.trainer import Stop

    mine, composed = composed, broadcast_object(composed)
    config, run_dir = composed.config, Path(composed.config.run.dir or "")
    ranks = replace(ranks, replicas=replicas(config.engine))
    with ExitStack() as stack:
        stop = stack.enter_context(Stop().armed())
        run_on_first(lambda: stack.enter_context(lock(run_dir)))
        if ranks.world_size > 1:
            roll_call(mine.raw, run_dir, ranks.first, say)
        setup_logging(run_dir, ranks.rank)
        run_on_first(lambda: write_environment(run_dir))
        for note in composed.notes if ranks.first else ():
            say(note)

        schedule, objective = check_parts(config)
        garbage.started()
        data = prepared_data(config)
        parts = assemble(config, ranks, data, schedule, objective)
        engine, state, steps = parts.engine, parts.state, parts.steps
        if ranks.first:  # from here on the run has taken the configuration up
            freeze(composed.raw, run_dir / "config.yaml")
            (run_dir / PENDING).unlink(missing_ok=True)
            keep_tokenizer(data, run_dir)
            report_on(data, run_dir)
            say(describe(config, engine, ranks, len(data.train), steps))
            if state.step >= steps:
                say(f"nothing is left to train: the run is at step {state.step:,}, and ends at {steps:,}")
        outputs = stack.enter_context(Outputs(config, ranks, state.step, parts.checkpoint is not None, steps))
        profile = Profile(run_dir, engine.device, config.profiler) if ranks.first and config.profiler else None

        def stepped(step: int) -> None:
            outputs.stepped(step)
            if profile is not None:
                profile(step)

        try:
            finished = run_loop(parts, stop, outputs.log, stepped)
        except torch.OutOfMemoryError as error:
            raise RunError(_out_of_memory(config, engine, ranks, state.step, str(error))) from error
        if profile is not None:
            profile.close()
        outputs.close()
        if ranks.first:
            keep_confusion(objective, data, run_dir)
        if ranks.first and finished and state.step < steps and config.trainer.early_stopping:
            say(
                f"stopped early: {state.evaluations_since_best} evaluations without a better held-out "
                f"{config.trainer.early_stopping.metric}"
            )
        engine.close()
        known = config.hardware is not None or engine.device.type == "cuda"
        if ranks.first and known and hasattr(engine.model, "shape"):
            _against_plan(config, engine, ranks)
        if ranks.first:
            finish(config, run_dir, finished)
            if not supervised:
                say(str(run_dir))  # `bigtrain train` says it itself
        return EXIT_DONE if finished else EXIT_STOPPED


def _out_of_memory(config: RunConfig, engine: Engine, ranks: Ranks, step: int, said: str) -> str:
    """What held most of it, and what would have fitted."""
    import torch

    from bigtrain.plan.advice import advice
    from bigtrain.plan.subject import Cluster

    text = f"out of memory on {engine.device} after step {step}: {said.splitlines()[0]}"
    if not hasattr(engine.model, "shape"):
        return text
    each = read_environment(dict(os.environ)).local_world_size
    room = torch.cuda.get_device_properties(engine.device).total_memory if engine.device.type == "cuda" else math.inf
    return f"{text}\n{advice(config, engine.model.shape, Cluster(ranks.world_size // each, each), room)}"  # type: ignore[arg-type]


def _against_plan(config: RunConfig, engine: Engine, ranks: Ranks) -> None:
    """What `bigtrain plan` says of this run, and what it took."""
    import torch

    from bigtrain.plan.past import compare
    from bigtrain.plan.subject import Cluster
    from bigtrain.telemetry.progress import say

    each = read_environment(dict(os.environ)).local_world_size
    gpu = engine.device.type == "cuda"
    name = torch.cuda.get_device_name(engine.device) if gpu else "CPU"
    found = compare(config, engine.model.shape, Cluster(ranks.world_size // each, each), name)  # type: ignore[arg-type]
    if found is not None and found["error"]:
        off = ", ".join(f"{key.partition('_')[0]} {error:+.0%}" for key, error in found["error"].items())
        say(f"measured against bigtrain plan: {off} (plan.json)")


def main(argv: Sequence[str] | None = None) -> int:
    """The worker's command line."""
    garbage.hold()
    quiet_libraries()
    # Read by torch at its first allocation: large buffers on huge pages, which took 8 % off a CPU's peak memory.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    sys.stdout = GoneReader(sys.stdout)
    if "--run-dir" in words:
        die_with_parent()
    stop_while_starting(lambda: _stopped(words))
    code = guarded(_reporting if "--report" in words else _straight, words)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # all is done: a launcher that ends the others changes nothing now
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _stopped(words: Sequence[str]) -> int:
    if "--report" not in words:
        return EXIT_STOPPED
    run_dir = Path(words[words.index("--run-dir") + 1])
    return report.record(run_dir, read_environment(dict(os.environ)).rank, EXIT_STOPPED)


def _straight(words: Sequence[str]) -> int:
    return work(read_arguments(words), "--run-dir" in words)


def _reporting(words: Sequence[str]) -> int:
    """The same where the launcher in between loses signals and exit codes: see `launchers/report.py`."""
    run_dir, rank = Path(words[words.index("--run-dir") + 1]), read_environment(dict(os.environ)).rank
    report.listen(run_dir)
    try:
        return report.record(run_dir, rank, _straight(words))
    except SystemExit as end:  # a stop outside of the loop
        return report.record(run_dir, rank, int(end.code or 0))
    except UserError:
        if report.may_speak(run_dir, rank):
            raise
        return EXIT_USER


if __name__ == "__main__":
    sys.exit(main())
