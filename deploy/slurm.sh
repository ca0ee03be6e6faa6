#!/bin/bash
# A clipmill command on the nodes of a Slurm job: a Ray cluster for its duration.
#
#     sbatch --nodes=8 --cpus-per-task=32 deploy/slurm.sh curate /data/videos --out /data/dataset
#
# Videos, dataset and CLIPMILL_BIN (the folder of `clipmill` and `ray`) have to be at the same path on every node. Slurm's
# signal before the end of the time stops the run, and the same command continues it.
#SBATCH --job-name=clipmill
#SBATCH --ntasks-per-node=1
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch [options of sbatch] slurm.sh COMMAND ARGUMENTS..., such as: curate VIDEOS --out DATASET" >&2
    exit 2
fi
if [ -n "${CLIPMILL_BIN:-}" ]; then PATH=$CLIPMILL_BIN:$PATH; fi

port=${CLIPMILL_PORT:-6379}
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
nodes=$SLURM_JOB_NUM_NODES
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# The first address of the node: the others have to reach it there.
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk '{print $1}')

# Without a token, anyone who can reach the nodes could run code on them. Only this user can read the folder.
umask 077
secret=$(mktemp -d "${CLIPMILL_SECRETS:-$HOME}/.clipmill-$SLURM_JOB_ID-XXXXXX")
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$secret/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$secret/token

started=()
# shellcheck disable=SC2317,SC2329 # called by the trap
stop() {
    for step in "${started[@]}"; do kill "$step" 2>/dev/null || true; done
    wait || true
    rm -rf "$secret"
}
trap stop EXIT

srun --nodes=1 --ntasks=1 --nodelist="$head" --export=ALL \
    ray start --head --node-ip-address="$address" --port="$port" --num-cpus="$cpus" --num-gpus="$gpus" \
    --disable-usage-stats --block &
started+=($!)
if [ "$nodes" -gt 1 ]; then
    srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" --export=ALL bash -c "
        until ray status --address=$address:$port >/dev/null 2>&1; do sleep 2; done
        exec ray start --address=$address:$port --num-cpus=$cpus --num-gpus=$gpus --block" &
    started+=($!)
fi

export RAY_ADDRESS=$address:$port
python - "$nodes" "${CLIPMILL_START_S:-300}" <<'PYTHON'
import sys, time
from pipelines.cluster import connected
from clipmill.errors import UserError

nodes, seconds = int(sys.argv[1]), float(sys.argv[2])
deadline = time.monotonic() + seconds
while True:
    alive = 0
    try:
        with connected():
            import ray

            alive = sum(node["Alive"] for node in ray.nodes())
    except UserError:
        pass
    if alive >= nodes:
        break
    if time.monotonic() > deadline:
        sys.exit(f"{alive} of {nodes} nodes joined the Ray cluster within {seconds:g} s")
    time.sleep(1)
PYTHON

# In the background, because bash passes signals on only while it waits.
clipmill "$@" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' TERM INT
code=0
wait "$run" || code=$?
if kill -0 "$run" 2>/dev/null; then code=0; wait "$run" || code=$?; fi
exit "$code"
