#!/usr/bin/env bash
# Several processes of one run on this machine, over loopback, on CPU devices: to try things, to test.
#
#   launch/local.sh [--restart=TIMES] [--devices=D] N CONFIG --workdir=DIR [FLAG…]
#   launch/local.sh --devices=2 2 configs/small.py --workdir=runs/two --config.train.epochs=1
#
# Needs:  bash 4.4 and the project installed for `python` (or $PYTHON).
# Costs:  this machine's cores, while it runs. Nothing stays behind.
# Stop:   Ctrl-C; or SIGTERM, on which every process saves and exits with status 75.
#
# Process 0 prints here; all of them write to DIR/logs/local_<i>.out. Exit status: that of the first
# process that failed; 75 (preempted, run again) starts them anew, up to --restart times (default 0).
set -euo pipefail

python=${PYTHON:-python}
grace_s=${GRACE_S:-60} # for the others, after one has left
restarts=0
devices=1
pids=()
stopped_by=
deadline= # in SECONDS: when what is left is killed

usage() {
  echo "error: $1 (launch/local.sh [--restart=TIMES] [--devices=D] N CONFIG --workdir=DIR …)" >&2
  exit 2
}

is_number() { [[ $1 =~ ^[1-9][0-9]*$ ]]; }

signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    kill -"$1" -- "-$pid" 2>/dev/null || true
  done
}

# The first Ctrl-C or SIGTERM is passed to the processes, which save and exit; a second one ends them.
stop() {
  if [[ $stopped_by ]]; then
    signal_all KILL
  else
    stopped_by=$1
    signal_all "$1"
    deadline=$((SECONDS + grace_s))
  fi
}

free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start_all() {
  local port i guard=()
  port=$(free_port)
  # If this script itself is killed outright, the kernel ends its processes.
  if command -v setpriv >/dev/null; then guard=(setpriv --pdeathsig KILL); fi
  pids=()
  # Job control gives every process a group of its own, in which SIGINT is not ignored.
  set -m
  for ((i = 0; i < count; i++)); do
    local log="$logs/local_$i.out"
    local command=("${guard[@]}" "$python" -m mnv4_jax.main "--config=$config" "$@")
    command+=("--coordinator=127.0.0.1:$port" "--num_processes=$count" "--process_id=$i")
    if ((i == 0)); then
      "${command[@]}" </dev/null > >(tee -a "$log") 2>&1 &
    else
      "${command[@]}" </dev/null >>"$log" 2>&1 &
    fi
    pids+=($!)
  done
  set +m
}

# Sets `status`: that of the first process that failed (75 counts), or 0.
wait_for_all() {
  local waiting=("${pids[@]}") still pid code
  status=0
  while ((${#waiting[@]})); do
    sleep 0.2
    still=()
    for pid in "${waiting[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        still+=("$pid")
        continue
      fi
      code=0
      wait "$pid" || code=$?
      if ((code == 0 || status != 0)); then continue; fi
      status=$code
      # The others cannot go on without it. If preempted they exit by themselves; else end them.
      if ((code != 75)); then signal_all TERM; fi
      deadline=$((SECONDS + grace_s))
    done
    waiting=("${still[@]}")
    if [[ $deadline ]] && ((SECONDS >= deadline)); then signal_all KILL; fi
  done
  deadline=
}

while [[ ${1:-} == --* ]]; do
  case $1 in
    --restart=*) restarts=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    *) usage "$1 is not an option" ;;
  esac
  shift
done
if (($# < 2)); then usage "N and CONFIG are missing"; fi
count=$1
config=$2
shift 2
is_number "$count" || usage "N=$count is not a number of processes"
is_number "$restarts" || [[ $restarts == 0 ]] || usage "--restart=$restarts is not a number"
is_number "$devices" || usage "--devices=$devices is not a number of devices"
logs=
for flag in "$@"; do
  if [[ $flag == --workdir=?* ]]; then logs=${flag#*=}/logs; fi
done
if [[ -z $logs ]]; then usage "--workdir=DIR is missing"; fi
mkdir -p "$logs"

export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices
trap 'stop INT' INT
trap 'stop TERM' TERM HUP
trap 'signal_all KILL' EXIT

for ((run = 0; ; run++)); do
  start_all "$@"
  wait_for_all
  if [[ $stopped_by == INT ]]; then exit 130; fi
  if ((status != 75)) || [[ $stopped_by ]] || ((run >= restarts)); then exit "$status"; fi
  echo "preempted: starting again ($((run + 1)) of $restarts)" >&2
done
