"""Runs that survive: what is kept of them, and where.

- `RunStore` is where runs are kept: `Workflow.run` takes one, or its folder, as ``store=``.
- `StoredRun` is what it tells of a run, with every `Question` that the run asks people.
"""

from unspoken.agents.runs.records import CallRecord, Question, StoredRun, TurnRecord
from unspoken.agents.runs.store import RunStore, default_folder

__all__ = ["CallRecord", "Question", "RunStore", "StoredRun", "TurnRecord", "default_folder"]
