#!/usr/bin/env bash
# gen1-data as Slurm jobs. This job plans, then submits what is missing: an array of tasks, and a job that freezes.
#   sbatch [sbatch's options] slurm/data.sh source=VIDEOS output=SHARDS recipe=paper [of=16] [gen1-data's settings]
# Those two use this job's account and partition; the tasks also get DATA_TASK of slurm/site.env. See docs/data.md.
#SBATCH --job-name=gen1-data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --mincpus=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
stem=data
script=$0
if [[ $0 == */slurm_script ]]; then
  script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
  script=${script%%/"$stem".sh*}/$stem.sh
fi
. "$(dirname "$script")/common.bash"
if ! in_job; then
  [ "${SBATCH_GPUS_PER_NODE:-0}" = 0 ] || set -- --gpus-per-node=0 "$@" # planning needs none
  submit "$@"
fi

step=plan of=16 output='' workers=''
settings=() retry=()
for setting; do
  case $setting in
    step=*) step=${setting#*=}; continue ;;
    of=*) of=${setting#*=}; continue ;;
    retry=*) retry=("$setting"); continue ;; # for the plan alone: each task would discard what the others have done
    output=*) output=${setting#*=} ;;
    workers=*) workers=${setting#*=} ;;
  esac
  settings+=("$setting")
done
[[ $of =~ ^[1-9][0-9]*$ ]] || die "of=$of is not a number of shares: give 1 or more"
cpus=${SLURM_CPUS_ON_NODE:-1} gpus=${SLURM_GPUS_ON_NODE:-0}
data=("${GEN1_RUN[@]}" "$(program gen1-data)" "${settings[@]}")

plan() {
  local mark id comment queue missing busy=()
  mark="gen1-data $(realpath -m "$output")"
  queue=$(squeue --noheader --me --format='%F %k' | sort -nu) || die "squeue does not answer: try again later"
  while read -r id comment; do
    [ "$comment" != "$mark" ] || busy+=("$id")
  done <<<"$queue"
  [ ${#busy[@]} -eq 0 ] || die "jobs ${busy[*]} are working on output=$output: wait for them, or end them: scancel ${busy[*]}"
  "${data[@]}" step=plan "${retry[@]}" || exit $?
  missing=$("${data[@]}" step=missing of="$of") || exit $?
  [ -z "$missing" ] || submit_missing "$mark" "$missing"
}

submit_missing() { # submits the jobs for what is missing
  local mark=$1 missing=$2 name=$SLURM_JOB_NAME tasks=() same=() after=() fact value array freeze
  if declare -p DATA_TASK &>/dev/null; then
    tasks=("${DATA_TASK[@]}")
  elif [ "${SBATCH_GPUS_PER_NODE:-}" = 0 ]; then
    tasks=(--cpus-per-task="$cpus")
  else
    tasks=(--cpus-per-task=8 --gpus=1)
  fi
  for fact in account partition qos reservation; do
    value=SLURM_JOB_${fact^^}
    [ -z "${!value:-}" ] || same+=("--$fact=${!value}")
  done
  # sbatch passes on its environment: remove the variables of this job, and the GPUs other than those of DATA_TASK
  for value in ${!SLURM_*} ${!SBATCH_GPUS*} SBATCH_CPUS_PER_GPU; do
    [ "$value" = SLURM_CONF ] || unset "$value"
  done
  same+=(--parsable --comment="$mark" --mincpus=1) # instead of this script's own
  if [ "$missing" != freeze ]; then
    array=$(sbatch "${same[@]}" --job-name="$name-task" --output=%x-%A_%a.log "${tasks[@]}" --array="$missing" \
      "$folder/$stem.sh" step=task of="$of" "${settings[@]}") || die "sbatch refused the tasks: see DATA_TASK in slurm/site.env"
    array=${array%%;*} # a federation appends the cluster's name
    echo "$stem: job $array does the tasks: shares $missing of $of"
    after=(--dependency="afterok:$array" --kill-on-invalid-dep=yes)
  fi
  freeze=$(sbatch "${same[@]}" --job-name="$name-freeze" --cpus-per-task="$cpus" "${after[@]}" \
    "$folder/$stem.sh" step=freeze "${settings[@]}") || die "sbatch refused the job that freezes: when the tasks are done, submit the same command again"
  echo "$stem: job ${freeze%%;*} freezes the set${after:+ after it}"
}

case $step in
  plan) plan ;;
  task)
    [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || die "step=task needs sbatch's --array=0-$((of - 1))"
    if [ -z "$workers" ]; then
      workers=$((gpus > 0 ? gpus : cpus))
      data+=(workers="$workers")
    fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > workers ? cpus / workers : 1))}
    exec "${data[@]}" step=task task="$SLURM_ARRAY_TASK_ID" of="$of"
    ;;
  freeze)
    [ -n "$workers" ] || data+=(workers="$cpus")
    code=0
    "${data[@]}" step=freeze || code=$?
    # a set without some broken files is still a set, and jobs that wait for it may begin
    [ $code -ne 3 ] || echo "$stem: the set is whole; failures.jsonl in its folder lists what did not become samples"
    exit $((code == 3 ? 0 : code))
    ;;
  *) die "step=$step is not one of plan, task, freeze" ;;
esac
