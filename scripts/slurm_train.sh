#!/usr/bin/env bash
# Trains on the machines that SLURM gives, one process per GPU; flags are those of train.py:
#
#     sbatch --nodes 2 --gpus-per-node 8 scripts/slurm_train.sh /path/to/imagenet -c configs/ddf_mul_resnet50.yaml
#
# Submit it from the checkout, or name the checkout in DDFNET_ROOT. The run is called slurm-JOBID unless --experiment
# says otherwise. Two minutes before the time limit, and when the job is preempted, the run is saved at the next step and
# the job is queued again; it then goes on there. Without GPUs, PROCESSES_PER_NODE says how many processes a machine has.
#SBATCH --job-name=ddfnet
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
#SBATCH --signal=B:USR1@120
set -euo pipefail
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: this is no SLURM job: submit it with sbatch scripts/slurm_train.sh [DATA_DIR] [flags of train.py]" >&2
    exit 2
fi
# SLURM runs a copy of this script, from the folder it was submitted in
root=${DDFNET_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}
launcher=$root/scripts/distributed_train.sh
if [ ! -x "$launcher" ]; then
    echo "error: $launcher not found: submit from the checkout, or name it in DDFNET_ROOT" >&2
    exit 2
fi
processes=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
nodes=${SLURM_NNODES:-1}
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
export MASTER_ADDR MASTER_PORT NNODES=$nodes

flags=("$@")
experiment=slurm-$SLURM_JOB_ID output=output/train words=("$@")
for index in "${!words[@]}"; do
    case ${words[index]} in
        --experiment) experiment=${words[index + 1]:-} ;;
        --experiment=*) experiment=${words[index]#*=} ;;
        --output) output=${words[index + 1]:-} ;;
        --output=*) output=${words[index]#*=} ;;
    esac
done
case " $* " in *" --resume"*) ;; *) flags+=(--resume auto) ;; esac
case " $* " in *" --experiment"*) ;; *) flags+=(--experiment "$experiment") ;; esac
marker=$output/$experiment/stopped.json
rm -f "$marker"

signals=0
forward() {
    signals=$((signals + 1))
    scancel --signal=TERM "$SLURM_JOB_ID" || true # the tasks alone; a signal to srun would have them killed
}
trap forward USR1 TERM
# shellcheck disable=SC2016  # NODE_RANK is the task's own
srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --cpus-per-task "${SLURM_CPUS_ON_NODE:-1}" \
    --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec "$@"' bash "$launcher" "$processes" "${flags[@]}" &
step=$!
while true; do # a signal ends the wait, not the step
    before=$signals status=0
    wait "$step" || status=$?
    [ "$signals" -gt "$before" ] || break
done

# a job that was cancelled is no longer RUNNING, and must not come back
if [ "$status" -ne 0 ] && { [ "$signals" -gt 0 ] || [ -e "$marker" ]; } &&
    [[ $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING* ]]; then
    echo "queued again: job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
