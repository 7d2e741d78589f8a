#!/usr/bin/env bash
# One machine or several, started by torchrun. Copy, edit the capitals, and run the same file on every machine:
#   bash torchrun.sh                                            one machine
#   NODES=4 HEAD=node0 bash torchrun.sh                         on each of four; HEAD is any one of them
# The recipe's own settings and overrides follow the module's name, as after `bigtrain train`.
set -euo pipefail

NODES="${NODES:-1}"
GPUS="${GPUS:-8}"
HEAD="${HEAD:-localhost}"
RECIPE="${RECIPE:-pretrain/gpt2_124m}"
RUN_DIR="${RUN_DIR:-runs/gpt2}"  # seen by every machine; the same folder again goes on from its newest checkpoint

exec python -m torch.distributed.run \
  --nnodes "$NODES" --nproc-per-node "$GPUS" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id bigtrain \
  -m bigtrain.train "recipe=$RECIPE" "run.dir=$RUN_DIR" "$@"
