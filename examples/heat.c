/* The heat equation in one dimension, explicit: u(i) += r (u(i-1) - 2 u(i) + u(i+1)). It is stable for r <= 0.5 and diverges beyond.
 *
 *     cc -O2 heat.c -o heat
 *     eval "$(agent log run --export --name heat)"
 *     ./heat 1000 2000 0.6        # cells, steps, r: stopped by the alert that it defines
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "simspool.h"

static void step_heat(const double *u, double *next, int cells, double r)
{
    for (int i = 1; i < cells - 1; i++)
        next[i] = u[i] + r * (u[i - 1] - 2.0 * u[i] + u[i + 1]);
}

static double peak_of(const double *u, int cells)
{
    double peak = 0.0;

    for (int i = 0; i < cells && !isnan(peak); i++)
        if (isnan(u[i]) || fabs(u[i]) > peak)
            peak = fabs(u[i]);
    return peak;
}

int main(int argc, char **argv)
{
    const int cells = argc > 1 ? atoi(argv[1]) : 100;
    const long steps = argc > 2 ? atol(argv[2]) : 1000;
    const double r = argc > 3 ? atof(argv[3]) : 0.4;
    double *u, *next;
    FILE *log;

    if (cells < 3 || !(u = calloc(cells, sizeof *u)) || !(next = calloc(cells, sizeof *next))) {
        fprintf(stderr, "heat: at least 3 cells, and memory for them\n");
        return 2;
    }
    u[cells / 2] = 1.0;

    log = simspool_open("heat-c");
    simspool_log(log, "{\"metadata\": {\"solver\": \"heat.c\", \"cells\": %d, \"r\": %.17g}}", cells, r);
    simspool_log(log, "{\"process\": {\"pid\": %ld}}", (long)getpid());
    simspool_log(log, "{\"define\": {\"name\": \"diverged\", \"metric\": \"peak\", \"rule\": \"is above\", \"threshold\": 1e6, "
                      "\"window\": 0.001, \"trigger_abort\": true}}");

    for (long step = 1; step <= steps; step++) {
        double *last = u;

        step_heat(u, next, cells, r);
        u = next;
        next = last;
        simspool_log(log, "{\"metrics\": {\"peak\": %.17g, \"centre\": %.17g}, \"step\": %ld}", peak_of(u, cells), u[cells / 2], step);
    }

    simspool_log(log, "{\"event\": \"%ld steps are done\", \"level\": \"info\"}", steps);
    free(u);
    free(next);
    return log && fclose(log) ? 1 : 0;
}
