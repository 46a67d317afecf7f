"""Pages: each module has the routes of a few, reads a moment of the log, and fills templates."""
