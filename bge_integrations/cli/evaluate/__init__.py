"""`bge evaluate`: measures models, precisions, instructions and rerankers on one's own data, and compares them."""

from bge_integrations.cli.evaluate.combinations import Combination, combine
from bge_integrations.cli.evaluate.command import Shown, evaluate
from bge_integrations.cli.evaluate.run import Gate, Plan, Results, run_evaluation

__all__ = ["Combination", "Gate", "Plan", "Results", "Shown", "combine", "evaluate", "run_evaluation"]
