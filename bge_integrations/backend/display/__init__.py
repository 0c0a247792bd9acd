"""What a user sees meanwhile: bars and logs of ours, and nothing of other libraries."""
