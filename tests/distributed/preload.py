"""What the server that ranks are forked from has imported: a rank then starts in 50 ms instead of 5 s.

Nothing here may start a thread or touch a GPU: a fork takes neither along.
"""

import os

os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed chooses its device when it is imported
os.environ["OMP_NUM_THREADS"] = "1"

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - it imports torch's compiler: two seconds
import hydra._internal.hydra  # noqa: F401
import rich.progress  # noqa: F401
import torch
import torch.distributed.fsdp  # noqa: F401
from deepspeed.runtime.zero import stage3, stage_1_and_2  # noqa: F401
from transformers import GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

import bigtrain.assembly
import bigtrain.checkpoint.load
import bigtrain.checkpoint.save
import bigtrain.data.loader
import bigtrain.outputs
import bigtrain.rollcall
import bigtrain.train
import bigtrain.watch  # noqa: F401
