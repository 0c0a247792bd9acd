"""Programs that measure this package beside the adapters of today, on the same weights, in one run."""
