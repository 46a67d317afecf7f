"""Fault points, for tests that kill a pipeline at a named place: see `headrace.faults`.

>>> fault("my.step")  # does nothing: HEADRACE_FAULT does not name it
"""

from headrace.faults import VARIABLE, fault, parse_fault

__all__ = ["VARIABLE", "fault", "parse_fault"]
