"""`_target_` components: a dotted path to anyone's class or function, with its settings beside it.

The settings are checked against the target's own signature before anything is built. What a target may be depends on
who names it: the user's own configuration may name anything; a run folder or checkpoint may only name what bigtrain
ships (the `__all__` of the rooms below), unless the user's own words name the same target.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from bigtrain.config.check import Origin, check, nowhere, refuse_unknown
from bigtrain.config.schema import Component, RunConfig
from bigtrain.errors import UserError, nearest

ROOMS = {
    "model": "bigtrain.models",
    "data": "bigtrain.data",
    "objective": "bigtrain.objectives",
    "optimizer": "bigtrain.optim",
    "schedule": "bigtrain.optim",
    "tracker": "bigtrain.telemetry",
}
NESTED = {"data.clean": "bigtrain.data.clean", "data.domains": "bigtrain.data.clean"}
"""Settings that hold components themselves, at any depth."""


FILLED = {"model": ("vocab_size", "classes")}
"""Settings that bigtrain fills in where they are null: the tokenizer knows its vocabulary, the data their labels."""


def components(config: RunConfig) -> dict[str, Component]:
    """Every component of a configuration by its dotted key."""
    single = {key: getattr(config, key) for key in ROOMS if key != "tracker"}
    return single | {f"tracker.{name}": tracker for name, tracker in config.tracker.items()}


def nested(value: Any, key: str) -> Iterator[tuple[str, Component]]:
    """The components among the settings of a component, by their dotted keys (`data.clean[0]`)."""
    named: dict[str, Any] = value if isinstance(value, dict) else {}
    if is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
    listed = value if isinstance(value, list | tuple) else ()
    inside = [
        *((f"{key}.{n}", item) for n, item in named.items()),
        *((f"{key}[{n}]", item) for n, item in enumerate(listed)),
    ]
    for at, item in inside:
        if isinstance(item, dict) and "_target_" in item:
            yield at, item
        yield from nested(item, at)


def target_of(component: Component, key: str, origin: Origin = nowhere) -> str:
    """The component's `_target_`; a `UserError` where there is none."""
    target = component.get("_target_")
    if not isinstance(target, str):
        room = NESTED.get(re.split(r"\[", key)[0], ROOMS[re.split(r"[.\[]", key)[0]])
        raise UserError(f"{key} needs a _target_, such as {room}.NAME{origin(key)}.")
    return target


def shipped(target: str) -> bool:
    """Whether bigtrain ships `target` as a component: named in the `__all__` of one of its rooms."""
    room, _, name = target.rpartition(".")
    return room in (*ROOMS.values(), *NESTED.values()) and name in importlib.import_module(room).__all__


def refuse_untrusted(config: RunConfig, source: str, trusted: Collection[str]) -> None:
    """A `UserError` for a target that a run folder names, that its room does not ship and the user did not name."""
    for key, component in components(config).items():
        refuse_untrusted_component(component, key, source, trusted)


def refuse_untrusted_component(component: Component, key: str, source: str, trusted: Collection[str]) -> None:
    """The same for one component, where a command needs no more of a run than that."""
    for at, inner in nested(component, key):
        refuse_untrusted_component(inner, at, source, trusted)
    target, room = target_of(component, key), ROOMS[re.split(r"[.\[]", key)[0]]
    if target not in trusted and not (shipped(target) and target.startswith(room + ".")):
        typed = re.sub(r"\[(\d+)\]", r".\1", key)  # as Hydra's overrides spell it
        raise UserError(
            f"{source} names {key}._target_={target}, which {room} does not ship, and a run folder's word is not "
            f"enough to import it. If it is yours, say so: {typed}._target_={target}"
        )


def resolve(target: str, key: str, origin: Origin = nowhere) -> Callable[..., Any]:
    """The class or function that the dotted path names."""

    def where() -> str:
        return origin(f"{key}._target_")

    module_name, _, name = target.rpartition(".")
    if not module_name:
        raise UserError(f"{key}._target_ must be a dotted path (package.module.name), not '{target}'{where()}.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{key}._target_={target}{where()} cannot be imported: {error}.") from error
    except Exception as error:
        raise UserError(
            f"{key}._target_={target}{where()}: importing it failed: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{key}._target_: {module_name} has no '{name}'{where()}.{nearest(name, names)}")
    return found  # type: ignore[no-any-return]


def check_component(component: Component, key: str, positional: int, origin: Origin = nowhere) -> Component:
    """The component with every setting checked against its target's signature, as a new mapping.

    `positional` is the number of arguments that bigtrain supplies itself, before the settings.
    """
    target = target_of(component, key, origin)
    function = resolve(target, key, origin)
    filled = FILLED.get(key, ())
    settings = {n: v for n, v in component.items() if n != "_target_" and not (n in filled and v is None)}
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature: the call itself will judge
        return component
    parameters = list(signature.parameters.values())
    taken = names_taken(signature, positional)
    if taken is not None:
        refuse_unknown(settings, taken, key, origin)
    for p in parameters[positional:]:
        required = p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        if required and p.name not in filled and p.name not in settings:
            raise UserError(f"{key}.{p.name} has no value: give one, as {key}.{p.name}=VALUE ({target} needs it).")
    checked = {
        name: check(value, _annotation(function, signature, name), f"{key}.{name}", origin)
        for name, value in settings.items()
    }
    for at, inner in nested(checked, key):
        itself = takes_text(resolve(target_of(inner, at, origin), at, origin))
        inner.update(check_component(inner, at, int(itself), origin))
    return {"_target_": target} | checked


def takes_text(function: Callable[..., Any]) -> bool:
    """Whether a nested component is the step itself, `f(text, **settings)`, and not what makes one of its settings."""
    try:
        return next(iter(inspect.signature(function).parameters), None) == "text"
    except (TypeError, ValueError):
        return False


def names_taken(signature: inspect.Signature, positional: int) -> list[str] | None:
    """The settings that a signature leaves to the user; None: any (`**kwargs`)."""
    parameters = list(signature.parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters[positional:] if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def leave_out_replaced(component: Component, key: str, said: Collection[str]) -> list[str]:
    """Drop the settings of the option whose `_target_` was replaced, where the new target takes none such.

    What was said of the new one (dotted keys in `said`) stays, to be judged. Returns the names left out.
    """
    function = resolve(str(component["_target_"]), key)
    taken = names_taken(inspect.signature(function), POSITIONAL[key])
    out = [n for n in component if taken is not None and n not in ("_target_", *taken) and f"{key}.{n}" not in said]
    for name in out:
        del component[name]
    return out


def _annotation(function: Callable[..., Any], signature: inspect.Signature, name: str) -> Any:
    """The parameter's type, or Any where there is none or it cannot be evaluated (a name of TYPE_CHECKING only)."""
    parameter = signature.parameters.get(name)
    if parameter is None or parameter.annotation is parameter.empty:
        return Any
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    owner = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    try:
        return eval(parameter.annotation, getattr(owner, "__globals__", {}))  # the target's own source text
    except Exception:
        return Any


POSITIONAL = {"model": 0, "data": 0, "objective": 0, "optimizer": 1, "schedule": 0, "tracker": 2}


def check_components(config: RunConfig, origin: Origin = nowhere) -> None:
    """Check every component in place; those that bigtrain ships first, as only the others may import torch."""
    found = components(config)
    for key in sorted(found, key=lambda key: not str(found[key].get("_target_", "")).startswith("bigtrain.")):
        checked = check_component(found[key], key, POSITIONAL[key.split(".")[0]], origin)
        found[key].clear()
        found[key].update(checked)


def build(component: Component, key: str, *supplied: Any, **filled: Any) -> Any:
    """Call the component's target with what bigtrain supplies, its settings, and `filled` for settings left null."""
    settings = {name: value for name, value in component.items() if name != "_target_"}
    function = resolve(component["_target_"], key)
    known = inspect.signature(function).parameters
    settings |= {name: value for name, value in filled.items() if name in known and settings.get(name) is None}
    return function(*supplied, **settings)
