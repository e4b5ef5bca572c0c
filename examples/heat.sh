#!/bin/sh
# The heat equation in one dimension, explicit: u(i) += r (u(i-1) - 2 u(i) + u(i+1)). It is stable for r <= 0.5 and diverges beyond.
#
#     sh heat.sh 50 2000 0.6      # cells, steps, r: stopped by the alert that it defines
#
# A run of its own, or part of the one that SIMSPOOL_RUN names.
set -eu

cells=${1:-50} steps=${2:-500} r=${3:-0.4}

if [ -z "${SIMSPOOL_RUN:-}" ]; then
    eval "$(agent log run --export --name heat-sh --tag shell --pid $$)"
fi
log=$SIMSPOOL_INBOX/heat-sh.jsonl

agent log meta solver=heat.sh cells="$cells" r="$r"
cat >> "$log" <<'END'
{"define": {"name": "diverged", "metric": "peak", "rule": "is above", "threshold": 1e6, "window": .001, "trigger_abort": true}}
END

awk -v cells="$cells" -v steps="$steps" -v r="$r" '
    function size(x) { return x < 0 ? -x : x }
    BEGIN {
        centre = int(cells / 2)
        for (i = 0; i < cells; i++) u[i] = (i == centre)
        for (step = 1; step <= steps; step++) {
            left = u[0]
            peak = size(u[0])
            for (i = 1; i < cells - 1; i++) {
                here = u[i]
                u[i] = here + r * (left - 2 * here + u[i + 1])
                left = here
                if (size(u[i]) > peak) peak = size(u[i])
            }
            printf "{\"metrics\": {\"peak\": %.17g, \"centre\": %.17g}, \"step\": %d}\n", peak, u[centre], step
            fflush()
        }
    }' >> "$log"

agent log event "$steps steps are done" --level info
agent log file "$0" --category code --name heat.sh
agent log end --status completed
