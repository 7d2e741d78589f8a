"""The lab with a real Slurm: a controller on the hub, nodes n1 and n2 with 4 cores and 2 make-believe GPUs each.

Partition `lab` can be preempted (20 s of grace, then the job is queued again) by partition `high`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tests.cluster.lab import Lab, wait_for

NODES = ("n1", "n2")
CORES, GPUS = 4, 2

CONF = """\
ClusterName=lab
SlurmctldHost=hub({hub})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire: a job that is queued again waits this long before it starts (120 s unless told)
AuthInfo=socket={lab}/munge/munge.sock,cred_expire={cred_expire}
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool/%n
SlurmctldPidFile={lab}/slurmctld.pid
SlurmdPidFile={lab}/slurmd-%n.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/slurmd-%n.log
# no cgroups in a namespace: processes are tracked by /proc
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={lab}/log/jobcomp.log
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# a node may claim more cores than the machine has
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=5
MinJobAge=600
WaitTime=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=lab  Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class SlurmLab(Lab):
    """Two nodes under Slurm."""

    def __init__(self, folder: Path, cred_expire: int = 5):
        super().__init__(folder, NODES)
        self.cred_expire = cred_expire
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def command(self, host: str) -> str:
        """See `Lab.command`."""
        conf = self.folder / "slurm.conf"
        if host != self.HUB:
            return f"export SLURM_CONF='{conf}'; slurmd -f '{conf}'"
        munge = self.folder / "munge"
        return (
            f"munged --force --key-file='{munge}/munge.key' --socket='{munge}/munge.sock' "
            f"--pid-file='{munge}/munged.pid' --log-file='{self.folder}/log/munged.log' "
            f"--seed-file='{munge}/munged.seed'; slurmctld -f '{conf}'"
        )

    def up(self) -> None:
        """Two nodes, idle."""
        super().up()
        for name in ("state", "munge", "dev", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge/munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        for gpu in range(GPUS):  # gres.conf wants character devices: copies of /dev/null
            os.mknod(self.folder / f"dev/nvidia{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        nodes = "\n".join(
            f"NodeName={node} NodeAddr={self.address[node]} CPUs={CORES} RealMemory=6000 Gres=gpu:{GPUS} State=UNKNOWN"
            for node in NODES
        )
        values = {"hub": self.address[self.HUB], "lab": self.folder, "cred_expire": self.cred_expire, "nodes": nodes}
        (self.folder / "slurm.conf").write_text(CONF.format(**values))
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName=n[1-2] Name=gpu File={self.folder}/dev/nvidia[0-{GPUS - 1}]\n"
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self.boot(self.HUB)
        wait_for("munge's socket", 20, (self.folder / "munge/munge.sock").is_socket)
        for node in NODES:
            self.boot(node)
        wait_for("two idle nodes", 40, lambda: len(self.idle()) == len(NODES))

    def idle(self) -> list[str]:
        """The idle nodes."""
        return self.run("sinfo", "-h", "-N", "-p", "lab", "-t", "idle", "-o", "%N", folder=self.folder).stdout.split()

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows about a job: `JobState`, `Restarts`, `ExitCode` …"""
        text = self.run("scontrol", "-o", "show", "job", job, folder=self.folder).stdout
        return dict(word.split("=", 1) for word in text.split() if "=" in word)
