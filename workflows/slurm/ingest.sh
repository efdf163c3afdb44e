#!/usr/bin/env bash
# A big ingest as Slurm jobs: a plan, an array of which each task writes its share of the
# partitions, and a finish that checks that all is there. Each waits for the one before; run
# again after a failure, what was written is kept.
#
#   workflows/slurm/ingest.sh workflows/sources/tar.yml
#   SHARES=500 AT_ONCE=100 SBATCH_PARTITION=long workflows/slurm/ingest.sh JOB.yml --set mode=RGB
#
# The words are those of `pixsim ingest`. What a single task asks of Slurm stands in pixsim.sbatch;
# `export SBATCH_TIMELIMIT=... SBATCH_MEM_PER_NODE=... SBATCH_ACCOUNT=...` changes it.

set -euo pipefail

SHARES=${SHARES:-100}   # tasks of the array; those beyond the number of partitions end at once
AT_ONCE=${AT_ONCE:-20}  # of them at a time
script=$(dirname "$0")/pixsim.sbatch
after=(--parsable --kill-on-invalid-dep=yes)

plan=$(sbatch --parsable --job-name=pixsim-plan \
    --output=pixsim-plan-%j.txt --error=pixsim-plan-%j.log "$script" ingest "$@" --only plan)
shares=$(PIXSIM_PLAN=$PWD/pixsim-plan-$plan.txt sbatch "${after[@]}" \
    --dependency="afterok:$plan" --job-name=pixsim-share --array="0-$((SHARES - 1))%$AT_ONCE" \
    --output=%x-%A-%a.log "$script" ingest "$@")
finish=$(sbatch "${after[@]}" --dependency="afterok:$shares" --job-name=pixsim-finish \
    "$script" ingest "$@" --only finish)
echo "plan $plan, shares $shares, finish $finish"
