/* simspool.h: record a C program's run, one line of JSON at a time.
 *
 * Copy this file; it needs nothing but the C library. SIMSPOOL_INBOX names the folder of the run that the program is part of
 * (`agent exec` sets it, and `agent log run --export`). Without it, nothing is recorded and nothing is in the way.
 * One writer a file: give each process (rank) a name of its own. */
#ifndef SIMSPOOL_H
#define SIMSPOOL_H

#include <stdio.h>
#include <stdlib.h>

/* Return the log, NULL without an inbox. A line is in the agent's reach as soon as its newline is printed. */
static inline FILE *simspool_open(const char *name)
{
    const char *inbox = getenv("SIMSPOOL_INBOX");
    char path[4096];
    FILE *log;

    if (!inbox || snprintf(path, sizeof path, "%s/%s.jsonl", inbox, name) >= (int)sizeof path || !(log = fopen(path, "a")))
        return NULL;
    setvbuf(log, NULL, _IOLBF, 1 << 16);
    return log;
}

/* Print a line as printf does, e.g. simspool_log(log, "{\"metrics\": {\"loss\": %.17g}, \"step\": %ld}", loss, step).
 * nan and inf are understood as C prints them. */
#define simspool_log(log, ...) ((log) ? (void)(fprintf((log), __VA_ARGS__), fputc('\n', (log))) : (void)0)

#endif
