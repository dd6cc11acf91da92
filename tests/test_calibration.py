"""Thresholds from wished frequencies: known answers, the best where a wish cannot be met, and the command."""

import hashlib
import importlib.util
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import entropix
from entropix import calibrate, config, files, inspection, presets, samplers
from entropix.checkpoint.loading import Model
from entropix.lab.calibration import answers, fitting, solver
from entropix.lab.calibration.solver import Thresholds, occupancy, thresholds
from entropix.lab.calibration.targets import Targets
from entropix.metrics import Metrics
from entropix.samplers.entropix import STRATEGIES, SamplerConfig
from entropix.trace import run_statistics

SHIPPED = "entropix-smollm2-135m-instruct-frequencies"
ORDERINGS = 200  # random joint distributions


def metrics_of(entropy_n: np.ndarray, varentropy_n: np.ndarray) -> Metrics:
    """These two; the others are what the rule does not look at."""
    zeros = Metrics(*(np.zeros(len(entropy_n), np.float32) for _ in Metrics._fields))  # type: ignore[arg-type]
    return zeros._replace(
        logits_entropy=entropy_n.astype(np.float32),  # type: ignore[arg-type]
        logits_varentropy=varentropy_n.astype(np.float32),  # type: ignore[arg-type]
    )


def shares(found: Thresholds, entropy_n: np.ndarray, varentropy_n: np.ndarray) -> dict[str, float]:
    """The rule, written down here a second time."""
    counts = dict.fromkeys(("flow", "clarify", "explore", "resample", "adaptive"), 0)
    for entropy, varentropy in zip(entropy_n, varentropy_n, strict=True):
        if entropy < found.low_ent_thresh and varentropy < found.low_vent_thresh:
            counts["flow"] += 1
        elif entropy > found.high_ent_thresh and varentropy < found.low_vent_thresh:
            counts["clarify"] += 1
        elif entropy < found.high_ent_thresh and varentropy > found.high_vent_thresh:
            counts["explore"] += 1
        elif entropy > found.med_ent_thresh and varentropy > found.high_vent_thresh:
            counts["resample"] += 1
        else:
            counts["adaptive"] += 1
    return {name: count / len(entropy_n) for name, count in counts.items()}


def observations(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """H and V, more or less correlated, of which no two are equal."""
    rng = np.random.default_rng(seed)
    common_n, weight = rng.uniform(size=n), rng.uniform()
    entropy_n = 10 * (weight * common_n + (1 - weight) * rng.uniform(size=n))
    varentropy_n = 20 * (weight * common_n + (1 - weight) * rng.uniform(size=n))
    return entropy_n.astype(np.float32), varentropy_n.astype(np.float32)


def wishes(seed: int) -> Targets:
    return Targets(*np.random.default_rng(seed).dirichlet((2, 1, 1, 1, 3))[:4].tolist())


# ----- thresholds -------------------------------------------------------------------------------------------


def test_independent_and_uniform_observations_give_the_thresholds_of_arithmetic() -> None:
    """On the unit square explore and resample are half each of V > 0.8; then 0.05 = 0.5 low_vent, and flow is
    0.04 = 0.1 low_ent."""
    entropy_n, varentropy_n = (
        axis.ravel() for axis in np.meshgrid((np.arange(100) + 0.5) / 100, (np.arange(100) + 0.5) / 100)
    )
    found = thresholds(entropy_n, varentropy_n, Targets(0.04, 0.05, 0.1, 0.1))
    assert found == pytest.approx(Thresholds(0.4, 0.1, 0.5, 0.5, 0.8), abs=1e-9)
    reached = shares(found, entropy_n, varentropy_n)
    assert reached == pytest.approx(
        {"flow": 0.04, "clarify": 0.05, "explore": 0.1, "resample": 0.1, "adaptive": 0.71}
    )


def test_explore_and_resample_are_always_met_and_the_others_unless_too_few_are_there() -> None:
    """Within one of 500. For flow and clarify that depends on whether any low_vent serves both."""
    reachable = 0
    for seed in range(ORDERINGS):
        entropy_n, varentropy_n = observations(seed, 500)
        targets = wishes(seed)
        found = thresholds(entropy_n, varentropy_n, targets)
        reached = shares(found, entropy_n, varentropy_n)
        for name in ("explore", "resample"):
            assert abs(reached[name] - getattr(targets, name)) <= 1 / 500 + 1e-9, (seed, name)
        entropy_n = entropy_n[np.argsort(varentropy_n)][: np.sum(varentropy_n < found.high_vent_thresh)]
        clarify_n = np.cumsum(entropy_n > found.high_ent_thresh) / 500
        calm_n = np.cumsum(entropy_n < found.high_ent_thresh) / 500
        if np.any((abs(clarify_n - targets.clarify) <= 0.5 / 500) & (calm_n >= targets.flow)):
            reachable += 1
            for name in ("flow", "clarify"):
                assert abs(reached[name] - getattr(targets, name)) <= 1 / 500 + 1e-9, (seed, name)
    assert 0.1 * ORDERINGS < reachable < 0.9 * ORDERINGS


def test_no_other_low_thresholds_come_nearer_to_flow_and_clarify() -> None:
    """Against every pair of low thresholds that divides 12 observations."""
    for seed in range(ORDERINGS):
        entropy_n, varentropy_n = observations(seed, 12)
        targets = wishes(seed)
        found = thresholds(entropy_n, varentropy_n, targets)

        def miss(
            candidate: Thresholds,
            observed: tuple[np.ndarray, np.ndarray] = (entropy_n, varentropy_n),
            targets: Targets = targets,
        ) -> float:
            reached = shares(candidate, *observed)
            return abs(reached["flow"] - targets.flow) + abs(reached["clarify"] - targets.clarify)

        others = [
            found._replace(
                low_ent_thresh=min(low_ent, found.high_ent_thresh),
                low_vent_thresh=min(low_vent, found.high_vent_thresh),
            )
            for low_ent, low_vent in itertools.product([*entropy_n + 1e-4, 0], [*varentropy_n + 1e-4, 0])
        ]
        # Each of the two is met within half of one observation, which another pair may use better.
        assert miss(found) <= min(map(miss, others)) + 1 / 12 + 1e-9, seed


def test_thresholds_are_in_order_and_on_no_observation() -> None:
    for seed in range(ORDERINGS):
        entropy_n, varentropy_n = observations(seed, 100)
        found = thresholds(entropy_n, varentropy_n, wishes(seed))
        assert 0 <= found.low_ent_thresh <= found.med_ent_thresh <= found.high_ent_thresh
        assert 0 <= found.low_vent_thresh <= found.high_vent_thresh
        assert not np.isin(found, np.concatenate([entropy_n, varentropy_n])).any()


def test_the_order_of_the_observations_does_not_matter() -> None:
    entropy_n, varentropy_n = observations(3, 300)
    order = np.random.default_rng(0).permutation(300)
    assert thresholds(entropy_n, varentropy_n, Targets()) == thresholds(
        entropy_n[order], varentropy_n[order], Targets()
    )


def test_a_strategy_that_is_not_wished_for_never_fires() -> None:
    entropy_n, varentropy_n = observations(5, 300)
    found = thresholds(entropy_n, varentropy_n, Targets(0, 0, 0, 0))
    assert shares(found, entropy_n, varentropy_n)["adaptive"] == 1
    for position, name in enumerate(Targets._fields):
        alone = Targets(*(0.2 if i == position else 0.0 for i in range(4)))
        reached = shares(thresholds(entropy_n, varentropy_n, alone), entropy_n, varentropy_n)
        assert reached[name] == pytest.approx(0.2) and reached["adaptive"] == pytest.approx(0.8), name


def test_what_cannot_be_reached_is_noted() -> None:
    """Where varentropy rises with entropy, the uncertain positions are all above high_vent."""
    rising_n = np.arange(1, 101) / 10
    targets = Targets(0.3, 0.05, 0.1, 0.1)
    cfg = solver.apply(thresholds(rising_n, rising_n, targets), SamplerConfig())
    reached = occupancy(metrics_of(rising_n, rising_n), cfg)
    assert reached == pytest.approx(
        {"flow": 0.3, "clarify": 0.0, "explore": 0.1, "resample": 0.1, "adaptive": 0.5}
    )
    [note] = solver.notes(reached, targets, 100)
    assert note.startswith("clarify was to be 5.0% and is 0.0%: too few positions have high entropy")


def test_where_flow_and_clarify_pull_at_one_threshold_the_note_says_so() -> None:
    """On a square of independent observations, half of what is below low_vent clarifies."""
    entropy_n, varentropy_n = (
        axis.ravel() for axis in np.meshgrid((np.arange(50) + 0.5) / 50, (np.arange(50) + 0.5) / 50)
    )
    targets = Targets(0.3, 0.05, 0.1, 0.1)
    found = thresholds(entropy_n, varentropy_n, targets)
    reached = shares(found, entropy_n, varentropy_n)
    assert reached["flow"] < 0.3 or reached["clarify"] > 0.05
    for note in solver.notes(reached, targets, 2500):
        assert note.endswith("flow needs a higher low_vent_thresh than clarify")


def test_occupancy_is_that_of_the_rule() -> None:
    entropy_n, varentropy_n = observations(7, 400)
    cfg = solver.apply(thresholds(entropy_n, varentropy_n, Targets()), SamplerConfig())
    rounded = Thresholds(*(getattr(cfg, name) for name in Thresholds._fields))
    assert occupancy(metrics_of(entropy_n, varentropy_n), cfg) == shares(rounded, entropy_n, varentropy_n)


def test_quantiles_of_equally_spaced_numbers_are_their_shares() -> None:
    ramp_n = np.linspace(0, 1, 1001)
    values = solver.quantiles(metrics_of(ramp_n, ramp_n))
    assert values.keys() == set(Metrics._fields)
    assert values["logits_varentropy"] == pytest.approx(solver.QUANTILES, abs=1e-6)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (Targets(0.6, 0.2, 0.2, 0.1), "must not sum to more than 1, got 1.1"),
        (Targets(flow=-0.1), "flow must be a share between 0 and 1, got -0.1"),
        (Targets(clarify=float("nan")), "clarify must be a share between 0 and 1, got nan"),
    ],
)
def test_wishes_that_are_no_shares_are_refused(targets: Targets, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        thresholds(np.ones(3), np.ones(3), targets)


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_observations_that_are_no_numbers_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one position"):
        thresholds(np.array(values), np.array(values), Targets())


# ----- the command ------------------------------------------------------------------------------------------

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(run_command: Command) -> Command:
    return partial(run_command, calibrate.main)


@pytest.mark.slow
def test_a_fitted_preset_is_read_back_and_says_what_it_was_fitted_on(
    command: Command, toy_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default both sources are observed; here they are short ones."""
    shipped = tmp_path / "configs"
    shipped.mkdir()
    (shipped / "calibration.txt").write_text("Some text, not long. " * 10)
    (shipped / "calibration-prompts.txt").write_text("One\nTwo\n")
    found = presets.shipped
    ours = [file.name for file in shipped.iterdir()]
    monkeypatch.setattr(presets, "shipped", lambda name: shipped / name if name in ours else found(name))
    out = tmp_path / "fitted.toml"
    code, report, errors = command(
        *("--weights", toy_folder, "--max-new-tokens", "8", "--flow", "0.2", "--out", str(out))
    )
    assert (code, errors) == (0, "")
    rule, cfg = (fitted_file := samplers.resolve(str(out))).name, fitted_file.numbers
    assert rule == "entropix"
    reference = samplers.resolve("entropix").numbers
    fitted = {name: getattr(cfg, name) for name in Thresholds._fields}
    assert cfg == config.from_mapping(SamplerConfig, vars(reference) | fitted, "test")
    assert cfg != reference
    text = out.read_text()
    for name in ("calibration.txt", "calibration-prompts.txt"):
        assert hashlib.sha256(presets.shipped(name).read_bytes()).hexdigest() in text
    assert "210 positions" in text and "the 2 prompts of" in text  # the toy's tokens are bytes
    assert all(name in report for name in ("flow ", "clarify ", *Metrics._fields, *Thresholds._fields))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "fitted.toml"]


@pytest.mark.slow
def test_a_text_alone_is_observed_alone_and_twice_alike(
    command: Command, toy_folder: str, tmp_path: Path
) -> None:
    text, picture = tmp_path / "text.txt", tmp_path / "picture.png"
    text.write_text("A sentence, and then another one. " * 20)
    args = ("--weights", toy_folder, "--text", str(text))
    code, report, errors = command(*args, "--plot", str(picture))
    assert (code, errors) == (0, "")
    assert report.startswith('observed: text "text.txt"') and report.count("observed: ") == 1
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert command(*args) == (0, report, "")


def test_the_figure_names_the_model_and_counts_what_was_observed(toy_folder: str) -> None:
    model = entropix.load(toy_folder)
    sources = [
        fitting.Source(f"{name} of whatever", metrics_of(np.zeros(n), np.zeros(n)))
        for name, n in (("text", 1200), ("answers", 34))
    ]
    found = fitting.fit(sources, Targets(), samplers.resolve("entropix"))
    assert fitting.title(found, model) == (
        f"{model.folder.resolve().name}, {model.dtype.name}: n = 1,234 tokens (text 1,200, answers 34)"
    )


@pytest.mark.slow
def test_prompts_alone_are_answered(command: Command, toy_folder: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("One\nTwo\n")
    code, report, _ = command(
        "--weights", toy_folder, "--prompts", str(prompts), "--max-new-tokens", "30", "--seed", "5"
    )
    assert code == 0 and report.count("observed: ") == 1
    assert 'answers to the 2 prompts of "prompts.txt"' in report and "seed 5" in report


def shares_in(table: list[str], column: int) -> dict[str, float]:
    """Of a report's or preset's table of strategies, by the number of a column."""
    rows = [line.removeprefix("# ").split() for line in table]
    return {
        row[0]: float(row[column].removesuffix("%")) / 100 for row in rows if row and row[0] in STRATEGIES
    }


def test_the_rule_itself_is_counted_while_it_generates(
    command: Command, toy_folder: str, tmp_path: Path
) -> None:
    """Report and preset say how often each strategy was used with the reference and with the fitted thresholds."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "fitted.toml"
    prompts.write_text("One\nTwo\n")
    args = ("--prompts", str(prompts), "--max-new-tokens", "30", "--seed", "5", "--out", str(out))
    _, report, _ = command("--weights", toy_folder, *args)
    model = entropix.load(toy_folder)
    in_report = report.split("strategies in the rule's own answers")[1].splitlines()
    in_preset = out.read_text().split("# generated: the rule's own answers")[1].splitlines()
    for column, sampler in ((1, "entropix"), (2, str(out))):
        results = entropix.generate(model, ["One", "Two"], sampler=sampler, max_new_tokens=30, seed=5)
        counts = run_statistics.strategy_counts(results, STRATEGIES)
        total = sum(counts.values())
        assert f"{total} {'tokens' if sampler == 'entropix' else 'with the fitted'}" in in_report[0]
        for table in (in_report[1:7], in_preset[2:8]):
            expected = {name: count / total for name, count in counts.items()}
            assert shares_in(table, column) == pytest.approx(expected, abs=5.1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--text", "missing.txt"), "missing.txt: no such file"),
        (("--text", "empty.txt"), "empty.txt: there is no text in this file"),
        (("--prompts", "empty.txt"), "empty.txt: there is no prompt in this file"),
        (("--text", "a", "--prompts", "b"), "--text and --prompts each say what alone to observe"),
        (("--flow", "0.9", "--clarify", "0.2"), "must not sum to more than 1, got 1.3"),
        (("--explore", "1.5"), "explore must be a share between 0 and 1, got 1.5"),
        (("--out", "preset.txt"), "--out takes the name of a .toml file, got 'preset.txt'"),
        (("--out", "nowhere/preset.toml"), "nowhere does not exist"),
        (("--max-new-tokens", "0"), "--max-new-tokens must be"),
        (("--weights", "no-such-model"), "no weights 'no-such-model'"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    code, report, errors = command(*args)
    assert (code, report) == (1, "")
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1


@pytest.mark.parametrize("journal", [True, False])
def test_an_interrupted_search_says_what_was_kept(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, journal: bool
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(answers, "calibrate", interrupted)
    kept = str(tmp_path / "search.jsonl")
    code, _, errors = command("--by", "answers", "--quick", *(["--journal", kept] if journal else []))
    assert code == 130
    assert ("nothing was kept; with --journal FILE" in errors) != journal
    assert (f"what was answered is in {kept}; the same command goes on" in errors) == journal


def test_a_plot_without_matplotlib_says_what_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, errors = command("--plot", "picture.png")
    assert (code, errors) == (1, "error: picture.png: a figure needs matplotlib: pip install matplotlib\n")


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "preset.toml"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), files.replacing(path) as temporary:
        temporary.write_text("ne")
        raise OSError("disk full")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("preset.toml", "old")]


# ----- the preset that is shipped ---------------------------------------------------------------------------


def test_the_shipped_preset_was_fitted_on_the_shipped_files() -> None:
    text = (presets.shipped("samplers") / f"{SHIPPED}.toml").read_text()
    for name in ("calibration.txt", "calibration-prompts.txt"):
        assert hashlib.sha256(presets.shipped(name).read_bytes()).hexdigest() in text


@pytest.mark.real
def test_on_the_default_model_only_the_fitted_thresholds_clarify(real_model: Model) -> None:
    """The end of the corpus, a seventh of what the preset was fitted on. The reference never clarifies there."""
    text = presets.shipped("calibration.txt").read_text()[-2000:]
    tokens = [*real_model.tokenizer.bos_ids, *real_model.tokenizer.encode(text)]
    metrics = inspection.forward(real_model, tokens[: fitting.WINDOW]).metrics
    assert occupancy(metrics, samplers.resolve("entropix").numbers)["clarify"] == 0
    fitted = occupancy(metrics, samplers.resolve(SHIPPED).numbers)
    assert all(share > 0.01 for share in fitted.values()), fitted


def test_a_rule_without_the_thresholds_is_refused(command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, errors = command("--sampler", "min-p", "--prompts", "none.txt")
    assert (code, out) == (1, "")
    assert (
        "a calibration fits the five thresholds of entropix and its like, but min-p has no low_ent" in errors
    )
