"""What the report says and draws of forks, of tokens taken back, and of several paths from one prompt."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import traces
from chromium import Watched
from playwright.sync_api import Browser, Page
from report_pages import TEXTS, focused, opened, settle, tokens

from entropix import trace
from entropix.config import BranchConfig
from entropix.cot import selection
from entropix.report import page as report_page
from entropix.report import tree
from entropix.trace import Trace

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=\"document.title='caught'\">"


def read(folder: Path, *rows: list[dict[str, Any]], **header: Any) -> Trace:
    return trace.read(traces.write(folder / "t.jsonl", *rows, **header))


# ----- why the winner won -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "chosen", "sentence"),
    [
        (
            [-1.5, -0.75, None],
            1,
            "Path 2 won by mean log-probability, −0.75 nats against −1.5 of the best other.",
        ),
        (
            [-2.0, -2.0, -3.0],
            0,
            "Path 1 won by mean log-probability, −2 nats against −2 of the best other; of equals the first counts.",
        ),
        (
            [None, -1.0],
            1,
            "Path 2 won as the only one with finite numbers: mean log-probability −1 nats.",
        ),
        ([None, None], 0, "Every path broke down, so the drawn token stayed."),
    ],
)
def test_a_fork_says_why_its_winner_won(scores: list[float | None], chosen: int, sentence: str) -> None:
    branches = [traces.branch("", score, i == chosen) for i, score in enumerate(scores)]
    assert tree.why_branch(branches, "logprob") == sentence


def test_every_score_of_forks_and_every_selector_has_a_name() -> None:
    """Those of a later release are told by what the trace calls them."""
    [score] = [field for field in dataclasses.fields(BranchConfig) if field.name == "score"]
    assert tuple(tree.SCORES) == score.metadata["choices"]
    assert set(tree.SELECTORS) == set(selection.SELECTORS)
    branches = [traces.branch("", 0.5, True), traces.branch("", 0.25)]
    assert tree.why_branch(branches, "luck") == "Path 1 won by luck, 0.5 against 0.25 of the best other."


@pytest.mark.parametrize(
    ("select", "found", "sentence"),
    [
        (
            "answer-margin",
            [("18", 0.5), ("20", 0.75), (None, None)],
            "Path 1 was chosen by answer-margin. It has the largest answer margin Δ, 0.75; next is path 0 with 0.5.",
        ),
        (
            "mean-logprob",  # a path without an answer is none to compare with
            [(None, -0.25), ("20", -1.0)],
            "Path 1 was chosen by mean-logprob. It has the largest mean log-probability, −1 nats; no other path was to "
            "be compared.",
        ),
        (
            "majority",
            [("18", 1.0), ("20", 2.0), ("20", 2.0)],
            "Path 1 was chosen by majority. Its answer ‘20’ has the largest count of votes, 2; next is ‘18’ with 1.",
        ),
        (
            "majority",
            [("18", 1.0), ("20", 1.0)],
            "Path 1 was chosen by majority. Its answer ‘20’ has the largest count of votes, 1, as ‘18’ has; the tie "
            "went its way.",
        ),
        (
            "borda",
            [(None, None), (None, None)],
            "Path 1 was chosen by mean log-probability, −0.5 nats: no path has a number for borda.",
        ),
    ],
)
def test_the_chosen_path_says_what_it_was_chosen_by(
    select: str, found: list[tuple[str | None, float | None]], sentence: str
) -> None:
    paths = [
        traces.path(answer, {"mean-logprob": -0.5, select: score}, chosen=i == 1)
        for i, (answer, score) in enumerate(found)
    ]
    assert tree.why_path(paths, select) == sentence


# ----- what it cost -----------------------------------------------------------------------------------------


def test_a_rows_tokens_are_those_kept_and_those_tried_and_taken_back(tmp_path: Path) -> None:
    """The first fork rolled 3 × 2 tokens forward, of which 2 were kept, the second none; 3 were taken back."""
    found = tree.forks(read(tmp_path, traces.forked(TEXTS)), 0)
    assert found is not None
    assert found["summary"] == (
        "2 forks with 3 discarded paths, 3 tokens taken back in 2 returns; 10 of 17 computed tokens are in the text "
        "(59 %)."
    )
    assert [fork["cost"] for fork in found["forks"]] == [
        "6 tokens computed ahead on 3 paths: 2 in the text, 4 discarded.",
        "0 tokens computed ahead on 2 paths: 0 in the text, 0 discarded.",
    ]
    assert [fork["kept"] for fork in found["forks"]] == [3, 1]


def test_where_one_token_of_a_path_is_kept_the_others_of_it_count_as_tried(tmp_path: Path) -> None:
    generation = {"branching": {"keep": "token", "score": "margin"}}
    found = tree.forks(read(tmp_path, traces.forked(TEXTS), generation=generation), 0)
    assert found is not None
    assert found["summary"].endswith("10 of 19 computed tokens are in the text (53 %).")
    assert found["forks"][0]["cost"] == "6 tokens computed ahead on 3 paths: 0 in the text, 6 discarded."
    assert found["forks"][0]["kept"] == 1
    assert found["forks"][0]["why"] == "Path 2 won by mean margin, −0.75 against −1.5 of the best other."


def test_what_was_taken_back_reads_as_text_where_the_trace_tells_it(tmp_path: Path) -> None:
    found = tree.forks(read(tmp_path, traces.forked(TEXTS)), 0)
    assert found is not None
    assert found["returns"] == [
        {"step": 5, "text": " bc", "tokens": 2},
        {"step": 5, "text": "⟨999⟩", "tokens": 1},
    ]


def test_paths_count_what_they_share_once(tmp_path: Path) -> None:
    rows = [traces.tokens("abcd"), traces.tokens("abxyz")]
    paths = [traces.path("1", {}), traces.path(None, {}, 0, 2, chosen=True)]
    found = tree.paths(read(tmp_path, *rows, paths=paths, selection=traces.selection("mean-logprob")))
    assert found is not None
    assert found["summary"] == "2 paths; 5 of 7 computed tokens are on the chosen path (71 %)."
    assert [(row["tokens"], row["computed"], row["fork"]) for row in found["rows"]] == [
        (4, 4, "–"),
        (5, 3, "path 0, token 3"),
    ]


def test_a_trace_without_forks_and_paths_has_nothing_of_them(tmp_path: Path) -> None:
    path = traces.write(tmp_path / "a.jsonl", traces.tokens(TEXTS))
    assert tree.forks(trace.read(path), 0) is None
    assert tree.paths(trace.read(path)) is None
    html = report_page.page(report_page.read([path]))
    assert not re.search("<h2[^>]*>(Branches|Paths)<", html) and 'class="drawing"' not in html


def test_every_trace_has_a_place_for_its_drawings_also_one_that_is_given_twice(tmp_path: Path) -> None:
    path = traces.write(
        tmp_path / "a.jsonl",
        traces.forked(TEXTS),
        paths=[traces.path("18", {"borda": 1.0}, chosen=True)],
        selection=traces.selection("borda"),
    )
    html = report_page.page(report_page.read([path, path]))
    for name in ("path-tree-0", "path-tree-1", "paths-0", "paths-1", "branch-tree-0", "branch-tree-1"):
        assert html.count(f'id="{name}"') == 1, name


# ----- where it is drawn ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parents", "positions", "expected"),
    [
        ([None], [0], [0]),
        ([None, None, None], [0, 0, 0], [0, 1, 2]),
        ([None, 0, 0, 0], [0, 2, 5, 5], [0, 3, 1, 2]),
        ([None, 0, 0, 1], [0, 2, 5, 4], [0, 2, 1, 3]),
        ([1, 0], [3, 3], [0, 1]),  # a circle, which no generation makes
    ],
)
def test_paths_that_part_later_are_nearer_to_their_parent(
    parents: list[int | None], positions: list[int], expected: list[int]
) -> None:
    assert tree.tree_lanes(parents, positions) == expected


# ----- in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The page about three paths, of which the second, which the page opens with, forked and was returned to."""
    folder = tmp_path_factory.mktemp("tree")
    forked = traces.forked(TEXTS)
    forked[1]["branches"][0]["text"] = HOSTILE
    path = traces.write(
        folder / "a.jsonl",
        traces.tokens(TEXTS[:6]),
        forked,
        traces.tokens(TEXTS[:4]),
        paths=[
            traces.path("18", {"majority": 1.0, "answer-margin": 0.5}),
            traces.path(HOSTILE, {"majority": 1.0, "answer-margin": 0.75}, 0, 3, chosen=True),
            traces.path(None, {"majority": None, "answer-margin": None}, 0, 2),
        ],
        selection=traces.selection("answer-margin"),
    )
    watched = opened(browser, folder, path)
    yield watched
    assert watched.page.title() == "toy: entropix" and watched.page.locator("img").count() == 0
    assert watched.complaints == []
    watched.page.close()


@pytest.fixture
def page(shared: Watched) -> Page:
    shared.page.mouse.move(0, 0)
    shared.page.evaluate("document.activeElement.blur(); chooseRow(1)")
    settle(shared.page)
    return shared.page


def branches(page: Page) -> Any:
    return page.locator("#branch-tree-0 .item")


def cells(page: Page, selector: str) -> list[list[str]]:
    return page.locator(selector).evaluate_all(
        "rows => rows.map((r) => [...r.cells].map((c) => c.textContent))"
    )


@pytest.mark.browser
def test_tokens_that_forked_or_were_returned_to_are_marked_in_the_strip_and_in_words(page: Page) -> None:
    marked = page.locator(".token.forked, .token.returned")
    assert marked.evaluate_all("all => all.map((t) => t.getAttribute('aria-label'))") == [
        "sky, clarify, forked into 3 paths",
        ",, adaptive, forked into 2 paths",
        "because, flow, 2 tokens taken back, 1 token taken back",
    ]
    assert page.locator("#strip-0").evaluate("s => s.textContent").replace("↵", "") == "".join(TEXTS)


@pytest.mark.browser
def test_the_details_have_the_paths_with_scores_and_the_winner(page: Page) -> None:
    tokens(page).nth(1).hover()
    assert cells(page, "#details .tried tbody tr") == [
        [f"‘{HOSTILE}’", "−1.5", "3"],
        ["‘␣sky is blue’\N{NO-BREAK SPACE}◂", "−0.75", "3"],
        ["‘␣<b>sun</b>↵’", "–", "3"],
    ]
    assert page.locator("#details .tried .chosen").count() == 1
    assert page.locator('#details [data-name="why"]').inner_text() == (
        "Path 2 won by mean log-probability, −0.75 nats against −1.5 of the best other. "
        "6 tokens computed ahead on 3 paths: 2 in the text, 4 discarded."
    )
    tokens(page).nth(5).hover()
    assert cells(page, "#details .back tbody tr") == [["‘␣bc’", "2 tokens"], ["‘⟨999⟩’", "1 token"]]
    tokens(page).nth(3).hover()
    assert page.locator("#details .tried").count() == 0


@pytest.mark.browser
def test_pointing_at_a_branch_reads_it_and_clicking_goes_to_its_token(page: Page) -> None:
    assert branches(page).count() == 7
    assert branches(page).locator("xpath=self::*[contains(@class, 'won')]").count() == 2
    branches(page).nth(4).locator(".end").hover()
    assert page.locator("#branch-readout-0").inner_text() == (
        "Token 5, path 2 of 2, discarded: ‘!’; 1 token, score −2 against −2 of the kept one."
    )
    assert "token 5 of 10" in page.locator('[data-name="facts"]').inner_text()
    branches(page).nth(4).locator(".end").click()
    assert focused(page) == 4
    page.mouse.move(0, 0)
    assert page.locator("#branch-readout-0").inner_text().startswith("Point at a path")


@pytest.mark.browser
def test_branches_start_at_their_token_and_end_after_as_many_as_they_have(page: Page) -> None:
    """From the discarded paths' lines: where they leave, and their ends, in tokens."""
    unit = float(page.locator("#branch-tree-0 .rule").get_attribute("data-unit") or 0)
    lines = branches(page).locator(".line").evaluate_all("all => all.map((p) => p.getAttribute('d'))")
    ends = []
    for line in lines:
        numbers = [float(n) for n in re.findall(r"[\d.]+", line)]
        ends.append(((numbers[0] - 10) / unit, (numbers[-1] - 10) / unit))
    assert [tuple(round(x, 6) for x in pair) for pair in ends] == [
        (1, 3.5),
        (1, 4),  # the winner, along the text
        (1, 3.5),
        (4, 5),
        (4, 4.5),
        (5, 6.5),
        (5, 5.5),
    ]


@pytest.mark.browser
def test_branches_can_be_walked_with_the_keyboard(page: Page) -> None:
    assert (
        branches(page).evaluate_all("all => all.map((g) => g.getAttribute('tabindex'))") == ["0"] + ["-1"] * 6
    )
    branches(page).first.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    here = page.locator("#branch-tree-0 .item:focus")
    assert here.get_attribute("aria-selected") == "true"
    assert here.get_attribute("aria-label") == (
        "Token 2, path 2 of 3, kept: ‘␣sky is blue’; 3 tokens. "
        "Path 2 won by mean log-probability, −0.75 nats against −1.5 of the best other."
    )
    page.keyboard.press("End")
    assert page.locator("#branch-readout-0").inner_text() == "Token 6, taken back: ‘⟨999⟩’; 1 token"
    page.keyboard.press("Enter")
    assert focused(page) == 5


@pytest.mark.browser
def test_the_page_opens_with_the_chosen_path_and_lists_all(page: Page) -> None:
    assert page.locator("#row option").all_inner_texts() == ["path 0", "path 1, chosen", "path 2"]
    end = "length"
    assert cells(page, "#paths-0 tbody tr") == [
        ["0", "–", "18", "0.5", "1", "6", "6", "7", end],
        ["1 ◂", "path 0, token 4", HOSTILE, "0.75", "1", "10", "10", "7", end],
        ["2", "path 0, token 3", "–", "–", "–", "4", "2", "7", end],
    ]
    assert page.locator("#paths-0 [aria-current]").get_attribute("data-row") == "1"
    assert "chosen by answer-margin. It has the largest answer margin Δ, 0.75; next is path 0 with 0.5" in (
        page.locator(".why").first.inner_text()
    )


@pytest.mark.browser
def test_paths_can_be_shown_from_the_table_and_from_the_drawing(page: Page) -> None:
    page.locator("#paths-0 button").nth(2).click()
    assert page.locator("#strip-0").inner_text() == "".join(TEXTS[:4])
    assert page.locator("#row").input_value() == "2"
    assert not page.locator("#branches").is_visible()
    drawn = page.locator("#path-tree-0 .item")
    assert drawn.evaluate_all("all => all.map((g) => g.dataset.row)") == ["0", "1", "2"]  # by lanes
    drawn.first.focus()
    assert page.locator("#path-readout-0").inner_text() == (
        "Path 0: ‘18’; answer-margin 0.5; from the prompt; 6 tokens, 6 computed, in 7 forward passes."
    )
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#strip-0 .token").count() == 10
    assert page.locator("#path-tree-0 .current").get_attribute("data-row") == "1"
    assert page.locator("#branches").is_visible()


@pytest.mark.browser
def test_lines_that_overlap_are_in_different_lanes(page: Page) -> None:
    for spans, expected in (
        ([], []),
        ([(0, 3), (0, 3), (3, 6)], [0, 1, 0]),
        ([(0, 5), (1, 2), (2, 4), (4, 6), (5, 6)], [0, 1, 1, 1, 0]),
    ):
        assert page.evaluate("lanes", spans) == expected


@pytest.mark.browser
def test_branches_have_their_first_words_and_a_colour_by_their_score(page: Page) -> None:
    labels = page.locator("#branch-tree-0 .words").all_text_contents()
    assert "sky is blue" not in labels  # there is no room for it before the next fork
    assert labels[-2:] == ["bc", "⟨999⟩"] and "<b>sun</b>↵" not in labels and "<b>sun</b>" in labels
    styles = branches(page).evaluate_all("all => all.map((g) => g.style.getPropertyValue('--score'))")
    assert styles == ["0.400", "1.000", "", "0.000", "0.000", "", ""]  # -1.5, -0.75, none, and twice -2
    assert page.locator("#branch-key-0").text_content() == "mean log-probability: −2−0.75 nats"


@pytest.mark.browser
def test_texts_of_paths_stand_side_by_side_and_what_they_share_is_pale(page: Page) -> None:
    texts = page.locator("#path-texts-0 article p:last-child").all_inner_texts()
    assert texts == ["".join(TEXTS[:6]), "".join(TEXTS), "".join(TEXTS[:4])]
    assert page.locator("#path-texts-0 .muted").all_text_contents() == [
        "",
        "".join(TEXTS[:3]),
        "".join(TEXTS[:2]),
    ]
    assert page.locator("#path-texts-0 .chosen h3").inner_text() == "path 1 ◂ chosen"
    assert page.locator("#path-key-0").text_content() == "answer margin Δ: 0.50.75"


@pytest.mark.browser
def test_paths_of_several_prompts_are_told_apart_and_each_prompt_has_its_sentence(
    browser: Browser, tmp_path: Path
) -> None:
    paths = [
        traces.path(answer, {"majority": 1.0, "answer-margin": margin}, chosen=chosen) | {"prompt": prompt}
        for prompt, answer, margin, chosen in (
            (0, "18", 0.5, False),
            (0, "17", 0.75, True),
            (1, "3", 0.25, True),
            (1, None, None, False),
        )
    ]
    rows = [traces.tokens(TEXTS[:n]) for n in (6, 5, 4, 3)]
    trace = traces.write(
        tmp_path / "a.jsonl", *rows, paths=paths, selection=traces.selection("answer-margin")
    )
    watched = opened(browser, tmp_path, trace)
    page = watched.page
    assert [row[:3] for row in cells(page, "#paths-0 tbody tr")] == [
        ["0", "prompt 1", "18"],
        ["1 ◂", "prompt 1", "17"],
        ["2 ◂", "prompt 2", "3"],
        ["3", "prompt 2", "–"],
    ]
    first, second, total = page.locator(".why").first.inner_text().split("\n")
    assert first.startswith("Prompt 1: path 1 was chosen") and second.startswith(
        "Prompt 2: path 2 was chosen"
    )
    assert total.startswith("4 paths of 2 prompts")
    assert page.locator("#path-texts-0 h3").all_inner_texts() == [
        "prompt 1, path 0",
        "prompt 1, path 1 ◂ chosen",
        "prompt 2, path 2 ◂ chosen",
        "prompt 2, path 3",
    ]
    assert page.locator("#path-tree-0 .item").count() == 4
    page.close()
    assert watched.complaints == []
