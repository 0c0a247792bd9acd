"""The parts of `train_reranker`: the start, pairs, the scores of a group and their loss, candidates, and the folder."""
