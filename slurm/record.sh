#!/usr/bin/env bash
# record.sh FILE COMMAND...: run a command; its process id is in FILE.pid while it runs, its status in FILE.status then.
#
# The batch script reads them: the command runs somewhere below srun and torchrun or Ray, which pass on neither signals
# nor statuses as they are. Under torchrun only rank 0 is recorded, for what it is told the others learn from it.
set -uo pipefail

file=$1
shift
if [ "${RANK:-0}" != 0 ]; then exec "$@"; fi
signals=0
child=""
trap 'signals=$((signals + 1)); if [ -n "$child" ]; then kill -USR1 "$child" 2>/dev/null; fi' USR1 TERM
"$@" &
child=$!
if [ "$signals" -gt 0 ]; then kill -USR1 "$child" 2>/dev/null; fi # it came before we knew whom to tell
echo "$child" >"$file.tmp" && mv "$file.tmp" "$file.pid"
while :; do
    seen=$signals
    wait "$child"
    status=$?
    if [ "$signals" -eq "$seen" ]; then break; fi
done
rm -f "$file.pid"
echo "$status" >"$file.tmp" && mv "$file.tmp" "$file.status"
exit "$status"
