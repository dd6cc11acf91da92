"""Token ids against values worked out by hand and against the `tokenizers` library; text back from ids."""

import base64
import json
import random
import unicodedata
from pathlib import Path

import pytest
import vocabularies
from tokenizers import Tokenizer as Reference
from vocabularies import BYTES, edit, random_texts

from entropix.checkpoint.convert.tokenizer_json import TextEnds, write_tokenizer_json
from entropix.checkpoint.tokenizer import LONGEST_WHITE_SPACE, Tokenizer, load_tokenizer
from entropix.paths import weights_folder

KINDS = [
    *(("gpt-2", False), ("smollm", False), ("llama-bpe", False), ("llama-bpe", True)),
    *(("qwen2", False), ("gpt-4", False)),
]


@pytest.fixture(
    scope="module", params=KINDS, ids=["gpt-2", "smollm", "llama", "llama, merges ignored", "qwen 2", "gpt-4"]
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pre, ignore_merges = request.param
    return vocabularies.trained(tmp_path_factory.mktemp("trained"), pre, ignore_merges)


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load_tokenizer(weights_folder("smollm2-135m-instruct"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    """256 bytes; "ab", "abc" and " a"; special and other added tokens."""
    tokens = [*BYTES, "ab", "abc", "Ġa", "<|end|>", "<|end|>of", "[INST]", "[/INST]"]
    types = [1] * 259 + [3, 3, 4, 4]
    write_tokenizer_json(
        tmp_path / "tokenizer.json",
        tokens,
        ["a b", "ab c", "Ġ a"],
        types,
        "gpt-2",
        TextEnds(None, None, False),
    )
    return load_tokenizer(tmp_path)


def assert_same_ids(tokenizer: Tokenizer, reference: Reference, texts: list[str]) -> None:
    """With special tokens recognised in the text, and with them as plain text."""
    for text in texts:
        reference.encode_special_tokens = False
        assert (
            tokenizer.encode(text, allow_special=True) == reference.encode(text, add_special_tokens=False).ids
        )
        reference.encode_special_tokens = True
        ids = reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == (unicodedata.normalize("NFC", text) if tokenizer.nfc else text)


# ----- ids ------------------------------------------------------------------------------------------------


def test_llama3_ids_worked_out_by_hand(tmp_path: Path) -> None:
    merged = [b"he", b"ll", b"hell", b" w", b"or", b"ld", b" wor", b"12", b"34", b"ohm"]
    lines = [bytes([byte]) for byte in range(256)] + merged  # so "he" is 256 and "ohm" 265
    text = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(lines))
    (tmp_path / "tokenizer.model").write_text(text)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("hello world") == [258, ord("o"), 262, 261]
    assert tokenizer.encode("hello") + tokenizer.encode(" world") == tokenizer.encode("hello world")
    assert tokenizer.encode("1234") == [263, ord("3"), ord("4")]  # digits go in threes: 123, 4
    assert tokenizer.encode("34 34") == [264, ord(" "), 264]
    assert tokenizer.encode("ohm ohm") == [265, *b" ohm"]  # no merge makes "ohm": only a whole piece is it
    assert tokenizer.encode("é") == [0xC3, 0xA9]
    assert tokenizer.encode("x<|eot_id|>", allow_special=True) == [ord("x"), 266 + 9]
    assert tokenizer.encode("x<|eot_id|>") == list(b"x<|eot_id|>")
    assert tokenizer.vocab_size == 266 + 256
    assert (tokenizer.bos_id, tokenizer.bos_ids) == (266, (266,))


def test_ids_are_those_of_the_tokenizers_library(trained: Path) -> None:
    reference = Reference.from_file(str(trained / "tokenizer.json"))
    assert_same_ids(load_tokenizer(trained), reference, random_texts(1500, seed=1))


def test_a_pattern_from_the_file_that_skips_text_is_followed(tmp_path: Path) -> None:
    vocabularies.trained(tmp_path, "llama-bpe")
    pre_tokenizer = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": r"\p{L}+|[0-9]{2}"},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    edit(tmp_path, pre_tokenizer=pre_tokenizer)
    reference = Reference.from_file(str(tmp_path / "tokenizer.json"))
    assert_same_ids(load_tokenizer(tmp_path), reference, random_texts(300, seed=2))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe"])
def test_every_digit_and_white_space_is_cut_as_the_tokenizers_library_does(tmp_path: Path, pre: str) -> None:
    vocabularies.every_pair(tmp_path, pre)
    reference = Reference.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    texts = [f"a{c}b 1{c}2 {c} {c}{c}'{c} \t{c}\n  {c}  {c}" for c in vocabularies.digits_spaces_and_others()]
    assert len(texts) > 4000
    for text, encoding in zip(texts, reference.encode_batch(texts), strict=True):
        assert tokenizer.encode(text) == encoding.ids, text


def test_text_is_normalised_between_special_tokens_and_before_added_ones(tmp_path: Path) -> None:
    """The library looks for tokens that are marked normalized in the text's normal form, for others before."""
    # In it "user defined" is marked normalized, the others are not.
    folder = vocabularies.trained(tmp_path, "qwen2")
    reference = Reference.from_file(str(folder / "tokenizer.json"))
    texts = [
        *(
            "e\u0301 \u212b \u212a \u1fef",
            "<|end|>\u0338 <|begin|>\u0301a",
            "user defined\u0301 user defined",
        ),
        *(
            "user defined\u030c",
            "user defin\u0303ed",
            "e<|end|>\u0301",
            "\u1100\u1161\u11a8",
            "a\u0323\u0307 a\u0307\u0323",
        ),
    ]
    tokenizer = load_tokenizer(folder)
    assert_same_ids(tokenizer, reference, texts)
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")
    with pytest.raises(ValueError, match="half a character"):
        tokenizer.encode("e\u0301 \ud800")


def test_long_pieces_are_merged_like_short_ones(trained: Path) -> None:
    rng = random.Random(3)
    letters = "".join(rng.choices("abé", k=5000))
    reference = Reference.from_file(str(trained / "tokenizer.json"))
    assert_same_ids(load_tokenizer(trained), reference, [letters, "a" * 3000, "-=" * 2000, " " * 3000 + "x7"])


# ----- special and other added tokens ---------------------------------------------------------------------


def test_special_tokens_in_text_are_plain_unless_allowed(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens == {"<|end|>": 259, "<|end|>of": 260}
    assert tokenizer.encode("ab<|end|>c") == [256, *b"<|end|>c"]
    assert tokenizer.encode("ab<|end|>c", allow_special=True) == [256, 259, ord("c")]


def test_of_special_tokens_the_longest_is_taken(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|end|>of<|end|>o", allow_special=True) == [260, 259, ord("o")]


def test_other_added_tokens_are_always_cut_out(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("[INST]ab[/INST] a[INST") == [261, 256, 262, 258, *b"[INST"]


def test_encode_adds_no_bos_but_bos_ids_tells_it(tmp_path: Path) -> None:
    tokens, types = [*BYTES, "<|begin|>", "<|other|>"], [1] * 256 + [3, 3]
    write_tokenizer_json(
        tmp_path / "tokenizer.json", tokens, [], types, "llama-bpe", TextEnds(256, None, True)
    )
    assert load_tokenizer(tmp_path).encode("a") == [ord("a")]
    assert load_tokenizer(tmp_path).bos_ids == (256,)
    edit(tmp_path, "tokenizer_config.json", bos_token={"content": "<|other|>"})
    assert (load_tokenizer(tmp_path).bos_id, load_tokenizer(tmp_path).bos_ids) == (257, (256,))
    edit(tmp_path, "tokenizer_config.json", add_bos_token=True)
    assert load_tokenizer(tmp_path).bos_ids == (257,)
    edit(tmp_path, "tokenizer_config.json", add_bos_token=False)
    assert (load_tokenizer(tmp_path).bos_id, load_tokenizer(tmp_path).bos_ids) == (257, ())
    edit(tmp_path, "tokenizer_config.json", bos_token="<s>")
    with pytest.raises(
        ValueError, match=r"tokenizer_config.json: bos_token '<s>' is no token of the vocabulary"
    ):
        load_tokenizer(tmp_path)


# ----- text that has no ids -------------------------------------------------------------------------------


def test_a_character_without_tokens_is_named_with_its_position(tmp_path: Path) -> None:
    tokens = [char for char in BYTES if char != "©"] + ["<|end|>"]  # "é" is C3 A9, and A9 is spelt "©"
    types = [1] * 255 + [3]
    write_tokenizer_json(tmp_path / "tokenizer.json", tokens, [], types, "gpt-2", TextEnds(None, None, False))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.missing_bytes == {0xA9}
    assert tokenizer.decode(tokenizer.encode("naïve")) == "naïve"
    with pytest.raises(ValueError, match=r"character 10 of the text is 'é' \(U\+00E9\), for which"):
        tokenizer.encode("<|end|>ïoué", allow_special=True)


def test_half_a_surrogate_pair_is_named_with_its_position(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"character 3 of the text is '\\udc80', half a character"):
        tokenizer.encode("ab \udc80")


def test_white_space_beyond_what_tiktoken_can_take_is_refused(tokenizer: Tokenizer) -> None:
    longest = " " * LONGEST_WHITE_SPACE
    assert tokenizer.encode(f"x{longest}y") == [ord("x"), *[ord(" ")] * LONGEST_WHITE_SPACE, ord("y")]
    with pytest.raises(ValueError, match=r"has 100001 white space characters in a row; at most 100000"):
        tokenizer.encode(f"x{longest}\ny")


def test_no_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


# ----- back to text ---------------------------------------------------------------------------------------


def test_streamed_text_adds_up_to_the_decoded_text_for_any_ids(trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    rng = random.Random(4)
    high = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i)[0] >= 0x80]
    for _ in range(400):
        ids = [
            rng.choice(high) if rng.random() < 0.6 else rng.randrange(tokenizer.vocab_size + 10)
            for _ in range(rng.randint(0, 30))
        ]
        decoder = tokenizer.stream_decoder()
        pushed = [decoder.push(i) for i in ids]
        assert "".join(pushed) + decoder.flush() == tokenizer.decode(ids)


def test_no_half_character_is_ever_streamed(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(byte) for byte in "a🙂é".encode()] == ["a", "", "", "", "🙂", "", "é"]
    assert decoder.flush() == ""


def test_a_character_that_is_never_finished_becomes_a_replacement_character(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(byte) for byte in "🙂".encode()[:3]] == ["", "", ""]
    assert decoder.flush() == "\N{REPLACEMENT CHARACTER}"
    assert decoder.push(ord("a")) == "a"
    assert [decoder.push(0xF0), decoder.push(ord("b"))] == ["", "\N{REPLACEMENT CHARACTER}b"]


def test_ids_beyond_the_vocabulary_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 263
    assert tokenizer.decode([256, 263, 10**6, -1, 257]) == "ab\ufffd\ufffd\ufffdabc"
    assert tokenizer.stream_decoder().push(263) == "\ufffd"


def test_special_tokens_decode_to_their_names(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([258, 259, 261]) == " a<|end|>[INST]"
    assert tokenizer.token_bytes(259) == b"<|end|>"


# ----- the real vocabulary --------------------------------------------------------------------------------


@pytest.mark.real
def test_smollm2_golden_ids(smollm2: Tokenizer) -> None:
    assert smollm2.encode("  a   7  8") == [216, 253, 333, 39, 256, 40]
    assert smollm2.encode("Why is the sky blue?") == [4898, 314, 260, 6376, 4461, 47]
    assert smollm2.encode("<|im_end|>", allow_special=True) == [2]
    assert smollm2.vocab_size == 49152
    assert (smollm2.bos_id, smollm2.bos_ids) == (1, ())
    assert len(smollm2.missing_bytes) == 21
    assert {4, 6, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2} == {
        b for b in smollm2.missing_bytes if b < 0xC0 or b in (0xF1, 0xF2)
    }


@pytest.mark.real
def test_smollm2_ids_are_those_of_the_tokenizers_library(smollm2: Tokenizer) -> None:
    file = weights_folder("smollm2-135m-instruct") / "tokenizer.json"
    texts = [t for t in random_texts(2500, seed=5) if smollm2.missing_bytes.isdisjoint(t.encode())]
    assert len(texts) > 2000
    assert_same_ids(smollm2, Reference.from_file(str(file)), texts)


# ----- beginnings, gaps, and what the library gives up on -------------------------------------------------


def test_a_beginning_that_the_text_spells_out_is_there_once(tmp_path: Path) -> None:
    vocabularies.written(tmp_path, special=["<|begin|>", "<|end|>"])
    edit(tmp_path, "tokenizer_config.json", bos_token="<|begin|>", add_bos_token=True)
    tokenizer = load_tokenizer(tmp_path)
    assert (
        tokenizer.encode_text("a")
        == tokenizer.encode_text("<|begin|>a", allow_special=True)
        == [256, ord("a")]
    )
    assert tokenizer.encode_text("<|begin|>") == [256, *b"<|begin|>"]
    assert tokenizer.encode_text("<|begin|><|begin|>", allow_special=True) == [256, 256]
    assert tokenizer.encode_text("<|end|>", allow_special=True) == [256, 257]
    assert tokenizer.begins_itself("<|begin|>a\ud800")
    assert not tokenizer.begins_itself("a<|begin|>") and not tokenizer.begins_itself("")


def test_a_vocabulary_without_a_beginning_has_none_to_spell_out(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_ids == ()
    assert not tokenizer.begins_itself("<|end|>")
    assert tokenizer.encode_text("<|end|>", allow_special=True) == [259]


def test_ids_that_no_token_has_are_known(tmp_path: Path) -> None:
    vocabularies.written(tmp_path)
    edit(tmp_path, added_tokens=[{"id": 259, "content": "<|end|>", "special": True}])
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.missing_ids, tokenizer.vocab_size) == ((256, 257, 258), 260)


def test_an_expression_that_tries_too_many_ways_is_a_value_error(tmp_path: Path) -> None:
    vocabularies.written(tmp_path, pre="llama-bpe")
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\s*\s*\s*\s*\s*(?!\S)b|\s|\S"}
    edit(tmp_path, pre_tokenizer=file["pre_tokenizer"])
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(" a") == [*b" a"]
    with pytest.raises(
        ValueError, match=r"pieces gave up on a piece of 3000 characters \(.*BacktrackLimitExceeded"
    ):
        tokenizer.encode(" " * 3000)
