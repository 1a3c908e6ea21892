# A stage of gen1-train as a Slurm job; sourced by stageN.sh, prior.sh and customize.sh with the stage's name and the
# user's settings.
. "$(dirname "$script")/common.bash"
stage=$1
shift
if ! in_job; then
  # the GPUs that site.env requests are not for a job that trains nothing, or that uses one GPU
  if [ "${SBATCH_GPUS_PER_NODE:-0}" != 0 ]; then
    case $stage in
      1) set -- --gpus-per-node=0 "$@" ;;
      prior) set -- --gpus-per-node=1 "$@" ;;
    esac
  fi
  submit "$@"
fi

case $stage in
  1 | prior) layout 1 1 ;; # stage 1 trains nothing, the prior is small
  *) layout ;;
esac
if [ "$stage" = prior ]; then # it has its own settings: of site.env's, it takes those with the same meaning
  settings=("${GEN1_OVERRIDES[@]}") GEN1_OVERRIDES=()
  for setting in "${settings[@]}"; do
    case $setting in
      output=* | name=* | data.root=* | log.* | checkpoint.* | trainer.accelerator=* | trainer.precision=*)
        GEN1_OVERRIDES+=("$setting")
        ;;
      *) echo "$stem: $setting of site.env applies to the stages only and is ignored" ;;
    esac
  done
fi
if [ -z "${MASTER_ADDR:-}" ]; then
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  export MASTER_ADDR
fi
# the ranks would wait for an unknown name until the time limit
getent hosts "$MASTER_ADDR" >/dev/null || die "the host $MASTER_ADDR cannot be resolved: export MASTER_ADDR, an address of the first node, in slurm/site.env"

gen1=("${GEN1_RUN[@]}" "$(program gen1-train)" "stage=$stage" "trainer.nodes=$nodes" "trainer.devices=$ranks" "${GEN1_OVERRIDES[@]}" "$@")
echo "$stem: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), $nodes nodes x $ranks ranks x $cpus CPUs: $SLURM_JOB_NODELIST, $(date -Is)"

# --signal=B: and preemption reach this shell: it passes the first on and ignores the second, to see how srun ends
asked='' deadline=''
trap 'asked=1' USR1
trap '' TERM

# one process reports a wrong path or setting, before srun starts a process for each GPU
"${gen1[@]}" check_only=true || exit $?
[ -z "$asked" ] || die "the time limit came before training began: raise --time"

# signals are ignored until Python handles them: otherwise the first would end the ranks with nothing saved
srun --nodes="$nodes" --ntasks=$((nodes * ranks)) --ntasks-per-node="$ranks" --cpus-per-task="$cpus" --wait=100 \
  bash -c 'trap "" USR1 TERM; exec "$@"' ranks "${gen1[@]}" &
ranks_pid=$!

seconds_left() { # until Slurm's time limit
  local ends
  ends=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.* EndTime=\([^ ]*\).*/\1/p')
  case $ends in
    Unknown | '') echo 100000000 ;; # no limit, or no answer
    *) echo $(($(date -d "$ends" +%s) - $(date +%s))) ;;
  esac
}

code=0
while kill -0 $ranks_pid 2>/dev/null; do
  if [ -n "$asked" ]; then
    : "${deadline:=$((SECONDS + $(seconds_left) - 15))}"
    ((SECONDS < deadline)) || requeue "the ranks have not stopped in time, the newest whole checkpoint is kept" || break
    kill -USR1 $ranks_pid 2>/dev/null || true # repeatedly: Python may not have handled signals before
    sleep 3 &
    wait $! || true
  else
    wait $ranks_pid && code=0 || code=$?
  fi
done
wait $ranks_pid && code=0 || code=$?

# exit codes of gen1-train, see gen1_train/errors.py
case $code in
  0) ;;
  75) [ -z "$asked" ] || requeue "a whole checkpoint was written before the time limit" ;;
  138) echo "$stem: error: the time limit came before the first step: raise --time" >&2 ;;
  200) requeue "a rank was lost, and a checkpoint was written since the start" ;;
esac
exit $code
