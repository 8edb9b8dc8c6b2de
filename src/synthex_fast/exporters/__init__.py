"""What is watched from outside: metrics for Prometheus and OpenTelemetry, and a live page.

Everything here reads the objects' own figures when somebody asks for them. No hot path knows of it.
"""

from synthex_fast.exporters._observed import Observed, observe, observed

__all__ = ["Observed", "observe", "observed"]
