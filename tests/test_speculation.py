"""Drafts: where they come from, and that they change no token, no record and no end."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from entropix import samplers
from entropix.checkpoint.loading import Model
from entropix.config import NO_TOKEN, GenerateConfig
from entropix.decoding import loop
from entropix.decoding.request import GenerationRequest, prompt_rows
from entropix.decoding.session import Session
from entropix.decoding.speculation import lookup
from entropix.generation import collect, generate, prepare, run
from entropix.presets import preset_names
from entropix.results import FinishReason

pytestmark = pytest.mark.slow

PROMPTS = [[1, 2, 3, 4, 5, 6, 1, 2, 3, 4], [200], [7, 8] * 20, list(range(40, 75))]


def drafts(text: list[int], n_draft: int, garbage: int = 9) -> list[int]:
    """The draft for one text; what lies past its end in the buffer repeats `garbage`."""
    text_BX = jnp.asarray([text + [garbage] * (40 - len(text))], jnp.int32)
    return jax.jit(lookup, static_argnums=2)(text_BX, jnp.asarray([len(text)], jnp.int32), n_draft)[
        0
    ].tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], [4, 5, 1]),  # what followed three equal tokens
        ([5, 2, 3, 4, 6, 1, 2, 3], [4, 6, 1]),  # two are enough
        ([1, 2, 3, 4, 9, 2, 3, 5, 8, 8, 1, 2, 3], [4, 9, 2]),  # the longer match, though it is older
        ([1, 2, 3, 4, 1, 2, 3, 5, 6, 1, 2, 3], [5, 6, 1]),  # of equal ones the latest
        ([1, 7, 8, 7, 8], [7, 8, 7]),  # where the text ends, the draft goes round
        ([1, 2, 7, 7, 7], [7, 7, 7]),
        ([3, 1, 2, 3], [NO_TOKEN] * 3),  # one equal token is chance
        ([1, 2, 3, 4, 5], [NO_TOKEN] * 3),
        ([9, 9], [NO_TOKEN] * 3),  # nothing past the end of the text is taken for text
        ([4], [NO_TOKEN] * 3),
    ],
)
def test_a_draft_is_what_followed_the_longest_then_latest_match(text: list[int], expected: list[int]) -> None:
    assert drafts(text, 3) == expected


def test_rows_are_drafted_for_one_by_one() -> None:
    text_BX = jnp.asarray([[1, 2, 3, 1, 2, 0, 0], [5, 6, 7, 8, 5, 6, 7]], jnp.int32)
    assert lookup(text_BX, jnp.asarray([5, 7], jnp.int32), 2).tolist() == [[3, 1], [8, 5]]


def repetitive() -> Model:
    """A toy that repeats itself: its next token follows mostly from the newest, so that drafts are often right."""
    model = toy.model_of(tied_embeddings=False, n_layers=1)
    rng = np.random.default_rng(0)
    embed_VD = np.asarray(model.weights.embed_VD)
    follower_V = rng.permutation(len(embed_VD)) % 11
    unembed_VD = np.zeros_like(embed_VD)
    for token, follower in enumerate(follower_V):
        unembed_VD[follower] += 4 * embed_VD[token]
    layers = tuple(
        dataclasses.replace(layer, attn_out=layer.attn_out / 4, down=layer.down / 4)
        for layer in model.weights.layers
    )
    weights = model.weights.replace(unembed_VD=jnp.asarray(unembed_VD), layers=layers)
    return dataclasses.replace(model, weights=weights)


MODEL = repetitive()


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose lists are spread out, so that numbers can be compared one by one."""
    leaves, _ = jax.tree.flatten_with_path(record, is_leaf=lambda value: value is None)
    return {jax.tree_util.keystr(path): value for path, value in leaves}


# All states that a rule may have, and rules without one that draw in ways of their own. To any rule without a state a
# step is a step: it sees nothing of the draft.
KINDS = ("entropix", "entropix-logits", "placebo", "mirostat", "greedy", "temperature", "xtc")


def test_every_state_of_a_rule_is_among_those_that_are_drafted_for() -> None:
    def state(preset: str) -> type:
        sampler = samplers.resolve(preset)
        return type(sampler.rule.init(sampler.numbers, [[1]], lambda text: [1]))

    assert {state(preset) for preset in preset_names("samplers")} == {state(preset) for preset in KINDS}


@pytest.mark.parametrize("preset", KINDS)
def test_no_token_and_no_record_changes_whatever_the_sampler(preset: str) -> None:
    """Ragged rows of which some repeat themselves; every number of every record is compared, the attention metrics
    of tokens that were checked together with others among them."""
    options = {"sampler": preset, "max_new_tokens": 70, "seed": 4}
    if hasattr(samplers.resolve(preset).numbers, "temp"):
        options["sampler_config"] = {"temp": 0.4}
    if preset == "entropix":
        options |= {"alternatives": 3, "head_entropies": True}
    plain = generate(MODEL, PROMPTS, **options)
    job = prepare(MODEL, PROMPTS, speculate=4, **options)
    session = Session(MODEL, len(PROMPTS))
    drafted = collect(job, run(job, session))
    assert [result.token_ids for result in drafted] == [result.token_ids for result in plain]
    assert [result.finish for result in drafted] == [FinishReason.LENGTH] * len(PROMPTS)
    for ours, theirs in zip(drafted, plain, strict=True):
        for after, before in zip(ours.records, theirs.records, strict=True):
            after, before = flat(after), flat(before)
            assert after.keys() == before.keys()
            for name, value in before.items():
                if isinstance(value, float):
                    assert after[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
                else:
                    assert after[name] == value, name
    assert session.costs.n_passes < 70, "no draft was ever right, so nothing was tested"


def test_a_draft_that_is_dropped_leaves_nothing_behind() -> None:
    """A row without a draft reads padding where its neighbour has one: here a token whose values are NaN."""
    model = toy.with_a_broken_token(0)
    prompts = [list(range(1, 21)), [5, 6, 7, 8] * 6]
    options = {"max_new_tokens": 40, "sampler": "temperature", "seed": 1}
    plain = generate(model, prompts, **options)
    assert plain[0].finish == FinishReason.LENGTH and 0 not in plain[0].token_ids, "the row itself is whole"
    drafted = generate(model, prompts, speculate=4, **options)
    assert [result.token_ids for result in drafted] == [result.token_ids for result in plain]


def test_the_longest_draft_changes_nothing() -> None:
    """15 drafted tokens leave a tail room for two steps."""
    [plain] = generate(MODEL, [PROMPTS[2]], max_new_tokens=100, sampler="greedy")
    [drafted] = generate(MODEL, [PROMPTS[2]], max_new_tokens=100, sampler="greedy", speculate=15)
    assert drafted.token_ids == plain.token_ids


@pytest.mark.parametrize("limit", range(1, 9))
def test_a_limit_ends_a_row_inside_a_draft(limit: int) -> None:
    [plain] = generate(MODEL, [PROMPTS[2]], max_new_tokens=limit, sampler="greedy")
    [drafted] = generate(MODEL, [PROMPTS[2]], max_new_tokens=limit, sampler="greedy", speculate=4)
    assert drafted.token_ids == plain.token_ids
    assert len(drafted.token_ids) == limit
    assert drafted.finish == FinishReason.LENGTH


def test_a_stop_token_inside_a_draft_ends_the_row_there() -> None:
    [free] = generate(MODEL, [PROMPTS[0]], max_new_tokens=40, sampler="greedy")
    for stop in set(free.token_ids):
        stopping = dataclasses.replace(MODEL, stop_ids=(stop,))
        [plain] = generate(stopping, [PROMPTS[0]], max_new_tokens=40, sampler="greedy")
        [drafted] = generate(stopping, [PROMPTS[0]], max_new_tokens=40, sampler="greedy", speculate=4)
        assert drafted.token_ids == plain.token_ids
        assert drafted.finish == plain.finish == FinishReason.STOP_TOKEN


def test_text_that_always_repeats_takes_one_pass_for_a_whole_draft() -> None:
    """Greedy decoding of a model that walks in a circle: once it has come round, every draft is right."""
    job = prepare(MODEL, [PROMPTS[2]], sampler="greedy", max_new_tokens=200, speculate=4)
    session = Session(MODEL, 1)
    [result] = collect(job, run(job, session))
    assert len(result.token_ids) == 200
    assert session.costs.n_passes < 200 / 3.5


def test_without_drafts_every_token_is_a_pass_of_its_own() -> None:
    job = prepare(MODEL, [PROMPTS[1]], max_new_tokens=20)
    session = Session(MODEL, 1)
    collect(job, run(job, session))
    assert session.costs.n_passes == 20


def test_speculation_compiles_once_for_all_texts() -> None:
    generate(MODEL, [PROMPTS[0]], max_new_tokens=5, sampler="greedy", speculate=4)
    before = loop.decode_chunk._cache_size()
    for seed in range(10):
        generate(MODEL, [[seed + 1, 2] * (seed + 1)], max_new_tokens=seed + 2, sampler="greedy", speculate=4)
    assert loop.decode_chunk._cache_size() == before


def test_a_conversation_goes_on_after_speculation() -> None:
    """The cache that speculation leaves behind is the one that plain decoding leaves."""
    rule, cfg = samplers.get("greedy"), samplers.resolve("greedy").numbers
    answers = []
    for n_draft in (0, 4):
        session = Session(MODEL, 1)
        text = list(PROMPTS[2])
        for turn in range(3):
            wish = GenerateConfig(max_new_tokens=37, speculate=n_draft)
            session.start(GenerationRequest(MODEL, prompt_rows([text], wish), rule, cfg, wish))
            while session.running:
                records = session.advance()
                text += records.token_B[records.live_B].tolist()
            text += [90 + turn, 7, 8]
        answers.append(text)
    assert answers[0] == answers[1]
