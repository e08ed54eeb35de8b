#!/usr/bin/env bash
# End the SLURM that start.sh started in FOLDER, with its jobs. FOLDER keeps the logs.
# Usage: stop.sh FOLDER
set -uo pipefail

folder=$1
export SLURM_CONF=$folder/slurm.conf

if timeout 5 scontrol ping >/dev/null 2>&1; then
  scancel --user="$(id -un)"
  for _ in $(seq 40); do
    [ -z "$(timeout 5 squeue -h)" ] && break
    sleep 0.5
  done
fi
for file in "$folder"/slurmd.*.pid "$folder"/slurmctld.pid "$folder"/munged.pid; do
  [ -s "$file" ] || continue
  pid=$(cat "$file")
  name=$(basename "$file" .pid)
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "${name%%.*}" ] || continue # another process by now
  kill "$pid"
  for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
  kill -KILL "$pid" 2>/dev/null
done
exit 0
