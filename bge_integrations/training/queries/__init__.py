"""Questions from documents: what a chat model is asked, how its answers are checked, and what stays."""

from __future__ import annotations

from bge_integrations.training.queries.documents import Passage
from bge_integrations.training.queries.estimate import Estimate
from bge_integrations.training.queries.files import load_documents
from bge_integrations.training.queries.kinds import KINDS, QuestionKind
from bge_integrations.training.queries.making import amake_queries, make_queries
from bge_integrations.training.queries.plan import MadeQueries, QueryPlan
from bge_integrations.training.queries.report import QueryReport, Rejected
from bge_integrations.training.queries.settings import QuerySettings

__all__ = [
    "KINDS",
    "Estimate",
    "MadeQueries",
    "Passage",
    "QueryPlan",
    "QueryReport",
    "QuerySettings",
    "QuestionKind",
    "Rejected",
    "amake_queries",
    "load_documents",
    "make_queries",
]
