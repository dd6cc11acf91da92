"""The whole thing, as a newcomer runs it: the real command on the default weights.

Every token of a trace is checked against the five strategies' rules, written down here a second time in plain
Python, from nothing but the metrics that the trace recorded.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import entropix
from entropix import samplers, trace
from entropix.checkpoint.loading import Model
from entropix.results import FinishReason, Result
from entropix.samplers.entropix import SamplerConfig
from entropix.trace import Trace

pytestmark = pytest.mark.real

QUESTION = "Why is the sky blue?"
COMMON_WORDS = re.findall(
    "[a-z]+",
    """the of and to a in is it that this are be as by for with on was from at not or an has have can which
    when its we our you they their these into more most some than so but through also because what how""",
)
# Thresholds amid what the default model gives, so that all five strategies occur.
ALL_FIVE = SamplerConfig(
    low_ent_thresh=1.5,
    low_vent_thresh=9.0,
    med_ent_thresh=3.0,
    high_ent_thresh=4.0,
    high_vent_thresh=10.5,
    clarifier=" Wait, let me think.",
)


# The programs that users run: without the session's haste in compiling.
USERS = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


class Ran(NamedTuple):
    out: str
    err: str
    trace: Trace


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run of the command."""
    path = tmp_path_factory.mktemp("trace") / "sky.jsonl"
    args = ("--prompt", QUESTION, "--seed", "1", "--max-new-tokens", "120", "--stats", "--trace", str(path))
    process = subprocess.run(
        [sys.executable, "-m", "entropix.main", *args],
        env=USERS,
        capture_output=True,
        check=True,
        timeout=600,
    )
    return Ran(process.stdout.decode(), process.stderr.decode(), trace.read(path))


@pytest.fixture(scope="module")
def mixed(real_model: Model) -> list[Result]:
    """Two rows in which every strategy occurs."""
    prompts = [QUESTION, "Write a short story about a cat."]
    return entropix.generate(real_model, prompts, sampler_config=ALL_FIVE, seed=1, max_new_tokens=120)


# ----- the rules, in plain Python ---------------------------------------------------------------------------


def strategy_of(record: dict[str, Any], cfg: SamplerConfig) -> str:
    entropy, varentropy = record["logits_entropy"], record["logits_varentropy"]
    if entropy < cfg.low_ent_thresh and varentropy < cfg.low_vent_thresh:
        return "flow"
    if entropy > cfg.high_ent_thresh and varentropy < cfg.low_vent_thresh:
        return "clarify"
    if entropy < cfg.high_ent_thresh and varentropy > cfg.high_vent_thresh:
        return "explore"
    if entropy > cfg.med_ent_thresh and varentropy > cfg.high_vent_thresh:
        return "resample"
    return "adaptive"


def settings_of(record: dict[str, Any], cfg: SamplerConfig) -> tuple[float, float, float, float]:
    """(temperature, top-p, top-k before it is made whole, min-p)."""
    doubt = record["logits_entropy"] + record["logits_varentropy"]
    attn, attn_var = record["attn_entropy"], record["attn_varentropy"]
    agreement, strength = record["agreement"], record["interaction_strength"]
    match record["strategy"]:
        case "flow":
            return cfg.temp, cfg.top_p, 1, cfg.min_p
        case "clarify":
            return (
                min(1.5, cfg.temp * (cfg.helv_attn_ent_offset + cfg.helv_attn_ent_coef * attn)),
                cfg.top_p,
                cfg.top_k,
                cfg.min_p,
            )
        case "explore":
            top_k = max(5, math.trunc(cfg.top_k * (1 + 0.5 * (1 - agreement))))
            factor = cfg.lehv_interaction_strength_offset + cfg.lehv_interaction_strength_coef * strength
            return min(1.5, cfg.temp * factor), cfg.top_p, top_k, cfg.min_p
        case "resample":
            top_p = max(0.5, cfg.top_p - cfg.hehv_attn_ent_coef * attn)
            factor = cfg.hehv_attn_vent_offset + cfg.hehv_attn_vent_coef * attn_var
            return max(2.0, cfg.temp * factor), top_p, cfg.top_k, cfg.min_p
        case _:
            warmer = cfg.ada_temp_logits * doubt + cfg.ada_temp_attn * (attn + attn_var)
            return (
                cfg.temp * (1 + warmer - cfg.ada_temp_agree * agreement),
                min(max(cfg.top_p * (1 + 0.1 * attn_var), 0.1), 1.0),
                min(max(cfg.top_k * (1 + 0.3 * strength - 0.2 * agreement), 1), 100),
                min(max(cfg.min_p * (1 - 0.5 * doubt), 0.01), 0.5),
            )


def score_of(record: dict[str, Any]) -> float:
    return (
        record["logprob"]
        + 0.1 * (1 - record["logits_entropy"])
        + 0.2 * (1 - record["attn_entropy"])
        + 0.3 * (1 - record["logits_varentropy"])
        + 0.4 * (1 - record["attn_varentropy"])
        + 0.5 * record["agreement"]
        + 0.6 * record["interaction_strength"]
    )


def assert_rules_obeyed(result: Result, cfg: SamplerConfig, clarifier: list[int]) -> None:
    """For every token of a row."""
    to_insert: list[int] = []  # of a clarifier under way
    just_inserted = False
    for step, record in enumerate(result.records):
        where = f"step {step}: {record}"
        assert record["strategy"] == ("clarify" if to_insert else strategy_of(record, cfg)), where

        if record["strategy"] == "clarify" and not to_insert and not just_inserted:
            to_insert = list(clarifier)
        just_inserted = False
        assert record["injected"] == bool(to_insert), where
        if to_insert:
            assert record["id"] == to_insert.pop(0), where
            just_inserted = not to_insert

        temperature, top_p, top_k, min_p = settings_of(record, cfg)
        expected = pytest.approx((temperature, top_p, min_p), rel=1e-4)
        assert (record["temperature"], record["top_p"], record["min_p"]) == expected, where
        # Half a token is where the recorded digits cannot say which way it was rounded.
        assert abs(record["top_k"] - top_k) <= 0.5 + 1e-3, where

        assert 1 <= record["kept"] <= record["top_k"], where
        assert record["logprob"] <= math.log(record["top_prob"]) + 1e-4, where
        if record["strategy"] == "flow":
            assert record["logprob"] == pytest.approx(math.log(record["top_prob"]), abs=1e-4), where
        if record["injected"] or record["kept"] == 1:
            assert record["draw_logprob"] == pytest.approx(0, abs=1e-6), where
        else:
            assert record["draw_logprob"] < 0, where
        if record["strategy"] == "adaptive":
            assert record["score"] == pytest.approx(score_of(record), abs=1e-3), where
        else:
            assert record["score"] is None, where


# ----- the command ------------------------------------------------------------------------------------------


def test_the_answer_is_english_and_about_the_question(ran: Ran) -> None:
    """As in any English text, more than three tenths of the words are among the commonest; noise has none."""
    words = re.findall(r"[a-z]+", ran.out.lower())
    assert len(words) >= 40
    assert sum(word in COMMON_WORDS for word in words) > 0.3 * len(words)
    assert {"sky", "blue", "light", "color", "sun", "atmosphere"} & set(words)


def test_stdout_is_the_answer_and_stderr_the_rest(ran: Ran) -> None:
    [result] = ran.trace.results
    assert ran.out == result.text + "\n"
    assert ran.err.startswith(
        "sampler: entropix-smollm2-135m-instruct, chosen for this model; --sampler entropix has"
    )
    assert "\nseed: 1\n" in ran.err
    assert ("stopped after " in ran.err) == (result.finish != FinishReason.STOP_TOKEN)
    assert re.search(r"^speed +[\d.]+  tokens/s after the first chunk$", ran.err, re.MULTILINE)


def test_the_default_run_obeys_the_rules_on_every_token(ran: Ran, real_model: Model) -> None:
    cfg = ran.trace.options["sampler_config"]
    assert cfg == samplers.resolve("entropix-smollm2-135m-instruct").numbers
    [result] = ran.trace.results
    assert len(result.records) >= 40
    assert_rules_obeyed(result, cfg, real_model.tokenizer.encode(cfg.clarifier))


def test_the_rules_are_obeyed_where_all_five_strategies_occur(mixed: list[Result], real_model: Model) -> None:
    records = [record for result in mixed for record in result.records]
    seen = {record["strategy"] for record in records}
    assert seen == {"flow", "clarify", "explore", "resample", "adaptive"}
    inserted = [record["text"] for record in records if record["injected"]]
    assert "".join(inserted).startswith(ALL_FIVE.clarifier)
    for result in mixed:
        assert_rules_obeyed(result, ALL_FIVE, real_model.tokenizer.encode(ALL_FIVE.clarifier))


def test_the_same_seed_gives_the_same_answer_in_another_process(ran: Ran, real_model: Model) -> None:
    [again] = entropix.generate(real_model, ran.trace.prompts, **ran.trace.options)
    assert again.token_ids == ran.trace.results[0].token_ids
    assert again.text + "\n" == ran.out


def test_a_trace_names_the_weights_it_came_from(ran: Ran, real_model: Model) -> None:
    assert ran.trace.header["model"]["name"] == "smollm2-135m-instruct"
    assert ran.trace.header["model"]["fingerprint"] == trace.fingerprint(Path(real_model.folder))
    assert ran.trace.header["prompts"][0]["text"].endswith(
        f"user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
