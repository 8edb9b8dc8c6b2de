"""Runs one workload through four versions of the same service and compares them on the user's machine.

"The report" is the performance report on the original system that this package was written to answer. It describes
that system's workload, states its current figures and sets targets.

What happens when ``synthex-fast validate`` runs, and where to read it:

- `corpus` makes the requests from a seed; every arm gets the same ones.
- `arms` holds the four versions of the service: as the report found it, as the report recommends, as a good
  engineer tunes it by hand, and with this package.
- `worker` is an arm's process: it makes the corpus, waits for commands, runs rounds and returns measurements.
- `simulated_day` takes a day of memory samples on a clock of its own.
- `rounds` starts the processes and has them take turns, one at a time, so that drift affects all arms alike.
- `garbage` counts what a request allocates, and with `--collections` how often the collector runs.
- `limit` runs each arm at a memory limit, with `--limit`.
- `figures` turns the rounds into rows: medians and spread next to the report's figures and targets.
- `report` prints the table and writes the JSON.
"""
