"""BERT-like encoders on the CPU through OpenVINO: no torch is needed once the graph is on disk."""
