"""BERT-like encoders on unpadded batches, on the CPU, CUDA and MPS."""
