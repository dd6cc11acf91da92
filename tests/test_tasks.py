"""Tasks: what is asked, what counts as right, and that development and held-out items have nothing in common."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pages
import pytest

from entropix import presets
from entropix.lab import questions
from entropix.lab.questions import Question
from entropix.lab.tasks import DEV, HELD_OUT, SPLITS, Item, Task, digest, generated, known, resolve
from entropix.lab.tasks.base import chosen, first_words
from entropix.lab.tasks.openings import measured
from entropix.lab.tasks.sets import Sets
from entropix.lab.tasks.word_problems import final_number

SHIPPED = ("questions", "other-questions", "fresh-questions", "sets", "instructions", "open")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_task_keeps_the_contract(name: str) -> None:
    task = resolve(name)
    assert isinstance(task, Task) and task.name == name and name in known()
    splits = {split: task.items(0, None, split) for split in SPLITS}
    for items in splits.values():
        assert (
            len({item.id for item in items}) == len({str(item.prompt) for item in items}) == len(items) >= 10
        )
        for item in items[:50]:
            assert json.loads(json.dumps(item.data)) == item.data
            score = task.score(item, "Some text.")
            assert score in (0, 1) if task.is_closed else score is None
            assert task.extract(item, "") is None
    for part in ("id", "prompt"):
        assert not {getattr(i, part) for i in splits[DEV]} & {getattr(i, part) for i in splits[HELD_OUT]}
    assert digest(splits[DEV]) == digest(task.items(7, None)) != digest(splits[HELD_OUT])
    assert task.items(3, 10) == task.items(3, 20)[:10] != task.items(4, 10)
    with pytest.raises(ValueError, match="a split that is dev or held-out, got 'test'"):
        task.items(0, 1, "test")


def test_there_are_enough_questions_and_none_that_numbers_were_chosen_by() -> None:
    task = resolve("questions")
    dev, held_out = task.items(0, None), task.items(0, None, HELD_OUT)
    assert len(dev) >= 300 and len(held_out) >= 400
    seen = {q.prompt for path in presets.shipped("questions").glob("*.jsonl") for q in questions.read(path)}
    assert len(seen) == 110 and not seen & {str(item.prompt) for item in [*dev, *held_out]}
    asked = {
        str(item.prompt) for split in SPLITS for item in resolve("other-questions").items(0, None, split)
    }
    asked |= seen | {str(item.prompt) for item in [*dev, *held_out]}
    fresh = [
        str(item.prompt) for split in SPLITS for item in resolve("fresh-questions").items(0, None, split)
    ]
    assert len(fresh) == 835 and not asked & {*fresh}
    facts = [{item.data["fact"] for item in items} for items in (dev, held_out)]
    assert not facts[0] & facts[1]  # also not asked the other way round


def test_repeating_a_question_does_not_answer_it() -> None:
    for name in ("questions", "other-questions", "fresh-questions"):
        task = resolve(name)
        for item in task.items(0, None) + task.items(0, None, HELD_OUT):
            if "choices" not in item.data:
                assert task.score(item, str(item.prompt)) == 0, item
            for answer in item.answers:
                assert task.score(item, f"I think it is {answer}.") == 1, item
                assert task.extract(item, f"It is {answer}!") == task.extract(item, answer) is not None


def test_generated_questions_have_the_answers_that_python_has() -> None:
    made = {question.prompt: question.answers for question in generated.questions()}
    for prompt, answers in made.items():
        if found := re.fullmatch(r"What is (\d+) (\+|-|times) (\d+)\?", prompt):
            sign = found[2].replace("times", "*")
            assert answers[0] == str(eval(f"{found[1]} {sign} {found[3]}"))
        elif found := re.fullmatch(r'How many letters are in the word "(\w+)"\?', prompt):
            assert answers[0] == str(len(found[1]))
        elif found := re.fullmatch(r"What number comes next: (.*)\?", prompt):
            numbers = [*map(int, found[1].split(", ")), int(answers[0])]
            assert len({b - a for a, b in itertools.pairwise(numbers)}) == 1
    assert [generated.in_words(n) for n in (0, 13, 20, 42, 99)] == [
        "zero", "thirteen", "twenty", "forty-two", "ninety-nine",
    ]  # fmt: skip
    assert made["What number comes next: 8, 18, 28, 38?"] == ("48", "forty-eight", "forty eight")
    assert made["Which month comes right before January?"] == ("December",)


def test_of_choices_the_first_one_counts() -> None:
    task = resolve({"task": "other-questions", "kinds": ["kinds"]})
    item = next(item for item in task.items(0, None) if item.answers == ("tool",))
    assert task.score(item, "It is a tool, not an animal.") == 1
    assert task.score(item, "An animal? No, a tool.") == 0
    assert task.extract(item, "An animal? No, a tool.") == "animal"


def test_what_votes_are_counted_by_does_not_know_what_is_right() -> None:
    """An answer is found alike whichever question of its kind, or set, was asked; wrong answers can agree too."""
    task = resolve({"task": "questions", "kinds": ["capitals"]})
    malta, *others = task.items(0, None)
    text = f"The capital is {others[0].answers[0]}, not {others[1].answers[0]}."
    assert {task.extract(item, text) for item in (malta, *others[2:9])} == {others[0].answers[0]}
    assert task.extract(malta, "A city by the sea. It is large.") == "a city by the sea"
    sets = resolve("sets")
    items = sets.items(0, None)
    assert {sets.extract(item, "One planet is MARS, beside Venus.") for item in items} == {"Mars"}
    assert {sets.extract(item, "The Sun.\nMars is one.") for item in items} == {"the sun"}


def test_sets_are_right_where_any_member_is_named_first() -> None:
    task = resolve("sets")
    assert isinstance(task, Sets)
    items = {item.id: item for item in task.items(0, None) + task.items(0, None, HELD_OUT)}
    assert len({item.kind for item in items.values()}) >= 24
    planet, country, code, prime = (
        items[f"{kind}-0"] for kind in ("planets", "european_countries", "programming_languages", "primes")
    )
    assert planet.prompt == "Name a planet of our solar system."
    assert task.member(planet, "One planet is MARS, beside Venus.") == "Mars"
    assert task.score(planet, "The Sun.\nMars is one.") == 0
    assert task.member(country, "the  UK") == task.member(country, "Great Britain") == "United Kingdom"
    assert [task.member(code, text) for text in ("C++ is one", "c#", "a language", "C.")] == [
        "C++",
        "C#",
        None,
        "C",
    ]
    assert [task.member(prime, text) for text in ("17", "171", "91")] == ["17", None, None]
    birds = items["birds-0"]
    assert [task.member(birds, text) for text in ("Eagles", "geese", "eaglet", "A penguin")] == [
        "eagle", "goose", None, "penguin",
    ]  # fmt: skip
    assert task.coverage(planet, ["Mars", "mars!", "Venus", "Sun"]) == 2 / 4
    assert task.coverage(planet, ["Mars"] * 20) == 1 / 8
    for item in items.values():
        for member in item.answers:
            for name in member.split("/"):
                assert task.member(item, f"It is {name}.") == member.split("/")[0], (item.kind, name)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("one-word", "Waves!", "The waves"),
        ("capitals", "THE SEA IS 3 MILES DEEP.", "THE SEA IS deep."),
        ("small-letters", "the sea.", "The sea."),
        ("list", "Facts:\n1. a\n2. b\n3. c", "- a\n- b"),
        ("no-e", "A dog runs.", "The dog runs."),
        ("one-sentence", "It is wide.", "It is wide. It is deep."),
        ("two-sentences", "It is wide. It is deep!", "It is wide."),
        ("few-words", "one two three four five six seven eight nine ten", "a b c d e f g h i j k"),
        ("question", "What is it?", "What is it? Tell me."),
        ("no-comma", "It is wide. So.", "It is wide, so."),
        ("quoted", '"It is wide."', 'It is "wide".'),
        ("json", '```json\n{"answer": 1}\n```', '["answer"]'),
    ],
)
def test_instructions_are_checked(kind: str, right: str, wrong: str) -> None:
    task = resolve({"task": "instructions", "kinds": [kind]})
    item = task.items(0, 1)[0]
    assert (task.score(item, right), task.score(item, wrong), task.score(item, "")) == (1, 0, 0)


def test_words_that_an_instruction_names_are_looked_for() -> None:
    task = resolve({"task": "instructions", "kinds": ["mention", "begin"]})
    for item in task.items(0, None):
        word = item.data["word"]
        assert f'"{word}"' in str(item.prompt)
        assert task.score(item, f"{word.capitalize()}, it is.") == 1
        assert task.score(item, f"It is {word}ish.") == 0
        assert task.score(item, f"It is {word}.") == (item.kind == "mention")


def test_open_texts_are_measured() -> None:
    found = measured([[1, 2, 3, 4] * 6, list(range(20))], [False, True])
    assert (found["length"], found["ended"], found["loops"]) == (22, 0.5, 0.5)
    assert found["repetition"] == pytest.approx((17 / 21 + 0) / 2)
    assert measured([], [])["self_bleu"] is None


def test_kinds_take_turns() -> None:
    items = [Item(f"{kind}{i}", "?", kind) for kind, n in (("a", 5), ("b", 2)) for i in range(n)]
    assert Counter(item.kind for item in chosen(items, 1, 4)) == {"a": 2, "b": 2}
    assert sorted(chosen(items, 1, None)) == sorted(items)
    assert first_words('\n "Paris" is it. Yes.\n') == 'paris" is it'


# ----- files of one's own -----------------------------------------------------------------------------------


def test_word_problems_are_right_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [
        {"question": f"How many? {i}", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1:,}"}
        for i in range(995, 1015)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = resolve(f"word-problems:{path}")
    items = task.items(0, None) + task.items(0, None, HELD_OUT)
    assert {item.answers for item in items} == {(str(i + 1),) for i in range(995, 1015)}
    item = next(item for item in items if item.answers == ("1000",))
    texts = (
        "so\n#### 1,000",
        "#### $1000.00 for 3",
        "The answer is: 1000. 7",
        "1 + 999 = 1000",
        "#### 999, not 1000",
    )
    assert [task.score(item, text) for text in texts] == [1, 1, 1, 1, 0]
    assert final_number("no number") is None and final_number("-.50") == "-0.5" == final_number("−0.5")
    with pytest.raises(ValueError, match=r"is in .* too; remove it from one of the two"):
        resolve({"task": "word-problems", "dev": str(path), "held_out": str(path)})
    path.write_text('{"question": "How many?", "answer": "none"}\n')
    with pytest.raises(ValueError, match=r'line 1: expected {"question"'):
        resolve(f"word-problems:{path}")


def test_questions_of_files_are_divided(tmp_path: Path) -> None:
    shipped = str(presets.shipped("questions/plain.jsonl"))
    task = resolve(f"questions:{shipped}")
    assert len(task.items(0, None)) + len(task.items(0, None, HELD_OUT)) == 40
    two = resolve(
        {"task": "questions", "dev": shipped, "held_out": shipped.replace("plain", "plain-held-out")}
    )
    assert (len(two.items(0, None)), len(two.items(0, None, HELD_OUT))) == (40, 40)
    with pytest.raises(ValueError, match=r"is in .* too; remove it"):
        resolve({"task": "questions", "dev": shipped, "held_out": shipped})


OWN = """
from entropix.lab.tasks import Item

class Echo:
    name, max_new_tokens, is_closed = "echo", 4, True
    def items(self, seed, n, split="dev"):
        return [Item(f"{split}-{i}", f"Say {i}.") for i in range(n or 3)]
    def extract(self, item, text):
        return text or None
    def score(self, item, text):
        return float(text in item.prompt)

TASK = Echo()
BAD = Echo()
BAD.name = 3
"""


def test_a_task_of_ones_own_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(OWN)
    for task in (resolve("t.py:TASK", tmp_path), resolve({"task": "t.py:TASK"}, tmp_path)):
        assert (task.name, task.score(task.items(0, 1)[0], "0")) == ("echo", 1)
    assert resolve(task) is task


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("t.py:TASKS", "there is no 'TASKS' in it; did you mean 'TASK'\\?"),
        ("t.py:Echo", "Echo: expected a Task, got the class Echo"),
        ("t.py:Item", "Item: expected a Task, got the class Item"),
        ("t.py:BAD", "name must be of the type str, got 3"),
        ("t.py", "say which task of the file is meant, like"),
        ("question", "unknown task 'question'; did you mean 'questions'\\? There are questions,"),
        ("open:x", "task open takes nothing behind a colon, got 'open:x'"),
        ({"task": "sets", "pth": "x"}, "task sets: unknown key 'pth'; did you mean 'path'"),
        ({"task": "sets", "path": 5}, "task sets: path must be the name of a file, got 5"),
        ({"task": "word-problems"}, "task word-problems: dev is missing, the name of a file"),
        ({"task": "instructions", "kinds": 0}, "task instructions: kinds must be a list of texts, got 0"),
        ({"task": "questions", "held_out": "x.jsonl"}, "held_out goes with dev"),
        ({"task": "questions", "dev": "x.jsonl", "kinds": ["a"]}, "kinds are of the shipped questions"),
        (
            {"task": "reasoning-gym", "dataset": "x", "examples": -1},
            "examples must be a whole number from 0 to 64",
        ),
        ({"task": ["sets"]}, r"unknown task \['sets'\]; there are"),
        ({"task": "questions", "kinds": ["x"]}, "no questions of the kind 'x'; there are "),
        ({"task": "instructions", "kinds": ["x"]}, "no instruction 'x'; there are one-word,"),
        ({"tsk": "sets"}, "unknown task None; there are"),
        ("sets:s.toml", r's.toml: \[a\]: expected split = "dev" or "held-out"'),
    ],
)
def test_what_is_no_task_is_told_in_a_sentence(
    named: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.py").write_text(OWN)
    (tmp_path / "s.toml").write_text('[a]\nwhat = "x"\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        resolve(named)


def test_the_task_of_the_page_is_one(tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text(pages.files("docs/tasks.md")["my_task.py"])
    task = resolve("my_task.py:TASK", tmp_path)
    dev, held_out = task.items(0, None), task.items(0, None, HELD_OUT)
    assert len(dev) + len(held_out) == 57 and not {item.id for item in dev} & {item.id for item in held_out}
    assert [task.score(dev[0], f"It is {answer}.") for answer in (*dev[0].answers, "7")] == [1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "\\ud800?", "answers": ["a"]}', 'expected {"prompt"'),
        ('{"prompt": "", "answers": ["a"]}', 'expected {"prompt"'),
        ('{"prompt": "a?", "answers": [{"text": "a"}]}', 'expected {"prompt"'),
        ('{"prompt": "a?", "answers": [true]}', 'expected {"prompt"'),
        ('{"prompt": "a?", "answers": ["a"], "kind": ["x"]}', r"kind must be a text, got \['x'\]"),
        (
            '{"prompt": "a?", "answers": ["a"], "choices": "a, b"}',
            "choices must be a list of texts .*, got 'a, b'",
        ),
        ('{"prompt": "a?", "answers": ["c"], "choices": ["a", "b"]}', "with all answers among them"),
    ],
)
def test_a_question_of_odd_types_is_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    """Choices that are one text would be its letters; an answer that is none of them could never be right."""
    (tmp_path / "q.jsonl").write_text(f'{{"prompt": "b?", "answers": ["b", 2]}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"q\.jsonl: line 2: .*{message}"):
        questions.read(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl").write_text('{"prompt": "b?", "answers": ["b", 2], "choices": ["b", 2, "c"]}\n')
    assert questions.read(tmp_path / "q.jsonl") == [Question("b?", ("b", "2"), "", ("b", "2", "c"))]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return float(text in item.prompt)", "return 7.0", "score must be from 0 to 1, or None, got 7.0"),
        ("return float(text in item.prompt)", "return float('nan')", "score must be from 0 to 1, or None, got nan"),
        ("return float(text in item.prompt)", "return 'yes'", "score must be from 0 to 1, or None, got 'yes'"),
        ("return text or None", "return [text]", r"extract must be a text or None, got \['0'\]"),
        ('f"{split}-{i}", f', '"same", f', "items: two of them have the id 'same'; give each its own"),
        ('f"{split}-{i}", f', "i, f", r"items must be of ids and kinds that are texts, got \(0, ''\)"),
        ('Item(f"{split}-{i}", f"Say {i}.")', 'f"Say {i}."', "items must be a list of Item, got 'Say 0.'"),
        ('f"Say {i}.")', 'f"Say {i}.", data={"a": object()})', "items must be of data that JSON has"),
        ('= "echo", 4', '= "echo", 0', "max_new_tokens must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_a_task_of_ones_own_is_held_to_the_contract(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Items of one id would be answered as one, and a share of 7 is none."""
    assert old in OWN
    (tmp_path / "t.py").write_text(OWN.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"^t\.py:TASK: {message}"):
        task = resolve("t.py:TASK", tmp_path)
        item, _ = task.items(0, 2)
        task.extract(item, "0")
        task.score(item, "0")


def test_what_a_task_has_beyond_the_contract_is_still_there(tmp_path: Path) -> None:
    more = "    def coverage(self, item, texts):\n        return 0.5\n"
    scored = "import numpy\n" + OWN.replace("return float(text in", "return numpy.bool_(text in")
    (tmp_path / "t.py").write_text(scored.replace("\nTASK =", f"{more}\nTASK =", 1))
    task: Any = resolve("t.py:TASK", tmp_path)
    score = task.score(task.items(0, 1)[0], "0")
    assert (score, type(score), task.coverage(None, [])) == (1.0, float, 0.5)
    assert getattr(resolve({"task": "t.py:TASK"}, tmp_path), "nothing", None) is None
