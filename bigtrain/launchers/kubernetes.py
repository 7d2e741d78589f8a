"""`launcher=kubernetes`: manifests of a Kubeflow PyTorchJob, a Kubeflow TrainJob or a JobSet, for `kubectl apply`.

A pod is a node. It runs `bigtrain.launchers.pod`, which starts the node's ranks and, unlike torchrun, passes a stop on
for as long as the checkpoint takes and ends with the ranks' own exit code. The frozen configuration travels in a
ConfigMap; the run folder lies on a claim that every node mounts, so that whatever comes back goes on in it.

What restarts a run, by kind:

- `jobset` and `trainjob` (which makes a JobSet): any pod that fails ends its Job, and all are made anew, up to
  `launcher.restarts` times; wrong input (exit 2) ends it for good.
- `pytorchjob`: each container is started again where it was, a lost pod is made anew, and the ranks meet again. Its
  `ExitCode` policy is of no use: it takes every code below 128 for permanent, 75 included.

Sources: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/,
https://www.kubeflow.org/docs/components/trainer/, the training operator's `pkg/controller.v1/pytorch/envvar.go`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from bigtrain.config.components import components
from bigtrain.config.launchers import Kubernetes
from bigtrain.config.launching import processes
from bigtrain.config.schema import RunConfig
from bigtrain.errors import EXIT_USER, UserError
from bigtrain.launchers.base import Job, Plan, Process

Manifest = dict[str, Any]

RESOURCES = {
    "pytorchjob": ("pytorchjobs.kubeflow.org", "Kubeflow Training Operator v1"),
    "trainjob": ("trainjobs.trainer.kubeflow.org", "Kubeflow Trainer v2"),
    "jobset": ("jobsets.jobset.x-k8s.io", "JobSet"),
}
"""What the cluster must know for each kind, and who brings it."""

CONFIG = PurePosixPath("/etc/bigtrain/config.yaml")
PORT = 29500
NAME_LENGTH = 40
"""A pod's host name, `<job>-node-0-<index>`, has at most 63 characters."""


def _launcher(config: RunConfig) -> Kubernetes:
    assert isinstance(config.launcher, Kubernetes)
    return config.launcher


def job_name(config: RunConfig) -> str:
    """`launcher.job_name`, or the recipe's name and the run folder's, as Kubernetes takes names (RFC 1035)."""
    run_dir = PurePosixPath(config.run.dir or "run")
    wanted = _launcher(config).job_name or f"{PurePosixPath(config.run.name or 'bigtrain').name}-{run_dir.name}"
    name = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}"
    return name[: NAME_LENGTH - 16].rstrip("-") + name[-16:] if len(name) > NAME_LENGTH else name


def run_folder(config: RunConfig) -> str:
    """The run folder as the pods see it: on the claim. (Here, a folder of the same name holds what was submitted.)"""
    return str(PurePosixPath(_launcher(config).mount) / (config.run.dir or "run"))


def _command(config: RunConfig) -> list[str]:
    """Targets of the user's own are named again: a file's word is not enough for the worker to import them."""
    own = [
        f"{key}._target_={part['_target_']}"
        for key, part in components(config).items()
        if not str(part["_target_"]).startswith("bigtrain.")
    ]
    return ["python", "-m", "bigtrain.launchers.pod", f"recipe={CONFIG}", f"run.dir={run_folder(config)}", *own]


def _container(config: RunConfig, name: str, ranks: Mapping[str, str]) -> Manifest:
    launcher = _launcher(config)
    environment = {"PYTHONUNBUFFERED": "1", **ranks, **launcher.environment}
    if launcher.threads:
        environment["OMP_NUM_THREADS"] = str(launcher.threads)
    amounts = {"cpu": launcher.cpu, "memory": launcher.memory}
    amounts |= {launcher.gpu_resource: str(launcher.gpus) if launcher.gpus else None}
    given = {key: str(value) for key, value in amounts.items() if value is not None}
    container: Manifest = {
        "name": name,
        "image": launcher.image,
        "command": _command(config),
        "workingDir": launcher.mount,  # relative paths, the prepared data's among them, are on the claim
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "ports": [{"name": "pytorchjob-port" if name == "pytorch" else "rendezvous", "containerPort": PORT}],
        "resources": {"requests": given, "limits": dict(given)},
        "volumeMounts": [
            {"name": "runs", "mountPath": launcher.mount},
            {"name": "config", "mountPath": str(CONFIG.parent), "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if launcher.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in launcher.secrets]
    return container


def _pod(config: RunConfig, name: str, ranks: Mapping[str, str]) -> Manifest:
    launcher = _launcher(config)
    shm: Manifest = {"medium": "Memory"}
    if launcher.shared_memory:
        shm["sizeLimit"] = launcher.shared_memory
    spec: Manifest = {
        "containers": [_container(config, name, ranks)],
        "terminationGracePeriodSeconds": launcher.grace_s,
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": launcher.claim}},
            {"name": "config", "configMap": {"name": f"{job_name(config)}-config"}},
            {"name": "shm", "emptyDir": shm},
        ],
    }
    if launcher.node_selector:
        spec["nodeSelector"] = dict(launcher.node_selector)
    if launcher.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in launcher.tolerations]
    if launcher.service_account:
        spec["serviceAccountName"] = launcher.service_account
    if launcher.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in launcher.pull_secrets]
    return spec


def _metadata(config: RunConfig, name: str) -> Manifest:
    launcher = _launcher(config)
    labels = {"app.kubernetes.io/name": "bigtrain", "app.kubernetes.io/instance": job_name(config)}
    metadata: Manifest = {"name": name, "labels": labels}
    return metadata | ({"namespace": launcher.namespace} if launcher.namespace else {})


def _jobset_spec(config: RunConfig, ranks: Mapping[str, str], labels: Mapping[str, str]) -> Manifest:
    """One Job of as many pods as nodes. A pod that fails ends it, and then all of it is made anew, the old pods gone
    first; exit 2 fails the Job by its policy, and that reason ends the set."""
    nodes = config.launcher.nodes or 1
    wrong_input = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [EXIT_USER]}}
    job = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [wrong_input]},
        "template": {"spec": _pod(config, "node", ranks) | {"restartPolicy": "Never"}},
    }
    ends = {"name": "wrongInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    template = ({"metadata": {"labels": dict(labels)}} if labels else {}) | {"spec": job}
    return {
        "failurePolicy": {
            "maxRestarts": _launcher(config).restarts,
            "restartStrategy": "BlockingRecreate",
            "rules": [ends],
        },
        "replicatedJobs": [{"name": "node", "replicas": 1, "template": template}],
    }


def _queue(config: RunConfig, metadata: Manifest) -> Manifest:
    queue = _launcher(config).queue
    return metadata | ({"labels": metadata["labels"] | {"kueue.x-k8s.io/queue-name": queue}} if queue else {})


def _jobset(config: RunConfig) -> list[Manifest]:
    """The names are those that Kubeflow's operators set, so that a pod reads the same in every kind."""
    name = job_name(config)
    ranks = {
        "PET_NNODES": str(config.launcher.nodes or 1),
        "PET_NPROC_PER_NODE": str(processes(config)),
        "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
        "PET_MASTER_PORT": str(PORT),
    }
    spec = _jobset_spec(config, ranks, {})
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    pod = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["containers"][0]["env"].append({"name": "PET_NODE_RANK", "valueFrom": index})
    metadata = _queue(config, _metadata(config, name))
    return [{"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}]


def _trainjob(config: RunConfig) -> list[Manifest]:
    """A runtime of the run's own, since a TrainJob alone cannot say volumes in every version of Kubeflow Trainer."""
    group, name = "trainer.kubeflow.org", job_name(config)
    nodes = config.launcher.nodes or 1
    framework = {f"{group}/framework": "torch"}
    metadata = _metadata(config, name)
    runtime = {
        "apiVersion": f"{group}/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": metadata | {"labels": metadata["labels"] | framework},
        "spec": {
            "mlPolicy": {"numNodes": nodes, "torch": {}},
            "template": {"spec": _jobset_spec(config, {}, {f"{group}/trainjob-ancestor-step": "trainer"})},
        },
    }
    job = {
        "apiVersion": f"{group}/v1alpha1",
        "kind": "TrainJob",
        "metadata": _queue(config, metadata),
        "spec": {
            "runtimeRef": {"apiGroup": group, "kind": "TrainingRuntime", "name": name},
            "trainer": {"numNodes": nodes, "numProcPerNode": processes(config)},
        },
    }
    return [runtime, job]


def _pytorchjob(config: RunConfig) -> list[Manifest]:
    """Container restarts of all pods count against `backoffLimit`, and a run that starts again restarts every one."""
    launcher, nodes = _launcher(config), config.launcher.nodes or 1

    def replicas(count: int) -> Manifest:
        return {"replicas": count, "restartPolicy": "OnFailure", "template": {"spec": _pod(config, "pytorch", {})}}

    workers = {"Worker": replicas(nodes - 1)} if nodes > 1 else {}
    spec = {
        "nprocPerNode": str(processes(config)),
        "runPolicy": {"backoffLimit": launcher.restarts * nodes, "cleanPodPolicy": "Running"},
        "pytorchReplicaSpecs": {"Master": replicas(1), **workers},
    }
    metadata = _queue(config, _metadata(config, job_name(config)))
    return [{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata, "spec": spec}]


def _plain(value: Any) -> Any:
    """Settings as YAML knows them: tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def manifests(config: RunConfig) -> list[Manifest]:
    """What is to be applied, in order: the frozen configuration, and the job that reads it."""
    held = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(config, f"{job_name(config)}-config"),
        "data": {CONFIG.name: render([_plain(asdict(config))])},
    }
    build = {"pytorchjob": _pytorchjob, "trainjob": _trainjob, "jobset": _jobset}[_launcher(config).kind]
    return [held, *build(config)]


def render(parts: Sequence[Manifest]) -> str:
    """The manifests as one YAML stream, as `kubectl apply -f -` reads it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Long texts (the frozen configuration) as blocks; no aliases, which some readers refuse."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)

    Dumper.add_representer(str, text)
    return yaml.dump_all(parts, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _kubectl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kubectl", *words], capture_output=True, text=True, timeout=30.0)


def preflight(config: RunConfig) -> None:
    """Is there a `kubectl`, a cluster behind it that knows the kind, and the claim?

    Raises:
        UserError: the first thing that is missing.
    """
    launcher = _launcher(config)
    if shutil.which("kubectl") is None:
        raise UserError("launcher=kubernetes needs kubectl, which is not here; --dry-run prints the manifests.")
    namespace = ["--namespace", launcher.namespace] if launcher.namespace else []
    resource, bringer = RESOURCES[launcher.kind]
    claim = str(launcher.claim)
    questions = {
        ("version", "--request-timeout=10s"): "kubectl reaches no cluster (kubectl config current-context)",
        ("get", "crd", resource): f"launcher.kind={launcher.kind} needs {bringer}, and the cluster has no {resource}",
        ("get", "pvc", claim, *namespace): f"launcher.claim={claim}: kubectl finds no such claim",
    }
    for words, fault in questions.items():
        try:
            answer = _kubectl(*words)
        except subprocess.TimeoutExpired:
            raise UserError(f"{fault}: no answer in 30 s.") from None
        denied = "forbidden" in answer.stderr.lower()  # who may submit need not be allowed to look
        if answer.returncode and not denied:
            said = answer.stderr.strip().splitlines() or ["(kubectl said nothing)"]
            raise UserError(f"{fault}: {said[-1]}")


def plan(job: Job) -> Plan:
    """The manifests, in the run folder as the submitting machine sees it, and the `kubectl` that applies them."""
    file = job.run_dir / "job.yaml"
    apply = Process(["kubectl", "apply", "--filename", str(file)], name="kubectl apply")
    return Plan([apply], {file: render(manifests(job.config))}, submits=True)
