"""Plays a day of a service's traffic as fast as it can, and checks that nothing was lost, exceeded or leaked.

What happens when ``synthex-fast soak`` runs, and where to read it:

- `workload` says when requests arrive, who sends them and what they ask for; time is a number that the player advances.
- `service` is the service under load, with this package in its hot path, and counts what it does itself.
- `checks` compares these counts, and limits, with what the package says; and measures the floor of memory.
- `worker` plays one worker's share in a process of its own and sends a record at each simulated hour.
- `run` starts the workers, follows their progress, and collects their records.
- `report` turns the records into a table, with the report's promises beside each figure, and into JSON.
"""
