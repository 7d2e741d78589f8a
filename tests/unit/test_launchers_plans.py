"""What each launcher is going to do, and what it refuses: nothing is started here."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtrain.config.check import check_fields
from bigtrain.config.compose import compose
from bigtrain.config.composer import CONF
from bigtrain.config.hosts import Host, listed_hosts, parse_hostfile
from bigtrain.config.launchers import Launcher, Slurm
from bigtrain.config.launching import slurm_seconds, world_size
from bigtrain.config.rules import check_rules
from bigtrain.config.schema import RunConfig
from bigtrain.errors import UserError
from bigtrain.launchers import plan
from bigtrain.launchers.base import Job, Plan
from bigtrain.launchers.cluster import parse_nodes, refuse
from tests.support import ran

CPU = ["recipe=quickstart", "trainer.device=cpu", "run.dir=r", "trainer.global_batch_size=96"]
WORKER = ["bigtrain.train", "--run-dir", "r", "--trust", "mine.Model", "--report"]


@functools.cache
def _composed() -> RunConfig:
    return compose([*CPU, "trainer.micro_batch_size=1"]).config


def configured(*words: str) -> RunConfig:
    """What `compose` makes of launcher settings, without the second that Hydra takes each time."""
    config = copy.deepcopy(_composed())
    values: dict[str, Any] = {"name": "local"}
    for word in words:
        key, _, value = word.partition("=")
        if key.startswith("launcher"):
            values["name" if key == "launcher" else key.removeprefix("launcher.")] = yaml.safe_load(value)
        else:
            setattr(config.trainer, key.removeprefix("trainer."), value)
    config.launcher = check_fields(values, Launcher, "launcher")
    check_rules(config)
    return config


def planned(*words: str, **env: str) -> Plan:
    config = configured(*words)
    hosts = tuple(listed_hosts(config.launcher))
    return plan(Job(config, trusted=("mine.Model",), hosts=hosts, cwd=Path("/work"), port=1234, cores=8, env=env))


@pytest.mark.parametrize("name", sorted(Launcher.KINDS))
def test_the_yaml_lists_every_setting_with_its_default_and_begins_with_a_command(name: str) -> None:
    text = (CONF / "launcher" / f"{name}.yaml").read_text()
    assert (
        text.startswith(("# bigtrain train ", "# bigtrain submit ")) and f"launcher={name}" in text
    ) or name == "local"
    kind = Launcher.KINDS[name]
    assert yaml.safe_load(text).keys() == {field.name for field in fields(kind)}


def test_torchrun_here_and_on_several_nodes() -> None:
    (process,) = planned("launcher=torchrun", "launcher.processes=2").processes
    assert process.command == [
        "python", "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--node-rank", "0",
        "--master-addr", "127.0.0.1", "--master-port", "1234", "--max-restarts", "0", "-m", *WORKER,
    ]  # fmt: skip
    assert process.environment == {"OMP_NUM_THREADS": "4"} and process.reached == "folder"
    words = ["launcher=torchrun", "launcher.nodes=3", "launcher.node_rank=2", "launcher.rendezvous=node0:29500"]
    (process,) = planned(*words, "launcher.processes=2", "launcher.environment={A: b}").processes
    assert process.command[3:13] == [
        "--nnodes", "3", "--nproc-per-node", "2", "--node-rank", "2",
        "--master-addr", "node0", "--master-port", "29500",
    ]  # fmt: skip
    assert process.environment["A"] == "b"


def test_deepspeed_here_keeps_the_visible_gpus() -> None:
    words = ["launcher=deepspeed", "launcher.processes=2"]
    (process,) = planned(*words).processes
    assert process.command == [
        "python", "-m", "deepspeed.launcher.runner", "--hostfile", "", "--num_gpus", "2", "--master_port", "1234",
        "--module", *WORKER,
    ]  # fmt: skip
    (process,) = planned(*words, CUDA_VISIBLE_DEVICES="4,6,7").processes
    assert process.command[3:7] == ["--hostfile", "", "--include", "localhost:4,6"]


def test_deepspeed_over_ssh_writes_what_it_does_not_forward() -> None:
    env = {"NCCL_IB_HCA": "mlx5", "PATH": "/bin", "WANDB_NOTES": 'a "b" $c', "HF_HOME": "/hf"}
    words = ["launcher=deepspeed", "launcher.hosts=[a:2,b:2]", "launcher.ssh_port=2222", "launcher.environment={X: y}"]
    steps = planned(*words, **env)
    (process,) = steps.processes
    assert process.command[3:-len(WORKER) - 1] == [
        "--hostfile", "r/hostfile", "--force_multi", "--master_addr", "a", "--ssh_port", "2222", "--master_port", "1234"
    ]  # fmt: skip
    assert process.environment["DS_ENV_FILE"] == "/work/r/.deepspeed_env"
    assert "ServerAliveInterval" in process.environment["PDSH_SSH_ARGS_APPEND"]  # else pdsh waits for a lost host
    assert steps.files[Path("r/hostfile")] == "a slots=2\nb slots=2\n"
    assert steps.files[Path("r/.deepspeed_env")].splitlines() == [
        "HF_HOME=/hf", "NCCL_IB_HCA=mlx5", r'WANDB_NOTES=a \"b\" \$c', "X=y", "X=y"
    ]  # fmt: skip
    steps = planned("launcher=deepspeed", "launcher.hosts=[a:2,b:2]", "launcher.include='a@b:1'")
    assert steps.processes[0].command[8:10] == ["--include", "a@b:1"]
    assert steps.files[Path("r/hostfile")] == "a slots=2\nb slots=2\n"


def test_ssh_is_one_process_a_host_with_its_own_ranks() -> None:
    steps = planned("launcher=ssh", "launcher.hosts=[u@a:2,b]", "launcher.ssh_port=2222", GLOO_SOCKET_IFNAME="eth0")
    first, second = steps.processes
    assert first.command[:-1] == [
        "ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
        "-p", "2222", "u@a",
    ]  # fmt: skip
    start = "cd /work && exec env GLOO_SOCKET_IFNAME=eth0 python -m bigtrain.launchers.supervise "
    assert first.command[-1].startswith(start) and second.command[-1].startswith(start)
    assert '"RANK": "1", "LOCAL_RANK": "1"' in first.command[-1] and '"MASTER_ADDR": "a"' in second.command[-1]
    assert '"RANK": "2", "LOCAL_RANK": "0"' in second.command[-1] and "r/logs/rank_2.log" in second.command[-1]
    assert (first.name, first.reached) == ("host u@a", "stdin")


def test_horovod() -> None:
    (process,) = planned("launcher=horovod", "launcher.hosts=[a:2,b:1]").processes
    assert process.command == [
        "python", "-m", "horovod.runner.launch", "--gloo", "-np", "3", "-H", "a:2,b:1", "python", "-m", *WORKER
    ]  # fmt: skip
    assert process.environment == {"MASTER_ADDR": "a", "MASTER_PORT": "1234"}


SLURM = ["launcher=slurm", "launcher.nodes=2", "launcher.processes=4", "launcher.gpus=4"]


def script(*words: str) -> str:
    ((path, text),) = planned(*SLURM, *words).files.items()
    assert path == Path("r/job.sbatch")
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return text


def test_slurm_head() -> None:
    words = ["launcher.time=1-12", "launcher.partition=big", "launcher.account=lab", "launcher.qos=high"]
    words += ["launcher.constraint='a100&ib'", "launcher.cpus_per_task=8", "launcher.mem=64G", "launcher.warn_s=300"]
    words += ["launcher.array='1-4%1'", "launcher.dependency='afterok:12:13'", "launcher.extra=[--exclusive]"]
    lines = [line for line in script(*words).splitlines() if line.startswith("#SBATCH ")]
    assert [line.removeprefix("#SBATCH ") for line in lines] == [
        "--job-name=bigtrain-quickstart", "--chdir=/work", "--output=/work/r/logs/slurm-%A_%a.out",
        "--open-mode=append", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=8", "--gpus-per-node=4", "--mem=64G",
        "--time=1-12", "--partition=big", "--account=lab", "--qos=high", '--constraint="a100&ib"', "--array=1-4%1",
        "--dependency=afterok:12:13", "--signal=B:USR1@300", "--requeue", "--exclusive",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("start", "tasks", "expected"),
    [
        (
            "srun",
            4,
            "--ntasks-per-node=4 --kill-on-bad-exit=0 --wait=60 --cpus-per-task=2 \\\n  python -m bigtrain.train",
        ),
        ("torchrun", 1, '--node-rank "$SLURM_NODEID" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" -m'),
        ("deepspeed", 1, '--no_ssh --node_rank "$SLURM_NODEID" --master_addr "$MASTER_ADDR"'),
    ],
)
def test_slurm_ways_to_start(start: str, tasks: int, expected: str) -> None:
    text = script(f"launcher.start={start}", "launcher.cpus_per_task=2")
    assert expected in text
    assert f"srun --nodes=2 --ntasks={2 * tasks} --ntasks-per-node={tasks} " in text
    assert f"--cpus-per-task={2 if start == 'srun' else 8}" in text and "#SBATCH --gpus-per-node=4" in text


def test_slurm_container_setup_and_an_allocation() -> None:
    words = ["launcher.container=/images/b.sqsh", "launcher.mounts=[/data:/data:ro]", "launcher.environment={A: b c}"]
    text = script(*words, 'launcher.setup=["module load cuda"]')
    assert "--container-image=/images/b.sqsh --container-mounts=/work:/work,/work/r:/work/r,/data:/data:ro" in text
    assert text.index("module load cuda\nexport A='b c'\n") < text.index("srun ")
    inside = planned(*SLURM, SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="2")
    assert inside.processes[0].command == ["bash", "r/job.sh"] and not inside.submits
    assert "#SBATCH" not in inside.files[Path("r/job.sh")] and "requeue" not in inside.files[Path("r/job.sh")]
    with pytest.raises(UserError, match="launcher.nodes=2, but this allocation has 1"):
        planned(*SLURM, SLURM_JOB_ID="7")


STUB = """
scontrol() { if [ "$1" = show ] && [ "$2" = job ]; then echo "JobState=$state"; else echo "scontrol $*"; fi; }
srun() { echo "$said" >r/.exit; return "$ends"; }
"""


def test_the_job_script_queues_itself_again_when_it_should(tmp_path: Path) -> None:
    """The script itself, with the cluster's two commands played by shell functions."""
    body = script("launcher.retries=1").replace("/work", str(tmp_path))
    (tmp_path / "r/checkpoints/step_00000004").mkdir(parents=True)

    def play(said: str, ends: int, state: str = "RUNNING") -> tuple[int, str]:
        head = f"said={said} ends={ends} state={state} SLURM_JOB_ID=7 SLURM_CPUS_ON_NODE=8 SLURM_JOB_NODELIST=n1\n"
        done = subprocess.run(["bash"], input=head + STUB + body, capture_output=True, text=True, check=False)
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout

    def again(result: tuple[int, str]) -> bool:
        return "scontrol requeue 7" in result[1]

    assert play("0", 0)[0] == 0
    stopped = play("75", 1)  # as torchrun makes of it
    assert stopped[0] == 75 and again(stopped)
    assert not again(play("75", 0, state="COMPLETING"))  # cancelled meanwhile
    wrong = play("2", 1)
    assert wrong[0] == 2 and not again(wrong)
    assert again(play("", 1))
    given_up = play("", 1)
    assert not again(given_up) and "2 times at step_00000004: given up" in given_up[1]
    (tmp_path / "r/checkpoints/step_00000008").mkdir()
    assert again(play("", 1))  # it has come further


SLURM_ONLY = ["launcher=slurm", "launcher.processes=1"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["launcher=slurm", "launcher.partion=a"], ["unknown key 'launcher.partion'", "Did you mean 'partition'?"]),
        (["launcher=local", "launcher.partition=a"], ["unknown key 'launcher.partition'"]),
        (["launcher=slrum"], ["launcher.name", "Did you mean 'slurm'?"]),
        ([*SLURM_ONLY, "launcher.time=1h"], ["launcher.time=1h", "1:30:00"]),
        ([*SLURM_ONLY, "launcher.time=2"], ["launcher.time=2 is 120 s", "launcher.warn_s=120"]),
        ([*SLURM_ONLY, "launcher.mem=64GB"], ["launcher.mem=64GB", "64G"]),
        ([*SLURM_ONLY, "launcher.array=1-4"], ["launcher.array=1-4", "1-4%1"]),
        ([*SLURM_ONLY, "launcher.dependency=after"], ["launcher.dependency", "afterok:1234"]),
        ([*SLURM_ONLY, "launcher.extra=[exclusive]"], ["launcher.extra", "--exclusive"]),
        ([*SLURM_ONLY, "launcher.partition='a\"b'"], ["launcher.partition", "cannot stand in a job script"]),
        ([*SLURM_ONLY, "launcher.mounts=[/a:/a]"], ["launcher.mounts", "launcher.container"]),
        ([*SLURM_ONLY, "launcher.start=mpirun"], ["launcher.start", "srun | torchrun | deepspeed"]),
        ([*SLURM_ONLY, "launcher.retries=-1"], ["launcher.retries=-1", "at least 0"]),
        ([*SLURM_ONLY, "trainer.device=cuda"], ["launcher.gpus asks for none"]),
        (["launcher=torchrun", "launcher.nodes=2"], ["launcher.rendezvous has no value", "node0:29500"]),
        (["launcher=torchrun", "launcher.node_rank=1"], ["launcher.node_rank=1", "0 to 0"]),
        (["launcher=torchrun", "launcher.rendezvous=node0"], ["launcher.rendezvous=node0 is not host:port"]),
        (["launcher=deepspeed", "launcher.nodes=2"], ["launcher.nodes must be 1", "launcher.hostfile"]),
        (["launcher=deepspeed", "launcher.include=a"], ["launcher.hostfile"]),
        (["launcher=deepspeed", "launcher.hosts=[a:2]", "launcher.include=b"], ["'b' is not in the hostfile"]),
        (["launcher=deepspeed", "launcher.hosts=[a:2]", "launcher.include='a:2'"], ["a has slots 0 to 1, not 2"]),
        (["launcher=deepspeed", "launcher.hosts=[a:2]", "launcher.exclude=a"], ["leaves no slot"]),
        (["launcher=ssh"], ["which machines?"]),
        (["launcher=ssh", "launcher.hostfile=nonsuch"], ["launcher.hostfile=nonsuch", "No such file"]),
        (["launcher=ssh", "launcher.hosts=[a:0]"], ["a has 0 slots"]),
        (["launcher=ssh", "launcher.hosts=[a:x]"], ["'a:x' is not a host"]),
        (["launcher=ssh", "launcher.hosts=['-oProxyCommand=x']"], ["is not the name or address of a host"]),
        (["launcher=ssh", "launcher.hosts=[a]", "launcher.nodes=2"], ["launcher.nodes=2", "lists 1: a"]),
        (["launcher=ssh", "launcher.hosts=[a]", "launcher.processes=2"], ["a has 1 slots"]),
        (["launcher=ssh", "launcher.hosts=[a]", "launcher.ssh_port=70000"], ["launcher.ssh_port=70000"]),
        (["launcher.environment={'a-b': c}"], ["'a-b' is not the name of a variable"]),
        (["launcher.threads=0"], ["launcher.threads=0", "at least 1"]),
    ],
)
def test_what_is_refused(words: list[str], expected: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        configured(*words)
    for part in expected:
        assert part in str(caught.value)


def test_a_fault_says_where_it_came_from() -> None:
    with pytest.raises(UserError, match=r"unknown key .launcher.partion. \(from the command line: .*=a\)"):
        compose([*CPU, "launcher=slurm", "launcher.partion=a"])
    with pytest.raises(UserError, match="there is no launcher=slrum. Did you mean 'slurm'?"):
        compose([*CPU, "launcher=slrum"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a slots=2\nb slots=two\n", "hosts, line 2: 'b slots=two'"),
        ("a slots=2\nb\n", "hosts, line 2: 'b'"),
        ("a slots=2\n\na slots=4\n", "hosts, line 3: a is there twice"),
        ("# all\na slots=0\n", "hosts, line 2: a has 0 slots"),
        ("# nobody\n", "hosts lists no host"),
        ("a;reboot slots=1\n", "hosts, line 1: 'a;reboot' is not the name"),
    ],
)
def test_hostfile_faults_name_the_line(text: str, expected: str) -> None:
    with pytest.raises(UserError, match="hosts") as caught:
        parse_hostfile(text, "hosts")
    assert expected in str(caught.value)


def test_hosts_and_how_many_ranks(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("node0 slots=8  # the first\nuser@10.0.0.2 slots=4\n")
    assert parse_hostfile(file.read_text(), "hosts") == [Host("node0", 8), Host("user@10.0.0.2", 4)]

    def ranks(*words: str) -> int:
        return world_size(configured(*words))

    of_file = f"launcher.hostfile={file}"
    assert ranks("launcher=ssh", of_file) == 12
    assert ranks("launcher=ssh", of_file, "launcher.nodes=1") == 8
    assert ranks("launcher=ssh", of_file, "launcher.processes=3") == 6
    assert ranks("launcher=deepspeed", of_file, "launcher.exclude='node0:0,1,2,3'") == 8
    assert ranks("launcher=slurm", "launcher.nodes=3", "launcher.gpus=4", "trainer.device=auto") == 12
    assert ranks("launcher=slurm", "launcher.nodes=3", "launcher.gpus=4", "launcher.processes=2") == 6


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("1:30:00", 5400), ("2-12", 216000), ("1-0:0:1", 86401), ("INFINITE", None)],
)
def test_slurm_times(text: str, seconds: int | None) -> None:
    assert slurm_seconds(text) == seconds


SINFO = """\
lab*|2|idle|gpu:2|infinite
big|3|mixed|gpu:a100:8(S:0-1)|1-00:00:00
big|1|down*|gpu:a100:8|1-00:00:00
old|2|drained|(null)|infinite
"""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"nodes": 2, "gpus": 2}, None),
        ({"partition": "big", "nodes": 3, "gpus": 8, "time": "24:00:00"}, None),
        ({"partition": "bigg"}, "launcher.partition=bigg: there is no such partition. Did you mean 'big'?"),
        ({"nodes": 3}, "launcher.nodes=3, but partition lab has 2 nodes"),
        ({"gpus": 4}, "the most on one node is 2"),
        ({"partition": "big", "nodes": 4}, "4 nodes of partition big cannot be had now: 3 mixed, 1 down*"),
        ({"partition": "old"}, "2 drained"),
        ({"partition": "big", "time": "2-0"}, "launcher.time=2-0 is more than partition big allows: 1-00:00:00"),
    ],
)
def test_what_the_cluster_can_give(settings: dict[str, Any], expected: str | None) -> None:
    launcher = Slurm(name="slurm", **settings)
    if expected is None:
        refuse(launcher, parse_nodes(SINFO))
        return
    with pytest.raises(UserError) as caught:
        refuse(launcher, parse_nodes(SINFO))
    assert expected in str(caught.value)


def test_builders_are_pure() -> None:
    """No socket, no process, no file written, no torch: watched by the interpreter itself."""
    code = f"""
import sys
from pathlib import Path
from bigtrain.config.check import check_fields
from bigtrain.config.compose import compose
from bigtrain.config.hosts import listed_hosts
from bigtrain.launchers import local, torchrun, deepspeed, ssh, horovod, slurm
from bigtrain.launchers.base import Job
jobs = []
for words in (["launcher=local"], ["launcher=torchrun"], ["launcher=deepspeed"], ["launcher=horovod"],
              ["launcher=deepspeed", "launcher.hosts=[a,b]"], ["launcher=ssh", "launcher.hosts=[a,b]"],
              ["launcher=slurm"]):
    config = compose([*{CPU!r}, *words]).config
    jobs.append((sys.modules["bigtrain.launchers." + config.launcher.name],
                 Job(config, hosts=tuple(listed_hosts(config.launcher)), cwd=Path("/work"))))
def watch(event, details):
    if event.startswith(("socket", "subprocess", "os.", "shutil")) or event == "open":
        raise AssertionError((event, details))
sys.addaudithook(watch)
plans = [builder.plan(job) for builder, job in jobs]
assert len(plans) == 7 and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in set(Launcher.KINDS) - {"kubernetes"}:
        ran(name, "builder")
