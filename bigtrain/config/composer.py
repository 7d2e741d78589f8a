"""Hydra over the shipped groups and the user's own folders: overrides in, one tree out, nothing checked but names.

Every value override is handed to Hydra as a forced one (`++`), so that a setting that no YAML file mentions can still
be given plainly, and `+` and `++` open no door: the schema and the components' signatures are the only judges.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bigtrain.config.check import Origin
from bigtrain.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent.parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""The shipped groups: inside an installed wheel, or beside the package in a checkout."""


def overrides_from(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The Hydra overrides and the `--config-dir` folders of a command line."""
    overrides, folders, rest = [], [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("--config-dir", "-cd") or word.startswith("--config-dir="):
            value = word.partition("=")[2] or (rest.pop(0) if rest else "")
            if not value:
                raise UserError("--config-dir needs a folder behind it.")
            if not Path(value).is_dir():
                raise UserError(f"--config-dir: there is no folder '{value}'.")
            folders.append(Path(value).resolve())
        elif word.startswith("--") and "=" in word:
            raise UserError(f"'{word}': a setting is written without dashes, as {word.lstrip('-')}")
        elif "=" in word.lstrip("+~") or word.startswith("~"):
            overrides.append(word)
        else:
            hint = f" To go on with a run: run.dir={word}" if Path(word).is_dir() else ""
            if word.startswith("--"):
                hint = f" A setting has no dashes: {word.lstrip('-')}=VALUE"
            if rest and rest[0].startswith("="):
                hint = " Without spaces around the =."
            raise UserError(f"'{word}' is neither an option nor an override: overrides are written key=value.{hint}")
    return overrides, folders


class Composer:
    """Hydra over the shipped groups and the user's own folders (which win)."""

    def __init__(self, folders: Sequence[Path] = ()):
        # Hydra's compose API knows one folder; the two internals put the user's in front of the shipped one.
        from hydra._internal.hydra import Hydra
        from hydra._internal.utils import create_config_search_path
        from hydra.core.global_hydra import GlobalHydra

        self.folders = [*folders, CONF]
        path = create_config_search_path(str(CONF))
        for folder in reversed(folders):
            path.prepend("user", f"file://{folder}")
        GlobalHydra.instance().clear()
        self._hydra = Hydra.create_main_hydra2("bigtrain", path)
        self.loader: Any = self._hydra.config_loader

    def options(self, group: str) -> list[str]:
        """What may stand behind `group=`."""
        found = {
            str(file.relative_to(folder / group).with_suffix(""))
            for folder in self.folders
            for file in (folder / group).rglob("*.yaml")
        }
        return sorted(found)

    def groups(self) -> list[str]:
        """The names of the groups."""
        return sorted({child.name for folder in self.folders for child in folder.iterdir() if child.is_dir()})

    def parse(self, overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The group choices and the value overrides (dotted key -> as typed), each checked for its form."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        choices, values = [], {}
        for text in overrides:
            try:
                (override,) = OverridesParser.create().parse_overrides([text])
            except HydraException as error:
                quoted = text.replace("=", "='", 1) + "'"
                raise UserError(
                    f"cannot read the override '{text}'. A value with spaces, brackets or accents is quoted twice: "
                    f'"{quoted}"'
                ) from error
            if override.is_sweep_override():
                raise UserError(
                    f"'{text}' is a sweep: `bigtrain train -m …` makes a run of each value; for one value with commas "
                    "write it as a list or in quotes."
                )
            key, value = override.key_or_group, override.value()
            if key.partition(".")[0] == "hydra":
                raise UserError(f"'{text}': Hydra's own settings have no effect here; run.dir= sets the run folder.")
            if not any((folder / key).is_dir() for folder in self.folders):
                values[key] = text
                continue
            if value is None and key == "debug":
                continue
            if value is None and key == "clean":  # none of the steps that the recipe names
                values["data.clean"] = "data.clean=[]"
                continue
            for option in value if isinstance(value, list) else [value]:
                if not override.is_delete() and str(option) not in self.options(key):
                    raise UserError(f"there is no {key}={option}.{self._meant(key, str(option))}")
            choices.append(text.lstrip("+"))
        return choices, values

    def _meant(self, group: str, option: str) -> str:
        """What was meant by an option that a group does not have."""
        known = self.options(group)
        frozen, several = Path(option, "config.yaml"), re.fullmatch(r"(.+)x(\d+)", option)
        if group == "hardware" and several and several[1] in known:
            return f" Say hardware={several[1]} hardware.gpus={several[2]}"
        if any((folder / group / f"{option}.yml").is_file() for folder in self.folders):
            return f" Its file must end in .yaml, not .yml: {option}.yaml"
        if group == "recipe" and frozen.is_file():
            return f" Did you mean '{group}={frozen}'?"
        return nearest(option, known)

    def compose(self, overrides: Sequence[str]) -> Any:
        """The composed OmegaConf tree, nothing checked yet but the groups' names."""
        import yaml
        from hydra.errors import HydraException
        from hydra.types import RunMode
        from omegaconf import open_dict
        from omegaconf.errors import OmegaConfBaseException

        choices, values = self.parse(overrides)
        forced = [text if text.startswith("~") else f"++{text.lstrip('+')}" for text in values.values()]
        try:
            tree = self.loader.load_configuration("config", [*choices, *forced], RunMode.RUN, from_shell=False)
        except RecursionError as error:
            raise UserError(
                "cannot compose the configuration: a file builds on itself through its defaults. A recipe that builds "
                "on a shipped one needs another name than it."
            ) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{self._undecodable(error.object)} is no UTF-8 text: {error}") from error
        except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
            text = " ".join(re.split("Config search path|Available options|\n\n", str(error))[0].split())
            raise UserError(f"cannot compose the configuration: {text.rstrip('.')}.{self._instead(text)}") from error
        with open_dict(tree):
            del tree["hydra"]
        if "recipe" in tree and not any(key.partition(".")[0] == "recipe" for key in values):
            # Hydra puts a file without that line below its group's name.
            raise UserError(
                "the recipe's file lacks its first line: # @package _global_ (or has a byte order mark in front of it, "
                "or a key `recipe`, whose place is below defaults, as /recipe/NAME)"
            )
        return tree

    def _undecodable(self, content: bytes) -> Path | str:
        """The file that holds this, which Hydra does not name."""
        files = (file for folder in self.folders for file in folder.rglob("*.yaml"))
        return next((file for file in files if content in file.read_bytes()), "a configuration file")

    def _instead(self, fault: str) -> str:
        """The nearest right thing to what Hydra found fault with."""
        if "Cannot merge DictConfig with ListConfig" in fault:
            return " It has a list where settings belong, as `key: value`."
        found = re.search(r"Could not (?:load|find) '([^']+)'", fault)
        group, _, option = found[1].rpartition("/") if found else ("", "", "")
        rest = group.partition("/")[2]
        if rest and not self.options(group) and self.options(rest):  # named relative to the folder it stands in
            return f" In defaults a group of the top level begins with a slash: /{rest}/{option}"
        return nearest(option, self.options(group)) if group else ""

    def origin(self, overrides: Sequence[str]) -> Origin:
        """A function that says where a dotted key got its value: an override, or a file."""

        def where(key: str) -> str:
            choices, values = self.parse(overrides)  # on an error only: start-up does not pay for it
            key = key.split("[")[0]
            for known, text in reversed(values.items()):
                if key == known or key.startswith(known + ".") or known.startswith(key + "."):
                    return f" (from the command line: {text})"
            file = self._file_of(key, choices)
            return f" (from {file})" if file else ""

        return where

    def said_with_target(self, group: str, choices: Sequence[str]) -> set[str]:
        """The dotted settings of a group that stand in the file that names its `_target_`, or in one laid over that."""
        said: set[str] = set()
        for _, settings in self._files(group, choices):
            if isinstance(settings, dict):
                said |= {f"{group}.{name}" for name in settings}
            if f"{group}._target_" in said:
                break
        return said

    def _file_of(self, key: str, choices: Sequence[str]) -> str:
        path = next((path for path, _ in self._files(key, choices)), None)
        if path is None:
            return ""
        folder = next((f for f in self.folders if (f / f"{path}.yaml").is_file()), None)
        return f"{folder.name if folder == CONF else folder}/{path}.yaml"

    def _files(self, key: str, choices: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """The files that give a key a value, the one that wins first: (path without its suffix, what it gives)."""
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        for entry in reversed(self.loader.compute_defaults_list("config", list(choices), RunMode.RUN).defaults):
            path, package = entry.config_path or "", entry.package or ""
            loaded = self.loader.repository.load_config(path)
            if loaded is None or path.startswith("hydra"):
                continue
            inner = key if not package else key.removeprefix(package).removeprefix(".")
            if package and key != package and not key.startswith(package + "."):
                continue
            given = OmegaConf.to_container(loaded.config)
            for part in inner.split(".") if inner else ():
                given = given.get(part, "???") if isinstance(given, dict) else "???"
            if given != "???":
                yield path, given
