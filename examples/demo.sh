#!/usr/bin/env bash
# One real run from script to server, on a fresh machine, in the folder ./simspool-demo:
# a simulation of the outer solar system records itself offline, is killed in the middle, is resumed, and all of it arrives once.
#
#     bash examples/demo.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
demo=$PWD/simspool-demo
mkdir -p "$demo"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*" && "$@"; }

say "1. A virtual environment with simspool and REBOUND, in simspool-demo/venv"
EXTRAS=examples SETUP_ONLY=1 VENV=$demo/venv "$here/../run-tests"

server=
stop_server() { if [ -n "$server" ]; then kill "$server" 2>/dev/null && wait "$server" 2>/dev/null || true; fi; }
trap stop_server EXIT

# Nothing of the user's own configuration plays a part: an empty home, a spool of its own.
rm -rf "$demo/home" "$demo/spool" "$demo/server" "$demo/server.log" "$demo/script.log"
mkdir -p "$demo/home"
cd "$demo"
unset SIMSPOOL_RUN SIMSPOOL_URL SIMSPOOL_TOKEN SIMSPOOL_TOKEN_FILE SIMVUE_URL SIMVUE_TOKEN XDG_DATA_HOME XDG_CONFIG_HOME
export HOME=$demo/home SIMSPOOL_DIR=$demo/spool SIMSPOOL_AGENT=off PATH=$demo/venv/bin:$PATH PYTHONUNBUFFERED=1

say "2. The simulation runs and records itself. There is no server, no network, no token. In the middle: kill -9"
python "$here/orbits.py" --years 2000 --steps 4000 --seconds 10 >script.log &
script=$!
sleep 5
kill -9 "$script"
wait "$script" 2>/dev/null || echo "the script is dead: killed by SIGKILL"
run=$(awk '/^run / {print $2; exit}' script.log)
show agent ls

say "3. It goes on from its last snapshot, found in the spool"
show python "$here/orbits.py" --years 2000 --steps 4000 --resume "$run"
show agent check

say "4. A server appears. Everything is sent"
agent serve --data server --port 0 >server.log 2>&1 &
server=$!
for _ in $(seq 100); do
    [ -s server/url ] && break
    sleep 0.1
done
SIMSPOOL_URL=$(cat server/url)
export SIMSPOOL_URL SIMSPOOL_TOKEN_FILE=$demo/server/token
show agent sync

say "5. Again: there is nothing left to send"
show agent sync

say "6. The run, and what the server has of it"
show agent show "$run"
python - "$run" <<'PYTHON'
import os, sys
from simspool.sdk import Client
run, token = sys.argv[1], open(os.environ["SIMSPOOL_TOKEN_FILE"]).read().strip()
spool, server = Client(spool=os.environ["SIMSPOOL_DIR"]), Client(server_url=os.environ["SIMSPOOL_URL"], server_token=token)
names = sorted(n for n in spool.get_metrics_names(run) if not n.startswith("resources/"))
counts = []
for client in (spool, server):
    values = client.get_metric_values(names, run_ids=[run])
    counts.append(sum(len(series) for series in values.values()))
    assert all(sorted(step for step, _ in series) == list(range(1, 4001)) for series in values.values())
events = [len(client.get_events(run)) for client in (spool, server)]
assert counts[0] == counts[1] and events[0] == events[1], (counts, events)
print(f"\nspool and server agree: {counts[0]} points of {len(names)} metrics, steps 1 to 4000 without a hole, {events[0]} events")
PYTHON

say "Done. Everything is in $demo; delete it when you like."
