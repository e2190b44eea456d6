#!/usr/bin/env bash
# A study on a Cloud TPU slice, of one host or many, at spot price.
#
#   PROJECT=… ZONE=… NAME=hpa FOLDER=gs://BUCKET/studies/hpa TPU=v5litepod-8 RUNTIME=v2-alpha-tpuv5-lite \
#     launch/tpu_vm/run.sh [--dry_run] --config=… [flags]
#
# uploads the code to FOLDER, makes the slice and watches it: taken away, it is deleted and made again (RESTARTS times
# at most) and continues from the run folder, FOLDER/run unless --workdir says otherwise. The hosts find each other by
# themselves. At the end the slice deletes itself (where ACCOUNT may), and this script makes sure of it: a TPU costs
# until it is deleted, so look at `gcloud compute tpus tpu-vm list` when this script was stopped. Called again with
# the same variables it goes on watching. --dry_run prints what would be done. Exit status: that of the study.
#
# SPOT (true), RESTARTS (20), EXTRA (tpu,remote), ACCOUNT (service account that may read and write FOLDER and delete the
# TPU; the project's default one).
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/gce/common.sh
source launch/gce/common.sh
check_variables PROJECT ZONE NAME FOLDER TPU RUNTIME
read_arguments "$@"
place=("--project=$PROJECT" "--zone=$ZONE")

create() {
  local metadata="study-folder=$FOLDER;study-extra=${EXTRA-tpu,remote};study-tpu=$NAME;study-zone=$ZONE" options
  options=(
    "--accelerator-type=$TPU" "--version=$RUNTIME" "--metadata=^;^$metadata"
    "--metadata-from-file=startup-script=launch/gce/startup.sh"
  )
  if [[ "${SPOT:-true}" == true ]]; then options+=(--spot); fi
  if [[ -n "${ACCOUNT:-}" ]]; then options+=("--service-account=$ACCOUNT"); fi
  change gcloud compute tpus tpu-vm create "$NAME" "${place[@]}" "${options[@]}"
}

remove() {
  change gcloud compute tpus tpu-vm delete "$NAME" "${place[@]}" --quiet
}

state() { # READY, PREEMPTED, …, or nothing where there is no such slice
  gcloud compute tpus tpu-vm describe "$NAME" "${place[@]}" --format='value(state)' 2> /dev/null || true
}

again() {
  if [[ "$DRY_RUN" == true || -n "$(state)" ]]; then remove || true; fi
  create
}

begin
watch "making it again"
