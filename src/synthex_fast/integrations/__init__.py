"""The package in a server: one call that starts what a service needs, and what each server wants beside it.

`install` starts a tuner, a governor and a monitor, and makes requests of an application's. Under gunicorn, one line in
its configuration file does that (`synthex_fast.integrations.gunicorn`); ``celery``, ``rq`` and ``multiprocessing`` here
do it for tasks, jobs and calls. Nothing is imported before it is used.
"""

from synthex_fast.integrations.installation import Installation, install

__all__ = ["Installation", "install"]
