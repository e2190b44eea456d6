# shellcheck shell=bash
# What run.sh here and in ../tpu_vm share; they source it. DRY_RUN=true prints commands instead of running them.

# Ends with status 2 and one sentence.
mistake() {
  echo "error: $*" >&2
  exit 2
}

# Runs a command that changes something in the cloud, or prints it.
change() {
  if [[ "$DRY_RUN" == true ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# check_variables NAME...: all must be set.
check_variables() {
  local name
  for name in "$@"; do
    [[ -n "${!name:-}" ]] || mistake "$name is not set; see the head of $0."
  done
}

# read_arguments FLAGS...: --dry_run is for this script, all others for the study. Sets DRY_RUN and STUDY.
read_arguments() {
  local argument workdir="--workdir=${FOLDER%/}/run"
  DRY_RUN=false
  STUDY=()
  for argument in "$@"; do
    if [[ "$argument" == --workdir=* ]]; then workdir=; fi
    if [[ "$argument" == --dry_run ]]; then DRY_RUN=true; else STUDY+=("$argument"); fi
  done
  ((${#STUDY[@]})) || mistake "the flags of the study are missing; for example --config=configs/hpa.py."
  [[ "$FOLDER" == gs://?*/?* ]] || mistake "FOLDER=$FOLDER must be a folder in a bucket: gs://BUCKET/studies/hpa."
  FOLDER=${FOLDER%/}
  # shellcheck disable=SC2153  # NAME comes from the environment
  [[ "$NAME" =~ ^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$ ]] || mistake "NAME=$NAME must be small letters, digits and dashes."
  if [[ -n "$workdir" ]]; then STUDY+=("$workdir"); fi
}

# upload: the code as it lies here (what git does not ignore) and the arguments.
upload() {
  if [[ "$DRY_RUN" == true ]]; then
    echo "# uploads the code and the flags ${STUDY[*]} to $FOLDER"
    return
  fi
  git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -czf - -T - |
    gcloud storage cp - "$FOLDER/code.tar.gz"
  printf '%s\0' "${STUDY[@]}" | gcloud storage cp - "$FOLDER/arguments"
}

# status HOST: the exit status that a host has left behind, or nothing.
status() {
  gcloud storage cat "$FOLDER/status-$1" 2> /dev/null || true
}

# give_up TIMES: the study is not at its end, and the same command goes on.
give_up() {
  echo "$NAME was taken away $1 times: giving up for now; the same command goes on" >&2
  exit 75
}

# finish STATUS: shows the end of the log and leaves with the status of the study.
finish() {
  gcloud storage cat "$FOLDER/log-0" 2> /dev/null | tail -n 40 || true
  echo "The study ended with status $1; its run folder is in $FOLDER." >&2
  exit "$1"
}

# begin: makes the machine if there is none; with --dry_run prints all that would be done, and leaves. The script that
# sources this has the functions create, again (after it was taken away), remove and state (nothing: no machine).
begin() {
  if [[ "$DRY_RUN" == true ]]; then
    upload
    create
    echo "# watches $NAME; each time it is taken away:"
    again
    echo "# at the end:"
    remove
    exit
  fi
  if [[ -z "$(state)" ]]; then
    upload
    create
  fi
}

# watch: until the study has ended, which this script leaves with, or the machine was taken away RESTARTS times.
watch() {
  local ended restarts=0
  while true; do
    sleep "${POLL:-60}"
    ended=$(status 0)
    if [[ -n "$ended" ]]; then
      if [[ -n "$(state)" ]]; then remove || echo "$NAME could not be deleted and costs money: delete it" >&2; fi
      finish "$ended"
    fi
    case "$(state)" in
      PREEMPTED | TERMINATED | STOPPED | "")
        ((restarts++ < ${RESTARTS:-20})) || give_up "$restarts"
        echo "$NAME was taken away; $1" >&2
        again || true # no room there now: tried again
        ;;
    esac
  done
}
