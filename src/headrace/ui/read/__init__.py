"""View models: pure functions from a log at a moment to what a page shows."""
