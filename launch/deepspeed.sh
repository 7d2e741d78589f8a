#!/usr/bin/env bash
# Several machines over ssh, started by DeepSpeed's own launcher. Copy beside a hostfile, edit, run on one machine:
#   bash deepspeed.sh trainer.max_steps=1000
# Needs: pdsh here; ssh without a password to each host of the hostfile, and the same paths there (a shared file system).
set -euo pipefail

HOSTFILE="${HOSTFILE:-$(dirname "$0")/hostfile}"
RECIPE="${RECIPE:-pretrain/gpt2_124m}"
RUN_DIR="${RUN_DIR:-$PWD/runs/gpt2}"  # seen by every machine; the same folder again goes on from its newest checkpoint
# else a host that loses power keeps the command waiting for hours after the run has ended
export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=5 -o ServerAliveCountMax=3"

exec deepspeed --hostfile "$HOSTFILE" --module bigtrain.train \
  "recipe=$RECIPE" "run.dir=$RUN_DIR" engine=zero2 "$@"
