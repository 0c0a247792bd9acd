"""The display during work: progress bars of this package, and no output of other libraries."""
