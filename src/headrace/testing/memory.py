"""A log in memory, for tests: see `headrace.log.memory`, where it lives so that `memory://` can open one.

>>> MemoryLog().topics()
{}
"""

from headrace.log.memory import MemoryLog

__all__ = ["MemoryLog"]
