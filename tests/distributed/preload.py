"""What the server that ranks are forked from has imported: a rank then starts in 50 ms instead of 5 s.

Nothing here may start a thread or touch a GPU: a fork takes neither along.
"""

import os

os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed chooses its device when it is imported
os.environ["OMP_NUM_THREADS"] = "1"

import deepspeed  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401
from transformers import GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

import bigtrain.train  # noqa: F401
