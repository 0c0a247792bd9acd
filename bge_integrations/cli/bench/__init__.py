"""`bge bench`: finds the fastest engine and precision for a model here, and measures the loss of precision."""

from bge_integrations.cli.bench.recommending import recommend
from bge_integrations.cli.bench.report import print_report
from bge_integrations.cli.bench.results import BenchReport, Combination, Measured, Recommendation
from bge_integrations.cli.bench.run import run_bench

__all__ = ["BenchReport", "Combination", "Measured", "Recommendation", "print_report", "recommend", "run_bench"]
