"""Handwritten digits: from rows with BYTEA to a recogniser, trained by replay or while the rows arrive."""
