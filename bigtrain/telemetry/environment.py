"""environment.json: what a run ran on. Torch-free; no secret goes in: of the environment only listed variables."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

FILE_NAME = "environment.json"

PACKAGES = (
    "bigtrain", "torch", "deepspeed", "transformers", "datasets", "tokenizers", "safetensors", "hydra-core", "numpy",
    "triton", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "flash-attn",
    "torchao", "peft", "accelerate", "horovod", "wandb", "tensorboard",
)  # fmt: skip

VARIABLES = re.compile(
    r"CUDA_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES|WORLD_SIZE|LOCAL_WORLD_SIZE|OMP_NUM_THREADS|PYTORCH_CUDA_ALLOC_CONF"
    r"|PYTORCH_ALLOC_CONF|CUBLAS_WORKSPACE_CONFIG|TORCH_EXTENSIONS_DIR|NCCL_\w+|GLOO_\w+|OMPI_COMM_WORLD_SIZE"
    r"|SLURM_(JOB_ID|JOB_NAME|JOB_PARTITION|JOB_NODELIST|NNODES|NTASKS|CPUS_PER_TASK|GPUS_ON_NODE|RESTART_COUNT)"
)

_SECRET = re.compile(r"(^|[._-])(api[_-]?key|secret|password|passwd|credentials?|token)=", re.IGNORECASE)


def write_environment(run_dir: Path, argv: Sequence[str] | None = None) -> Path:
    """Write `<run>/environment.json`; what an earlier session of the same run wrote is kept under `earlier`.

    Args:
        run_dir: the run folder.
        argv: the command line; by default this process's.
    """
    path = run_dir / FILE_NAME
    environment = describe(argv)
    earlier = _read(path)
    if earlier is not None:
        sessions = earlier.pop("earlier", [])
        environment["earlier"] = [*(sessions if isinstance(sessions, list) else []), earlier]
    temporary = path.with_name(f".{FILE_NAME}.{os.getpid()}")
    temporary.write_text(json.dumps(environment, indent=2) + "\n")
    temporary.replace(path)
    return path


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def describe(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What this process runs on, as JSON-ready values."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command_line": command_line(argv),
        "working_directory": str(Path.cwd()),
        "git": git_state(Path.cwd()),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
        "cpu": {"model": cpu_model(), "cores": usable_cores()},
        "memory_bytes": memory_bytes(),
        "devices": devices(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)},
    }


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command line, quoted for a shell; the value of an override that is named like a secret is left out."""
    words = list(sys.argv if argv is None else argv)
    return shlex.join(word[: match.end()] + "***" if (match := _SECRET.search(word)) else word for word in words)


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of those that are installed, from their metadata: nothing is imported."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, Any] | None:
    """`{"commit", "dirty"}` of the repository that holds the folder; None where there is none, or no git."""
    commit = output("git", "-C", str(folder), "rev-parse", "HEAD")
    if not commit:
        return None
    changes = output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the container's quota where there is one (cgroup 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def memory_bytes() -> int | None:
    """Memory that this process may use: the machine's, or the container's limit where that is lower (cgroup 2)."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return total if limit == "max" else min(total, int(limit))
    except (OSError, ValueError):
        return total


def free_memory_bytes() -> int:
    """Memory to be had without swapping: the machine's, or what a container's limit leaves (cgroup 2). 0: unknown.

    Files that the container has read and written count as taken there, so that it is rather too little.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or "max": none of its own
        return free
    return min(free, limit - used)


def devices() -> list[dict[str, Any]]:
    """GPUs as `{"name", "memory_bytes", …}`: from torch where this process has it already, else from nvidia-smi."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        found = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = f"{properties.major}.{properties.minor}"
            found.append({"name": properties.name, "memory_bytes": properties.total_memory, "capability": capability})
        return found
    return nvidia_smi()


def nvidia_smi() -> list[dict[str, Any]]:
    """What nvidia-smi sees: `{"name", "memory_bytes", "used_bytes", "driver", "capability"}` a GPU; [] without it."""
    fields = "name,memory.total,memory.used,driver_version,compute_cap"
    listing = output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    found = []
    for line in (listing or "").splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == 5:
            name, total, used, driver, capability = values
            found.append({
                "name": name, "memory_bytes": _mebibytes(total), "used_bytes": _mebibytes(used),
                "driver": driver, "capability": capability,
            })  # fmt: skip
    return found


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdigit() else None  # "[N/A]" on some machines


def output(*command: str) -> str | None:
    """Standard output, stripped; None where the program is missing, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
