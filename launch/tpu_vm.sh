#!/usr/bin/env bash
# One run on a Cloud TPU slice: gets the slice, installs, trains on all its workers, shows worker 0,
# gets another slice when it is preempted, and deletes the slice at the end.
#
#   launch/tpu_vm.sh --name=NAME --zone=ZONE [--type=v5litepod-8] [--version=v2-alpha-tpuv5-lite]
#     [--project=PROJECT] [--spot] [--keep] [--data=gs://BUCKET/SET] [--max_restarts=50]
#     [--dry_run] -- MAIN_FLAG…
#   launch/tpu_vm.sh --name=faces --zone=us-west4-a --spot --data=gs://BUCKET/kaggle -- \
#     --config=configs/kaggle.py --workdir=gs://BUCKET/runs/kaggle --config.data.dir=../data
#
# The code is that of the last commit. --data is copied to ../data on every worker: random reads of
# small pictures want a local disk.
#
# Needs:  gcloud, logged in, TPU quota in ZONE; a bucket that the slice's service account can write.
# Costs:  the slice is billed from ACTIVE until it is deleted, by the chip and hour, also when idle
#         (v5litepod-8: 8 chips). This script deletes it when it ends in any way, unless --keep.
#         If the machine this runs on dies, delete it by hand:
# Stop:   Ctrl-C, or: gcloud compute tpus queued-resources delete NAME --zone=ZONE --force --quiet
#
# --dry_run prints every command in order and runs none. The exit status is that of the training. On
# status 75, a killed worker or a lost slice, it tries again from the last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."

name='' zone='' type=v5litepod-8 version=v2-alpha-tpuv5-lite
max_restarts=50 poll_s=${POLL_S:-30}
dry_run='' keep='' data=''
common=() create=()

usage() {
  echo "error: $1 (launch/tpu_vm.sh --name=NAME --zone=ZONE … -- MAIN_FLAG…)" >&2
  exit 2
}

# Runs a command, or prints it so that it can be pasted.
run() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

queued() { run gcloud compute tpus queued-resources "$1" "$name" "${common[@]}" "${@:2}"; }

# On all workers, in the folder with the code.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${common[@]}" --worker=all --command="cd mnv4_jax && $1"
}

# WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, …; nothing where there is no such request.
state() {
  run gcloud compute tpus queued-resources list "${common[@]}" "--filter=name~/$name\$" \
    '--format=value(state.state)'
}

get_slice() {
  local now asked=''
  while true; do
    now=$(state)
    if [[ $dry_run ]]; then echo "$now" && now=; fi
    if [[ $now == FAILED && $asked ]]; then
      echo "error: slice $name: the request FAILED; see: gcloud compute tpus queued-resources" \
        "describe $name ${common[*]}" >&2
      exit 1
    fi
    case $now in
      ACTIVE) return ;;
      '')
        queued create "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$version" \
          "${create[@]}"
        asked=1
        if [[ $dry_run ]]; then return; fi
        ;;
      SUSPENDED | FAILED)
        # A preempted slice does not come back: its request has to go before the next one.
        echo "slice $name is $now: asking for another" >&2
        queued delete --force --quiet
        ;;
      *) sleep "$poll_s" ;;
    esac
  done
}

# Fails if a command fails (`set -e` is off inside a condition).
install_code() {
  local failed=0
  run git archive --format=tar.gz "--output=$archive" HEAD &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:mnv4_jax.tar.gz" "${common[@]}" \
      --worker=all &&
    run gcloud compute tpus tpu-vm ssh "$name" "${common[@]}" --worker=all \
      --command="mkdir -p mnv4_jax && tar -xzf mnv4_jax.tar.gz -C mnv4_jax" &&
    on_workers "launch/tpu_worker.sh install" || failed=1
  if [[ $data ]] && ((failed == 0)); then
    on_workers "launch/tpu_worker.sh copy $(printf %q "$data")" || failed=1
  fi
  return "$failed"
}

# Sets `status` to the training's own, as worker 0 said it; 255 where the connection was lost first.
train() {
  status=0
  on_workers "launch/tpu_worker.sh run$(printf ' %q' "$@")" | tee "$shown" || status=$?
  if ((status != 0)); then
    status=$(sed -n 's/^mnv4_jax exit status: \([1-9][0-9]*\)$/\1/p' "$shown" | tail -n 1)
    status=${status:-255}
  fi
}

at_the_end() {
  local result=$?
  trap '' INT TERM HUP
  rm -rf "$scratch"
  if [[ $keep ]]; then
    echo "kept, and billed until it is deleted: slice $name" >&2
  else
    queued delete --force --quiet || {
      echo "slice $name could NOT be deleted and is still billed; delete it by hand:" >&2
      echo "gcloud compute tpus queued-resources delete $name ${common[*]} --force --quiet" >&2
    }
  fi
  exit "$result"
}

while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --version=?*) version=${1#*=} ;;
    --project=?*) common+=("$1") ;;
    --max_restarts=?*) max_restarts=${1#*=} ;;
    --spot) create+=(--spot) ;;
    --keep) keep=1 ;;
    --data=gs://?*) data=${1#*=} ;;
    --dry_run) dry_run=1 ;;
    *) usage "$1 is not an option" ;;
  esac
  shift
done
if [[ -z $name ]]; then usage "--name is missing"; fi
if [[ -z $zone ]]; then usage "--zone is missing"; fi
if [[ ! $max_restarts =~ ^[0-9]+$ ]]; then usage "--max_restarts=$max_restarts is not a number"; fi
if (($# < 2)); then usage "the flags of mnv4_jax.main are missing after --"; fi
shift
common+=("--zone=$zone")

scratch=$(mktemp -d)
archive=$scratch/mnv4_jax.tar.gz
shown=$scratch/shown
trap at_the_end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

for ((restart = 0; ; restart++)); do
  status=255
  get_slice
  # A slice can be lost while the code is copied, too.
  if install_code; then train "$@"; fi
  # 75: preempted, all saved. 128 and up: killed, or its peers were. 255: the connection was lost.
  if ((status != 75 && status < 128)); then exit "$status"; fi
  if ((restart >= max_restarts)); then
    echo "error: status $status after $max_restarts restarts" >&2
    exit "$status"
  fi
  echo "status $status: starting again ($((restart + 1)) of $max_restarts)" >&2
  sleep "$poll_s" # a slice that is being preempted still says ACTIVE for a while
done
