"""Loads models, starts their engines, and shares loaded models in the process."""
