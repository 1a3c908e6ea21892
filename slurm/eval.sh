#!/usr/bin/env bash
# gen1-eval as a Slurm job: one process checks the inputs, one per GPU does its share, and one writes the report.
#   sbatch [sbatch's options] slurm/eval.sh checkpoint=RUN data=PAIRS output=DIR [gen1-eval's settings]
# Finished results are kept, so the same command resumes after any interruption. See docs/evaluation.md.
#SBATCH --job-name=gen1-eval
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-gpu=8
#SBATCH --time=24:00:00
# this many seconds before the time limit, the job is requeued
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
stem=eval
script=$0
if [[ $0 == */slurm_script ]]; then
  script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
  script=${script%%/"$stem".sh*}/$stem.sh
fi
. "$(dirname "$script")/common.bash"
in_job || submit "$@"

for setting; do
  case $setting in
    step=* | task=* | of=* | workers=*) die "this script sets ${setting%%=*} itself: leave $setting out" ;;
  esac
done
layout
gen1=("${GEN1_RUN[@]}" "$(program gen1-eval)" "$@")
echo "$stem: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), $nodes nodes x $ranks ranks x $cpus CPUs: $SLURM_JOB_NODELIST, $(date -Is)"
trap 'requeue "the time limit is near, finished results are kept" || true' USR1

# one process reports an unreadable row or checkpoint
"${gen1[@]}" step=check || exit $?
srun --nodes="$nodes" --ntasks=$((nodes * ranks)) --ntasks-per-node="$ranks" --cpus-per-task="$cpus" --kill-on-bad-exit=0 \
  "${gen1[@]}" step=run &
code=0
while kill -0 $! 2>/dev/null; do # the trap also ends a wait
  wait $! && code=0 || code=$?
done
wait $! && code=0 || code=$?
[ $code -eq 0 ] || die "a process ended with code $code; finished results are kept: submit the same command again"
exec "${gen1[@]}" step=report
