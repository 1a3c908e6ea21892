#!/usr/bin/env bash
# Stage 3: adds temporal layers and trains on images and videos jointly.
#   sbatch [sbatch's options] slurm/stage3.sh [gen1-train's settings]
#SBATCH --job-name=gen1-stage3
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-gpu=8
#SBATCH --time=24:00:00
# this many seconds before the time limit, a checkpoint is written and the job is requeued
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
stem=stage3
script=$0
if [[ $0 == */slurm_script ]]; then
  script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
  script=${script%%/"$stem".sh*}/$stem.sh
fi
. "$(dirname "$script")/train.bash" 3 "$@"
