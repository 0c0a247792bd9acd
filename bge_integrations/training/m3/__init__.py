"""Unified fine-tuning of bge-m3: dense vectors, lexical weights and token vectors learn together."""
