"""Rows of open windows, and the lines that come of them."""
