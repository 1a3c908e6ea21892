#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine, without systemd and without touching /etc: munged, slurmctld, two slurmd.
#   cluster.sh start | stop | status
# All of it lives in $GEN1_CLUSTER (default: ~/.cache/gen1-slurm); clients need its `environment`, which start prints.
# Each node has 4 CPUs, whatever the machine has, and 2 GPUs that are none.
# GEN1_CLUSTER_HOSTS makes each host of tests/cluster/hosts.py a node, with the network and the processes that it has:
# NAME,ADDRESS,PID of a process on it, with a space between two hosts. GEN1_CLUSTER_HUB is ADDRESS,PID of the switch,
# where slurmctld is, and where clients have to be.
set -euo pipefail
base=${GEN1_CLUSTER:-$HOME/.cache/gen1-slurm}
read -r control port1 port2 <<<"${GEN1_CLUSTER_PORTS:-26817 26818 26819}"
host=$(hostname -s) user=$(id -un)
if [ -n "${GEN1_CLUSTER_HOSTS:-}" ]; then
  IFS=, read -r address switch <<<"$GEN1_CLUSTER_HUB"
  nodes=() lines=() processes=() master=''
  for each in $GEN1_CLUSTER_HOSTS; do
    IFS=, read -r name place pid <<<"$each"
    nodes+=("$name") processes+=("$pid")
    lines+=("NodeName=$name NodeHostname=$name NodeAddr=$place Port=$port1")
  done
else
  address=127.0.0.1 switch='' nodes=(node1 node2) processes=('' '')
  lines=("NodeName=node1 NodeHostname=$host NodeAddr=$address Port=$port1" "NodeName=node2 NodeHostname=$host NodeAddr=$address Port=$port2")
  master=" MASTER_ADDR=$address"
fi
export SLURM_CONF=$base/slurm.conf PATH=$PATH:/usr/sbin:/sbin

at_hub() { ${switch:+nsenter --target "$switch" --net --} "$@"; }
running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

write_conf() {
  local names
  names=$(IFS=,; echo "${nodes[*]}")
  cat > "$base/slurm.conf" <<C
ClusterName=gen1
SlurmctldHost=$host($address)
SlurmctldPort=$control
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# cred_expire also is how long a requeued job waits before it starts again: 120 s by default, 5 at least
AuthInfo=socket=$base/run/munge.sock,cred_expire=5
SlurmctldPidFile=$base/run/slurmctld.pid
SlurmdPidFile=$base/run/slurmd.%n.pid
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd.%n.log
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=5,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# more CPUs than the machine may have
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=${GEN1_CLUSTER_TIMEOUT:-10}
# a message to a host that is cut off takes this long, 10 s by default, and several follow one another
MessageTimeout=$((switch ? 5 : 10))
KillWait=10
JobRequeue=1
GresTypes=gpu
$(printf '%s CPUs=4 RealMemory=64000 Gres=gpu:2 State=UNKNOWN\n' "${lines[@]}")
PartitionName=debug Nodes=$names Default=YES MaxTime=INFINITE State=UP
C
  # any two character devices will do
  echo "NodeName=$names Name=gpu File=/dev/null,/dev/zero" > "$base/gres.conf"
  # named, since its detection ends slurmd where /sys/fs/cgroup is not as it expects; nothing here uses it
  echo CgroupPlugin=cgroup/v1 > "$base/cgroup.conf"
  # what a user has in slurm/site.env; the names node1 and node2 need not resolve, and this machine has no other address
  cat > "$base/environment" <<C
export SLURM_CONF=$SLURM_CONF SBATCH_GPUS_PER_NODE=0 SBATCH_CPUS_PER_GPU=1$master
C
  chmod 644 "$base"/*.conf "$base/environment"
}

start() {
  for program in munged slurmctld slurmd sbatch; do
    command -v $program >/dev/null || { echo "cluster.sh: $program is not installed: apt-get install slurm-wlm munge" >&2; exit 2; }
  done
  mkdir -p "$base"/{log,state,run,munge} "${nodes[@]/#/$base/spool.}"
  chmod 755 "$base" "$base/log" "$base/run"; chmod 700 "$base/munge" "$base/state"
  [ -s "$base/munge/key" ] || { dd if=/dev/urandom bs=1 count=1024 of="$base/munge/key" status=none; chmod 400 "$base/munge/key"; }
  write_conf
  running "$base/run/munged.pid" || munged --force --key-file="$base/munge/key" --socket="$base/run/munge.sock" \
    --pid-file="$base/run/munged.pid" --log-file="$base/log/munged.log" --seed-file="$base/munge/seed" --num-threads=2 2>"$base/log/munged.err"
  running "$base/run/slurmctld.pid" || at_hub slurmctld -c -f "$SLURM_CONF"
  for number in "${!nodes[@]}"; do
    node=${nodes[number]} pid=${processes[number]}
    if [ -n "$pid" ]; then
      nsenter --target "$pid" --net --uts --pid --mount -- slurmd -N "$node" -f "$SLURM_CONF"
    else
      running "$base/run/slurmd.$node.pid" || slurmd -N "$node" -f "$SLURM_CONF"
    fi
  done
  for _ in $(seq 300); do  # sinfo says idle before a slurmd has registered
    if [ "$(at_hub scontrol show node -o 2>/dev/null | grep -E 'State=(IDLE|MIXED|ALLOCATED) ' | grep -vc SlurmdStartTime=None)" = ${#nodes[@]} ]; then
      cat "$base/environment"; return
    fi
    sleep 0.1
  done
  echo "cluster.sh: the nodes did not come up:" >&2; tail -n 5 "$base"/log/*.log >&2; exit 1
}

stop() {
  [ -f "$SLURM_CONF" ] || return 0
  at_hub timeout 10 scancel -u "$user" 2>/dev/null || true
  for _ in $(seq 100); do [ -z "$(at_hub timeout 5 squeue -h 2>/dev/null)" ] && break; sleep 0.2; done
  [ -z "$switch" ] || rm -f "$base"/run/slurmd.*.pid # process ids on the hosts, which end with all that they have
  for file in "$base"/run/slurmd.*.pid "$base/run/slurmctld.pid" "$base/run/munged.pid"; do
    running "$file" || continue
    pid=$(cat "$file"); kill "$pid"
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
  rm -rf "$base"
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  status) at_hub sinfo; at_hub squeue ;;
  *) sed -n 2,8p "$0"; exit 2 ;;
esac
