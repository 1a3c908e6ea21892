# A stage of gen1-train as a Slurm job; sourced by stageN.sh, prior.sh and customize.sh with the stage's name and the user's
# overrides.
. "$(dirname "$script")/common.bash"
stage=$1
shift
if ! in_job; then
  # the GPUs that site.env asks for are not for a job that trains nothing, or on one of them
  if [ "${SBATCH_GPUS_PER_NODE:-0}" != 0 ]; then
    case $stage in
      1) set -- --gpus-per-node=0 "$@" ;;
      prior) set -- --gpus-per-node=1 "$@" ;;
    esac
  fi
  submit "$@"
fi

case $stage in
  1 | prior) layout 1 1 ;; # the one trains nothing, the other little
  *) layout ;;
esac
if [ "$stage" = prior ]; then # it has settings of its own: of site.env's it takes those that mean the same to it
  settings=("${GEN1_OVERRIDES[@]}") GEN1_OVERRIDES=()
  for setting in "${settings[@]}"; do
    case $setting in
      output=* | name=* | data.root=* | log.* | checkpoint.* | trainer.accelerator=* | trainer.precision=*)
        GEN1_OVERRIDES+=("$setting")
        ;;
      *) echo "$stem: site.env's $setting is for the stages, and left out" ;;
    esac
  done
fi
if [ -z "${MASTER_ADDR:-}" ]; then
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  export MASTER_ADDR
fi
# a name that nobody knows would be waited for to the time limit
getent hosts "$MASTER_ADDR" >/dev/null || die "the host $MASTER_ADDR cannot be resolved: export MASTER_ADDR, an address of the first node, in slurm/site.env"

gen1=("${GEN1_RUN[@]}" "$(program gen1-train)" "stage=$stage" "trainer.nodes=$nodes" "trainer.devices=$ranks" "${GEN1_OVERRIDES[@]}" "$@")
echo "$stem: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), $nodes nodes x $ranks ranks x $cpus CPUs: $SLURM_JOB_NODELIST, $(date -Is)"

# --signal=B: and preemption reach this shell; it hands the first on and lives through the second, to see how srun ends
asked='' deadline=''
trap 'asked=1' USR1
trap '' TERM

# a wrong path or setting is told by one process, before srun starts one for each GPU
"${gen1[@]}" check_only=true || exit $?
[ -z "$asked" ] || die "the time limit came before training had begun: raise --time"

# signals are ignored until Python listens: before, the first would end the ranks with nothing saved
srun --nodes="$nodes" --ntasks=$((nodes * ranks)) --ntasks-per-node="$ranks" --cpus-per-task="$cpus" --wait=100 \
  bash -c 'trap "" USR1 TERM; exec "$@"' ranks "${gen1[@]}" &
ranks_pid=$!

seconds_left() { # until Slurm's time limit
  local ends
  ends=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.* EndTime=\([^ ]*\).*/\1/p')
  case $ends in
    Unknown | '') echo 100000000 ;; # without a limit, or nobody answered
    *) echo $(($(date -d "$ends" +%s) - $(date +%s))) ;;
  esac
}

code=0
while kill -0 $ranks_pid 2>/dev/null; do
  if [ -n "$asked" ]; then
    : "${deadline:=$((SECONDS + $(seconds_left) - 15))}"
    ((SECONDS < deadline)) || requeue "the ranks have not stopped in time, the newest whole checkpoint stands" || break
    kill -USR1 $ranks_pid 2>/dev/null || true # again and again: they may not have listened before
    sleep 3 &
    wait $! || true
  else
    wait $ranks_pid && code=0 || code=$?
  fi
done
wait $ranks_pid && code=0 || code=$?

# codes of gen1-train, see gen1_train/exits.py
case $code in
  0) ;;
  75) [ -z "$asked" ] || requeue "a whole checkpoint is written before the time limit" ;;
  138) echo "$stem: error: the time limit came before the first step: raise --time" >&2 ;;
  200) requeue "a rank was lost, and this start had written a checkpoint" ;;
esac
exit $code
