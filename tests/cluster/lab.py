"""A cluster in a box: machines made of Linux namespaces on this one, as root on Debian. Nothing listens outside.

A machine has its own address, host name, process table, /dev/shm and daemon; the file system is shared, as on most
clusters. `crash` is a power cut, `cut` pulls the network cable. Machines die with the process that booted them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

LOCK = Path("/run/lock/bigtrain-lab.lock")
"""Held while a lab is up: two labs would share the names of their network namespaces."""

PACKAGES = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "pdsh": "pdsh",
    "g++": "g++",
    "/usr/include/libaio.h": "libaio-dev",
}
"""What the tests here need: a command or a file, and Debian's package with it."""


def run(*words: str, check: bool = True) -> str:
    """Standard output of a command; what it said where it failed."""
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise RuntimeError(
            f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return done.stdout


def wait_for(
    what: str,
    seconds: float,
    happened: Callable[[], object],
    hopeless: Callable[[], str | None] = lambda: None,
    so_far: Callable[[], str] = str,
) -> float:
    """Poll until it happened; how many seconds that took.

    Raises:
        TimeoutError: it did not (`so_far` says how things are), or cannot any more, as `hopeless` says.
    """
    start = time.monotonic()
    while not happened():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}\n{so_far()}")
        if said := hopeless():
            raise TimeoutError(f"{what}: {said}")
        time.sleep(0.1)
    return time.monotonic() - start


# ------------------------------------------------------------------------------------------------ what a lab needs


def lacks(user: int, debian: bool, namespaces: Callable[[], bool]) -> str | None:
    """Why no lab can be made here, or None."""
    if user != 0:
        return "a lab needs root, for network namespaces"
    if not debian:
        return "a lab needs Debian's packages, and this is not Debian"
    if not namespaces():
        return "this machine lets root make no namespaces (a container without CAP_SYS_ADMIN?)"
    return None


def lacks_here() -> str | None:
    """Why no lab can be made on this machine, or None."""

    def namespaces() -> bool:
        words = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "true"]
        return subprocess.run(words, capture_output=True).returncode == 0

    return lacks(os.geteuid(), Path("/etc/debian_version").exists() and bool(shutil.which("apt-get")), namespaces)


def install(say: Callable[[str], None]) -> str | None:
    """Install the packages of what is missing; why that failed, or None. No package is ever removed for it."""
    missing = {what: package for what, package in PACKAGES.items() if not _is_there(what)}
    if not missing:
        return None
    say(f"installing {' '.join(missing.values())} (missing: {', '.join(missing)})")
    policy = Path("/usr/sbin/policy-rc.d")  # no package may start its daemon on the outside interface
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]
    try:
        run(*apt, "update")
        run("env", "DEBIAN_FRONTEND=noninteractive", *apt, "install", "-y", "--no-install-recommends", "--no-remove",
            *missing.values())  # fmt: skip
    except RuntimeError as error:
        return f"apt-get could not install {' '.join(missing.values())}: {str(error).strip().splitlines()[-1]}"
    finally:
        if made:
            policy.unlink()
    still = [what for what in missing if not _is_there(what)]
    return f"still missing after the install: {', '.join(still)}" if still else None


def _is_there(what: str) -> bool:
    return Path(what).exists() if what.startswith("/") else shutil.which(what) is not None


@contextmanager
def alone(say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other lab is up on this machine."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another lab is up on this machine ({LOCK} is locked): waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------------------- machines


class Lab:
    """A hub to launch from, with a switch, and machines on its cables.

    Args:
        folder: where everything of it lies; its path has to be short, as sockets are in there.
        hosts: names of the machines.
    """

    HUB = "hub"

    def __init__(self, folder: Path, hosts: Sequence[str]):
        self.folder, self.hosts = folder, tuple(hosts)
        self.address = {self.HUB: "10.78.1.1"} | {host: f"10.78.1.{11 + i}" for i, host in enumerate(hosts)}
        self.environment: dict[str, str] = {}
        """What the commands of a user on the hub get beside this process's own."""
        self._on: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, host: str) -> str:
        """What a machine runs when it is switched on (shell)."""
        raise NotImplementedError

    def up(self) -> None:
        """Cables in, everything on."""
        self.down()
        for name in ("log", "local"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._wire()

    def down(self) -> None:
        """Everything off; also what a lab left behind whose process was killed (the lock is ours)."""
        for host in list(self._on):
            self.crash(host)
        for host in self.address:
            if Path("/run/netns", space(host)).exists():
                run("ip", "netns", "del", space(host))
            shutil.rmtree(Path("/etc/netns", space(host)), ignore_errors=True)

    def _wire(self) -> None:
        """One switch (a bridge in the hub's own namespace) and one cable (a veth pair) a machine."""
        names = "".join(f"{address} {host}\n" for host, address in self.address.items())
        # the mapped line only answers reverse look-ups of torch's IPv6 sockets: no c10d warning
        names += "".join(f"::ffff:{address} {host}.lab\n" for host, address in self.address.items())
        for host in self.address:
            run("ip", "netns", "add", space(host))
            run("ip", "-n", space(host), "link", "set", "lo", "up")
            etc = Path("/etc/netns", space(host))  # 'ip netns exec' binds its files over those in /etc
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
            (etc / "resolv.conf").touch()
        hub = space(self.HUB)
        run("ip", "-n", hub, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        run("ip", "-n", hub, "addr", "add", f"{self.address[self.HUB]}/24", "dev", "br0")
        run("ip", "-n", hub, "link", "set", "br0", "up")
        for host in self.hosts:
            run("ip", "link", "add", f"v-{host}", "netns", hub, "type", "veth", "peer", "name", "eth0",
                "netns", space(host))  # fmt: skip
            run("ip", "-n", hub, "link", "set", f"v-{host}", "master", "br0", "up")
            run("ip", "-n", space(host), "addr", "add", f"{self.address[host]}/24", "dev", "eth0")
            run("ip", "-n", space(host), "link", "set", "eth0", "up")

    def boot(self, host: str) -> None:
        """Switch a machine on."""
        self.plug(host)
        own = self.folder / "disk" / host  # a disk of its own, seen as $LAB/local
        own.mkdir(parents=True, exist_ok=True)
        script = (
            f"hostname {host}; mount -t tmpfs tmpfs /dev/shm; mount --bind '{own}' '{self.folder}/local'; trap : TERM; "
            f"{self.command(host)}\nwhile :; do sleep 1000 & wait $!; done"
        )
        words = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", space(host)]
        words += ["unshare", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script]
        with (self.folder / "log" / f"{host}.console").open("ab") as console:
            self._on[host] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )

    def crash(self, host: str) -> None:
        """Cut a machine's power: every process of it dies at once, and no one hears of it."""
        self.cut(host)  # first, or the kernel would close the connections of what dies
        machine = self._on.pop(host)
        machine.kill()
        machine.wait()
        wait_for(f"the processes of {host} to be gone", 10, lambda: not self.processes(host))

    def cut(self, host: str) -> None:
        """Pull a machine's network cable."""
        if host != self.HUB:
            run("ip", "-n", space(self.HUB), "link", "set", f"v-{host}", "down")

    def plug(self, host: str) -> None:
        """Put the cable back."""
        if host != self.HUB:
            run("ip", "-n", space(self.HUB), "link", "set", f"v-{host}", "up")

    def processes(self, host: str, containing: str = "") -> list[int]:
        """Process ids, as seen from outside, of what runs on a machine with this text in its command line."""
        found = []
        for pid in run("ip", "netns", "pids", space(host)).split():
            try:
                words = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                zombie = Path("/proc", pid, "stat").read_text().rpartition(") ")[2].startswith("Z")
            except OSError:  # it has ended
                continue
            if containing in words and not zombie:
                found.append(int(pid))
        return found

    def kill_rank(self, host: str, rank: int, containing: str) -> None:
        """SIGKILL one rank of a run."""
        of_rank = f"\0RANK={rank}\0".encode()
        for pid in self.processes(host, containing):
            if of_rank in b"\0" + Path("/proc", str(pid), "environ").read_bytes():
                os.kill(pid, signal.SIGKILL)
                return
        raise RuntimeError(f"rank {rank} does not run on {host}")

    def start(self, words: Sequence[str], folder: Path, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a user's command on the hub, in a folder; its output goes to a file."""
        with log.open("wb") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", space(self.HUB), *words],
                cwd=folder, env=self._environment(environment), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def run(
        self, *words: str, folder: Path, timeout: float = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a user's command on the hub to its end."""
        return subprocess.run(
            ["ip", "netns", "exec", space(self.HUB), *words],
            cwd=folder, env=self._environment(environment), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        return {**os.environ, **self.environment, **more}


def space(host: str) -> str:
    """The network namespace of a machine."""
    return f"bigtrain-{host}"
