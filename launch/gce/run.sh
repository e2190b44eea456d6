#!/usr/bin/env bash
# A study on one virtual machine of Compute Engine, with GPUs, at spot price.
#
#   PROJECT=… ZONE=… NAME=hpa FOLDER=gs://BUCKET/studies/hpa launch/gce/run.sh [--dry_run] --config=… [flags]
#
# uploads the code to FOLDER, makes the machine and watches it: taken away, it is started again (RESTARTS times at
# most) and continues from the run folder, which is FOLDER/run unless --workdir says otherwise. When the study ends
# the machine switches itself off, whether anybody watches or not, and this script deletes it. Stopped and called
# again with the same variables it goes on watching. --dry_run prints what would be done. Exit status: that of the
# study.
#
# MACHINE (g2-standard-8, which has one L4), ACCELERATOR (such as type=nvidia-tesla-t4,count=1, for machines that come
# without), SPOT (true), DISK (100GB), HOURS (24: switched off after so many, at every start), RESTARTS (20), EXTRA
# (cuda12,remote), ACCOUNT (service account that may read and write FOLDER; the project's default one), IMAGE_FAMILY and
# IMAGE_PROJECT (an image with the NVIDIA driver).
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/gce/common.sh
source launch/gce/common.sh
check_variables PROJECT ZONE NAME FOLDER
read_arguments "$@"
place=("--project=$PROJECT" "--zone=$ZONE")

create() {
  local options=(
    "--machine-type=${MACHINE:-g2-standard-8}" "--boot-disk-size=${DISK:-100GB}" --boot-disk-type=pd-balanced
    "--image-family=${IMAGE_FAMILY:-common-cu128-ubuntu-2404-nvidia-570}"
    "--image-project=${IMAGE_PROJECT:-deeplearning-platform-release}"
    --maintenance-policy=TERMINATE "--max-run-duration=${HOURS:-24}h" --instance-termination-action=STOP
    --scopes=cloud-platform "--metadata-from-file=startup-script=launch/gce/startup.sh"
    # Extras have commas between them, so the entries get another sign.
    "--metadata=^;^study-folder=$FOLDER;study-extra=${EXTRA-cuda12,remote}"
  )
  if [[ "${SPOT:-true}" == true ]]; then options+=(--provisioning-model=SPOT); fi
  if [[ -n "${ACCELERATOR:-}" ]]; then options+=("--accelerator=$ACCELERATOR"); fi
  if [[ -n "${ACCOUNT:-}" ]]; then options+=("--service-account=$ACCOUNT"); fi
  change gcloud compute instances create "$NAME" "${place[@]}" "${options[@]}"
}

state() { # RUNNING, TERMINATED, …, or nothing where there is no such machine
  gcloud compute instances describe "$NAME" "${place[@]}" --format='value(status)' 2> /dev/null || true
}

again() {
  if [[ "$DRY_RUN" == true || -n "$(state)" ]]; then
    change gcloud compute instances start "$NAME" "${place[@]}"
  else
    create
  fi
}

remove() {
  change gcloud compute instances delete "$NAME" "${place[@]}" --quiet
}

begin
watch "starting it again"
