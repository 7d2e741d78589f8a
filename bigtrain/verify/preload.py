"""What the server that ranks are forked from imports once: a set-up then starts in a moment instead of in seconds.

Nothing here may start a thread or touch a GPU: a fork takes neither along. On GPUs DeepSpeed is left to each rank, as
importing it asks the driver.
"""

import importlib
import os

HEAVY = [
    "torch",
    "torch.nn.parallel",
    "torch.distributed.fsdp",
    "transformers",
    "bigtrain.trainer",
    "bigtrain.assembly",
    "bigtrain.engines.plain",
    "bigtrain.engines.deepspeed",
    "bigtrain.checkpoint.save",
    "bigtrain.checkpoint.load",
    "bigtrain.data.loader",
    "bigtrain.models.wrapped",
    "bigtrain.objectives.causal",
    "bigtrain.optim.optimizers",
    "bigtrain.verify.rank",
    # What `deepspeed.initialize` imports on its way (torch.compile's back end) takes seconds.
    *(["deepspeed.runtime.zero.muon.muon_optimizer"] if os.environ.get("DS_ACCELERATOR") == "cpu" else []),
]

for name in HEAVY:
    importlib.import_module(name)
