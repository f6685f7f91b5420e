#!/bin/sh
# Two nodes on one machine: two network namespaces with a cable between them, torchrun in each, gloo over the cable.
# Trains the digits without a stop; then once more, stopped by SIGTERM to one node within an epoch, and resumed by the
# same command; the weights must be equal, bit for bit. Needs root and iproute2:
#
#   sudo PYTHON=.venv/bin/python tests/two_nodes.sh
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
A="vae-a-$$" B="vae-b-$$" RUNS=$(mktemp -d)
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES='' PYTHONPATH="$PWD"
clean() {
    ip netns del "$A" 2>/dev/null || true
    ip netns del "$B" 2>/dev/null || true
    rm -rf "$RUNS"
}
trap clean EXIT
trap 'exit 130' INT TERM

ip netns add "$A"
ip netns add "$B"
ip link add eth-vae netns "$A" type veth peer name eth-vae netns "$B"
host=1
for node in "$A" "$B"; do
    ip -n "$node" addr add "10.213.0.$host/24" dev eth-vae
    ip -n "$node" link set eth-vae up
    ip -n "$node" link set lo up
    host=$((host + 1))
done

node() { # node RANK NAMESPACE RUN_ID [ARGS]
    rank=$1 space=$2 run=$3
    shift 3
    exec ip netns exec "$space" env GLOO_SOCKET_IFNAME=eth-vae "$PYTHON" -m torch.distributed.run --nnodes=2 \
        --nproc_per_node=1 --node_rank="$rank" --master_addr=10.213.0.1 --master_port=29511 -m vae_lightning fit \
        -c configs/vae/digits.yaml --trainer.accelerator=cpu --trainer.num_nodes=2 --trainer.devices=1 \
        --trainer.logger=false --trainer.check_val_every_n_epoch=1 --trainer.log_every_n_steps=5 \
        --trainer.max_epochs="${EPOCHS:-40}" --runs_dir="$RUNS" --run_id="$run" "$@"
}
both() { # both RUN_ID [ARGS]: start the command on both nodes
    (node 0 "$A" "$@") &
    first=$!
    (node 1 "$B" "$@") &
    second=$!
}
folder="$RUNS/vae/digits"

echo '== without a stop'
both whole
wait "$first"
wait "$second"

echo '== stopped by SIGTERM to the second node alone'
both stopped
until grep -q '^1[0-9]4,' "$folder/stopped/metrics.csv" 2>/dev/null; do
    kill -0 "$first"
    sleep 0.02
done
kill -TERM "$second"
since=$(date +%s)
wait "$first" && echo 'the first node should not have ended well' && exit 1
wait "$second" && echo 'the second node should not have ended well' && exit 1
echo "both nodes ended after $(($(date +%s) - since)) s"

echo '== the same command again'
both stopped
wait "$first"
wait "$second"

"$PYTHON" - "$folder" <<'END'
import sys, torch
from pathlib import Path
whole, stopped = (torch.load(Path(sys.argv[1]) / run / "checkpoints" / "last.ckpt", weights_only=True)
                  for run in ("whole", "stopped"))
assert whole["global_step"] == stopped["global_step"]
assert all(torch.equal(value, stopped["state_dict"][name]) for name, value in whole["state_dict"].items())
rows = [[line.rsplit(",", 1)[0] for line in (Path(sys.argv[1]) / run / "metrics.csv").open() if "per_second" not in line]
        for run in ("whole", "stopped")]
print(f"equal, bit for bit, after {whole['global_step']} steps on two nodes; rows of metrics.csv:", *map(len, rows))
END
