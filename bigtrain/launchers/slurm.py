"""`launcher=slurm`: a job script in the run folder, for sbatch; inside an allocation the same script without its head.

What was seen with Slurm 22.05 and shaped the script: `--signal=B:` warns the batch shell only, up to 60 s early; srun
has asked for its own `--cpus-per-task` since 22.05; a preempted job whose script ends within the grace counts as
completed, so the script itself queues the job again; torchrun fails on a lost node before Slurm knows it is lost.
"""

from __future__ import annotations

import shlex

from bigtrain.config.launchers import Slurm
from bigtrain.config.launching import processes
from bigtrain.errors import EXIT_STOPPED, EXIT_USER, UserError
from bigtrain.launchers.base import Job, Plan, Process
from bigtrain.launchers.report import EXIT, FAILURES, STOP
from bigtrain.launchers.torchrun import torchrun


def plan(job: Job) -> Plan:
    """sbatch of the rendered script; inside an allocation (`SLURM_JOB_ID` is set) the script itself."""
    launcher = job.config.launcher
    assert isinstance(launcher, Slurm)
    if "SLURM_JOB_ID" in job.env:
        nodes, wanted = int(job.env.get("SLURM_JOB_NUM_NODES", 1)), launcher.nodes or 1
        if wanted > nodes:
            raise UserError(f"launcher.nodes={wanted}, but this allocation has {nodes}.")
        path = job.run_dir / "job.sh"
        text = "#!/usr/bin/env bash\n" + body(job, launcher) + 'exit "$code"\n'
        return Plan([Process(["bash", str(path)], name="srun", reached="folder")], {path: text})
    path = job.run_dir / "job.sbatch"
    text = "#!/usr/bin/env bash\n" + head(job, launcher) + body(job, launcher) + tail(job, launcher)
    return Plan([Process(["sbatch", str(path)], name="sbatch")], {path: text}, submits=True)


def head(job: Job, launcher: Slurm) -> str:
    """The lines for sbatch."""
    ranks = processes(job.config)
    tasks = ranks if launcher.start == "srun" else 1
    cpus = launcher.cpus_per_task and launcher.cpus_per_task * (ranks // tasks)
    log = "slurm-%A_%a.out" if launcher.array else "slurm-%j.out"
    settings: list[tuple[str, object]] = [
        ("job-name", launcher.job_name or f"bigtrain-{(job.config.run.name or 'run').replace('/', '-')}"),
        ("chdir", job.cwd),
        ("output", job.cwd / job.run_dir / "logs" / log),
        ("open-mode", "append"),
        ("nodes", launcher.nodes or 1),
        ("ntasks-per-node", tasks),
        ("cpus-per-task", cpus),
        ("gpus-per-node", launcher.gpus),
        ("mem", launcher.mem),
        ("time", launcher.time),
        ("partition", launcher.partition),
        ("account", launcher.account),
        ("qos", launcher.qos),
        ("constraint", launcher.constraint),
        ("array", launcher.array),
        ("dependency", launcher.dependency),
        ("signal", f"B:USR1@{launcher.warn_s}"),
    ]
    lines = [f"--{key}={_option(value)}" for key, value in settings if value is not None]
    return "".join(f"#SBATCH {line}\n" for line in [*lines, "--requeue", *launcher.extra])


def _option(value: object) -> str:
    """An sbatch line is cut at white space outside of quotes."""
    text = str(value)
    return f'"{text}"' if any(sign in text for sign in " #&|") else text


def body(job: Job, launcher: Slurm) -> str:
    """From the environment to the ranks' exit code, `$code`."""
    folder = job.cwd / job.run_dir
    ranks = processes(job.config)
    threads = str(launcher.threads or launcher.cpus_per_task or "")
    shared = f"$((${{SLURM_CPUS_ON_NODE:-1}} > {ranks} ? SLURM_CPUS_ON_NODE / {ranks} : 1))"  # salloc's shell has none
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in launcher.environment.items())
    setup = "".join(f"{line}\n" for line in launcher.setup)
    return f"""\
# Written by bigtrain. Slurm warns with SIGUSR1 before the time limit and on preemption: `{STOP}` in the run
# folder asks the ranks to finish their step and write a checkpoint; `{EXIT}` says how they ended.
set -euo pipefail
run_dir={shlex.quote(str(folder))}
cd {shlex.quote(str(job.cwd))}
{setup}{exports}\
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((15000 + (SLURM_JOB_ID * 31 + ${{SLURM_RESTART_COUNT:-0}}) % 15000))
export OMP_NUM_THREADS={threads or shared}
echo "$(date -Is) job $SLURM_JOB_ID, start ${{SLURM_RESTART_COUNT:-0}}, on $SLURM_JOB_NODELIST"
rm -f "$run_dir/{STOP}" "$run_dir/{EXIT}"
trap 'touch "$run_dir/{STOP}"' USR1 TERM
{_ranks(job, launcher)} &
ranks=$!
code=0
wait "$ranks" || code=$?
while kill -0 "$ranks" 2>/dev/null; do  # a signal ends `wait`, not the ranks
  code=0
  wait "$ranks" || code=$?
done
case "$(cat "$run_dir/{EXIT}" 2>/dev/null || true)" in  # launchers in between make every code a 1
  {EXIT_STOPPED}) code={EXIT_STOPPED} ;;
  {EXIT_USER}) code={EXIT_USER} ;;
esac
"""


def tail(job: Job, launcher: Slurm) -> str:
    """Whether the job queues itself again: a stopped run goes on; a failed one is tried until it comes no further."""
    return f"""\
requeue() {{  # not where the job was cancelled meanwhile
  if [[ $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING* ]]; then
    echo "$(date -Is) $1: the job queues itself again"
    scontrol requeue "$SLURM_JOB_ID"
  fi
}}
if [ "$code" -eq {EXIT_STOPPED} ]; then
  requeue "stopped after a checkpoint"
elif [ "$code" -ne 0 ] && [ "$code" -ne {EXIT_USER} ]; then
  newest="no checkpoint"
  for folder in "$run_dir"/checkpoints/step_*; do
    if [ -d "$folder" ]; then newest=${{folder##*/}}; fi
  done
  echo "$newest" >>"$run_dir/{FAILURES}"
  times=$(grep -cxF "$newest" "$run_dir/{FAILURES}")
  if [ "$times" -le {launcher.retries} ]; then
    requeue "failed with code $code at $newest, time $times of {launcher.retries + 1}"
  else
    echo "$(date -Is) failed with code $code, $times times at $newest: given up"
  fi
fi
exit "$code"
"""


def srun(job: Job, launcher: Slurm, tasks: int, cpus: int | None) -> list[str]:
    """srun of `tasks` tasks on each node. The others get a minute once one has ended, so that no code is lost in a
    kill."""
    nodes = launcher.nodes or 1
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * tasks}", f"--ntasks-per-node={tasks}"]
    command += ["--kill-on-bad-exit=0", "--wait=60"]
    if cpus:
        command.append(f"--cpus-per-task={cpus}")
    if launcher.container:
        folders = dict.fromkeys([f"{job.cwd}:{job.cwd}", f"{job.cwd / job.run_dir}:{job.cwd / job.run_dir}"])
        mounts = ",".join([*folders, *launcher.mounts])
        command += [f"--container-image={launcher.container}", f"--container-mounts={mounts}"]
        command.append(f"--container-workdir={job.cwd}")
    return command


def interpreter(job: Job, launcher: Slurm) -> str:
    """Python on the nodes."""
    return launcher.python or ("python" if launcher.container else job.python)


def _ranks(job: Job, launcher: Slurm) -> str:
    ranks, nodes, python = processes(job.config), launcher.nodes or 1, interpreter(job, launcher)
    worker = job.worker(reports=True)
    if launcher.start == "srun":
        command = srun(job, launcher, ranks, launcher.cpus_per_task)
        return " \\\n  ".join([shlex.join(command), shlex.join([python, "-m", *worker])])
    one_a_node = shlex.join(srun(job, launcher, 1, launcher.cpus_per_task and launcher.cpus_per_task * ranks))
    if launcher.start == "torchrun":
        words = torchrun(python, nodes, ranks, "$SLURM_NODEID", "$MASTER_ADDR", "$MASTER_PORT")
        inner = [*words, "-m", *worker]
        before = ""
    else:
        hosts = str(job.cwd / job.run_dir / "hostfile")
        listed = f'scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/$/ slots={ranks}/; {nodes}q"'
        before = f"{listed} >{shlex.quote(hosts)}\n"
        inner = [python, "-m", "deepspeed.launcher.runner", "--hostfile", hosts, "--no_ssh"]
        inner += ["--node_rank", "$SLURM_NODEID", "--master_addr", "$MASTER_ADDR", "--master_port", "$MASTER_PORT"]
        inner += ["--module", *worker]
    hint = "# shellcheck disable=SC2016  # the nodes expand it\n"
    return f"{before}{hint}{one_a_node} \\\n  bash -c {shlex.quote('exec ' + _expanding(inner))}"


def _expanding(words: list[str]) -> str:
    """The words for the shell of each node, where it alone knows the variables."""
    return " ".join(f'"{word}"' if word.startswith("$") else shlex.quote(word) for word in words)
