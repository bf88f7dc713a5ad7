# What the batch scripts share; they source it. Needs bash, and `here`, the folder of this file.
#
# Slurm sends SIGUSR1 to the batch shell before the time limit (--signal=B:USR1@120), and SIGTERM to every process of a
# job that it preempts or requeues. Both ask the job's command to stop; if that leaves work undone, the job is requeued.

. "$here/env.sh"
PATH="${MOTION_TARGETS_BIN:+$MOTION_TARGETS_BIN:}$PATH"

say() { echo "$(date '+%F %T') ${SLURM_JOB_NAME:-job}: $*" >&2; }

folder=$(mktemp -d "$MOTION_TARGETS_SCRATCH/mt-XXXXXX") # of this job, on this node
trap 'rm -rf "$folder"' EXIT
record="$folder/command" # see record.sh

# Each job has a Ray of its own: not one that runs elsewhere, with files and sockets apart from those of the other jobs on
# the node, of whatever user, and a token that keeps everybody else on the network from running things on it.
unset RAY_ADDRESS
RAY_TMPDIR=$folder RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_TMPDIR RAY_AUTH_MODE RAY_AUTH_TOKEN

signals=0
child=""
stopped=""
trap 'note_signal USR1' USR1
trap 'note_signal TERM' TERM

note_signal() {
    signals=$((signals + 1))
    say "SIG$1: no new work is begun"
    pass_on
}

# Ask the command to stop: the process that record.sh has noted, or the one that was started here.
pass_on() {
    if [ -f "$record.pid" ]; then
        kill -USR1 "$(cat "$record.pid")" || true
    elif [ -n "$child" ] && [ ! -f "$record.status" ]; then
        kill "-$stop_with" "$child" || true
        if [ "$stop_with" = TERM ]; then stopped=75; fi # srun has not come to the command yet
    fi
} 2>/dev/null

# supervise SIGNAL COMMAND...: run a command to its end, through any number of signals, which reach it as SIGNAL;
# its status is then in $status.
supervise() {
    local seen before
    stop_with=$1
    shift
    if [ "$signals" -gt 0 ]; then # it has not begun, and need not
        status=75
        return
    fi
    "$@" &
    child=$!
    if [ "$signals" -gt 0 ]; then pass_on; fi # it came before we knew whom to tell
    before=""
    while :; do
        seen=$signals
        status=0
        wait "$child" || status=$?
        if [ "$signals" -eq "$seen" ]; then break; fi # otherwise it may have been a signal that ended the waiting,
        before=$status                                # or the command, and then the next wait knows of no process
    done
    case "$status" in -1 | 127) status=${before:-$status} ;; esac
    child=""
    status=${stopped:-$status}
    if [ -f "$record.status" ]; then status=$(cat "$record.status"); fi
}

# End the job with $status, or have Slurm begin it again where a signal stopped it before it was done.
finish() {
    local restarts=${SLURM_RESTART_COUNT:-0} state="" pause task=$SLURM_JOB_ID
    case "$status" in
        75 | 138 | 143) ;; # stopped in order; or by SIGUSR1 or SIGTERM before it could heed them
        *) exit "$status" ;;
    esac
    if [ "$signals" -eq 0 ]; then sleep 1; fi # the command may have had it, and ended, a moment before this shell
    if [ "$signals" -eq 0 ] && [ "$status" -eq 75 ]; then
        say "not finished, though no signal came: the lines above say why. Not requeued; submit the same line again later"
        exit 75
    fi
    # by its number in the array: an array's last task has the array's own id, by which all of its tasks are shown
    if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then task="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; fi
    # one that was cancelled, or that Slurm requeues itself, is in another state by now
    for pause in 0 5 20; do # a busy controller may not answer
        sleep "$pause"
        state=$(scontrol --oneliner show job "$task" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p') || true
        if [ -n "$state" ]; then break; fi
    done
    if [ -z "$state" ]; then
        say "not finished, and not requeued, for scontrol says nothing of this job; submit the same line again to go on"
        exit 75
    fi
    if [ "$state" != RUNNING ]; then
        say "not finished; Slurm has ended this job itself and requeues it if it was preempted"
        exit 75
    fi
    if [ "$restarts" -ge "$MOTION_TARGETS_MAX_REQUEUES" ]; then
        say "not finished after $restarts requeues, the most that are allowed (MOTION_TARGETS_MAX_REQUEUES);" \
            "submit the same line again to go on"
        exit 75
    fi
    say "not finished: $task is requeued and goes on from here; requeue $((restarts + 1)) of at most" \
        "$MOTION_TARGETS_MAX_REQUEUES"
    trap '' USR1 TERM # requeuing sends SIGTERM
    scontrol requeue "$task" || say "could not be requeued; submit the same line again to go on"
    exit 75
}

# Print ADDRESS:PORT: this node as the job's other nodes see it, and a port that is free on it.
meeting_point() {
    local last
    last=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)
    last=$(scontrol --oneliner show node "$last" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    python3 - "$last" <<'PYTHON'
import socket
import sys

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
    route.connect((sys.argv[1], 9))  # sends nothing
    address = route.getsockname()[0]
with socket.socket() as free:
    free.bind((address, 0))
    print(f"{address}:{free.getsockname()[1]}")
PYTHON
}

# train COMMAND...: run a command of training by torchrun on all of the job's nodes, one process for each GPU, or without
# GPUs one for each node; its status is then in $status.
train() {
    local address node
    address=$(meeting_point)
    say "torchrun on $SLURM_JOB_NUM_NODES nodes, meeting at $address, restart ${SLURM_RESTART_COUNT:-0}"
    # what each node runs: rank 0 is on the first one, where this script is
    node='
        exec torchrun --nnodes="$SLURM_JOB_NUM_NODES" --node-rank="$SLURM_NODEID" \
            --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --master-addr="${2%:*}" --master-port="${2##*:}" --no-python \
            bash "$0/record.sh" "$1" "${@:3}"
    '
    # srun no longer takes the cores of a task from the job by itself
    supervise TERM srun --export=ALL --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpu-bind=none \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 bash -c "$node" "$here" "$record" "$address" "$@"
}
