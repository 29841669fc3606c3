#!/usr/bin/env bash
# Trains in N processes on this machine, one per GPU where there are GPUs; flags are those of train.py:
#
#     ./scripts/distributed_train.sh 8 /path/to/imagenet --model ddf_mul_resnet50 --lr 0.4 --warmup-epochs 5 \
#         --epochs 120 --sched cosine -b 128 -j 6 --amp --dist-bn reduce
#
# On several machines run it on each with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set. Other options of torchrun
# come from TORCHRUN_ARGS, such as --max-restarts=3: processes that die are started again, and with --resume auto and
# --experiment NAME they go on where the run was last saved. A mistake in the flags is found first, in one process (exit status 2).
set -euo pipefail
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 NUMBER_OF_PROCESSES [DATA_DIR] [flags of train.py]" >&2
    exit 2
fi
processes=$1
shift
root=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# as named in PYTHON, else of the active environment, else of the checkout's own
python=${PYTHON:-}
for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$root/.venv/bin/python" python python3; do
    if [ -z "$python" ] && [ -n "$candidate" ] && command -v "$candidate" > /dev/null; then python=$candidate; fi
done
if ! "$python" -c 'import torch' 2> /dev/null; then
    echo "error: ${python:-python} cannot import torch: activate an environment that has it, or name one in PYTHON" >&2
    exit 2
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

if [ "${NNODES:-1}" -gt 1 ]; then
    missing=
    [ -n "${MASTER_ADDR:-}" ] || missing='MASTER_ADDR: the name of the first machine'
    [ -n "${NODE_RANK:-}" ] || missing='NODE_RANK: 0 on the first machine'
    if [ -n "$missing" ]; then
        echo "error: with NNODES above 1, set $missing" >&2
        exit 2
    fi
fi
"$python" -m ddfnet.training.preflight "$((processes * ${NNODES:-1}))" "$@"
case " $* " in *" --help "* | *" -h "*) exit 0 ;; esac

if [ "${NNODES:-1}" -gt 1 ]; then
    rendezvous=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR"
        --master-port "${MASTER_PORT:-29500}")
else
    rendezvous=(--standalone)
fi
# else the first restart (--max-restarts) finds the store of the processes that ended
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
read -ra options <<< "${TORCHRUN_ARGS:-}"
exec "$python" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$processes" ${options[@]+"${options[@]}"} \
    "$root/train.py" "$@"
