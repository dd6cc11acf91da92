"""Branching around samplers that remember, and branching that is refused."""

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
from branches import EVERYWHERE, MODEL, PROMPTS, SMALL, forks

from entropix import generation
from entropix.config import GenerateConfig
from entropix.decoding.session import Session
from entropix.generation import collect, prepare, run
from entropix.results import Result
from entropix.samplers.entropix import SamplerConfig

# ----- samplers that remember -------------------------------------------------------------------------------

PENALTY: dict[str, Any] = {"sampler_config": {"repetition_penalty": 1.5}}
GUARDED = EVERYWHERE | {"among": "all", "score": "certainty"}


def small(prompts: Sequence[Sequence[int]], **options: Any) -> list[Result]:
    return generation.generate(SMALL, prompts, **{"max_new_tokens": 40} | options)


@pytest.mark.slow
def test_the_guard_sees_the_kept_path_and_nothing_of_the_others() -> None:
    """Greedy, hence without randomness: what follows a fork is what follows the same text as a prompt."""
    outdone = 0
    for prompt in PROMPTS:
        [result] = small([prompt], sampler="greedy", branching=GUARDED | {"budget": 1}, **PENALTY)
        outdone += not result.records[0]["branches"][0]["chosen"]
        text = [*prompt, *result.token_ids[:3]]
        [rest] = small([text], sampler="greedy", branching=GUARDED | {"budget": 0}, **PENALTY)
        assert result.token_ids[3:] == rest.token_ids[:37]
    assert outdone, "only drawn tokens were kept, so nothing was tested"


@pytest.mark.slow
def test_the_surprise_that_mirostat_steers_by_is_that_of_the_kept_path() -> None:
    """μ after the text, from its records. A token that was tried in place of the drawn one counts as no surprise."""
    tau, eta = 3.0, 0.1
    job = prepare(
        SMALL,
        PROMPTS[:1],
        sampler="mirostat",
        sampler_config={"temp": 1.0, "mirostat_tau": tau, "mirostat_eta": eta},
        max_new_tokens=30,
        branching=EVERYWHERE | {"among": "all"},
    )
    session = Session(SMALL, 1)
    [result] = collect(job, run(job, session))
    mu, outdone = 2 * tau, 0
    for record in result.records:
        forced = "branches" in record and not record["branches"][0]["chosen"]
        surprise = 0.0 if forced else -record["logprob"] / math.log(2)
        mu -= eta * (surprise - tau)
        outdone += forced
    assert outdone > 2
    assert session._run is not None
    assert float(session._run.state.rows.sampler.mu_B[0]) == pytest.approx(mu, abs=1e-3)


@pytest.mark.slow
def test_a_clarifier_that_begins_on_a_kept_path_is_finished() -> None:
    """Four tokens are inserted, more than a path of three has, and none of them forks."""
    [result] = small(
        PROMPTS[:1],
        sampler="entropix",
        sampler_config=SamplerConfig(
            clarifier="abcd", low_vent_thresh=100.0, high_ent_thresh=6.6, high_vent_thresh=200.0
        ),
        max_new_tokens=80,
        branching=EVERYWHERE | {"strategies": ["adaptive"]},
    )
    inserted = [record["injected"] for record in result.records]
    runs = "".join("x" if one else " " for one in inserted[:-4]).split()
    assert len(forks(result)) > 3
    assert not any(inserted[step] for step in forks(result))
    assert any(
        "97" in str(branch["ids"][1:]) for s in forks(result) for branch in result.records[s]["branches"]
    )
    assert set(runs[:-1]) == {"xxxx"}
    assert bytes(r["id"] for r, one in zip(result.records, inserted, strict=True) if one).startswith(
        b"abcdabcd"
    )


# ----- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"branching": {"paths": 2, "strategies": ["explor"]}},
            "branching (--branch-on): unknown strategy 'explor' of top-k; ",
        ),
        (
            {"branching": {"paths": 2}},
            "branching (--branch-on): top-k never does explore; it has top-k. Name one of these",
        ),
        (
            {"branching": {"paths": 2, "strategies": []}},
            "branching (--branch-on): top-k never does anything that branches",
        ),
        (
            {"branching": {"paths": 2, "entropy": 1.0}, "speculate": 2},
            "branching and speculate do not go together",
        ),
        (
            {"branching": {"paths": 2, "entropy": 1.0}, "head_entropies": True},
            "branching records no head_entropies",
        ),
        ({"branching": {"paths": 17}}, "generation: branching: paths must be between 1 and 16, got 17"),
        ({"branching": {"path": 2}}, "generation: branching: unknown field 'path'; did you mean 'paths'"),
        ({"branching": {"score": "luck"}}, "generation: branching: score must be logprob or margin"),
        ({"branching": 3}, "generation: branching must be of type BranchConfig, got 3"),
    ],
)
def test_what_would_never_branch_or_cannot_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(MODEL, PROMPTS, **{"sampler": "top-k"} | options)


def test_strategies_of_other_samplers_are_no_mistake() -> None:
    """The default names explore, which most samplers do not have."""
    job = prepare(MODEL, PROMPTS, sampler="greedy", branching={"paths": 2, "entropy": 1.0})
    assert job.config.branching.strategies == ("explore",)
    assert GenerateConfig().branching.strategies == ("explore",)
