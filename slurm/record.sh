#!/usr/bin/env bash
# record.sh FILE COMMAND...: run a command; its process id is in FILE.pid while it runs, its status in FILE.status then.
#
# The batch script reads them: the command runs somewhere below srun and torchrun or Ray, which pass on neither signals
# nor statuses as they are. Under torchrun only rank 0 is recorded, for what it is told the others learn from it. Status
# 75, interrupted, is 0 to the outside: torchrun would take it for a failure, and end the others.
set -uo pipefail

file=$1
shift
if [ "${RANK:-0}" != 0 ]; then file=/dev/null; fi
signals=0
child=""
trap 'signals=$((signals + 1)); if [ -n "$child" ]; then kill -USR1 "$child" 2>/dev/null; fi' USR1 TERM
"$@" &
child=$!
if [ "$signals" -gt 0 ]; then kill -USR1 "$child" 2>/dev/null; fi # it came before we knew whom to tell
note() { if [ "$file" != /dev/null ]; then echo "$2" >"$file.tmp" && mv "$file.tmp" "$file.$1"; fi; }
note pid "$child"
before=""
while :; do
    seen=$signals
    wait "$child"
    status=$?
    if [ "$signals" -eq "$seen" ]; then break; fi # otherwise it may have been a signal that ended the waiting,
    before=$status                                # or the command, and then the next wait knows of no process
done
case "$status" in -1 | 127) status=${before:-$status} ;; esac
note status "$status"
rm -f "$file.pid"
if [ "$status" -eq 75 ]; then exit 0; fi
exit "$status"
