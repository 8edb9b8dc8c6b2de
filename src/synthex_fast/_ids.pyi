# Types of `_ids.pyx`: version-4 UUIDs as text.

__all__ = ["uuid4_text"]

def uuid4_text() -> str: ...
