"""The whole documentation of Python's standard library, found by following imports and base classes."""
