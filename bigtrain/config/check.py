"""Values against types: the one judge of every setting, the schema's and a component's own.

Errors are `UserError`s that name the key, the fault, where the value came from and the nearest right name.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from bigtrain.config.elsewhere import called_here
from bigtrain.errors import UserError, nearest

Origin = Callable[[str], str]
"""A dotted key -> where its value came from, for messages: `" (command line: a.b=1)"`, or `""`."""


def nowhere(key: str) -> str:
    """The `Origin` of a value whose origin is not known."""
    return ""


def _name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    options = get_args(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_name(option) for option in options)
    if get_origin(annotation) is Literal:
        return " | ".join(str(option) for option in options)
    if annotation is dict or get_origin(annotation) is dict or dataclasses.is_dataclass(annotation):
        return "a mapping"
    return getattr(annotation, "__name__", str(annotation)) if not options else str(annotation)


def _fault(key: str, value: Any, annotation: Any, origin: Origin) -> UserError:
    hint = ""
    if get_origin(annotation) is Literal and isinstance(value, str):
        hint = nearest(value, [str(option) for option in get_args(annotation)])
    if isinstance(value, str) and "." not in key and _name(annotation).startswith("a mapping"):  # a group, in a file
        hint = f" To choose one of its files write below the recipe's defaults: - override /{key}: {value}"
    given = "null" if value is None else repr(value)
    return UserError(f"{key} must be {_name(annotation)}, not {given}{origin(key)}.{hint}")


def check(value: Any, annotation: Any, key: str, origin: Origin = nowhere) -> Any:
    """`value` as the annotated type (a list as a tuple, 1e6 as an int, where asked); a `UserError` where it is not."""
    if annotation is Any:
        return value
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        if isinstance(value, annotation):  # checked before
            return value
        return check_fields(value, annotation, key, origin)
    kind, options = get_origin(annotation), get_args(annotation)
    if kind in (Union, types.UnionType):
        return _check_union(value, annotation, options, key, origin)
    if kind is Literal:
        if value in options and type(value) in {type(option) for option in options}:
            return value
        raise _fault(key, value, annotation, origin)
    if kind in (list, tuple, Sequence):
        return _check_sequence(value, annotation, kind, options, key, origin)
    if annotation is dict or kind in (dict, Mapping):
        if not isinstance(value, dict):
            raise _fault(key, value, annotation, origin)
        inner = options[1] if options else Any
        return {str(name): check(item, inner, f"{key}.{name}", origin) for name, item in value.items()}
    return _check_scalar(value, annotation, key, origin)


def _check_union(value: Any, annotation: Any, options: tuple[Any, ...], key: str, origin: Origin) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        try:
            return check(value, rest[0], key, origin)
        except UserError:
            if isinstance(value, dict | list):  # the inner message says more
                raise
            raise _fault(key, value, annotation, origin) from None
    for option in rest:
        try:
            return check(value, option, key, origin)
        except UserError:
            continue
    raise _fault(key, value, annotation, origin)


def _check_sequence(value: Any, annotation: Any, kind: Any, options: tuple[Any, ...], key: str, origin: Origin) -> Any:
    if not isinstance(value, list | tuple):
        raise _fault(key, value, annotation, origin)
    fixed = kind is tuple and Ellipsis not in options
    if fixed and len(value) != len(options):
        raise UserError(f"{key} must have {len(options)} values, not {len(value)}{origin(key)}.")
    kinds = options if fixed else [options[0] if options else Any] * len(value)
    items = [
        check(item, inner, f"{key}[{i}]", origin) for i, (item, inner) in enumerate(zip(value, kinds, strict=True))
    ]
    return tuple(items) if kind is tuple else items


def _check_scalar(value: Any, annotation: Any, key: str, origin: Origin) -> Any:
    if annotation is bool and isinstance(value, bool):
        return value
    if (
        annotation is int
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and float(value).is_integer()
    ):
        return int(value)
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return float(value)
    if annotation is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if annotation in (bool, int, float, str) or annotation is type(None):
        raise _fault(key, value, annotation, origin)
    return value  # a type of the component's own: its signature judges


def check_fields(values: Any, schema: type, key: str, origin: Origin = nowhere) -> Any:
    """A mapping as the dataclass `schema`; unknown and missing keys are refused with the nearest right name.

    Where the dataclass has `KINDS`, a table of more special ones, the value of `name` chooses among them.
    """
    if not isinstance(values, dict):
        raise _fault(key or "the configuration", values, schema, origin)
    prefix = f"{key}." if key else ""
    kinds: dict[str, type] | None = getattr(schema, "KINDS", None)
    if kinds and "name" in values:
        name = values["name"]
        if name not in kinds:
            raise UserError(f"{prefix}name: there is no '{name}'{origin(f'{prefix}name')}.{nearest(str(name), kinds)}")
        schema = kinds[name]
    hints = typing.get_type_hints(schema)
    refuse_unknown(values, [field.name for field in dataclasses.fields(schema)], key, origin)
    missing = [
        field.name
        for field in dataclasses.fields(schema)
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in values
    ]
    if missing and missing[0] == "name" and values:
        raise UserError(f"{prefix}{next(iter(values))} is of a {key} that is not chosen: say {key}=NAME beside it.")
    if missing:
        raise UserError(f"{prefix}{missing[0]} has no value: give one, as {prefix}{missing[0]}=VALUE.")
    return schema(**{name: check(value, hints[name], f"{prefix}{name}", origin) for name, value in values.items()})


def refuse_unknown(
    values: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str], key: str, origin: Origin
) -> None:
    """A `UserError` for the first key of `values` that is not in `known`."""
    for name in values:
        if name not in known:
            prefix = f"{key}." if key else ""
            full = f"{prefix}{name}"
            below = [f"{prefix}{part}.{name}" for part, inner in values.items()
                     if isinstance(inner, Mapping) and name in inner]  # fmt: skip
            found = below[0] if below else _elsewhere(str(name), key, values, known)
            hint = f" Did you mean '{found}'?" if found else nearest(str(name), known)
            raise UserError(f"unknown key '{full}'{origin(full)}.{hint}")


def _elsewhere(name: str, key: str, values: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str]) -> str | None:
    """What another trainer's `name` is called here, where this configuration has it; inside its group by that alone."""
    here = called_here(f"{key}.{name}") or called_here(name)
    group, _, last = (here or "").rpartition(".")
    if group == key:
        return last if last in known else None
    if group == "model" and (key or last not in values.get("model", {})):  # whose settings are of its kind
        return None
    return here
