#!/usr/bin/env bash
# Stage 1: turns Stable Diffusion's weights, inflated, into the first checkpoint; one process, no GPU.
#   sbatch [sbatch's options] slurm/stage1.sh [gen1-train's settings]
#SBATCH --job-name=gen1-stage1
#SBATCH --nodes=1
#SBATCH --mincpus=4
#SBATCH --mem=48G
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
stem=stage1
script=$0
if [[ $0 == */slurm_script ]]; then
  script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
  script=${script%%/"$stem".sh*}/$stem.sh
fi
. "$(dirname "$script")/train.bash" 1 "$@"
