"""How the tests that try other values do it: the same values in every run, and few."""

from hypothesis import HealthCheck, settings


def few(examples: int) -> settings:
    """So many examples, however long one takes."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
