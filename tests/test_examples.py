"""The examples run, on the toy as on any model, and are short."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def load(name: str) -> ModuleType:
    [path] = [path for path in EXAMPLES if path.stem == name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_read_in_a_minute(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


@pytest.mark.slow
def test_the_metrics_of_an_answer_become_a_picture(toy_folder: str, tmp_path: Path) -> None:
    path = tmp_path / "answer.png"
    result = load("metrics_of_an_answer").main(str(path), name_or_folder=toy_folder)
    assert len(result.to_dataframe()) == len(result.token_ids) > 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_attention_of_a_sentence_is_printed_token_by_token(
    toy_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entropy_LNT = load("attention_of_a_sentence").main("Paris", name_or_folder=toy_folder)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 5
    n_keys_T = np.arange(1, 6)
    assert (entropy_LNT >= 0).all() and (entropy_LNT <= np.log2(n_keys_T) + 1e-4).all()


@pytest.mark.slow
def test_a_rule_of_ones_own_answers_beside_two_built_in_ones(toy_folder: str) -> None:
    answers = load("my_rule").main(n=6, name_or_folder=toy_folder)
    assert list(answers) == ["careful", "min-p", "greedy"]
    assert answers["careful"] == answers["greedy"] != answers["min-p"]  # the toy's tokens are always close
