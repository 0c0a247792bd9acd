"""The files of a model: where they are, what they are, and whether they may be read."""
