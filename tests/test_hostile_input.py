"""Input that means something else than it seems to: refused by name, never taken for what it is not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import folders
import foreign
import numpy as np
import pytest
import traces

import entropix
from entropix import files, samplers, scoring
from entropix.checkpoint import chat_sandbox
from entropix.checkpoint.chat import ChatTemplate
from entropix.checkpoint.convert import convert
from entropix.checkpoint.loading import Model
from entropix.lab.experiments import file, variants
from entropix.lab.experiments.results import RESULTS, Store


@pytest.mark.parametrize(
    "prompt",
    [
        {"role": "user", "content": "hi"},
        b"hi",
        [b"hi"],
        {1, 2},
        ["abc", 5],
        ["abc", None],
        [np.array([1]), np.array(3)],
    ],
    ids=repr,
)
def test_what_is_no_prompt_is_not_taken_for_its_keys_or_bytes(toy_model: Model, prompt: Any) -> None:
    with pytest.raises(ValueError, match="a prompt must be a text, a list of messages"):
        entropix.generate(toy_model, prompt)


@pytest.mark.parametrize("texts", [5, None, {"text": "hi"}, b"hi", [1, 2], np.array([1, 2])], ids=repr)
def test_texts_are_several(toy_model: Model, texts: Any) -> None:
    with pytest.raises(ValueError, match=r"a list of texts or of lists of token ids, \[ids\] for one; got"):
        scoring.score(toy_model, texts)


def with_eos(folder: Path, eos: str) -> str:
    file = folders.write_checkpoint(folder) / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": eos}))
    return str(folder)


def test_an_end_that_is_a_plain_token_stops_and_one_that_is_none_is_named(tmp_path: Path) -> None:
    assert entropix.load(with_eos(tmp_path / "plain", "a")).stop_ids == (ord("a"), 258)
    with pytest.raises(ValueError, match=r"tokenizer_config.json: eos_token '<\|nope\|>' is no token"):
        entropix.load(with_eos(tmp_path / "none", "<|nope|>"))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            {"rope_type": "default", "type": "linear", "factor": 4.0},
            "rope_type 'default' and the type 'linear'",
        ),
        ({"factor": 8.0}, "has a factor, 8.0, but no type that scales by it"),
    ],
)
def test_a_scaling_that_contradicts_itself_is_refused(tmp_path: Path, scaling: Any, message: str) -> None:
    folder = folders.write_checkpoint(tmp_path / "toy")
    config = json.loads((folder / "config.json").read_text()) | {"rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        entropix.load(str(folder))


def test_a_filter_that_tests_each_item_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_sandbox, "SECONDS", 0.2)
    template = ChatTemplate("{% set s = range(99999)|list %}{{ s|select('in', s)|list|length }}")
    start = time.monotonic()
    with pytest.raises(ValueError, match="it takes more than"):
        template.render([{"role": "user", "content": "x"}])
    assert time.monotonic() - start < 20  # without the clock it takes minutes


def test_grids_beyond_any_use_are_counted_before_they_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text('prompts = ["a"]\nseeds = 1000000000\n[[samplers]]\nsampler = "greedy"\n')
    with pytest.raises(ValueError, match="seeds must be at most 1000000, got 1000000000"):
        file.read(path)
    sampler = samplers.resolve("entropix")
    axes = {name: [0.1 + i / 1000 for i in range(100)] for name in ("temp", "top_p", "min_p")}
    with pytest.raises(ValueError, match="1000000 combinations are more than 10000"):
        variants.expand(sampler, axes)


def test_a_line_of_results_that_lacks_a_field_is_named(tmp_path: Path) -> None:
    key = {"variant": "a", "prompt": 0, "seed": 0}
    with Store(tmp_path, {}, [key]):
        pass
    (tmp_path / RESULTS).write_text(json.dumps(key | {"finisch": "length"}) + "\n")
    with (
        pytest.raises(ValueError, match="line 1 has no finish as answers have it"),
        Store(tmp_path, {}, [key]),
    ):
        pass


def test_a_conversion_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    """The signal comes while a tensor is being written."""
    program = """
import os, signal, sys
from entropix import convert
from entropix.checkpoint.convert import folder
from entropix.console import cli
folder._cast = lambda *_: os.kill(os.getpid(), signal.SIGTERM) or __import__("time").sleep(9)
cli.leave(cli.run(lambda: convert.main(sys.argv[1:])))
"""
    source = folders.write_checkpoint(tmp_path / "toy")
    gguf = foreign.toy_gguf(tmp_path)
    words = [sys.executable, "-c", program, str(gguf), "--out-dir", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({gguf.name, source.name})


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("entropix.main", "--prompt", "hi", "--trace", "{folder}/new.jsonl"), ("entropix.replay", "{trace}")],
)
def test_a_signal_while_the_weights_are_loaded_is_told_and_leaves_nothing(tmp_path: Path, words: Any) -> None:
    program = """
import importlib, os, signal, sys, time
from entropix.checkpoint import load_weights
from entropix.console import cli
def load(*_):
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(30)
load_weights.load = load
command = importlib.import_module(sys.argv[1])
cli.leave(cli.run(lambda: command.main(sys.argv[2:])))
"""
    model = folders.write_checkpoint(tmp_path / "toy")
    trace = traces.write(tmp_path / "trace.jsonl", traces.tokens("ab"))
    before = sorted(tmp_path.iterdir())
    given = [word.format(folder=tmp_path, trace=trace) for word in words]
    line = [sys.executable, "-c", program, *given, "--weights", str(model)]
    began = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (128 + signal.SIGHUP, "interrupted"), (
        done.stderr
    )
    assert time.monotonic() - began < 25  # the weights are not waited for
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("place", ["/dev/null/x", "{file}/x"])
def test_a_folder_that_cannot_be_made_is_named_with_what_is_in_its_way(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = place.format(file=tmp_path / "file")
    above = Path(folder).parent
    with pytest.raises(
        ValueError, match=rf"^{above}: cannot be made a folder for weights .*; {above} is no folder; name"
    ):
        convert(foreign.toy_gguf(tmp_path), Path(folder))
    with pytest.raises(
        ValueError, match=rf"^{folder}: cannot be made a folder .*; {above} is no folder; name another"
    ):
        Store(folder, {}, [])
    with pytest.raises(
        ValueError, match=rf"{above} does not exist, that is something else; name another place"
    ):
        files.check_writable(folder, "a trace")


@pytest.mark.slow
def test_without_docstrings_the_commands_still_explain_themselves() -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "entropix.logprobs", "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and "usage: python -m entropix.logprobs" in done.stdout
