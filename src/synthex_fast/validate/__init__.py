"""The report's workload in three versions, side by side on the reader's own machine.

What happens when ``synthex-fast validate`` runs, and where to read it:

- `corpus` makes the requests from a seed; every arm gets the same ones.
- `arms` holds the three versions of the service: as the report found it, as the report recommends, with this
  package.
- `worker` is one arm's process: it makes the corpus, waits to be told, runs a round and says what it
  measured.
- `rounds` starts the processes and has them take turns, one at a time, so that drift hits all alike.
- `figures` turns the rounds into rows: medians, their spread, and what the report promised beside them.
- `report` prints the table and writes the JSON.
"""
