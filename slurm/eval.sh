#!/usr/bin/env bash
# gen1-eval as a Slurm job: one process checks the inputs, one for each GPU takes its share, one writes the report.
#   sbatch [sbatch's options] slurm/eval.sh checkpoint=RUN data=PAIRS output=DIR [gen1-eval's settings]
# Every finished result stays, so the same call goes on after whatever ended it. See docs/evaluation.md.
#SBATCH --job-name=gen1-eval
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-gpu=8
#SBATCH --time=24:00:00
# this long before the time limit the job goes back into the queue
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
    step=* | task=* | of=* | workers=*) die "$setting is this script's to say: leave it out" ;;
  esac
done
layout
gen1=("${GEN1_RUN[@]}" "$(program gen1-eval)" "$@")
echo "$stem: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), $nodes nodes x $ranks ranks x $cpus CPUs: $SLURM_JOB_NODELIST, $(date -Is)"
trap 'requeue "the time limit is near, finished results stay" || true' USR1

# a row that cannot be read, or a checkpoint that is none, is told by one process
"${gen1[@]}" step=check || exit $?
srun --nodes="$nodes" --ntasks=$((nodes * ranks)) --ntasks-per-node="$ranks" --cpus-per-task="$cpus" --kill-on-bad-exit=0 \
  "${gen1[@]}" step=run &
code=0
while kill -0 $! 2>/dev/null; do # the trap ends a wait, too
  wait $! && code=0 || code=$?
done
wait $! && code=0 || code=$?
[ $code -eq 0 ] || die "a process ended with code $code; finished results stay: submit the same again"
exec "${gen1[@]}" step=report
