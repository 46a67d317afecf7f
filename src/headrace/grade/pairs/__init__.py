"""Predictions and labels that wait for each other, by key and by time."""
