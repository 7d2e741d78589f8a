"""`bigtrain doctor`: what this machine has, what is missing, which versions clash, and how to mend each."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from bigtrain.errors import EXIT_DONE, EXIT_FAILED
from bigtrain.jit_locks import extension_folders, stale_locks
from bigtrain.telemetry import environment

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table. `fail` means that training cannot work on this machine as it is."""

    name: str
    status: Status
    found: str
    mend: str = ""


def diagnose() -> list[Finding]:
    """Every check; one that breaks is a finding itself, and the others go on."""
    findings: list[Finding] = []
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        python, machine, disk, shared_memory, limits, network, packages, extras, torch_itself, gpus, compilers,
        jit_locks, clusters,
    )  # fmt: skip
    for check in checks:
        try:
            findings.extend(check())
        except Exception as error:
            findings.append(Finding(check.__name__, "warn", f"could not be checked: {type(error).__name__}: {error}"))
    return findings


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "?"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def python() -> Iterable[Finding]:
    """Interpreter and operating system."""
    yield Finding("Python", "ok", f"{sys.version.split()[0]} in {sys.prefix}")
    if not sys.platform.startswith("linux"):
        yield Finding("system", "warn", sys.platform, "bigtrain is tested on Linux only")


def machine() -> Iterable[Finding]:
    """Processor and memory, as far as this process may use them."""
    yield Finding("CPU", "ok", f"{environment.usable_cores()} cores, {environment.cpu_model()}")
    total, free = environment.memory_bytes(), environment.free_memory_bytes() or None
    status: Status = "warn" if total is not None and total < 4 * 2**30 else "ok"
    mend = (
        "the quickstart needs about 4 GiB; lower trainer.micro_batch_size or launcher.processes"
        if status == "warn"
        else ""
    )
    yield Finding("memory", status, f"{size(total)}, {size(free)} of it free", mend)


def disk() -> Iterable[Finding]:
    """Room and rights where runs would be written."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    said = f"{size(free)} free at {here}"
    try:
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        yield Finding("disk", "warn", f"{here} cannot be written: {error.strerror}", "set run.dir= to another folder")
        return
    if free < 2**30:
        yield Finding(
            "disk", "warn", said, "free some, or set run.dir= elsewhere: a checkpoint takes 12 bytes a parameter"
        )
    else:
        yield Finding("disk", "ok", said)


def shared_memory() -> Iterable[Finding]:
    """/dev/shm, which NCCL and data loaders pass tensors through."""
    path = Path("/dev/shm")
    if not path.is_dir():
        yield Finding("/dev/shm", "warn", "not there", "mount a tmpfs on /dev/shm")
        return
    total = shutil.disk_usage(path).total
    if total < 2**30:
        mend = "docker run --shm-size=8g (or --ipc=host); Kubernetes: an emptyDir with medium: Memory"
        yield Finding("/dev/shm", "warn", size(total), mend)
    else:
        yield Finding("/dev/shm", "ok", size(total))


def limits() -> Iterable[Finding]:
    """Limits of this shell that big runs meet."""
    import resource

    def said(value: int) -> str:
        return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"

    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < 4096:
        yield Finding(
            "open files", "warn", f"{said(files)} at once", f"ulimit -n {min(65536, most) if most > 0 else 65536}"
        )
    else:
        yield Finding("open files", "ok", f"{said(files)} at once")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if Path("/sys/class/infiniband").is_dir() and locked != resource.RLIM_INFINITY:
        mend = "ulimit -l unlimited (in the job script, or limits.conf): RDMA registers memory"
        yield Finding("locked memory", "warn", said(locked), mend)


def network() -> Iterable[Finding]:
    """Whether this host knows itself: gloo asks for its own name's address."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        mend = f"add '127.0.0.1 {name}' to /etc/hosts, or export GLOO_SOCKET_IFNAME=lo (one machine)"
        yield Finding("host name", "warn", f"{name} has no address: gloo may not start", mend)
    else:
        links = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
        yield Finding("host name", "ok", f"{name} is {address}" + (f"; InfiniBand {', '.join(links)}" if links else ""))


def _requirements(distribution: str, extra: str) -> list[Any]:
    """`packaging` requirements of an installed distribution that hold here, with one extra or none ('')."""
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in metadata.requires(distribution) or ()]
    return [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": extra})]


def _fault(requirement: Any) -> str | None:
    """What is wrong with a requirement on this machine: absent, or another version."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "is not installed"
    return None if requirement.specifier.contains(version, prereleases=True) else f"is {version}"


def packages() -> Iterable[Finding]:
    """bigtrain's own requirements, and those of everything under them: what `pip check` says, for our part of it."""
    try:
        core = _requirements("bigtrain", "")
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", "warn", "bigtrain is not installed, so its requirements are not known", "pip install -e ."
        )
        return
    good = []
    for requirement in core:
        fault = _fault(requirement)
        if fault is None:
            good.append(f"{requirement.name} {metadata.version(requirement.name)}")
        else:
            mend = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding(
                "package", "fail", f"{requirement.name} {fault}; {requirement.specifier or 'any'} is needed", mend
            )
    yield Finding("packages", "ok", ", ".join(good))
    seen, queue = {"bigtrain"}, [requirement.name for requirement in core]
    while queue:
        name = queue.pop()
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        try:
            below = _requirements(name, "")
        except metadata.PackageNotFoundError:
            continue  # said above, or by the package that wants it
        for requirement in below:
            fault = _fault(requirement)
            if fault is not None:
                mend = f"pip install '{requirement.name}{requirement.specifier}'"
                yield Finding("clash", "warn", f"{name} needs {requirement}, which {fault}", mend)
            queue.append(requirement.name)


def extras() -> Iterable[Finding]:
    """Optional parts: which are there, and how to get the others."""
    try:
        names = metadata.metadata("bigtrain").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    core = {str(requirement) for requirement in _requirements("bigtrain", "")}
    for name in names:
        if name in ("all", "dev", "test"):
            continue
        wanted = [one for one in _requirements("bigtrain", name) if str(one).partition(";")[0].strip() not in core]
        faults = [f"{one.name} {fault}" for one in wanted if (fault := _fault(one)) is not None]
        if faults:
            yield Finding(f"extra {name}", "ok", "; ".join(faults), f"pip install 'bigtrain[{name}]', if wanted")
        else:
            yield Finding(f"extra {name}", "ok", "installed")


def torch_itself() -> Iterable[Finding]:
    """Whether torch works, and what it was built for."""
    try:
        import torch
        import torch.distributed as distributed
    except Exception as error:  # a library that is missing is an OSError, not an ImportError
        yield Finding("torch", "fail", f"cannot be imported: {error}", "pip install --force-reinstall torch")
        return
    built = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    if not distributed.is_available():
        yield Finding(
            "torch", "fail", f"{torch.__version__} without torch.distributed", "install an official torch build"
        )
        return
    backends = [name for name in ("gloo", "nccl", "mpi") if distributed.is_backend_available(name)]
    nccl = ""
    if "nccl" in backends and torch.cuda.is_available():
        nccl = f" (NCCL {'.'.join(map(str, torch.cuda.nccl.version()))})"  # type: ignore[no-untyped-call]
    found = f"{torch.__version__}, built for {built}; {', '.join(backends)}{nccl}"
    yield Finding("torch", "ok", found)


def gpus() -> Iterable[Finding]:
    """What the driver sees against what torch can use."""
    import torch

    from bigtrain.telemetry.peaks import peak_flops

    driver = environment.nvidia_smi()
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not usable and not driver:
        yield Finding("GPU", "ok", "none; training runs on the CPU")
        return
    if not usable:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            mend = f"unset CUDA_VISIBLE_DEVICES (it is '{hidden}')"
        elif torch.version.cuda is None:
            mend = "install a CUDA build of torch (pytorch.org/get-started)"
        else:
            mend = f"the driver {driver[0]['driver']} is too old for CUDA {torch.version.cuda}: update it"
        yield Finding("GPU", "warn", f"{len(driver)} x {driver[0]['name']}, but torch cannot use them", mend)
        return
    for index in range(usable):
        properties = torch.cuda.get_device_properties(index)
        peak = peak_flops(properties.name, "bf16")
        said = f"{properties.name}, {size(properties.total_memory)}, compute {properties.major}.{properties.minor}"
        said += f", {peak / 1e12:.0f} TFLOP/s bf16" if peak else ", peak not known: no MFU"
        yield Finding(f"GPU {index}", "ok", said)
    for index, gpu in enumerate(driver):
        used, total = gpu.get("used_bytes"), gpu.get("memory_bytes")
        if used and total and used > total * 0.1:
            yield Finding(
                "GPU memory", "warn", f"nvidia-smi's GPU {index}: {size(used)} taken", "nvidia-smi shows by whom"
            )


def compilers() -> Iterable[Finding]:
    """What DeepSpeed and torch.compile build with, on first use of some engines."""
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if missing:
        mend = {"g++": "apt-get install g++", "ninja": "pip install ninja"}
        said = f"{' and '.join(missing)} missing: only trainer.compile and DeepSpeed's own CPU Adam want them"
        yield Finding("compilers", "warn", said, "; ".join(mend[tool] for tool in missing))
    else:
        yield Finding("compilers", "ok", "g++, ninja")
    import torch

    release = re.search(r"release (\d+)\.(\d+)", environment.output("nvcc", "--version") or "")
    if torch.version.cuda is None:
        return
    if release is None:
        yield Finding(
            "nvcc", "ok", "not there: only DeepSpeed's fused GPU ops want it", "install the CUDA toolkit, if wanted"
        )
    elif release[1] != torch.version.cuda.split(".")[0]:
        said = f"CUDA {release[1]}.{release[2]}, torch is for {torch.version.cuda}: DeepSpeed's GPU ops will not build"
        yield Finding("nvcc", "warn", said, f"install the CUDA {torch.version.cuda} toolkit and set CUDA_HOME")
    else:
        yield Finding("nvcc", "ok", f"CUDA {release[1]}.{release[2]}")


def jit_locks() -> Iterable[Finding]:
    """Locks in the folders of JIT-built extensions."""
    folders = extension_folders()
    stale = stale_locks(folders)
    for lock in stale:
        age = (time.time() - lock.stat().st_mtime) / 3600
        found = f"{lock} is {age:.1f} h old and nobody builds: whatever needs this op waits for ever"
        yield Finding("JIT lock", "warn", found, f"rm '{lock}'")
    if not stale:
        there = [str(folder) for folder in folders if folder.is_dir()]
        yield Finding("JIT locks", "ok", f"none stale in {', '.join(there)}" if there else "nothing was built yet")


def clusters() -> Iterable[Finding]:
    """Ways to other machines."""
    hostfile = Path("/job/hostfile")
    found = []
    if hostfile.is_file():
        lines = hostfile.read_text().splitlines()
        found.append(f"{hostfile} with {sum(bool(line.split('#')[0].strip()) for line in lines)} hosts")
    if shutil.which("sbatch"):
        found.append("Slurm")
    if job := os.environ.get("SLURM_JOB_ID"):
        found.append(f"inside Slurm job {job} on {os.environ.get('SLURM_NNODES', '?')} nodes")
    if shutil.which("ssh"):
        found.append("ssh")
    yield Finding("cluster", "ok", ", ".join(found) or "no Slurm, no hostfile, no ssh: this machine alone")


def main(argv: Sequence[str]) -> int:
    """The command: a table or JSON; 1 where something makes training impossible, else 0."""
    parser = argparse.ArgumentParser(
        prog="bigtrain doctor",
        description="What this machine has, what is missing, which versions clash, stale JIT locks; how to mend each.",
        epilog="Exit code 1 where something makes training impossible, else 0.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    findings = diagnose()
    able = all(finding.status != "fail" for finding in findings)
    if arguments.json:
        print(json.dumps({"able": able, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _print(findings)
    return EXIT_DONE if able else EXIT_FAILED


def _print(findings: Sequence[Finding]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from bigtrain.telemetry.progress import console, say

    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "what", "found", "how to mend it"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        cells = (finding.name, finding.found, finding.mend)
        table.add_row(Text(finding.status, style=style[finding.status]), *(Text(cell) for cell in cells))
    console().print(table)
    count = {status: sum(finding.status == status for finding in findings) for status in style}
    end = "training cannot work here yet" if count["fail"] else "training works here"
    say(f"{count['ok']} ok, {count['warn']} to look at, {count['fail']} in the way: {end}.")
