"""A metric of one's own is wherever the built-in ones are."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entropix
from entropix import metric_labels, own_metrics, scoring, trace
from entropix.checkpoint.loading import Model
from entropix.console import coloring
from entropix.metrics import AttentionScores
from entropix.own_metrics import Metric
from entropix.score import Printed
from entropix.trace import run_statistics

PROMPTS = ["ab" * 12, "Why?"]


def two_likeliest(logits_BTV: jax.Array, attention: AttentionScores) -> jax.Array:
    """Probability of the two likeliest tokens together.

    Not a sentence more of this is shown.
    """
    p_BTV = jax.nn.softmax(logits_BTV, axis=-1)
    return jnp.sum(jax.lax.top_k(p_BTV, 2)[0], axis=-1)


def visible_keys(logits_BTV: jax.Array, attention: AttentionScores) -> jax.Array:
    """How many keys are seen."""
    return jnp.sum(attention.visible_BTS, axis=-1).astype(jnp.float32)


@pytest.fixture
def own() -> Iterator[None]:
    entropix.register_metric(Metric("two_likeliest", two_likeliest))
    entropix.register_metric(Metric("visible_keys", visible_keys, unit="keys", high=64.0))
    yield
    for name in ("two_likeliest", "visible_keys"):
        own_metrics.unregister(name)


WAYS = {
    "plain": {},
    "drafts": {"sampler": "greedy", "speculate": 3},
    "forks and steps back": {
        "branching": {"paths": 2, "depth": 2, "strategies": ["adaptive"]},
        "backtracking": {"tokens": 2, "strategies": ["adaptive"], "budget": 2},
    },
}


@pytest.mark.slow
@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("way", WAYS)
def test_every_record_has_its_number(toy_model: Model, way: str) -> None:
    for result in entropix.generate(toy_model, PROMPTS, seed=2, max_new_tokens=12, **WAYS[way]):
        text = [*result.prompt_ids, *result.token_ids]
        seen = entropix.forward(toy_model, text).own
        start = len(result.prompt_ids) - 1
        for name, column in seen.items():
            found = [record[name] for record in result.records]
            np.testing.assert_allclose(found, column[start:-1], rtol=1e-4, err_msg=name)
        assert [record["visible_keys"] for record in result.records] == [
            float(start + 1 + i) for i in range(len(result.records))
        ]


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_trace_colours_statistics_and_page_show_it(
    run_command: Callable[..., tuple[int, str, str]], toy_folder: str, tmp_path: Path
) -> None:
    from entropix.main import main
    from entropix.report import __main__ as report

    file, page = tmp_path / "a.jsonl", tmp_path / "a.html"
    code, shown, told = run_command(
        main, "--weights", toy_folder, "--prompt", "Why?", "--max-new-tokens", "4", "--color",
        "always,visible_keys", "--stats", "--trace", str(file),
    )  # fmt: skip
    assert (code, "mean visible_keys" in told, "\x1b[" in shown) == (0, True, True)
    assert "visible keys  0" in told and "64+ keys" in told
    read = trace.read(file)
    assert all(record["two_likeliest"] > 0 for record in read.results[0].records)
    own_metrics.unregister("visible_keys")  # a trace explains itself, also where the metric is not registered
    try:
        assert trace.metric_labels_of([read.header])["visible_keys"].axis_title == "visible keys (keys)"
        assert run_command(report.main, str(file), "-o", str(page))[0] == 0
        assert "How many keys are seen." in page.read_text()
        assert "Probability of the two likeliest tokens together." in page.read_text()
    finally:
        entropix.register_metric(Metric("visible_keys", visible_keys, unit="keys", high=64.0))


@pytest.mark.usefixtures("own")
def test_a_scored_text_has_it(toy_model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    [scored] = scoring.score(toy_model, ["Why?"])
    expected = entropix.forward(toy_model, "Why?").own
    for name, column in expected.items():
        np.testing.assert_allclose([record[name] for record in scored.records], column, rtol=1e-5)
    Printed("table", [scored.token_ids]).add(0, scored.records)
    assert "visible_keys" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.usefixtures("own")
def test_what_is_registered_is_known_by_name() -> None:
    assert metric_labels.known()[-2:] == ["two_likeliest", "visible_keys"]
    assert coloring.read_choice("two_likeliest").what == "two_likeliest"
    assert list(run_statistics.mean_metrics([]))[-1] == "visible_keys"
    assert entropix.register_metric(Metric("two_likeliest", two_likeliest)).title == "two likeliest"


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Metric("top_prob", two_likeliest), "this name is taken"),
        (Metric("strategy", two_likeliest), "this name is taken"),
        (Metric("two likeliest", two_likeliest), "must be a word"),
        (Metric("flat", two_likeliest, low=1.0, high=1.0), "low .1.0. must be below high"),
    ],
)
def test_a_metric_that_could_not_be_told_apart_is_refused(metric: Metric, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropix.register_metric(metric)


def test_installed_packages_offer_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "ours"

        @staticmethod
        def load() -> Metric:
            return Metric("two_likeliest", two_likeliest)

    monkeypatch.setattr(own_metrics.importlib.metadata, "entry_points", lambda group: [Point])
    own_metrics._load_installed.cache_clear()
    try:
        assert [metric.name for metric in own_metrics.registered()] == ["two_likeliest"]
    finally:
        own_metrics.unregister("two_likeliest")
