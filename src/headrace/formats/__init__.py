"""Batches to messages and back: pure functions of bytes, which never open a connection to a broker."""
