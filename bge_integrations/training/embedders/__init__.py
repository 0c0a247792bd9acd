"""What only the training of embedders has: the task, encoding without padding, low-rank adapters, ICL."""
