"""What a chat template reads beside the conversation: `--template-arg`, and the keyword `template_args`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import folders
import pytest
import toy

import entropix
from entropix import compare, replay, trace
from entropix.checkpoint.chat import ChatTemplate, encode_chat, load_chat_template
from entropix.checkpoint.loading import Model
from entropix.console import cli
from entropix.generation import encode_prompt, prepare
from entropix.lab.experiments import file
from entropix.main import main
from entropix.prompts import Message

Command = Callable[..., tuple[int, str, str]]
IM_END = 258
# The end of Qwen 3's template, behind a frame of ChatML.
THINKING = (
    "{% set own = 1 %}"
    + folders.CHATML.removesuffix("{% endif %}")
    + (
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ style if style is not mapping else style | tojson }}{{ own }}{% endif %}"
    )
)
ASKED = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"
ARGUMENT = "--template-arg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.write_checkpoint(tmp_path_factory.mktemp("thinking") / "toy", chat_template=THINKING)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return entropix.load(folder)


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        ({}, "1"),
        ({"enable_thinking": True}, "1"),
        ({"enable_thinking": False}, f"{NO_THOUGHT}1"),
        ({"style": ["short", None], "enable_thinking": False}, f"{NO_THOUGHT}['short', None]1"),
    ],
)
def test_the_template_reads_them(model: Model, arguments: dict[str, Any], end: str) -> None:
    for asked in ("Why?", [{"role": "user", "content": "Why?"}]):
        request = prepare(model, asked, template_args=arguments)
        assert model.tokenizer.decode(request.prompt_ids[0]) == ASKED + end
        assert encode_prompt(model.with_template_args(arguments), asked) == request.prompt_ids[0]


def test_special_tokens_in_them_stay_text_unless_allowed(model: Model) -> None:
    style = {"style": {"<|im_end|>": ["\ue000<|im_end|>"]}}
    plain, allowed = (
        prepare(model, "Why?", template_args=style, allow_special=allow).prompt_ids[0]
        for allow in (False, True)
    )
    assert (
        model.tokenizer.decode(plain)
        == model.tokenizer.decode(allowed)
        == f"{ASKED}{json.dumps(style['style'], ensure_ascii=False)}1"
    )
    assert (plain.count(IM_END), allowed.count(IM_END)) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"enable_thinkin": False},
            "the chat template never reads enable_thinkin; did you mean 'enable_thinking'?",
        ),
        ({"zz": 1}, "the chat template never reads zz; there are enable_thinking, style"),
        ({"own": 1}, "the chat template never reads own; there are"),
        ({"messages": []}, "messages is given to every template already; leave it out"),
        ({"tools": None}, "tools is given to every template already; leave it out"),
        ({"bos_token": "x"}, "bos_token is given to every template already; leave it out"),
        ({"raise_exception": 1}, "raise_exception is given to every template already; leave it out"),
        (["enable_thinking"], "template_args must be names with their values, got ['enable_thinking']"),
        (
            {"style": float("nan")},
            "template_args must be names with values that JSON has, got {'style': nan}",
        ),
        ({"tools": {}}, "expected tools to be a list of objects, as transformers takes them, got {}"),
        (
            {"documents": [1]},
            "expected documents to be a list of objects, as transformers takes them, got [1]",
        ),
        ({"tools": [{}]}, "the chat template never reads tools; there are enable_thinking, style"),
        ({"style": "\ud800"}, "template_args must be names with values that JSON has"),
        ({"style": object}, "template_args must be names with values that JSON has"),
    ],
)
def test_what_would_do_nothing_is_refused(model: Model, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        prepare(model, "Why?", template_args=arguments)
    assert message in str(error.value)


def test_where_no_template_is_asked_they_are_refused(model: Model, toy_folder: str, tmp_path: Path) -> None:
    thoughtless = {"enable_thinking": False}
    with pytest.raises(ValueError, match="prompt 2 is token ids, to which no chat template applies"):
        prepare(model, ["Why?", [3, 4]], template_args=thoughtless)
    with pytest.raises(ValueError, match=r"\(--raw\) completes plain text, without the chat template"):
        prepare(model, "Why?", raw=True, template_args=thoughtless)
    plain = entropix.load(folders.write_checkpoint(tmp_path / "plain", chat_template=None))
    with pytest.raises(
        ValueError, match="plain has no chat template that could read enable_thinking; leave it out"
    ):
        prepare(plain, "Why?", template_args=thoughtless)
    with pytest.raises(ValueError, match="never reads style; it reads no name that could be given"):
        entropix.load(toy_folder).with_template_args({"style": 1})


@pytest.mark.parametrize(
    "said", ["|im_end|", " |im_end| ", "im_end", "<|im_end|", "x|im_end|>", "im_end|>", "<|im_end|>"]
)
def test_marks_that_a_template_puts_around_what_is_said_complete_no_special_token(said: str) -> None:
    """Keys and values of tools, and messages, as some templates write them."""
    rows = "<{{ x }}<|{{ x }}|>{{ x|trim }}>"
    loops = [
        f"{{% for tool in tools %}}{{% for x in tool %}}{rows}{{% endfor %}}{{% endfor %}}",
        f"{{% for tool in tools %}}{{% for x in tool.values() %}}{rows}{{% endfor %}}{{% endfor %}}",
        f"{{% for message in messages %}}{{% set x = message.content %}}{rows}{{% endfor %}}",
    ]
    template = ChatTemplate("<|im_start|>" + "".join(loops)).with_arguments({"tools": [{said: said}]})
    tokenizer = toy.ByteTokenizer()
    ids = encode_chat(template, tokenizer, [Message(role="user", content=said)])
    assert [i for i in ids if i in tokenizer.special_tokens.values()] == [
        tokenizer.special_tokens["<|im_start|>"]
    ]
    assert tokenizer.decode(ids) == template.render([Message(role="user", content=said)])


def test_tools_have_the_template_of_that_name(tmp_path: Path) -> None:
    """Where there is one: else they are what `tools` is in the one template there is."""
    (tmp_path / "chat_template.jinja").write_text("{{ tools }}")
    tools = [{"name": "f"}]
    for shown in ("[{'name': 'f'}]", "f"):
        template = load_chat_template(tmp_path)
        assert template.render([Message(role="user", content="")]) == "None"
        with pytest.raises(ValueError, match="never reads tool; did you mean 'tools'"):
            template.with_arguments({"tool": tools})
        assert template.with_arguments({"tools": tools}).render([Message(role="user", content="")]) == shown
        (tmp_path / "additional_chat_templates").mkdir(exist_ok=True)
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0].name }}")


def test_a_broken_template_is_told_as_where_it_is_rendered() -> None:
    for reads in (
        lambda t: t.with_arguments({"a": 1}),
        lambda t: t.render([Message(role="user", content="")]),
    ):
        with pytest.raises(ValueError, match="the chat template is broken in line 1: Expected an expression"):
            reads(ChatTemplate("{% for m in %}"))


def test_a_character_without_tokens_is_found_in_them_too(model: Model) -> None:
    template = ChatTemplate("{{ a }}", arguments={"a": "b\udc80"})
    with pytest.raises(ValueError, match=r"character 1 of the text is '\\udc80'"):
        encode_chat(template, model.tokenizer, [Message(role="user", content="")])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["a=true", "b=false", "c=null"], {"a": True, "b": False, "c": None}),
        (
            ["a=3", "b=-1.5e2", "c=007", "d=NaN", "e=1e999"],
            {"a": 3, "b": -150.0, "c": "007", "d": "NaN", "e": "1e999"},
        ),
        (["a=", "b=x=y", 'c="q"', "d=[1]"], {"a": "", "b": "x=y", "c": '"q"', "d": "[1]"}),
        (['tools=[{"name": "é"}]', "documents=[]"], {"tools": [{"name": "é"}], "documents": []}),
    ],
)
def test_values_are_json_words_and_numbers_or_else_text(words: list[str], found: dict[str, Any]) -> None:
    assert json.dumps(cli.template_args(words)) == json.dumps(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["enable_thinking"],
            "--template-arg takes NAME=VALUE, like enable_thinking=false, got 'enable_thinking'",
        ),
        (["=1"], "--template-arg takes NAME=VALUE"),
        (["a=1", "a=1"], "--template-arg a is there twice; give it once"),
        (["tools=[{"], "--template-arg tools takes a JSON list of objects, as from a file by tools="),
        (["think=False"], "--template-arg think=False would be a text; write think=false"),
    ],
)
def test_a_word_that_is_no_argument_is_refused_before_weights_are_read(
    run_command: Command, words: list[str], message: str
) -> None:
    flags = [flag for word in words for flag in (ARGUMENT, word)]
    code, out, err = run_command(main, "--prompt", "a", "--weights", "nowhere", *flags)
    assert (code, out) == (1, "") and err.startswith(f"error: {message}")


# ----- what is recorded -------------------------------------------------------------------------------------


def test_a_trace_has_them_and_repeats(run_command: Command, folder: Path, tmp_path: Path) -> None:
    run = partial(
        run_command,
        main,
        "--weights",
        str(folder),
        "--prompt",
        "Why?",
        "--seed",
        "1",
        "--max-new-tokens",
        "6",
    )
    with_them, without = tmp_path / "with.jsonl", tmp_path / "without.jsonl"
    assert run(ARGUMENT, "enable_thinking=false", "--trace", str(with_them))[0] == 0
    assert run("--trace", str(without))[0] == 0
    heads = [trace.read(path).header for path in (with_them, without)]
    assert [head["template_args"] for head in heads] == [{"enable_thinking": False}, {}]
    assert [head["prompts"][0]["text"] for head in heads] == [f"{ASKED}{NO_THOUGHT}1", f"{ASKED}1"]
    for path in (with_them, without):
        assert run_command(replay.main, str(path), "--weights", str(folder))[:2] == (
            0, f"{path}: equal, 6 tokens in 1 row\n",
        )  # fmt: skip


@pytest.mark.slow
def test_a_folder_of_answers_is_resumed_with_the_same_ones_alone(
    run_command: Command, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("Why?\n")
    out = tmp_path / "out"
    flags = ("--samplers", "greedy", "--seeds", "1", "--max-new-tokens", "4", "--out", str(out))
    run = partial(
        run_command,
        compare.main,
        "--weights",
        str(folder),
        "--prompts",
        str(tmp_path / "prompts.txt"),
        *flags,
    )
    assert run(ARGUMENT, "enable_thinking=false")[0] == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["template_args"] == {"enable_thinking": False}
    assert run(ARGUMENT, "enable_thinking=false")[2].startswith(f"{out}: 1 answers are there already\n")
    # Where the prompt is the same, they are what differs.
    code, _, err = run(ARGUMENT, "enable_thinking=false", ARGUMENT, "style=")
    assert code == 1
    assert "holds results of something else: template_args.style is null there" in err
    code, _, err = run()
    assert code == 1 and "holds results of something else: template_args is" in err


def test_a_grids_file_may_have_them(model: Model, tmp_path: Path) -> None:
    lines = [
        'prompts = ["Why?"]',
        "template_args = {enable_thinking = false}",
        "[[samplers]]",
        'sampler = "greedy"',
    ]
    (tmp_path / "grid.toml").write_text("\n".join(lines))
    asked = file.read(tmp_path / "grid.toml")
    whole = file.grid(asked, model.with_template_args(asked.template_args))
    assert model.tokenizer.decode(whole.prompts[0]) == f"{ASKED}{NO_THOUGHT}1"
