"""What runs a model: finding its files, loading, tokenizing, batching. Knows nothing of frameworks or roles."""
