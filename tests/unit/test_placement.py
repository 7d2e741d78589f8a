"""Which process is this: every launcher's variables, and those that contradict each other."""

from __future__ import annotations

import pytest

from bigtrain.errors import UserError
from bigtrain.placement import Placement, first_host, read_environment

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "4000",
}
SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "99",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "gpu[03-05,9]",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_alone() -> None:
    assert read_environment({"HOME": "/"}) == Placement()


def test_torchrun_and_deepspeed() -> None:
    assert read_environment(TORCHRUN) == Placement(5, 8, 1, 4, "node0", 4000)
    deepspeed = {**TORCHRUN, "LOCAL_SIZE": "4"}
    del deepspeed["LOCAL_WORLD_SIZE"]
    assert read_environment(deepspeed) == Placement(5, 8, 1, 4, "node0", 4000)
    assert read_environment({**SRUN, **TORCHRUN}).rank == 5  # torchrun inside srun


def test_srun() -> None:
    place = read_environment(SRUN)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (5, 7, 1, 2)
    assert place.master_addr == "gpu03"
    assert place.master_port == read_environment({**SRUN, "SLURM_PROCID": "0"}).master_port
    assert place.master_port != read_environment({**SRUN, "SLURM_STEP_ID": "1"}).master_port
    assert not place.own_gpu
    assert read_environment({**SRUN, "SLURM_GPUS_PER_TASK": "1"}).own_gpu


def test_a_batch_script_is_no_srun() -> None:
    batch = {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    assert read_environment(batch).world_size == 1
    assert read_environment({**batch, "SLURM_STEP_ID": "4294967291"}).world_size == 1


def test_mpi_and_horovodrun() -> None:
    assert read_environment(MPI).rank == 1
    horovod = {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
    assert read_environment(horovod).world_size == 2
    with pytest.raises(UserError, match="MASTER_ADDR"):
        read_environment({**MPI, "OMPI_COMM_WORLD_SIZE": "4"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[03-05,9],login1", "gpu03"), ("a1,a2", "a1"), ("n[1-3]-ib", "n1-ib"), ("alone", "alone")],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not"),
        ({"RANK": None}, "RANK is not"),
        ({"RANK": "8"}, "rank 8 of 8"),
        ({"RANK": "one"}, "RANK='one'"),
        ({"LOCAL_RANK": "4"}, "local rank 4 of 4"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR"),
        ({"MASTER_PORT": None}, "MASTER_PORT"),
    ],
)
def test_incoherent(changes: dict[str, str | None], said: str) -> None:
    env = {key: value for key, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=said):
        read_environment(env)
