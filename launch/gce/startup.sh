#!/usr/bin/env bash
# What a virtual machine of run.sh (here and in ../tpu_vm) does at every start: fetch the code, install it, run the
# study under systemd, and end itself. It reads and writes the folder that its metadata name:
#   code.tar.gz, arguments   from run.sh (arguments are separated by zero bytes)
#   log-N                    the end of the log of host N, when the study ends
#   status-N                 its exit status, when nothing is left to continue; without it the machine was taken away
# A machine that is taken away tells systemd, which sends SIGTERM to launch/run.py; the study saves and ends with 75.
set -uo pipefail

attribute() {
  curl -fsS -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1" 2> /dev/null
}

folder=$(attribute study-folder) || exit 1
extra=$(attribute study-extra || true)
host=$(attribute agent-worker-number || echo 0) # hosts of a TPU slice are numbered
home=${STUDY_HOME:-/var/lib/study}
mkdir -p "$home/code"
cd "$home" || exit 1

# Ends the machine: it costs nothing more than its disk, and the disk goes with run.sh's last command.
leave() {
  if [[ -n "$(attribute study-tpu)" ]]; then
    # A TPU has no switch: it is deleted, by its first host, if its service account may.
    if [[ "$host" == 0 ]]; then
      gcloud compute tpus tpu-vm delete "$(attribute study-tpu)" --zone="$(attribute study-zone)" --quiet || true
    fi
  else
    poweroff
  fi
}

report() { # STATUS
  tail -c 1000000 log | gcloud storage cp - "$folder/log-$host" || true
  # 75, 76 and deaths by signal continue on the next machine.
  if (($1 != 75 && $1 != 76 && $1 <= 128)); then
    echo "$1" | gcloud storage cp - "$folder/status-$host" || true
  fi
}

install() {
  gcloud storage cat "$folder/code.tar.gz" | tar -xz -C code
  gcloud storage cat "$folder/arguments" > arguments
  if ! [[ -x venv/bin/python ]]; then
    # The image's own Python may be older than 3.11.
    curl -LsSf https://astral.sh/uv/install.sh | env UV_INSTALL_DIR="$home" sh
    ./uv venv --python 3.11 venv
  fi
  ./uv pip install --python venv/bin/python -e "code${extra:+[$extra]}" -c code/constraints.txt
}

if gcloud storage cat "$folder/status-$host" > /dev/null 2>&1; then # the study has ended before
  leave
  exit
fi
(
  set -e
  install
) >> log 2>&1
# shellcheck disable=SC2181  # in a condition, the shell would not stop at the first error
if (($? != 0)); then
  report 1
  leave
  exit
fi
mapfile -d '' -t arguments < arguments
systemd-run --unit=study --wait --collect --working-directory="$home/code" \
  --property=KillMode=mixed --property=TimeoutStopSec=90 \
  --property=StandardOutput="append:$home/log" --property=StandardError="append:$home/log" \
  --setenv=RESEARCH_CACHE="$home/cache" --setenv=JAX_COMPILATION_CACHE_DIR="$home/programs" \
  "$home/venv/bin/python" launch/run.py "${arguments[@]}"
report $?
# While the machine is being taken away there is no need to end it.
if [[ "$(systemctl is-system-running)" != stopping ]]; then
  leave
fi
