"""Rows of a query, positives and negatives: formats, splits, overlaps, teachers' scores, batches of an epoch."""
