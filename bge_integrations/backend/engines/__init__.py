"""What computes: one class an engine, all behind `interface`. `choice` says which of them runs a model."""
