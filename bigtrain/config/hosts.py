"""The hosts of a launcher: read from `launcher.hosts` or a hostfile, each fault with its line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtrain.config.launchers import DeepSpeed, Hosts, Launcher
from bigtrain.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class Host:
    """One machine, and how many ranks it has room for."""

    name: str
    slots: int = 1


def parse_hostfile(text: str, source: str) -> list[Host]:
    """Hosts in the order of a hostfile: `name slots=N` on each line, `#` begins a comment.

    Raises:
        UserError: names the line.
    """
    hosts: list[Host] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{source}, line {number}"
        if len(words) != 2 or not re.fullmatch(r"slots=\d+", words[1]):
            raise UserError(f"{where}: '{line.strip()}' is not a host and its ranks: write `{words[0]} slots=8`.")
        _add(hosts, words[0], int(words[1].partition("=")[2]), where)
    if not hosts:
        raise UserError(f"{source} lists no host: write a line such as `node0 slots=8` for each.")
    return hosts


def _add(hosts: list[Host], name: str, slots: int, where: str) -> None:
    if not re.fullmatch(r"([A-Za-z0-9_.-]+@)?[A-Za-z0-9]([A-Za-z0-9_.-]*)", name):
        raise UserError(f"{where}: '{name}' is not the name or address of a host.")
    if slots < 1:
        raise UserError(f"{where}: {name} has 0 slots: take the line out, or give it as many as it has GPUs.")
    if any(host.name == name for host in hosts):
        raise UserError(f"{where}: {name} is there twice: one line a host, with all its slots.")
    hosts.append(Host(name, slots))


def parse_hosts(words: Sequence[str]) -> list[Host]:
    """`launcher.hosts`: `name` or `name:slots`."""
    hosts: list[Host] = []
    for word in words:
        name, colon, slots = word.partition(":")
        if colon and not slots.isdigit():
            raise UserError(f"launcher.hosts: '{word}' is not a host: write name or name:slots.")
        _add(hosts, name, int(slots or 1), "launcher.hosts")
    return hosts


def listed_hosts(launcher: Launcher) -> list[Host]:
    """The hosts that a launcher is told to use, in order; none: this machine alone.

    Raises:
        UserError: a hostfile that is missing or malformed, more nodes or processes than there are.
    """
    if not isinstance(launcher, Hosts):
        return []
    if launcher.hosts and launcher.hostfile:
        raise UserError("launcher.hosts and launcher.hostfile are both set: one of them says where to run.")
    hosts, source = parse_hosts(launcher.hosts), "launcher.hosts"
    if launcher.hostfile:
        path, source = Path(launcher.hostfile), launcher.hostfile
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            near = nearest(path.name, [p.name for p in path.parent.glob("*") if p.is_file()][:50])
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise UserError(f"launcher.hostfile={path} cannot be read: {reason}.{near}") from error
        hosts = parse_hostfile(text, source)
    filters = isinstance(launcher, DeepSpeed) and (launcher.include or launcher.exclude)
    if not hosts:
        if filters:
            raise UserError("launcher.include and launcher.exclude choose from a hostfile: set launcher.hostfile.")
        return []
    if isinstance(launcher, DeepSpeed) and filters:
        hosts = _filtered(launcher, hosts)
    nodes = launcher.nodes or len(hosts)
    if nodes > len(hosts):
        raise UserError(f"launcher.nodes={nodes}, but {source} lists {len(hosts)}: {', '.join(h.name for h in hosts)}.")
    hosts = hosts[:nodes]
    for host in hosts:
        if (launcher.processes or 0) > host.slots:
            raise UserError(
                f"launcher.processes={launcher.processes}, but {host.name} has {host.slots} slots in {source}."
            )
    return [Host(host.name, launcher.processes or host.slots) for host in hosts]


def _filtered(launcher: DeepSpeed, hosts: Sequence[Host]) -> list[Host]:
    """What DeepSpeed leaves of the hosts after `include` or `exclude`."""
    if launcher.include and launcher.exclude:
        raise UserError("launcher.include and launcher.exclude are both set: DeepSpeed takes one of them.")
    if launcher.processes or (launcher.nodes or 1) > 1:
        raise UserError(
            "launcher.include and launcher.exclude pick the slots: set launcher.processes=null and launcher.nodes=null."
        )
    key = "include" if launcher.include else "exclude"
    named: dict[str, set[int]] = {}
    known = {host.name: host.slots for host in hosts}
    for word in str(launcher.include or launcher.exclude).split("@"):
        name, _, slots = word.partition(":")
        if name not in known:
            raise UserError(f"launcher.{key}: '{name}' is not in the hostfile.{nearest(name, known)}")
        try:
            chosen = {int(slot) for slot in slots.split(",")} if slots else set(range(known[name]))
        except ValueError:
            raise UserError(f"launcher.{key}: '{word}' is not host or host:slot,slot.") from None
        if not chosen <= set(range(known[name])):
            raise UserError(f"launcher.{key}: {name} has slots 0 to {known[name] - 1}, not {max(chosen)}.")
        named.setdefault(name, set()).update(chosen)
    left = [
        Host(host.name, len(named.get(host.name, set())) if launcher.include else
             host.slots - len(named.get(host.name, set())))
        for host in hosts
    ]  # fmt: skip
    left = [host for host in left if host.slots]
    if not left:
        raise UserError(f"launcher.{key}={launcher.include or launcher.exclude} leaves no slot at all.")
    return left
