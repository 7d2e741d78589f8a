"""The lab with ssh: hosta and hostb with an sshd, and the hub to launch from. Keys only, and host keys are checked."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.cluster.lab import Lab, run, space, wait_for

HOSTS = ("hosta", "hostb")

CLIENT = """\
Host *
  IdentityFile /etc/ssh/lab_id
  IdentitiesOnly yes
  BatchMode yes
  StrictHostKeyChecking yes
  GlobalKnownHostsFile /etc/ssh/ssh_known_hosts
  LogLevel ERROR
"""
SERVER = """\
Port 22
HostKey /etc/ssh/host_key
PidFile none
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
"""


class SshLab(Lab):
    """Two hosts under sshd."""

    def __init__(self, folder: Path):
        super().__init__(folder, HOSTS)
        self.environment = {"PDSH_RCMD_TYPE": "ssh"}

    def command(self, host: str) -> str:
        """See `Lab.command`."""
        return f"/usr/sbin/sshd -f /etc/ssh/sshd_config -E '{self.folder}/log/sshd-{host}.log'"

    def up(self) -> None:
        """Two hosts that answer."""
        super().up()
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's empty chroot, which systemd makes elsewhere
        keys = self.folder / "keys"
        keys.mkdir()
        for name in ("id", *HOSTS):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(keys / name))
        known = "".join(f"{host},{self.address[host]} {(keys / f'{host}.pub').read_text()}" for host in HOSTS)
        for host in (self.HUB, *HOSTS):  # over the machine's own /etc/ssh, which stays as it is
            etc = Path("/etc/netns", space(host), "ssh")
            etc.mkdir()
            shutil.copy(keys / "id", etc / "lab_id")
            shutil.copy(keys / "id.pub", etc / "authorized_keys")
            (etc / "ssh_known_hosts").write_text(known)
            (etc / "ssh_config").write_text(CLIENT)
            (etc / "sshd_config").write_text(SERVER)
            if host in HOSTS:
                shutil.copy(keys / host, etc / "host_key")
        for host in HOSTS:
            self.boot(host)
        for host in HOSTS:
            self.wait_until_it_answers(host)

    def wait_until_it_answers(self, host: str) -> None:
        """After a boot."""
        wait_for(f"ssh {host}", 40, lambda: self.run("ssh", host, "true", folder=self.folder).returncode == 0)
