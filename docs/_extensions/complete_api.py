"""Fails the build (with ``-W``) if a public name of the package, or a member of a public class, has no entry."""

from public_names import members, public_names
from sphinx.util import logging

logger = logging.getLogger(__name__)


def check(app, environment):
    entries = set(environment.get_domain("py").objects)
    for name, value in public_names().items():
        for wanted in (name, *(f"{name}.{member}" for member in members(value))):
            if wanted not in entries:
                logger.warning("%s is public and has no entry in the API pages", wanted, type="api")


def setup(app):
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
