#!/usr/bin/env bash
# All stages as a chain of jobs, each to begin after the one before has succeeded; prints job ids. Call it without sbatch.
#   slurm/all.sh [--stages=3,4,5] [sbatch's options] [gen1-train's settings]
# A setting prefixed by a stage's number applies to that stage alone (4:optim.lr=3e-5). sbatch's options apply to stages
# 2 to 5; stage 1, which is one process without a GPU, takes --account, --partition, --qos and --test-only.
stem=all
script=$0
. "$(dirname "$script")/common.bash"
need_sbatch
in_job && die "this script submits jobs and is not a job itself: call $folder/all.sh without sbatch"

stages=(1 2 3 4 5) options=() first=() shared=()
for argument; do
  case $argument in
    --stages=*) IFS=, read -ra stages <<<"${argument#*=}" ;;
    --account=* | --partition=* | --qos=* | --test-only) options+=("$argument") first+=("$argument") ;;
    -*) options+=("$argument") ;;
    *) shared+=("$argument") ;;
  esac
done
for stage in "${stages[@]}"; do
  [ -f "$folder/stage$stage.sh" ] || die "--stages=$stage: there is no $folder/stage$stage.sh"
done

settings_of() { # of a stage, one per line
  local setting
  for setting in "${shared[@]}"; do
    case $setting in
      "$1":*) echo "${setting#*:}" ;;
      [0-9]:*) ;;
      *) echo "$setting" ;;
    esac
  done
}

# a mistyped setting of the last stage is reported now, not in some weeks
gen1=("${GEN1_RUN[@]}" "$(program gen1-train)") checks=()
for stage in "${stages[@]}"; do
  mapfile -t settings < <(settings_of "$stage")
  "${gen1[@]}" "stage=$stage" "${GEN1_OVERRIDES[@]}" "${settings[@]}" --cfg job >/dev/null &
  checks+=($!)
done
for check in "${checks[@]}"; do
  wait "$check" || exit $?
done

before=
for stage in "${stages[@]}"; do
  mapfile -t settings < <(settings_of "$stage")
  call=(sbatch --parsable)
  if [ "$stage" = 1 ]; then
    call=(env -u SBATCH_GPUS_PER_NODE "${call[@]}" "${first[@]}") # stage 1 trains nothing and needs no GPUs
  else
    call+=("${options[@]}")
  fi
  [ -z "$before" ] || call+=(--dependency="afterok:$before" --kill-on-invalid-dep=yes)
  before=$("${call[@]}" "$folder/stage$stage.sh" "${settings[@]}") || die "sbatch refused stage $stage: see its message; the stages before it are in the queue"
  before=${before%%;*} # a federation appends the cluster's name
  echo "stage $stage: ${before:+job $before}"
done
