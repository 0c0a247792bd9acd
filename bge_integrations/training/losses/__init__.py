"""Losses over the rows of all processes."""
