# Shared by all scripts here; sourced with `script` (path of the script) and `stem` (its name) set.
# In a job Slurm runs a copy of the script from its spool folder, so each script asks Slurm where it was submitted from.
set -euo pipefail
folder=$(cd "$(dirname "$script")" && pwd)

die() {
  echo "$stem: error: $*" >&2
  exit 2
}

# settings of this site, see site.env.example
GEN1_OVERRIDES=() GEN1_RUN=()
site=${GEN1_SITE:-$folder/site.env}
if [ -f "$site" ]; then
  . "$site"
elif [ -n "${GEN1_SITE:-}" ]; then
  die "GEN1_SITE=$GEN1_SITE does not exist: name the file of your site, or unset GEN1_SITE"
fi

# the command in the checkout's own environment, or else on the PATH that sbatch has passed on
program() {
  if [ ${#GEN1_RUN[@]} -eq 0 ] && [ -x "$folder/../.venv/bin/$1" ]; then
    echo "$folder/../.venv/bin/$1"
  elif [ ${#GEN1_RUN[@]} -gt 0 ] || command -v "$1" >/dev/null; then
    echo "$1"
  else
    die "there is no $1: run make install in $(dirname "$folder"), or activate the environment that has it before sbatch"
  fi
}

in_job() { [[ ${BASH_SOURCE[-1]} == */slurm_script ]]; }

need_sbatch() {
  command -v sbatch >/dev/null || die "there is no sbatch here: call this on a machine of the cluster (without Slurm: gen1-train, gen1-data)"
}

# submits this script when it is called without sbatch; options (--…) go to sbatch, the rest are Hydra's overrides
submit() {
  local options=() overrides=() argument
  need_sbatch
  for argument; do
    if [[ $argument == -* ]]; then options+=("$argument"); else overrides+=("$argument"); fi
  done
  exec sbatch "${options[@]}" "$folder/$(basename "$script")" "${overrides[@]}"
}

# Does not return, unless Slurm refuses.
requeue() {
  echo "$stem: $1: job $SLURM_JOB_ID is requeued"
  trap - TERM # the signal by which Slurm ends this script
  scontrol requeue "$SLURM_JOB_ID" || return 1
  sleep 3600
}

# Sets nodes, ranks per node, and CPUs per rank: a rank for each GPU; without GPUs, one for each requested task.
# `layout NODES RANKS` uses these numbers instead of the job's.
layout() {
  local gpus=${SLURM_GPUS_ON_NODE:-0}
  unset SLURM_CPUS_PER_GPU # srun would take it with sbatch's other options, and refuse it together with --cpus-per-task
  ((gpus > 0)) || unset SLURM_GPUS_PER_NODE
  nodes=${1:-$SLURM_JOB_NUM_NODES}
  ranks=${2:-$((gpus > 0 ? gpus : ${SLURM_NTASKS_PER_NODE:-1}))}
  cpus=$((SLURM_CPUS_ON_NODE >= ranks ? SLURM_CPUS_ON_NODE / ranks : 1))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus}
}
