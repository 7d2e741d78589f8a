"""ZeRO-Infinity's road to a disk, compiled: with Debian's libaio-dev, which the default suite does not install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NVME = Path(__file__).parents[1] / "distributed" / "test_deepspeed_nvme.py"


@pytest.mark.timeout(1500)
def test_optimizer_and_weights_on_a_disk(possible: None) -> None:
    """DeepSpeed compiles its op once a machine: some minutes, then it lies in bigtrain's cache."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout=1400", str(NVME)],
        env=os.environ | {"BIGTRAIN_COMPILE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-5000:]
