"""The loop that trains any model on any task: start, checks, memory, progress, checkpoints, and the saved folder."""
