"""Vector indexes: where each kind keeps a fingerprint, and whether a model fits what an index holds."""
