#!/usr/bin/env bash
# Several nodes, by torchrun: the same command on each of them.
#
#   export VAE_LIGHTNING_RUN_ID=celeba-1     # the run's name; a shared folder holds runs/, data/ and this checkout
#   HEAD=node0 NODES=2 launch/torchrun.sh -c configs/vae/celeba.yaml
#
# The same command again goes on with the run of that name. A rank that fails ends its group; torchrun starts the group
# again, up to RESTARTS times, from the last checkpoint. SIGTERM to torchrun saves a checkpoint and ends all ranks.
# GPUS=2 without GPUs: two CPU processes on each node.
set -euo pipefail
: "${HEAD:?the name of one node, the same on all}" "${NODES:?how many nodes}"
: "${VAE_LIGHTNING_RUN_ID:?the name of the run, the same on all nodes}"
exec torchrun \
  --nnodes="$NODES" --nproc-per-node="${GPUS:-gpu}" --max-restarts="${RESTARTS:-3}" \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD:${PORT:-29400}" --rdzv-id="$VAE_LIGHTNING_RUN_ID" \
  -m vae_lightning train --trainer.num_nodes="$NODES" --trainer.devices="${GPUS:-auto}" "$@"
