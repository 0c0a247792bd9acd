"""Hard negatives: what a model or the words find, what may not be one, which are chosen, and the report of all that."""
