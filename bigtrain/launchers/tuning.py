"""Settings, search space and parts of a sweep whose runs Optuna chooses: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.config.composer import Composer
from bigtrain.config.metrics import WAYS
from bigtrain.errors import UserError, nearest
from bigtrain.launchers.sweep import Part, folder_name

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Space = Mapping[str, "BaseDistribution"]
"""The key of each swept override, as typed, and where its values come from."""

PREFIX = "sweep."


@dataclass(frozen=True, slots=True)
class Settings:
    """The `sweep.*` words."""

    trials: int
    """How many runs in all, the failed and the pruned ones among them."""
    metric: str = "loss"
    """A number of the held-out split's lines in metrics.jsonl; a trial is judged by its last one."""
    direction: str = ""
    """`minimize` or `maximize`; known of `WAYS`, needed for any other metric."""
    prune: bool = True
    """End a trial whose best evaluation so far is worse than the median of the others' at the same step."""
    startup_trials: int = 5
    """Trials with values at random before the first choice, and done ones before the first that is pruned."""

    @property
    def way(self) -> str:
        """The direction, given or known from the metric."""
        return self.direction or WAYS[self.metric]


def refuse(words: Sequence[str], why: str) -> None:
    """Refuse `sweep.*` words where they have no effect."""
    found = next((word for word in words if word.lstrip("+").startswith(PREFIX) and "=" in word), None)
    if found:
        raise UserError(f"'{found}' {why}")


def settings_from(overrides: Sequence[str]) -> tuple[Settings | None, list[str]]:
    """The `sweep.*` words, the last of each, and the other words; None: no `sweep.trials`, a grid.

    Raises:
        UserError: a name or a value that is wrong.
    """
    rest = [word for word in overrides if not word.lstrip("+").startswith(PREFIX)]
    given: dict[str, Any] = {}
    known = [each.name for each in fields(Settings)]
    for word in overrides:
        if word in rest:
            continue
        name, _, text = word.lstrip("+").removeprefix(PREFIX).partition("=")
        if name not in known:
            raise UserError(f"there is no {PREFIX}{name}.{nearest(name, known)}")
        given[name] = _read(word, name, text)
    if given and "trials" not in given:
        raise UserError(f"{PREFIX}{next(iter(given))} is for Optuna: give sweep.trials=N too.")
    if given and "direction" not in given and given.get("metric", "loss") not in WAYS:
        raise UserError(
            f"sweep.metric={given['metric']}: is more of it better? Give sweep.direction=maximize (or minimize)."
        )
    return (Settings(**given) if given else None), rest


def _read(word: str, name: str, text: str) -> int | bool | str:
    if name == "prune":
        if text not in ("true", "false"):
            raise UserError(f"{word}: true or false.")
        return text == "true"
    if name in ("trials", "startup_trials"):
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"{word}: a whole number, 1 or more.")
        return int(text)
    if name == "direction" and text not in ("minimize", "maximize"):
        raise UserError(f"{word}: there is no such direction.{nearest(text, ['minimize', 'maximize'])}")
    return text


def space_of(overrides: Sequence[str], composer: Composer) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each override that is swept: `interval()`, `range()`, and the rest as choices.

    Raises:
        UserError: nothing is swept, a sweep that cannot be read, an empty one, or an option that is not there.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    space = {}
    for word in overrides:
        try:
            (override,) = OverridesParser.create(config_loader=composer.loader).parse_overrides([word])
            if not override.is_sweep_override():
                continue
            space[override.get_key_element()] = _distribution(override)
        except (HydraException, ValueError) as error:
            raise UserError(f"cannot read the sweep '{word}': {' '.join(str(error).split())}") from error
    if not space:
        raise UserError("-m sweeps over values, and no override has several: 'optimizer.lr=tag(log,interval(1e-4,1))'")
    for key, distribution in space.items():
        for value in getattr(distribution, "choices", ()):
            composer.parse([f"{key}={value}"])  # no option that does not exist: its trial might be the last
    return space


def _distribution(override: Any) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    numeric = override.is_interval_sweep() or override.is_range_sweep()
    for tag in sweep.tags - ({"log"} if numeric else set()):
        raise UserError(f"'{override.input_line}': tag({tag}, …) has no effect; tag(log, …) is for interval and range.")
    log, step = "log" in sweep.tags, None
    if override.is_interval_sweep():
        low, high = sweep.start, sweep.end
    elif override.is_range_sweep():
        values = list(sweep.range())
        if not values:
            raise UserError(
                f"'{override.input_line}' is empty: the stop of range(start,stop,step) is not a part of it."
            )
        low, high, step = min(values), max(values), abs(sweep.step)
    else:
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def words_from(settings: Settings) -> list[str]:
    """The settings as one would type them."""
    given = {each.name: getattr(settings, each.name) for each in fields(Settings)}
    said = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}
    return [f"{PREFIX}{name}={text}" for name, text in said.items() if text]


def part_of(folder: Path, number: int, values: Mapping[str, Any]) -> Part:
    """A trial as a part of the sweep. Floats have six digits, in the folder's name and in the run."""
    words = [f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()]
    return Part(number, words, str(folder / folder_name(number, words)))


def first_of(space: Space) -> dict[str, Any]:
    """One combination, to be checked before anything starts: first choices, and the middle of intervals."""
    values = {}
    for key, each in space.items():
        ends: Any = each
        choices = getattr(each, "choices", None)
        whole = isinstance(getattr(each, "low", None), int)
        values[key] = choices[0] if choices else ends.low if whole or ends.step else (ends.low + ends.high) / 2
    return values
