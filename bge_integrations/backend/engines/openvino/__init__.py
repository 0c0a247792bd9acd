"""BERT-like encoders on the CPU through OpenVINO. Needs no torch once the graph is on disk."""
