#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on every TPU VM of a slice, in the folder with the code:
#
#   launch/tpu_worker.sh install            Python 3.11 and the project with the TPU extra, once
#   launch/tpu_worker.sh copy gs://…/SET    the data, to ../data
#   launch/tpu_worker.sh run FLAG…          python -m mnv4_jax.main FLAG…; worker 0 prints it
#
# Needs:  a TPU VM with network access.
# Costs:  what the slice costs; this adds nothing.
# Stop:   launch/tpu_vm.sh, or delete the slice.
set -euo pipefail

install() {
  # The TPU images come with Python 3.10; uv brings its own 3.11.
  if [[ ! -x .venv/bin/python ]]; then
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --python 3.11 .venv
  fi
  ~/.local/bin/uv pip install --quiet --python .venv/bin/python -e '.[tpu]' gcsfs
}

copy() {
  mkdir -p ../data
  gcloud storage rsync --recursive "$1" ../data
}

# A run whose connection was lost may still hold the TPU: it is told to save and leave.
end_previous() {
  local pid
  if [[ ! -f run.pid ]]; then return; fi
  pid=$(<run.pid)
  if grep -qs mnv4_jax "/proc/$pid/cmdline" && kill -TERM "$pid"; then
    timeout 180 tail --pid="$pid" -f /dev/null || kill -KILL "$pid" || true
  fi
  rm -f run.pid
}

run() {
  local id status=0
  end_previous
  id=$(curl -sf -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
  if [[ $id == 0 ]]; then
    .venv/bin/python -m mnv4_jax.main "$@" > >(tee -a run.log) 2>&1 &
  else
    .venv/bin/python -m mnv4_jax.main "$@" >>run.log 2>&1 &
  fi
  echo $! >run.pid
  wait $! || status=$?
  # gcloud's own exit status says only that some worker failed.
  if [[ $id == 0 ]]; then echo "mnv4_jax exit status: $status"; fi
  return "$status"
}

"$@"
