"""Manifests against the schemas that Kubeflow's packages carry, unknown keys refused; what a pod makes of them.

`python -m tests.unit.test_launchers_kubernetes` writes the golden files anew.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtrain.cli import main
from bigtrain.config.compose import compose
from bigtrain.errors import UserError
from bigtrain.launchers import plan
from bigtrain.launchers.base import Job
from bigtrain.launchers.kubernetes import manifests, preflight, render
from bigtrain.launchers.pod import commands
from bigtrain.placement import Node, read_environment, read_node
from tests.support import ran

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
KINDS = ("pytorchjob", "trainjob", "jobset")
WORDS = [
    "recipe=pretrain/gpt2_124m", "run.dir=runs/gpt2/20260102-030405", "launcher=kubernetes", "launcher.claim=runs",
    "launcher.image=registry/bigtrain:1", "launcher.nodes=2", "launcher.gpus=8", "launcher.cpu=32",
    "launcher.memory=256Gi", "launcher.shared_memory=64Gi", "launcher.secrets=[wandb]", "launcher.queue=research",
    "launcher.environment={NCCL_DEBUG: WARN}", "launcher.node_selector={pool: h100}", "launcher.namespace=team",
    "launcher.tolerations=[{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]",
]  # fmt: skip


def parts(kind: str, *words: str) -> list[dict[str, Any]]:
    return manifests(compose([*WORDS, f"launcher.kind={kind}", *words]).config)


class SchemaError(Exception):
    pass


def check_pydantic(annotation: Any, value: Any, where: str) -> None:
    """Keys of models as Kubernetes spells them; the models themselves would drop what they do not know."""
    for inner in typing.get_args(annotation):
        if isinstance(value, list):
            for i, item in enumerate(value):
                check_pydantic(inner, item, f"{where}[{i}]")
        elif isinstance(value, dict):
            nested = value.items() if typing.get_origin(annotation) is dict else [("", value)]
            for key, item in nested:
                check_pydantic(inner, item, f"{where}.{key}".rstrip("."))
    fields = getattr(annotation, "model_fields", None)
    if not fields or not isinstance(value, dict) or "actual_instance" in fields:
        return
    known = {field.alias or name: field.annotation for name, field in fields.items()}
    for key, item in value.items():
        if key not in known:
            raise SchemaError(f"{where}.{key}: {annotation.__name__} has no such key")
        check_pydantic(known[key], item, f"{where}.{key}")


def check_openapi(name: str, value: Any, where: str) -> Any:
    """The same for the models of the older generator, which name their types as text; builds the model."""
    import kubeflow.training.models as kubeflow
    import kubernetes.client.models as core

    if name.startswith(("list[", "dict(")):
        inner = name[5:-1].rpartition(", ")[2]
        if name.startswith("list["):
            return [check_openapi(inner, item, f"{where}[{i}]") for i, item in enumerate(value)]
        return {key: check_openapi(inner, item, f"{where}.{key}") for key, item in value.items()}
    model = getattr(kubeflow, name, None) or getattr(core, name, None)
    if model is None:
        kind = {"str": str, "int": int, "bool": bool}.get(name)
        if kind and type(value) is not kind:
            raise SchemaError(f"{where}: {value!r} is not {name}")
        return value
    known = {spelt: attribute for attribute, spelt in model.attribute_map.items()}
    given = {}
    for key, item in value.items():
        if key not in known:
            raise SchemaError(f"{where}.{key}: {name} has no such key")
        given[known[key]] = check_openapi(model.openapi_types[known[key]], item, f"{where}.{key}")
    try:
        return model(**given)
    except ValueError as error:
        raise SchemaError(f"{where}: {error}") from error


def check_manifest(manifest: dict[str, Any]) -> None:
    import kubeflow_trainer_api.models as models
    from pydantic import ValidationError

    kind = manifest["kind"]
    if kind == "PyTorchJob":
        assert manifest["apiVersion"] == "kubeflow.org/v1"
        check_openapi("KubeflowOrgV1PyTorchJob", manifest, kind)
        return
    if kind == "ConfigMap":
        check_openapi("V1ConfigMap", manifest, kind)
        return
    group, model = {
        "TrainJob": ("trainer.kubeflow.org/v1alpha1", models.TrainerV1alpha1TrainJob),
        "TrainingRuntime": ("trainer.kubeflow.org/v1alpha1", models.TrainerV1alpha1TrainingRuntime),
        "JobSet": ("jobset.x-k8s.io/v1alpha2", models.JobsetV1alpha2JobSet),
    }[kind]
    assert manifest["apiVersion"] == group
    check_pydantic(model, manifest, kind)
    try:
        assert model.from_dict(manifest) is not None
    except ValidationError as error:
        raise SchemaError(str(error)) from error


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_are_what_the_schemas_know(kind: str) -> None:
    for manifest in parts(kind) + parts(kind, "launcher.nodes=1", "launcher.gpus=null", "trainer.device=cpu"):
        check_manifest(manifest)
    ran("kubernetes", "builder")


@pytest.mark.parametrize("kind", KINDS)
def test_copy_and_edit_versions_are_what_the_schemas_know(kind: str) -> None:
    text = (ROOT / "launch" / f"kubernetes-{kind}.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    for manifest in yaml.safe_load_all(text):
        spec = find(manifest, "containers")
        for container in spec or []:  # a quantity may be a number in YAML; the models want the text
            limits = container["resources"]["limits"]
            limits.update({key: str(value) for key, value in limits.items()})
        check_manifest(manifest)


def find(node: Any, key: str) -> Any:
    if isinstance(node, dict):
        if key in node:
            return node[key]
        return next((found for child in node.values() if (found := find(child, key)) is not None), None)
    return (
        next((found for child in node if (found := find(child, key)) is not None), None)
        if isinstance(node, list)
        else None
    )


Plant = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("pytorchjob", lambda m: find(m, "runPolicy").update(backoffLimits=3)),
        ("pytorchjob", lambda m: find(m, "containers")[0].update(workingdir="/")),
        ("pytorchjob", lambda m: m["spec"].update(nprocPerNode=8)),
        ("pytorchjob", lambda m: find(m, "containers")[0].pop("name")),
        ("trainjob", lambda m: find(m, "failurePolicy").update(maxRestart=3)),
        ("trainjob", lambda m: find(m, "containers")[0].update(volumeMount=[])),
        ("trainjob", lambda m: find(m, "emptyDir").update(size="1Gi")),
        ("jobset", lambda m: find(m, "failurePolicy")["rules"][0].update(onJobFailureReason=["x"])),
        ("jobset", lambda m: find(m, "podFailurePolicy")["rules"][0]["onExitCodes"].update(value=[2])),
        ("jobset", lambda m: find(m, "template")["spec"].update(backoffLimit="0")),
    ],
)
def test_a_planted_fault_is_found(kind: str, plant: Plant) -> None:
    manifest = copy.deepcopy(parts(kind)[1])
    check_manifest(manifest)
    plant(manifest)
    with pytest.raises(SchemaError):
        check_manifest(manifest)


def golden(kind: str) -> str:
    return render(parts(kind)[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_golden_manifests(kind: str) -> None:
    assert golden(kind) == (GOLDEN / f"kubernetes_{kind}.yaml").read_text(encoding="utf-8"), __doc__


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_starts_again_and_wrong_input_does_not(kind: str) -> None:
    manifest = parts(kind)[1]
    pod = next(template for template in [find(manifest, "containers")] if template)[0]
    assert pod["command"][-2:] == ["recipe=/etc/bigtrain/config.yaml", "run.dir=/work/runs/gpt2/20260102-030405"]
    assert find(manifest, "terminationGracePeriodSeconds") == 600
    if kind == "pytorchjob":
        replicas = manifest["spec"]["pytorchReplicaSpecs"]
        assert {spec["restartPolicy"] for spec in replicas.values()} == {"OnFailure"}  # ExitCode would end on 75
        assert [spec["replicas"] for spec in replicas.values()] == [1, 1]
        assert manifest["spec"]["runPolicy"]["backoffLimit"] == 2 * 100
    else:
        assert find(manifest, "podFailurePolicy")["rules"][0]["onExitCodes"]["values"] == [2]
        assert find(manifest, "failurePolicy")["maxRestarts"] == 100
        assert find(manifest, "restartPolicy") == "Never" and find(manifest, "backoffLimit") == 0


def test_the_configuration_travels_whole(tmp_path: Path) -> None:
    """What the pods compose from the ConfigMap is what was composed here; only the run folder is theirs."""
    here = compose([*WORDS, "model.dropout=0.1"]).config
    file = tmp_path / "config.yaml"
    file.write_text(manifests(here)[0]["data"]["config.yaml"])
    there = compose([f"recipe={file}", "run.dir=/work/runs/gpt2/20260102-030405"], world_size=16)
    assert there.notes == []
    there.config.run.dir = here.run.dir
    assert there.config == here


def test_components_of_the_users_own_are_named_to_the_pods() -> None:
    words = parts("jobset", "optimizer._target_=torch.optim.SGD", "engine=ddp")
    assert find(words[1], "command")[-1] == "optimizer._target_=torch.optim.SGD"


def test_names_are_what_kubernetes_takes() -> None:
    for word, wanted in {
        "runs/GPT2_x/Lr=3": "gpt2-124m-lr-3",
        "runs/2026": "gpt2-124m-2026",
        "runs/" + "x" * 80: None,
    }.items():
        folder = f"run.dir='{word}'"
        name = parts("jobset", folder)[1]["metadata"]["name"]
        assert wanted is None or name == wanted
        assert len(f"{name}-node-0-99999") <= 63 and name[0].isalpha() and name[-1].isalnum()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("launcher.image=null", "launcher.image has no value"),
        ("launcher.claim=null", "ReadWriteMany"),
        ("launcher.memory=64GB", "launcher.memory=64GB is not an amount"),
        ("run.dir=/home/me/run", "it is relative"),
        ("run.dir=../run", "it is relative"),
        ("launcher.restarts=-1", "at least 0"),
        ("launcher.processes=9", "there are 8 GPUs"),
        ("launcher.kind=pytorchjobs", "Did you mean 'pytorchjob'?"),
        ("launcher.imagee=x", "Did you mean 'launcher.image'?|Did you mean 'image'?"),
    ],
)
def test_bad_settings(word: str, message: str) -> None:
    with pytest.raises(UserError) as fault:
        compose([*WORDS, word])
    assert any(text in str(fault.value) for text in message.split("|"))


def test_submitting_applies_the_file_in_the_run_folder() -> None:
    made = plan(Job(compose([*WORDS]).config))
    (file,) = made.files
    assert made.submits and made.processes[0].command == ["kubectl", "apply", "--filename", str(file)]
    assert [part["kind"] for part in yaml.safe_load_all(made.files[file])] == [
        "ConfigMap", "TrainingRuntime", "TrainJob",
    ]  # fmt: skip


def test_a_dry_run_is_what_kubectl_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *WORDS, "--dry-run"]) == 0
    assert [part["kind"] for part in yaml.safe_load_all(capsys.readouterr().out) if part] == [
        "ConfigMap", "TrainingRuntime", "TrainJob",
    ]  # fmt: skip


KUBECTL = """#!/bin/sh
case "$*" in
  *crd*) test "$1" = get && { echo 'Error from server (NotFound): no such thing' >&2; exit 1; } ;;
esac
"""


def test_preflight_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(WORDS).config
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs kubectl, which is not here; --dry-run prints"):
        preflight(config)
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    with pytest.raises(UserError, match=r"launcher.kind=trainjob needs Kubeflow Trainer v2, .*NotFound"):
        preflight(config)


POD = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "1"}
MASTER = {"PET_MASTER_ADDR": "gpt2-node-0-0.gpt2", "PET_MASTER_PORT": "29500"}
PYTORCHJOB = {**POD, "RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "gpt2-master-0", "MASTER_PORT": "23456"}


def test_a_pod_knows_its_place_in_every_kind() -> None:
    assert read_node(POD | MASTER) == Node(1, 2, 4, "gpt2-node-0-0.gpt2", 29500)
    assert read_node(PYTORCHJOB) == Node(1, 2, 4, "gpt2-master-0", 23456)
    assert read_node({}) == Node()
    ranks = commands(read_node(PYTORCHJOB), ["recipe=r", "run.dir=/work/r"], cores=16, environment={})
    places = [read_environment(PYTORCHJOB | rank.environment) for rank in ranks]
    assert [(p.rank, p.world_size, p.local_rank, p.local_world_size) for p in places] == [
        (4, 8, 0, 4), (5, 8, 1, 4), (6, 8, 2, 4), (7, 8, 3, 4),
    ]  # fmt: skip
    assert {(p.master_addr, p.master_port) for p in places} == {("gpt2-master-0", 23456)}
    assert [rank.output for rank in ranks] == [None, *(Path(f"/work/r/logs/rank_{n}.log") for n in (5, 6, 7))]
    assert ranks[0].environment["OMP_NUM_THREADS"] == "4"


def test_a_bare_worker_in_a_pod() -> None:
    one = PYTORCHJOB | {"PET_NPROC_PER_NODE": "1", "WORLD_SIZE": "2"}
    place = read_environment(one)
    assert (place.rank, place.world_size, place.local_rank) == (1, 2, 0) and place.master_port == 23456
    with pytest.raises(UserError, match=r"PET_NPROC_PER_NODE=4, and this is one process"):
        read_environment(POD | MASTER)
    with pytest.raises(UserError, match="where the pods meet"):
        read_environment(POD | {"PET_NPROC_PER_NODE": "1"})
    with pytest.raises(UserError, match="node 2 of 2"):
        read_node(POD | MASTER | {"PET_NODE_RANK": "2"})
    torchrun = POD | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
                      "MASTER_ADDR": "a", "MASTER_PORT": "1"}  # fmt: skip
    assert read_environment(torchrun).rank == 5


def test_a_pod_passes_the_stop_on_and_ends_with_the_ranks_code(tmp_path: Path) -> None:
    """As the kubelet does it: SIGTERM to the pod's main process, whose ranks then take their time."""
    package = tmp_path / "bigtrain_stub"
    package.mkdir()
    code = (
        "import os, signal, sys, time, pathlib\n"
        "def stop(*_):\n    time.sleep(1); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('ready' + os.environ['RANK']).touch()\n"
        "time.sleep(60)\n"
    )
    main = (
        "import sys, os\nfrom bigtrain.launchers import pod\nfrom bigtrain.launchers.base import Process\n"
        "from bigtrain.launchers.supervise import run\nfrom bigtrain.placement import read_node\n"
        f"ranks = pod.commands(read_node(os.environ), ['run.dir=.'], 2, os.environ)\n"
        f"sys.exit(run([Process([sys.executable, '-c', {code!r}], r.environment, r.output, r.name) for r in ranks]))\n"
    )
    env = {**os.environ, "PET_NPROC_PER_NODE": "2"}
    process = subprocess.Popen([sys.executable, "-c", main], cwd=tmp_path, env=env)
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75


if __name__ == "__main__":
    for name in KINDS:
        (GOLDEN / f"kubernetes_{name}.yaml").write_text(golden(name), encoding="utf-8")
