"""The settings of each launcher, one slotted dataclass each; `launcher.name` says which of them holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass(slots=True)
class Launcher:
    """Who starts the ranks: what every launcher has."""

    KINDS: ClassVar[dict[str, type[Launcher]]] = {}

    name: str
    nodes: int | None = None
    """Machines; null: 1, or every host that is listed."""
    processes: int | None = None
    """Ranks on each node; null: the host's slots, or one a GPU, or `cpu_processes` where there is none."""
    cpu_processes: int = 1
    threads: int | None = None
    """CPU threads a rank; null: the cores, divided by the ranks."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that every rank gets."""


@dataclass(slots=True)
class Local(Launcher):
    """Processes on this machine, started by bigtrain itself."""


@dataclass(slots=True)
class Torchrun(Launcher):
    """`python -m torch.distributed.run` on this machine; with several nodes, the same command on each of them."""

    node_rank: int = 0
    """Which of the nodes this is."""
    rendezvous: str | None = None
    """`host:port` where the nodes meet; needed for several."""
    max_restarts: int = 0
    """How often torchrun starts the ranks again after a failure; they go on from the newest checkpoint."""


@dataclass(slots=True)
class Hosts(Launcher):
    """What the launchers have that reach machines over ssh."""

    hosts: list[str] = field(default_factory=list)
    """`name` or `name:slots`; or `hostfile`."""
    hostfile: str | None = None
    """A file with `name slots=N` on each line."""
    ssh_port: int | None = None
    master_addr: str | None = None
    """The address of the first host, as the others reach it; null: its name."""
    master_port: int | None = None
    """Where rank 0 listens; null: a free port."""
    preflight: bool = True
    """Look at every host before anything is started."""
    preflight_s: float = 20.0
    """Seconds that a host may take to answer."""


@dataclass(slots=True)
class Ssh(Hosts):
    """One ssh a host, and a small supervisor there that starts that host's ranks."""


@dataclass(slots=True)
class DeepSpeed(Hosts):
    """DeepSpeed's own launcher: on this machine, or over pdsh on every host of the hostfile."""

    include: str | None = None
    """DeepSpeed's filter of hosts and slots: `host0@host1:0,2`."""
    exclude: str | None = None


@dataclass(slots=True)
class Horovod(Hosts):
    """`horovodrun`, on this machine or over ssh."""


@dataclass(slots=True)
class Slurm(Launcher):
    """A Slurm job, rendered into the run folder as `job.sbatch`."""

    start: Literal["srun", "torchrun", "deepspeed"] = "srun"
    """What starts the ranks on the nodes of the job."""
    gpus: int | None = None
    """GPUs on each node; null: none is asked for."""
    time: str | None = None
    """Slurm's formats: minutes, `hours:minutes:seconds`, `days-hours`."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    """Memory of a node: `64G`."""
    job_name: str | None = None
    """null: the recipe's name."""
    container: str | None = None
    """An image for Slurm's pyxis plug-in."""
    mounts: list[str] = field(default_factory=list)
    """`outside:inside[:ro]`, for the container."""
    array: str | None = None
    """Parts of this run one after another, each in a job of its own: `1-4%1`."""
    sweep_parallel: int | None = None
    """Jobs of a sweep (`bigtrain train -m`) at once; null: as many as the cluster runs."""
    dependency: str | None = None
    """`afterok:123`, `singleton`."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the ranks start: `module load cuda`."""
    extra: list[str] = field(default_factory=list)
    """Further options of sbatch: `--exclusive`."""
    warn_s: int = 120
    """Seconds before the time limit at which Slurm warns: the ranks write a checkpoint and the job is requeued."""
    retries: int = 2
    """How often a failed job is tried again without having come further."""
    python: str | None = None
    """The interpreter on the nodes; null: this one, or `python` in a container."""
    preflight: bool = True
    """Look at partition, nodes, GPUs and the run folder before submitting; the last by a short job on a node."""
    preflight_s: float = 30.0
    """Seconds to wait for a node that can look; after them the cluster counts as busy."""


@dataclass(slots=True)
class Kubernetes(Launcher):
    """A Kubeflow PyTorchJob or TrainJob, or a JobSet: a pod a node, started again and again until the run is done."""

    kind: Literal["pytorchjob", "trainjob", "jobset"] = "trainjob"
    """Which of them the cluster has; only the last two end for good on wrong input."""
    image: str | None = None
    """With bigtrain in it; needed."""
    namespace: str | None = None
    """null: that of kubectl's context."""
    claim: str | None = None
    """A PersistentVolumeClaim that all nodes can mount (ReadWriteMany): run folder and prepared data; needed."""
    mount: str = "/work"
    """Where the pods mount it; a relative `run.dir` is below it."""
    gpus: int | None = None
    """GPUs a pod; null: none is asked for."""
    gpu_resource: str = "nvidia.com/gpu"
    cpu: str | None = None
    """CPU cores a pod: `8`."""
    memory: str | None = None
    """Memory a pod: `64Gi`."""
    shared_memory: str | None = None
    """Size of /dev/shm, part of `memory`: `16Gi`; null: as much as the pod has."""
    secrets: list[str] = field(default_factory=list)
    """Secrets whose every key becomes a variable of the ranks (WANDB_API_KEY, HF_TOKEN)."""
    pull_secrets: list[str] = field(default_factory=list)
    """Secrets for the image's registry."""
    service_account: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, str | int]] = field(default_factory=list)
    """As Kubernetes writes them: `{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}`."""
    queue: str | None = None
    """A Kueue queue."""
    job_name: str | None = None
    """null: the recipe's name and the run folder's."""
    restarts: int = 100
    """How often the run is started again after a stop, a failure or a lost node; it resumes in its run folder."""
    grace_s: int = 600
    """Seconds between a pod's notice and its end: a step and a checkpoint must fit in."""
    preflight: bool = True
    """Ask the cluster for the kind and the claim before submitting."""


Launcher.KINDS.update(
    local=Local, torchrun=Torchrun, deepspeed=DeepSpeed, ssh=Ssh, slurm=Slurm, horovod=Horovod, kubernetes=Kubernetes
)
