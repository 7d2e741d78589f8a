"""Sweeps before anything starts: Hydra's grammar, names, the ledger, submitit's parameters and its sbatch script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bigtrain import sweep
from bigtrain.config.compose import compose
from bigtrain.config.composer import Composer
from bigtrain.errors import EXIT_DONE, UserError
from bigtrain.launchers.base import Process
from bigtrain.launchers.supervise import run
from bigtrain.launchers.sweep import Part, executor_parameters, folder_name, read_ledger, write_ledger

SLURM = [
    "recipe=smoke", "launcher=slurm", "launcher.time=1:30:00", "launcher.partition=gpu", "launcher.nodes=2",
    "trainer.global_batch_size=32",
    "launcher.processes=4", "launcher.gpus=4", "launcher.cpus_per_task=8", "launcher.mem=64G", "launcher.warn_s=300",
    "launcher.sweep_parallel=3", "launcher.setup=[module load cuda]", "launcher.extra=['--exclusive', '--nice=5']",
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["optimizer.lr=1e-3,3e-4", "seed=1,2"], [
            ["optimizer.lr=0.001", "seed=1"], ["optimizer.lr=0.001", "seed=2"],
            ["optimizer.lr=0.0003", "seed=1"], ["optimizer.lr=0.0003", "seed=2"],
        ]),
        (["recipe=smoke", "seed=range(1,4)"], [["seed=1"], ["seed=2"], ["seed=3"]]),
        (["precision=glob(*,exclude=fp*)"], [["precision=bf16"]]),
        (["optimizer.betas=[0.9,0.95],[0.9,0.99]"], [["optimizer.betas=[0.9,0.95]"], ["optimizer.betas=[0.9,0.99]"]]),
        (["+seed=sort(3,1)"], [["+seed=1"], ["+seed=3"]]),
    ],
)  # fmt: skip
def test_hydras_grammar(words: list[str], wanted: list[list[str]]) -> None:
    assert sweep.combinations(words, Composer()) == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1"], "no override has several"),
        (["optimizer.lr=interval(0,1)"], "no end of values: with sweep.trials=N Optuna"),
        (["seed=range("], "cannot read the sweep"),
    ],
)
def test_what_is_no_sweep(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep.combinations(words, Composer())


def test_without_m_a_sweep_is_refused_and_m_is_named() -> None:
    with pytest.raises(UserError, match=r"'seed=1,2' is a sweep: `bigtrain train -m …`"):
        compose(["recipe=smoke", "seed=1,2"])


def test_folders_can_be_typed_as_they_are() -> None:
    names = [
        folder_name(0, ["optimizer.lr=1e-3", "seed=1"]),
        folder_name(1, ["+optimizer.betas=[0.9,0.95]", "data.path='a b/ü,*.txt'"]),
        folder_name(2, [f"{key}=1" for key in "abcdefghijklmnopqrstuvwxyz" * 3]),
    ]
    assert names[0] == "0_optimizer.lr-1e-3_seed-1"
    assert names[1] == "1_optimizer.betas-0.9-0.95_data.path-a-b-.txt"
    assert len(names[2]) <= 100
    for name in names:
        choices, values = Composer().parse([f"run.dir=runs/smoke/sweep-1/{name}"])
        assert not choices and values["run.dir"].endswith(name)


def test_every_part_is_checked_before_the_first_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.micro_batch_size=3: .*Nothing was started"):
        sweep.train(["-m", "recipe=smoke", "trainer.micro_batch_size=4,3", f"run.dir={tmp_path / 'sweep'}"])
    assert not (tmp_path / "sweep").exists()


def test_the_ledger_and_another_sweep_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    words = ["recipe=smoke", "seed=1,2"]
    parts = [Part(n, [f"seed={n + 1}"], str(folder / f"{n}_seed-{n + 1}")) for n in range(2)]
    write_ledger(folder, words, parts)
    assert read_ledger(folder) == (words, parts)
    with pytest.raises(UserError, match=r"holds another sweep \(seed=1; seed=2\)"):
        sweep.train(["-m", "recipe=smoke", "seed=1,3", f"run.dir={folder}"])
    for part in parts:
        part.record(EXIT_DONE)
    assert sweep.train(["-m", f"run.dir={folder}"]) == EXIT_DONE  # nothing is left to do
    assert "2 of 2 are done already" in capsys.readouterr().out
    (folder / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep.json cannot be read"):
        sweep.train(["-m", f"run.dir={folder}"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(UserError, match="the folder of a run, not of a sweep"):
        sweep.train(["-m", *words, f"run.dir={tmp_path / 'run'}"])


def test_a_stop_ends_the_sweep_and_a_failure_does_not(tmp_path: Path) -> None:
    parts = [Part(n, [f"seed={n}"], str(tmp_path / str(n))) for n in range(3)]
    codes = {"seed=0": 1, "seed=1": 75}
    assert sweep.run_parts(tmp_path, [], parts, lambda words: codes[words[0]]) == 75
    assert [part.outcome() for part in parts] == [1, 75, None]
    codes = {"seed=0": 2, "seed=1": 0, "seed=2": 0}
    assert sweep.run_parts(tmp_path, [], parts, lambda words: codes[words[0]]) == 1
    assert [part.outcome() for part in parts] == [2, 0, 0]


def test_a_stop_before_the_ranks_listen_is_a_stop(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"

    def ask() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    assert run([Process([sys.executable, "-c", code])]) == 75


def test_slurm_settings_reach_submitits_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    srun = tmp_path / "srun"  # submitit looks whether there is one; a script is rendered without calling it
    srun.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    made = sweep.executor(tmp_path, executor_parameters(compose(SLURM).config))
    assert isinstance(made, submitit.AutoExecutor)
    script = made._executor._make_submission_file_text("COMMAND", "uid")
    lines = set(script.splitlines())
    assert lines >= {
        "#SBATCH --time=90", "#SBATCH --partition=gpu", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=64G", "#SBATCH --requeue",
        "#SBATCH --exclusive", "#SBATCH --nice=5", "#SBATCH --job-name=bigtrain-smoke", "module load cuda", "COMMAND",
    }, script  # fmt: skip
    assert any(line.startswith("#SBATCH --signal=") and line.endswith("@300") for line in lines)
    assert made._executor.parameters["array_parallelism"] == 3 and made._executor.max_num_timeout >= 1000


def test_what_a_sweep_on_slurm_needs() -> None:
    with pytest.raises(UserError, match="launcher.time has no value"):
        sweep.submit(["-m", "recipe=smoke", "launcher=slurm", "seed=1,2", "--dry-run"])
    with pytest.raises(UserError, match="an array already"):
        sweep.submit(["-m", *SLURM, "launcher.array=1-2%1", "seed=1,2", "--dry-run"])
    with pytest.raises(UserError, match="the same launcher settings"):
        sweep.submit(["-m", *SLURM, "launcher.cpus_per_task=1,2", "--dry-run"])


def test_a_dry_run_shows_the_jobs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    assert sweep.submit(["-m", *SLURM, "seed=1,2", "--dry-run", f"run.dir={folder}"]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert "# timeout_min: 90\n" in shown and shown.count("bigtrain train recipe=smoke") == 2
    assert f"run.dir={folder}/1_seed-2" in shown and not folder.exists()


def test_without_srun_or_submitit_one_message(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": str(Path(sys.executable).parent)}
    command = [sys.executable, "-m", "bigtrain", "train", "-m", *SLURM, "seed=1,2", "run.dir=sweep"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "there is no srun here" in done.stderr and "Traceback" not in done.stderr
    hidden = tmp_path / "hidden" / "submitit"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not installed')\n")
    env["PYTHONPATH"] = str(hidden.parent)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "pip install 'bigtrain[slurm]'" in done.stderr
