#!/usr/bin/env bash
# Finetune on several machines: start this on each of them, with the same flags of train.py.
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash example_scripts/multi_node.sh run.yaml
#       on the first machine, whose address is 10.0.0.1
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 bash example_scripts/multi_node.sh run.yaml
#       on the second; they wait for each other
#
# Each machine needs this repository, its packages, the model and the data under the same paths. Keep them and
# --output_dir on a disk that all machines share, since the first process of the first machine writes the results.
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- machines -------------------------------------------------------------------------------------------------------
: "${NNODES:?the number of machines}"
: "${NODE_RANK:?the number of this machine, from 0}"
: "${MASTER_ADDR:?the address of machine 0}"
MASTER_PORT=${MASTER_PORT:-29500}             # any free port of machine 0 that the others can reach
PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-gpu} # gpu: one process per visible GPU

# ---- network --------------------------------------------------------------------------------------------------------
# If the machines have several networks, set the one that connects them:
# export NCCL_SOCKET_IFNAME=eth0
# If the run hangs at the start, print what NCCL does:
# export NCCL_DEBUG=INFO

# ---- memory ---------------------------------------------------------------------------------------------------------
# Without an engine, each GPU holds the whole model. To shard a larger model over all GPUs of all machines,
# add --deepspeed ds_configs/zero3.json, or --fsdp True --fsdp_config fsdp_configs/fsdp2.json.

# ---- training -------------------------------------------------------------------------------------------------------
# With `exec`, torchrun gets the signal to stop and passes it on, and train.py saves a checkpoint. It has ten minutes
# for that, instead of the default half minute.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
LAUNCHER=(
    --nnodes "$NNODES"                     # number of machines; they wait for each other
    --node_rank "$NODE_RANK"               # the rank of this machine
    --master_addr "$MASTER_ADDR"           # address of machine 0
    --master_port "$MASTER_PORT"           # port of machine 0
    --nproc_per_node "$PROCESSES_PER_NODE" # processes on this machine
)
exec torchrun "${LAUNCHER[@]}" train.py "$@"
