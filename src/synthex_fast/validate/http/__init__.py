"""The arms behind a real server: each one's `Service` in an ASGI application, under load from another process.

Where to read what:

- `heap` makes the long-lived objects that a service holds, and the sessions that its requests leave.
- `application` is the service as an ASGI application (Starlette); the same for every arm.
- `watched` counts requests in flight and writes down each garbage collection, in the process that serves.
- `server` is a server's process: uvicorn, or gunicorn with its workers.
- `load` is the load generator's process: an open loop at a fixed rate, or a closed one.
- `protocol` has what the two ends of a command pipe agree on.
- `rounds` starts all that, has the arms take turns, and puts what it measured into ``results.http``.
- `measures` turns that into rows of the table.
"""

SCENARIOS = ("uvicorn-open", "uvicorn-closed", "gunicorn-open", "gunicorn-closed")
