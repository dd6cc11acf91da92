"""Tasks of reasoning-gym, where it is installed."""

import importlib
from typing import Any

import pytest

from entropix.lab.tasks import DEV, HELD_OUT, Item, gym, resolve


class TestInstalled:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

    def test_items_of_splits_and_seeds(self) -> None:
        """Also at a level that has a hundred questions in all."""
        task = resolve(
            {"task": "reasoning-gym", "dataset": "products", "min_digits": 1, "max_digits": 1, "max_terms": 2}
        )
        splits = [task.items(0, 60, split) for split in (DEV, HELD_OUT)]
        asked = [{item.prompt[-1]["content"] for item in items} for items in splits]  # type: ignore[index]
        assert not asked[0] & asked[1] and all(20 < len(questions) <= 60 for questions in asked)
        assert task.items(0, 10) == task.items(0, 60)[:10] != task.items(1, 10)
        shown = {turn["content"] for turn in splits[0][0].prompt[:-1]}  # type: ignore[union-attr, index]
        assert len(splits[0][0].prompt) == 9 and not shown & (asked[0] | asked[1])
        with pytest.raises(ValueError, match="say how many items are wanted"):
            task.items(0, None)

    def test_only_full_marks_count(self) -> None:
        task = resolve("reasoning-gym:letter_counting")
        item = next(item for item in task.items(0, 20) if len(item.answers[0]) == 1)
        right = item.answers[0]
        for text in (
            right,
            f"It is {right}.",
            f"<answer>{right}</answer>",
            f"I count 7.\nThe answer is: {right}",
        ):
            assert task.score(item, text) == 1, text
        assert [task.score(item, text) for text in ("", f"{right}0", f"{right} or 11", "some")] == [
            0,
            0,
            0,
            0,
        ]

    def test_what_it_refuses_is_told(self) -> None:
        with pytest.raises(ValueError, match=r"reasoning-gym: dataset 'letters'.*not registered"):
            resolve("reasoning-gym:letters")
        with pytest.raises(ValueError, match=r"'letter_counting' with .*'min_words': 9"):
            resolve({"task": "reasoning-gym", "dataset": "letter_counting", "min_words": 9, "max_words": 1})


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    gym._dataset.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'entropix-jax\[tasks\]'"):
        resolve("reasoning-gym:letter_counting")


def test_an_answer_is_the_marked_one_or_the_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.Gym, "__post_init__", lambda self: None)
    task = gym.Gym("any")
    words, number = (Item("i", "?", data={"is_number": is_number}) for is_number in (False, True))
    assert task.extract(words, "  True.\nBecause") == "True"
    assert task.extract(words, "So the answer is **Anna**.") == "Anna"
    assert task.extract(words, "<answer> a b </answer> c") == "a b"
    assert task.extract(number, "2 times 3 is 1,006.") == "1006"
    assert task.extract(number, "none") == "none" and task.extract(number, " \n") is None
