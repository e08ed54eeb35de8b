#!/usr/bin/env bash
# Start a real SLURM on this machine, for tests: a controller and two pretend nodes of one CPU each, reachable from
# this machine only, all their files in one folder. Needs root, slurm-wlm and munge.
# Usage: start.sh FOLDER; then SLURM_CONF=FOLDER/slurm.conf is what squeue, sbatch and the rest need. stop.sh ends it.
set -euo pipefail

folder=$1
port=26817
host=$(hostname -s)
fail() { echo "$*" >&2; exit 1; }

for tool in munged slurmctld slurmd; do
  command -v "$tool" >/dev/null || fail "$tool is not installed (packages slurm-wlm and munge)"
done
# The daemons listen at the address of this name, and jobs answer on 127.0.0.1.
[ "$(getent ahostsv4 "$host" | awk 'NR == 1 {print $1}')" = 127.0.0.1 ] ||
  fail "the name $host must stand for 127.0.0.1 in /etc/hosts"

mkdir -p "$folder"/{munge,state,n1,n2}
chmod 755 "$folder" "$folder/munge"  # munge insists on it
(umask 077; head -c 1024 /dev/urandom >"$folder/munge/key")
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munge/seed" --num-threads=2

cat >"$folder/slurm.conf" <<END
ClusterName=isbench
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
# The second value is also how many seconds a requeued job waits.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
# What containers lack: control groups, systemd, MPI.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
# Little patience, so that tests are short.
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2
KillWait=10
ReturnToService=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# Jobs of the partition urgent send those of normal back into the queue, after GraceTime seconds.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=1 RealMemory=4096
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
END

export SLURM_CONF=$folder/slurm.conf
slurmctld -c
slurmd -N n1
slurmd -N n2
for _ in $(seq 60); do
  [ "$(timeout 5 sinfo -h -N -p normal -t idle 2>/dev/null | wc -l)" = 2 ] && exit 0
  sleep 0.5
done
tail -n 3 "$folder"/slurm*.log >&2
fail "the nodes did not come up within 30 s"
