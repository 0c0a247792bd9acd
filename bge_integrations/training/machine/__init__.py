"""What training asks of the machine: memory of a step, parts that fit it, and the processes that train together."""
