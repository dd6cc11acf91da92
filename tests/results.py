"""Results of generations that never took place."""

from entropix.metrics import Metrics
from entropix.results import Result


def record(strategy: str, injected: bool = False, **metrics: float | None) -> dict[str, object]:
    return {"strategy": strategy, "injected": injected, **dict.fromkeys(Metrics._fields, 1.0), **metrics}


def result(*records: dict[str, object]) -> Result:
    return Result(prompt_ids=[1, 2, 3], token_ids=[0] * len(records), records=list(records))
