"""What the part forks tries."""

from dataclasses import dataclass

from entropix.config import MAX_INT32, parameter


@dataclass(frozen=True)
class ForksPlan:
    """How many places, how many tokens at each, and how often each is rolled out."""

    stratified: int = parameter(18, "places spread over the plane of entropy and varentropy", 0, MAX_INT32)
    random: int = parameter(9, "places chosen by chance", 0, MAX_INT32)
    tokens: int = parameter(2, "likeliest tokens forced at each place", 2, 16)
    rollouts: int = parameter(16, "answers after each forced token", 2, 4096)
    temp: float = parameter(1.0, "temperature of these answers", 0.001, 100.0)
    threshold: float = parameter(0.25, "total variation from which a place is a fork", 0.0, 1.0)
    least_prob: float = parameter(0.02, "probability that the second token has at least", 0.0, 1.0)
    answers: int = parameter(24, "questions whose greedy answers have the places", 1, MAX_INT32)
    seed: int = parameter(0, "of the choice of places", 0, MAX_INT32)
