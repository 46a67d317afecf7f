"""From a plan to a pipeline on Flink."""

from __future__ import annotations

from headrace.engines.contract import RunningPipeline
from headrace.engines.settings import RunSettings
from headrace.errors import DeclarationError
from headrace.plan.plan import Plan


def start(plan: Plan, settings: RunSettings) -> RunningPipeline:
    """Start a plan that was checked, on the engine in ``settings.engine``."""
    raise DeclarationError(f'engine="{settings.engine.name}" is not there yet', advice='Run it with engine="local".')
