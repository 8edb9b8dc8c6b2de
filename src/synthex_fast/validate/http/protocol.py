"""What the application and the load generator agree on. The generator imports nothing of the server's.

Also given to gunicorn as its configuration, where it is to have none: there is no setting in here.
"""

PATH = "/consensus"
