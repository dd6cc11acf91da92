"""Answers: what counts as one, which are equal, and which tokens they are made of."""

import random

import pytest

from entropix.cot.answers import EXTRACTORS, Answer, extractor, is_cut, token_span


def value(spec: str, text: str) -> str | None:
    answer = extractor(spec)(text)
    return None if answer is None else answer.value


# ----- the last number --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 7.", "7"),
        ("3 apples and 4 pears make 7 pieces", "7"),
        ("1,000", "1000"),
        ("3 or 1.000.000", "3"),
        ("4, then 1.2.3", "4"),
        ("7, then 1e400", "7"),
        ("7,8", "8"),
        ("12,345,67", "67"),
        ("1000.0", "1000"),
        ("+1e3", "1000"),
        ("0001000.", "1000"),
        ("12,345,678.90", "12345678.9"),
        ("lists: 1,2,3", "3"),
        ("1,2345", "2345"),
        ("1234,567", "567"),
        ("-5", "-5"),
        ("x = −5", "-5"),
        ("8-5", "5"),
        ("(8)-5", "5"),
        ("8 - 5", "5"),
        ("-0.0", "0"),
        (".5", "0.5"),
        ("-.50", "-0.5"),
        ("12%", "12"),
        ("$3.50", "3.5"),
        ("5km", "5"),
        ("the 3rd of 2 x2 GPT4", "2"),
        ("**42**", "42"),
        ("3/4", "4"),
        ("2.5e-2", "0.025"),
        ("3e8x", "3"),
        ("123456789012345678901234567890.50", "123456789012345678901234567890.5"),
        ("none at all", None),
        ("", None),
        ("٣", None),
    ],
)
def test_the_last_number_is_found_and_normalised(text: str, expected: str | None) -> None:
    assert value("number", text) == expected


def test_the_span_of_a_number_has_its_sign_and_its_commas_and_no_percent_sign() -> None:
    text = "Costs fell by -1,234.50% in all."
    answer = extractor("number")(text)
    assert answer is not None and text[answer.start : answer.end] == "-1,234.50"


# ----- after a phrase ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So the answer is 42. Goodbye", "42"),
        ("The ANSWER\n is: **$1,000.00**\nmore", "1000"),
        ("the answer is 3.5%.", "3.5"),
        ("the answer is Paris, France! Yes", "paris, france"),
        ("the answer is 4. No, the answer is 5", "5"),
        ("the answer is  'New   York' ", "new york"),
        ("the answer is v1.2 of it", "v1.2 of it"),
        ("the answer is", None),
        ("the answer is. ", None),
        ("the answer isn't here", None),
        ("bathe answer is 3", None),
        ("no phrase", None),
    ],
)
def test_a_phrase_is_followed_by_the_answer(text: str, expected: str | None) -> None:
    assert value("phrase", text) == expected


def test_the_phrase_is_an_argument_and_not_a_pattern() -> None:
    assert value("phrase:result (a.b) =", "Result (a.b)  =9") == "9"
    assert value("phrase:####", "6 * 7 = 42\n#### 42\n") == "42"
    assert value("phrase:total", "Total: seven. Sum: 8") == "seven"
    assert value("phrase:a.b", "axb 3, a.b 4") == "4"


# ----- a regular expression, the whole text -------------------------------------------------------------------


def test_a_regular_expression_gives_its_last_match_or_group_1_of_it() -> None:
    text = "(A) no  (B) yes   it  is"
    assert value(r"regex:\((.)\)", text) == "B"
    assert value(r"regex:\(.\)", text) == "(B)"
    assert value(r"regex:yes.*", text) == "yes it is"
    assert value(r"regex:\((C)\)", text) is None
    assert value(r"regex:(no)|yes", text) is None  # group 1 has no part in the last match
    assert value("regex:a:(.)", "a:b") == "b"


def test_the_whole_text_in_single_spaces() -> None:
    assert extractor("text")("  a \n b ") == Answer("a b", 2, 7)
    assert value("text", " \n") is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("words", "no extractor 'words'; there are number, phrase, regex, text"),
        ("number:3", "takes no argument"),
        ("regex", "needs an argument"),
        ("regex:(", "no regular expression"),
        ("phrase: ", "needs words"),
    ],
)
def test_what_names_no_extractor_is_an_error(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extractor(spec)


@pytest.mark.parametrize(
    ("spec", "text", "cut"),
    [
        ("number", "17 + 26 = 4", True),
        ("number", "17 + 26 = 43.", False),
        ("number", "it is 43 \n", True),
        ("phrase", "The answer is forty", True),
        ("phrase", "The answer is forty-three. So", False),
        ("regex:b+", "abb", True),
        ("regex:b+", "abba", False),
        ("text", "all of it", False),
    ],
)
def test_an_answer_is_cut_where_its_text_may_go_on(spec: str, text: str, cut: bool) -> None:
    found = extractor(spec)(text)
    assert found is not None
    assert is_cut(found, text, spec) == cut


def test_every_extractor_says_what_it_finds_and_spans_lie_in_the_text() -> None:
    rng = random.Random(0)
    pieces = ["the answer is", " 1,0", "00.5", "-3", ".", "\n", "é", "%", " e2", ":", "**"]
    for _ in range(500):
        text = "".join(rng.choices(pieces, k=8))
        for name, kind in EXTRACTORS.items():
            assert kind.summary
            answer = extractor("regex:[0-9]+" if name == "regex" else name)(text)
            if answer is not None:
                assert 0 <= answer.start < answer.end <= len(text)
                assert not text[answer.start].isspace() and not text[answer.end - 1].isspace()
                assert answer.value == " ".join(answer.value.split()) != ""


# ----- tokens -------------------------------------------------------------------------------------------------


def test_tokens_of_an_answer_are_those_with_a_part_in_it() -> None:
    tokens = [b"It", b" is", b" 4", b"2", b".", b""]
    assert token_span(tokens, 6, 8) == (2, 4)
    assert token_span(tokens, 7, 8) == (3, 4)
    assert token_span(tokens, 0, 9) == (0, 5)


def test_tokens_that_are_parts_of_a_character_count_for_it() -> None:
    tokens = [b"a", b"\xf0\x9f", b"\x98", b"\x80b", b"c"]  # a, a face, b, c
    assert token_span(tokens, 1, 2) == (1, 4)
    assert token_span(tokens, 2, 3) == (3, 4)
    assert token_span(tokens, 3, 4) == (4, 5)
    assert token_span([b"a", b"\xf0\x9f"], 1, 2) == (1, 2)  # cut short: U+FFFD
    assert token_span([b"\xff", b"a"], 1, 2) == (1, 2)


def test_spans_of_random_texts_cut_anywhere_are_those_of_their_bytes() -> None:
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices("ab1é∑😀 ", k=10))
        data = text.encode()
        cuts = sorted(rng.sample(range(1, len(data)), min(5, len(data) - 1)))
        edges = list(zip([0, *cuts], [*cuts, len(data)], strict=True))
        start = rng.randrange(len(text))
        end = rng.randrange(start, len(text)) + 1
        low, high = len(text[:start].encode()), len(text[:end].encode())
        touching = [i for i, (a, b) in enumerate(edges) if a < high and b > low]
        assert token_span([data[a:b] for a, b in edges], start, end) == (touching[0], touching[-1] + 1)


def test_a_span_beyond_the_tokens_is_an_error() -> None:
    for start, end in ((0, 4), (3, 4), (1, 1)):
        with pytest.raises(ValueError, match="not all in a text"):
            token_span([b"ab", b"c"], start, end)
