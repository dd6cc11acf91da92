"""`entropix.forward`: one forward pass in the user's hands, against the float64 reference."""

import numpy as np
import pytest
import reference

import entropix
from entropix.checkpoint.loading import Model
from entropix.metrics import Metrics

TEXT = "The sky is blue"


@pytest.fixture(scope="module")
def found(toy_model: Model) -> entropix.Forward:
    return entropix.forward(toy_model, TEXT)


@pytest.fixture(scope="module")
def expected(toy_model: Model) -> reference.Pass:
    tensors = reference.named_tensors(toy_model.weights, toy_model.config)
    return reference.forward(tensors, list(TEXT.encode()), toy_model.config)


def test_logits_and_raw_scores_are_those_of_the_reference(
    found: entropix.Forward, expected: reference.Pass
) -> None:
    n = len(TEXT)
    assert (found.token_ids, "".join(found.tokens)) == (list(TEXT.encode()), TEXT)
    np.testing.assert_array_equal(found.visible_TT, np.tri(n, dtype=bool))
    np.testing.assert_allclose(found.logits_TV, expected.logits_TV, rtol=1e-4, atol=1e-4)
    seen = np.broadcast_to(found.visible_TT, found.scores_LNTT.shape)
    np.testing.assert_allclose(found.scores_LNTT[seen], expected.scores_LNTT[seen], rtol=1e-4, atol=1e-4)


def test_metrics_and_attention_of_every_position_are_those_of_their_definition(
    found: entropix.Forward, expected: reference.Pass
) -> None:
    attention = found.attention()
    np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=1e-5)
    for t in range(len(TEXT)):
        seen_LNS = expected.scores_LNTT[:, :, t, : t + 1]
        np.testing.assert_allclose(attention[0, 0, t, : t + 1], reference.softmax(seen_LNS[0, 0]), atol=1e-5)
        assert not attention[:, :, t, t + 1 :].any()
        wanted = reference.metrics(expected.logits_TV[t], seen_LNS)
        for name in Metrics._fields:
            np.testing.assert_allclose(
                getattr(found.metrics, name)[t], wanted[name], rtol=1e-3, atol=1e-4, err_msg=name
            )


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "text 1 is empty"),
        ([1, 999], {}, "token ids outside 0 to 258"),
        ([1] * 5000, {}, "the model's context holds"),
        ("long", {"max_bytes": 100}, "more than max_bytes"),
    ],
)
def test_what_cannot_be_read_is_said_before_any_work(toy_model, text, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        entropix.forward(toy_model, text, **options)
