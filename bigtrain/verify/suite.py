"""All set-ups of a recipe, one after the other, each against its reference."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.config.launching import visible_gpus
from bigtrain.config.schema import Engine, RunConfig
from bigtrain.errors import RunError, UserError
from bigtrain.verify import cases, judge
from bigtrain.verify.cases import Case, Settings
from bigtrain.verify.judge import EXACT, FP32, Bound, Row, of_precision
from bigtrain.verify.processes import Fault, run, start_server

if TYPE_CHECKING:
    from bigtrain.verify.rank import Outcome, Plant

LEAK = 1e-5
"""How far a logit may move that must not, relative to the largest: other sizes of a matrix product round otherwise."""
LN_V = 0.05
"""How far the first loss of a model from scratch may be from ln V, relative."""
DISTINCT = 0.9
"""Share of dropout's draws that must differ: two may agree by chance in fp32."""


class Suite:
    """Runs the set-ups of one recipe.

    Args:
        recipe: as composed, its data prepared already.
        settings: of the command line.
        out: an empty folder; it gets the logs, and for the time being the runs' folders.
        whole: the steps of the recipe's own run.
        tell: called with each row as soon as it is there.
        begin: called with the name of each set-up before it runs.
        plant: a fault for each rank to begin with (tests).
    """

    def __init__(
        self,
        recipe: RunConfig,
        settings: Settings,
        out: Path,
        whole: int,
        tell: Callable[[Row], None],
        begin: Callable[[str], None],
        plant: Plant | None = None,
    ) -> None:
        self.recipe, self.settings, self.out, self.whole, self.plant = recipe, settings, out, whole, plant
        self.tell, self.begin = tell, begin
        self.device = device(recipe)
        self.base, self.notes = cases.base(recipe, settings)
        self.middle = max(1, settings.steps // 2)
        """After this step a run is left, to be gone on with."""
        self._runs = 0
        (out / "logs").mkdir(parents=True, exist_ok=True)

    def rows(self) -> Iterator[Row]:
        """Every row, as soon as it is there. The reference always comes first.

        Raises:
            UserError: the recipe itself is refused.
            RunError: the reference cannot be run.
        """
        self.right, reference = self._reference()
        yield reference
        for group in cases.GROUPS:
            if group in self.settings.only:
                yield from getattr(self, f"_{group}")()

    def _run(self, case: Case) -> Outcome | Fault:
        """The merged outcome of all ranks."""
        from bigtrain.verify.rank import work

        self._runs += 1
        name = "".join(c if c.isalnum() else "-" for c in f"{self._runs:02}-{case.group}-{case.name}")
        case.config.run.dir = str(self.out / "work" / name)
        try:
            cases.check(case)
        except UserError as error:
            return Fault("refused", str(error))
        if case.resume_from is not None:
            self._leave_at_middle(case.resume_from, Path(case.config.run.dir))
        self.begin(f"{case.group}: {case.name}")
        threads = getattr(self.recipe.launcher, "threads", None) or max(1, (os.cpu_count() or 1) // case.ranks)
        answers = run(
            work,
            case.ranks,
            case,
            self.whole,
            self.plant,
            device=self.device,
            threads=threads,
            timeout_s=self.settings.timeout_s,
            log=self.out / "logs" / name,
        )
        return answers if isinstance(answers, Fault) else judge.merged(answers)

    def _leave_at_middle(self, source: Path, target: Path) -> None:
        """A run folder that holds what the run in `source` had written when it was in its middle."""
        from bigtrain.checkpoint.find import FOLDER, name

        step = source / FOLDER / name(self.middle)
        if step.is_dir():
            shutil.copytree(step, target / FOLDER / step.name, copy_function=os.link)

    def _compared(self, case: Case, right: Outcome | Fault, bound: Bound = FP32) -> Row:
        if isinstance(right, Fault):
            result = judge.row(case, right)
            result.note = f"nothing to compare with: {right.message}"
            return result
        return judge.compare(case, self._run(case), right, bound)

    # ------------------------------------------------------------------------------------------------ the reference

    def _reference(self) -> tuple[Outcome, Row]:
        config = cases.reference(self.base)
        config.checkpoint.every = self.middle
        case = Case("reference", "local, fp32", config)
        right = self._required(case)
        clip = config.trainer.grad_clip
        if clip is not None and min(right.norms) < 1.1 * clip:
            active = float(f"{0.5 * min(right.norms):.2g}")
            self.notes.append(f"trainer.grad_clip={active:g} instead of {clip:g}, so that every step is clipped")
            self.base.trainer.grad_clip = config.trainer.grad_clip = active
            right = self._required(case)
        self.reference_dir = Path(config.run.dir or "")
        return right, judge.row(case, right)

    def _required(self, case: Case) -> Outcome:
        found = self._run(case)
        if isinstance(found, Fault) and found.kind == "refused":
            raise UserError(found.message)
        if isinstance(found, Fault):
            raise RunError(
                f"the recipe does not run in one process: {found.message}. If it is too large for this machine, verify "
                "it smaller: model.layers=2, a smaller trainer.micro_batch_size or data.sequence_length."
            )
        return found

    # --------------------------------------------------------------------------------------------------- the groups

    def _probe(self) -> Iterator[Row]:
        plain = Case("probe", "normaliser: plain PyTorch, a sample at a time", cases.reference(self.base), work="plain")
        yield self._compared(plain, self.right)
        leak, vocabulary = self._leak("leak", self.base)
        yield leak
        if not self.recipe.model.get("path") and vocabulary:
            expected = math.log(vocabulary)
            gap = abs(self.right.losses[0] / expected - 1)
            result = Row("probe", "first loss is ln V", 1, "ok", self.right.losses[0], gap, LN_V)
            if not gap <= LN_V:
                result.verdict = "FAIL"
                result.note = (
                    f"ln {vocabulary:,} is {expected:.3f}: the weights at the start are not what they should be"
                )
            yield result

    def _leak(self, name: str, config: RunConfig) -> tuple[Row, int]:
        case = Case("probe", name, cases.reference(config), data="as it is", work="leak")
        found = self._run(case)
        result = judge.row(case, found)
        if isinstance(found, Fault):
            return result, 0
        felt = found.moved.pop("felt")
        worst = max(found.moved, key=lambda what: found.moved[what])
        result.difference, result.bound = found.moved[worst], LEAK
        result.name = f"{name}: {', '.join(found.moved)}"
        if not found.moved[worst] <= LEAK:
            result.verdict = "FAIL"
            what = "a later one" if worst == "an earlier token" else worst
            result.note = f"logits move with {what}: an attention mask is not what it should be"
        elif not felt > 0:
            result.verdict, result.note = "FAIL", "logits do not move with their own token: the probe sees nothing"
        elif "another document" not in found.moved and config.data.get("packing") in ("concat", "best_fit"):
            result.note = "documents of a sample see each other, as data.document_masks=false says"
        return result, found.vocabulary

    def _recipe(self) -> Iterator[Row]:
        """As it is: its own engine, precision, activation checkpointing and labels."""
        right = Case("recipe", "reference", cases.reference(self.base), data="as it is")
        case = Case("recipe", "as it is", self._as_it_is(), self.settings.ranks, data="as it is")
        precision = self.recipe.precision
        case.name += f": {case.config.engine.name}, {'fp8' if precision.fp8 else precision.name}"
        yield self._compared(case, self._run(right), of_precision(precision))

    def _as_it_is(self) -> RunConfig:
        config = cases.own_engine(self.base, self.settings.ranks)
        trainer = self.recipe.trainer
        config.trainer.activation_checkpointing = trainer.activation_checkpointing
        config.trainer.activation_offload = trainer.activation_offload
        scale = min(self.recipe.precision.initial_loss_scale, cases.SMALL_LOSS_SCALE)
        config.precision = replace(self.recipe.precision, initial_loss_scale=scale)
        return config

    def _engine(self) -> Iterator[Row]:
        for case in cases.engines(self.base, self.settings.ranks):
            yield self._compared(case, self.right)

    def _accumulation(self) -> Iterator[Row]:
        for case in cases.accumulations(self.base, self.settings.ranks):
            yield self._compared(case, self.right)

    def _activation(self) -> Iterator[Row]:
        for case in cases.activations(self.base, self.settings.ranks):
            yield self._compared(case, self.right)

    def _precision(self) -> Iterator[Row]:
        for case in cases.precisions(self.base, self.settings.ranks):
            yield self._compared(case, self.right, of_precision(case.config.precision))

    def _packing(self) -> Iterator[Row]:
        for name, config in cases.packings(self.base).items():
            right = self._run(Case("packing", f"{name}, reference", cases.reference(config)))
            case = Case("packing", name, cases.own_engine(config, self.settings.ranks), self.settings.ranks)
            yield self._compared(case, right)
            if config.data["document_masks"] and not isinstance(right, Fault):
                yield self._leak("leak with document masks", config)[0]

    def _dropout(self) -> Iterator[Row]:
        ranks = self.settings.ranks
        first = self._with_dropout()
        again = Case("dropout", "the same again", self._as_it_is(), ranks, dropout=True)
        yield self._compared(again, first, self._exact)
        if isinstance(first, Fault):
            return
        other = self._as_it_is()
        way = "none" if other.trainer.activation_checkpointing == "full" else "full"
        other.trainer.activation_checkpointing = way  # type: ignore[assignment]
        case = Case("dropout", f"activation checkpointing {way}", other, ranks, dropout=True)
        yield self._compared(case, first, of_precision(other.precision))
        yield self._draws()

    def _with_dropout(self) -> Outcome | Fault:
        """The recipe as it is, with dropout; run once, left in its middle by those who go on with it."""
        if not hasattr(self, "_dropped"):
            case = Case("dropout", "as it is", self._as_it_is(), self.settings.ranks, dropout=True)
            case.config.checkpoint.every = self.middle
            self._dropped, self._dropped_dir = self._run(case), Path(case.config.run.dir or "")
        return self._dropped

    def _draws(self) -> Row:
        """One sample again and again, with weights that stay: each draw must be another."""
        config = self._as_it_is()
        config.trainer.micro_batch_size, config.trainer.global_batch_size = 1, 4 * self.settings.ranks
        config.trainer.max_steps, config.trainer.grad_clip = 2, None
        case = Case("dropout", "another mask every time", config, self.settings.ranks, data="same", dropout=True)
        found = self._run(case)
        result = judge.row(case, found)
        if not isinstance(found, Fault):
            distinct = len(set(found.parts)) / max(len(found.parts), 1)
            result.difference, result.bound = 1 - distinct, 1 - DISTINCT
            if not distinct >= DISTINCT:
                result.verdict = "FAIL"
                result.note = (
                    f"of {len(found.parts)} draws over ranks, micro-batches and steps only {len(set(found.parts))} "
                    "differ: dropout's random numbers are used again, or there is none"
                )
        return result

    def _resume(self) -> Iterator[Row]:
        ranks, at = self.settings.ranks, f"left after step {self.middle}"
        first = self._with_dropout()
        whole, dropout = first, True
        if isinstance(first, Fault) and first.kind == "refused":  # a model without dropout
            case = Case("resume", "whole", self._as_it_is(), ranks)
            case.config.checkpoint.every = self.middle
            whole, dropout = self._run(case), False
            self._dropped_dir = Path(case.config.run.dir or "")
        name = f"{at}, the same set-up{' with dropout' if dropout else ''}"
        same = Case("resume", name, self._as_it_is(), ranks, dropout=dropout, resume_from=self._dropped_dir)
        yield self._compared(same, whole, self._exact)

        own = cases.own_engine(self.base, ranks)
        first_half = Case("resume", "first half", deepcopy(own), ranks)
        first_half.config.checkpoint.every = self.middle
        half = self._run(first_half)
        source = None if isinstance(half, Fault) else Path(first_half.config.run.dir or "")
        other = "zero1" if own.engine.name == "zero3" else "zero3"
        ways: list[tuple[str, RunConfig, int, Path | None]] = [
            (f"{own.engine.name} x {ranks} to ddp x 1", cases.with_engine(self.base, 1, Engine("ddp")), 1, source),
            (
                f"{own.engine.name} x {ranks} to {other} x {ranks}",
                cases.with_engine(self.base, ranks, Engine(other)),  # type: ignore[arg-type]
                ranks,
                source,
            ),
            (f"local x 1 to {own.engine.name} x {ranks}", own, ranks, self.reference_dir),
        ]
        for name, config, count, origin in ways:
            if origin is None:
                yield judge.row(Case("resume", name, config, count), half)
            else:
                yield self._compared(Case("resume", name, config, count, resume_from=origin), self.right)

    @property
    def _exact(self) -> Bound:
        """The same set-up twice: bit for bit on a CPU; a GPU adds in another order every time."""
        return EXACT if self.device == "cpu" else FP32


def device(recipe: RunConfig) -> Any:
    """Where the recipe runs on this machine."""
    return "cuda" if recipe.trainer.device != "cpu" and visible_gpus() else "cpu"


def verify(
    recipe: RunConfig,
    settings: Settings,
    out: Path,
    tell: Callable[[Row], None] = lambda row: None,
    begin: Callable[[str], None] = lambda name: None,
    plant: Plant | None = None,
) -> tuple[list[Row], list[str]]:
    """All rows of the table, and what the user should be told of how they came about.

    Raises:
        UserError: the recipe itself is refused.
        RunError: the reference cannot be run.
    """
    start_server(device(recipe))  # it imports while the data are prepared
    from bigtrain.assembly import check_parts, prepared_data, total_steps

    check_parts(recipe)
    whole = total_steps(recipe, len(prepared_data(recipe).train))
    suite = Suite(recipe, settings, out, whole, tell, begin, plant)
    rows = []
    try:
        for row in suite.rows():
            tell(row)
            rows.append(row)
    finally:
        shutil.rmtree(out / "work", ignore_errors=True)
    return rows, suite.notes
