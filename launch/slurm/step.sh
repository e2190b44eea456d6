# shellcheck shell=bash
# What the job scripts of this folder share; they source it. A study runs as one step of the job; SIGTERM, which SLURM
# sends 120 seconds before the time is over, is passed on to it; a study that was stopped or died goes back to the
# queue.

# Whether the job is still running: one that the user cancelled, or that SLURM requeues itself, must not be requeued.
still_running() {
  [[ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" == RUNNING ]]
}

# run_step COMMAND...: runs it and exits with its status.
# 75 stopped, 76 lost a peer, above 128 died of a signal: back to the queue. All other statuses end the job.
run_step() {
  local step status signalled
  # The command runs in the background, so that bash answers the signal at once.
  "$@" &
  step=$!
  # shellcheck disable=SC2064  # the number of this very step
  trap "signalled=1; kill -TERM $step 2> /dev/null || true" TERM
  while true; do
    signalled=0 status=0
    wait "$step" || status=$?
    ((signalled)) || break # a signal ends the waiting, not the step
  done
  if ((status == 75 || status == 76 || status > 128)) && still_running; then
    if ((${SLURM_RESTART_COUNT:-0} < ${LAUNCH_REQUEUES:-20})); then
      echo "launch: exit status $status: back to the queue (${SLURM_RESTART_COUNT:-0} times so far)" >&2
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "launch: exit status $status after ${SLURM_RESTART_COUNT:-0} returns to the queue: giving up" >&2
    fi
  fi
  exit "$status"
}
