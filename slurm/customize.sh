#!/usr/bin/env bash
# Customization: tunes stage 5 on 15 to 30 images of a subject (images=FOLDER data.root=SHARDS).
#   sbatch [sbatch's options] slurm/customize.sh [gen1-train's settings]
#SBATCH --job-name=gen1-customize
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --time=04:00:00
# this many seconds before the time limit, a checkpoint is written and the job is requeued
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
stem=customize
script=$0
if [[ $0 == */slurm_script ]]; then
  script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
  script=${script%%/"$stem".sh*}/$stem.sh
fi
. "$(dirname "$script")/train.bash" customize "$@"
