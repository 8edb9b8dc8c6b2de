"""What the application and the load generator agree on. The generator imports nothing of the server's."""

PATH = "/consensus"
