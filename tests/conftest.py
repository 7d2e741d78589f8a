"""What every test starts from: one thread a process, no network, no launcher's variables from outside."""

from __future__ import annotations

import os

# Set at import, before torch or a Hugging Face library is imported, and inherited by the processes that tests start.
os.environ.update(
    OMP_NUM_THREADS="1",  # several ranks and pytest workers share the cores; threads would only wait for each other
    TOKENIZERS_PARALLELISM="false",  # the Rust threads of tokenizers and fork do not go together
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
)
LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_",
    "SLURM_",
    "OMPI_COMM_WORLD_",
    "TORCHELASTIC_",
)
for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
    del os.environ[name]
