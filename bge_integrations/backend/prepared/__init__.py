"""Folders of `bge prepare`, and the disk cache of graphs, which are such folders too."""
