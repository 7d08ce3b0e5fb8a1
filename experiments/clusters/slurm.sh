#!/bin/bash
# Several hosts under SLURM, one process on each:
#
#   sbatch --nodes=2 experiments/clusters/slurm.sh --flagfile=FILE --workdir=/shared/run
#
# A preempted or failed job goes back into the queue and goes on from its checkpoint.
#SBATCH --job-name=cdfkd
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120

set -o pipefail
PORT=${PORT:-2222}
PYTHON=${PYTHON:-.venv/bin/python}
ADDRESSES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" |
    sed "s/.*/\"&:$PORT\"/" | paste -sd,)
export PORT PYTHON ADDRESSES

# --kill-on-bad-exit: where one process fails the others need not wait.
srun --kill-on-bad-exit=1 bash -c '
    export TF_CONFIG="{\"cluster\": {\"worker\": [$ADDRESSES]},
        \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
    exec "$PYTHON" main.py "$@" --strategy=multi_worker
' main "$@" &
wait $!
code=$?
# 2: a wrong request stays wrong. 0: done. Else another process was lost, or time is up.
if [ $code -ne 0 ] && [ $code -ne 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
