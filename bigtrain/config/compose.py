"""Recipe + overrides -> a checked `RunConfig`, composed once with Hydra."""

from __future__ import annotations

import copy
import datetime
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bigtrain.config.check import Origin, check_fields, nowhere, refuse_unknown
from bigtrain.config.components import (
    POSITIONAL,
    check_component,
    check_components,
    components,
    leave_out_replaced,
    nested,
    refuse_untrusted,
)
from bigtrain.config.composer import Composer, overrides_from
from bigtrain.config.rules import check_going_on, check_rules
from bigtrain.config.schema import Component, RunConfig
from bigtrain.errors import UserError, nearest, nearest_path

PENDING = ".pending.yaml"
"""How a run folder hands a configuration to its ranks; it becomes `config.yaml` once they have taken it up."""

World = int | Callable[[RunConfig], int] | None
"""Ranks in all, or how to tell them from the configuration; None: those that the launcher would start."""


@dataclass(slots=True)
class Composed:
    """A checked configuration and what the user should be told about where it came from."""

    config: RunConfig
    raw: dict[str, Any]
    """The same as a plain mapping, before components' values were converted: what `config.yaml` holds."""
    notes: list[str] = field(default_factory=list)


def _plain(tree: Any) -> dict[str, Any]:
    """Interpolations resolved, as plain mappings; `???` and broken references are refused."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        missing = sorted(OmegaConf.missing_keys(tree))
        if missing:
            raise UserError(f"{missing[0]} has no value: give one, as {missing[0]}=VALUE.")
        plain = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"cannot resolve the configuration: {' '.join(str(error).split())}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def import_from_here() -> None:
    """Components of the user's own lie where the command is typed: a console script does not look there by itself."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def checked(raw: dict[str, Any], origin: Origin = nowhere, world_size: World = None) -> RunConfig:
    """`raw` as a `RunConfig`: keys and types, then the rules across fields, then the components' signatures."""
    config = _filled(raw, origin)
    check_rules(config, world_size(config) if callable(world_size) else world_size)
    check_components(config, origin)
    return config


def compose_data(arguments: Sequence[str]) -> Component:
    """The checked data component of a recipe, or of `data=D` alone, for `bigtrain prepare`."""
    import_from_here()
    overrides, folders = overrides_from(arguments)
    composer = Composer(folders)
    raw, origin = _plain(composer.compose(overrides)), composer.origin(overrides)
    refuse_unknown(raw, [field.name for field in fields(RunConfig)], "", origin)
    return check_component(raw["data"], "data", 0, origin)


def compose(arguments: Sequence[str], world_size: World = None) -> Composed:
    """Compose and check what `bigtrain train` and the bare worker are given.

    `recipe=` names a recipe, or a run's `config.yaml`; `world_size` is known where a launcher has started us. Where
    `run.dir` holds a run already, its frozen configuration is the base, the overrides given now win, and the
    differences are told in `notes`.

    Raises:
        UserError: for everything that is wrong, before torch is imported.
    """
    import_from_here()
    overrides, folders = overrides_from(arguments)
    composer = Composer(folders)
    is_file = [text for text in overrides if text.startswith("recipe=") and text.endswith(".yaml")]
    file = is_file[-1].removeprefix("recipe=") if is_file else None
    if file is not None:
        overrides = [text for text in overrides if not text.startswith("recipe=")]
    choices, values = composer.parse(overrides)
    recipe = next((text.partition("=")[2] for text in choices if text.startswith("recipe=")), None)
    given_dir = values["run.dir"].partition("=")[2] if "run.dir" in values else None
    if file is None and given_dir and (Path(given_dir) / "config.yaml").is_file():
        file = f"{given_dir}/config.yaml"
    if file is not None:
        own = load_frozen(Path(file)).get("run", {}).get("name")
        if recipe is None and choices and own in composer.options("recipe"):  # engine=fsdp alone: of the run's recipe
            overrides, recipe = [*overrides, f"recipe={own}"], own
        return _go_on(composer, overrides, Path(file), recipe, world_size)
    if recipe is None:
        raise UserError(f"which recipe? Say recipe=NAME.{nearest('', composer.options('recipe'))}")
    raw = _plain(composer.compose(overrides))
    if not isinstance(raw.get("run"), dict):
        raise UserError(f"run must be a mapping, not {raw.get('run')!r}.")
    raw["run"]["name"] = recipe
    _one_end(raw, values)
    notes = []
    for key in POSITIONAL:
        component, said = raw.get(key), set(values)
        if not isinstance(component, dict) or "_target_" not in component:
            continue
        if f"{key}._target_" not in values:
            if str(component["_target_"]).startswith("bigtrain."):
                continue
            said |= composer.said_with_target(key, choices)  # a recipe's own, over the settings of a shipped file
        if out := leave_out_replaced(component, key, said):
            notes.append(f"{key}: {component['_target_']} takes no {', '.join(out)}: left out")
    if raw["run"].get("dir") is None:
        raw["run"]["dir"] = _new_folder(recipe)
    return Composed(checked(raw, composer.origin(overrides), world_size), raw, notes)


def _one_end(raw: dict[str, Any], typed: Collection[str]) -> None:
    """The end of the run that the command line gives replaces the recipe's."""
    ends = ("max_steps", "epochs", "max_tokens")
    trainer = raw.get("trainer")
    if isinstance(trainer, dict) and any(f"trainer.{end}" in typed and trainer.get(end) is not None for end in ends):
        trainer.update({end: None for end in ends if f"trainer.{end}" not in typed})


def _new_folder(recipe: str) -> str:
    return f"runs/{recipe}/{datetime.datetime.now():%Y%m%d-%H%M%S}"


def load_frozen(file: Path) -> dict[str, Any]:
    """A run's `config.yaml` as a plain mapping; nothing in it is imported or called."""
    import yaml

    if not file.is_file():
        raise UserError(f"there is no {file}.{nearest_path(file)}")
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{file} is not a run's configuration.")
    if "defaults" in raw:
        place = file.resolve().parent
        folder, first = (place.parent, "") if place.name == "recipe" else ("DIR", "put it into DIR/recipe and ")
        way = f"{first}name it by --config-dir {folder} recipe={file.stem}"
        raise UserError(f"{file} is a recipe with defaults, not a run's configuration: {way}")
    return raw


def _check_frozen(raw: dict[str, Any], file: Path) -> RunConfig:
    try:
        return _filled(raw)
    except UserError as error:
        raise UserError(f"{file} is cut short, damaged or of another version of bigtrain: {error}") from error


def load_run(file: Path, trusted: Sequence[str] = (), world_size: int | None = None) -> RunConfig:
    """A run's frozen configuration, from its file; its targets must be bigtrain's or among `trusted`."""
    import_from_here()
    config = _check_frozen(load_frozen(file), file)
    refuse_untrusted(config, str(file), trusted)
    check_rules(config, world_size)
    check_components(config)
    return config


def targets(config: RunConfig) -> list[str]:
    """Every `_target_` of the configuration."""
    return [str(inner["_target_"]) for key, component in components(config).items()
            for inner in (component, *(inner for _, inner in nested(component, key)))]  # fmt: skip


def _go_on(
    composer: Composer, overrides: Sequence[str], frozen: Path, recipe: str | None, world_size: World
) -> Composed:
    """A frozen configuration with the overrides given now on top: the same run, or from a file alone a new one."""
    from omegaconf import OmegaConf

    old = load_frozen(frozen)
    began = _check_frozen(old, frozen)
    choices, values = composer.parse(overrides)
    fresh = _plain(composer.compose(overrides)) if recipe else {}
    new = OmegaConf.create(old)
    for choice in choices:
        group = choice.partition("=")[0].lstrip("~")
        if group not in ("recipe", "debug"):
            if not fresh:
                raise UserError(f"'{choice}' needs the recipe beside it: add recipe={old.get('run', {}).get('name')}.")
            if group == "clean":  # its options are a part of the data
                new["data"]["clean"] = fresh["data"]["clean"]
            else:
                new[group] = fresh[group]
    typed = OmegaConf.create({key: _value(text) for key, text in values.items()})
    if "run.dir" not in values:
        OmegaConf.update(new, "run.dir", _new_folder(str(old.get("run", {}).get("name"))))
    for key, value in typed.items():
        OmegaConf.update(new, str(key), value, force_add=True)
    raw = _plain(new)
    _one_end(raw, values)
    new_config = _filled(raw, composer.origin(overrides))
    if "run.dir" in values:
        check_going_on(began, new_config)
    changed = [f"changed since the run began: {line}" for line in _differences(began, new_config)]
    kept = [
        f"kept from the run: {line.replace(' -> ', ' in the recipe, here ', 1)}"
        for line in (_differences(_filled(fresh), new_config) if fresh else [])
    ]
    theirs = [str(part["_target_"]) for part in _targets_in(fresh)]
    theirs += [str(value) for key, value in typed.items() if str(key).endswith("._target_")]
    refuse_untrusted(new_config, str(frozen), theirs)
    return Composed(checked(raw, composer.origin(overrides), world_size), raw, changed + kept)


def _filled(raw: dict[str, Any], origin: Origin = nowhere) -> RunConfig:
    """With the defaults of what is not there, so that two configurations can be compared."""
    config: RunConfig = check_fields(copy.deepcopy(raw), RunConfig, "", origin)
    return config


def _value(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides([text])[0].value()


def _targets_in(node: Any) -> list[dict[str, Any]]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    inner = [found for child in children for found in _targets_in(child)]
    return [node, *inner] if isinstance(node, dict) and "_target_" in node else inner


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        k: v for name, child in node.items() for k, v in flatten(child, f"{prefix}.{name}" if prefix else name).items()
    }


def _differences(old: RunConfig, new: RunConfig) -> list[str]:
    before, after = flatten(asdict(old)), flatten(asdict(new))
    keys = [key for key in sorted(before.keys() | after.keys()) if not key.startswith("run.")]

    def told(value: Any) -> Any:
        return "null" if value is None else value

    return [
        f"{key}: {told(before.get(key))} -> {told(after.get(key))}" for key in keys if before.get(key) != after.get(key)
    ]


def freeze(raw: dict[str, Any], file: Path) -> None:
    """Write `config.yaml`, whole or not at all."""
    import yaml

    temporary = file.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(file)
