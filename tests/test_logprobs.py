"""OpenAI-style logprobs: against one written by hand, and on a real trace's shapes."""

import json
from pathlib import Path
from typing import Any

import pytest

from entropix.console import cli
from entropix.logprobs import convert, main
from entropix.results import FinishReason, Result
from entropix.trace import Trace

HEADER = {"model": {"name": "toy"}}


def token(text: str, data: list[int], logprob: float | None, **more: Any) -> dict[str, Any]:
    return {"id": 0, "text": text, "bytes": data, "logprob": logprob, "margin": 0.5, **more}


# The euro sign in two tokens, then a stop token; then a row that was cut short.
STOPPED = Result(
    prompt_ids=[1, 2, 3],
    text="€",
    token_ids=[7, 8, 9],
    records=[
        token(
            "\ufffd",
            [0xE2, 0x82],
            -0.5,
            alternatives=[
                {**token("\ufffd", [0xE2, 0x82], -0.5), "draw_logprob": -0.1},
                {**token("$", [0x24], None), "draw_logprob": None},
            ],
        ),
        token("\ufffd", [0xAC], -0.25, alternatives=[]),
        token("<end>", [60, 101, 110, 100, 62], -0.125, alternatives=[]),
    ],
    finish=FinishReason.STOP_TOKEN,
)
CUT = Result(
    prompt_ids=[4], text="a", token_ids=[5], records=[token("a", [97], None)], finish=FinishReason.INTERRUPTED
)


def test_it_is_the_completion_written_by_hand() -> None:
    completion = convert(Trace(HEADER, [STOPPED, CUT]))
    assert completion.pop("id").startswith("chatcmpl-")
    assert completion == {
        "object": "chat.completion",
        "created": 0,
        "model": "toy",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "€", "refusal": None},
                "logprobs": {
                    "content": [
                        {
                            "token": "\ufffd",
                            "logprob": -0.5,
                            "bytes": [0xE2, 0x82],
                            "top_logprobs": [
                                {"token": "\ufffd", "logprob": -0.5, "bytes": [0xE2, 0x82]},
                                {"token": "$", "logprob": -9999.0, "bytes": [0x24]},
                            ],
                        },
                        {"token": "\ufffd", "logprob": -0.25, "bytes": [0xAC], "top_logprobs": []},
                    ],
                    "refusal": None,
                },
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "a", "refusal": None},
                "logprobs": {
                    "content": [{"token": "a", "logprob": -9999.0, "bytes": [97], "top_logprobs": []}],
                    "refusal": None,
                },
                "finish_reason": "length",
            },
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8},
    }


def test_the_bytes_of_all_tokens_make_the_text() -> None:
    [choice, _] = convert(Trace(HEADER, [STOPPED, CUT]))["choices"]
    data = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
    assert data.decode() == choice["message"]["content"] == "€"


@pytest.mark.parametrize(("text", "data"), [("é", [0xC3, 0xA9]), ("\ufffd", None)])
def test_a_trace_without_bytes_gives_those_of_the_text_where_it_shows_them(
    text: str, data: list[int] | None
) -> None:
    result = Result([1], text, [2], [{"id": 2, "text": text, "logprob": -1.0}], FinishReason.LENGTH)
    [choice] = convert(Trace(HEADER, [result]))["choices"]
    assert choice["logprobs"]["content"][0]["bytes"] == data


@pytest.mark.parametrize("finish", list(FinishReason)[1:])
def test_every_end_has_a_reason_that_the_format_knows(finish: FinishReason) -> None:
    result = Result([1], "", [], [], finish)
    [choice] = convert(Trace(HEADER, [result]))["choices"]
    assert choice["finish_reason"] == (
        "stop" if finish in (FinishReason.STOP_TOKEN, FinishReason.STOP_STRING) else "length"
    )


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The name of a file that reads as a trace of the two results."""
    monkeypatch.setattr("entropix.trace.read", lambda path: Trace(HEADER, [STOPPED, CUT]))
    return tmp_path / "trace.jsonl"


def test_it_goes_to_stdout_or_into_a_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = path.with_name("out.json")
    assert cli.run(lambda: main([str(path)])) == 0
    assert cli.run(lambda: main([str(path), "-o", str(out)])) == 0
    printed, said = capsys.readouterr()
    assert out.read_text(encoding="utf-8") == printed
    assert json.loads(printed) == convert(Trace(HEADER, [STOPPED, CUT]))
    assert said == f"{out}: the logprobs of {path}\n"
    assert list(path.parent.iterdir()) == [out]


def test_an_unwritable_file_is_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: main([str(path), "-o", str(path.parent / "no" / "out.json")])) == 1
    assert "out.json: cannot write JSON there, the folder" in capsys.readouterr().err


def test_the_trace_itself_is_not_written_over(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text("a trace")
    assert cli.run(lambda: main([str(path), "-o", str(path)])) == 1
    assert "is read from and would be lost" in capsys.readouterr().err
    assert path.read_text() == "a trace"


def test_what_is_no_trace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: main([str(tmp_path / "none.jsonl")])) == 1
    assert "none.jsonl: no such file" in capsys.readouterr().err
