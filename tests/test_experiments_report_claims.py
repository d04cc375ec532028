"""What a report says of claims: which hold, and the statistics behind it."""

import math

import numpy as np
import pytest
from reports import columns
from run_folders import add
from scipy import stats as scipy_stats

from experiments.report import published, stats
from experiments.report.command import main


def findings(runs):
    """What is said of each claim, by its text."""
    (column,) = columns(runs)
    return {f.claim: f for f in published.judge_claims(column)}


def test_claims_hold_are_contradicted_or_undecided(runs):
    for seed in range(5):
        add(runs, "adam", seed, 90.0 + 0.1 * seed)
        add(runs, "adams", seed, 92.0 + 0.1 * seed)
        add(runs, "adamsrt", seed, 92.05 + 0.11 * seed)
        add(runs, "adamw", seed, 95.0 + 0.1 * seed)
    found = findings(runs)
    verdicts = {claim: finding.verdict for claim, finding in found.items()}
    assert verdicts["AdamS is more accurate than Adam"] == "holds"
    assert verdicts["AdamSRT is more accurate than AdamS"] == "undecided"
    assert verdicts["AdamSRT is more accurate than AdamW"] == "contradicted"
    assert verdicts["AdamSRT is more accurate than AdamG"] == "not run"
    note = found["AdamSRT is more accurate than AdamG"].note
    assert note == "no finished run of adamg"
    contrast = found["AdamS is more accurate than Adam"].contrast
    assert contrast.estimate == pytest.approx(2.0)
    assert 0 < contrast.low < 2 < contrast.high
    assert main([str(runs)]) == 0
    assert (
        runs / "report/figures/digits-scikit-learn-small-resnet-claims.svg"
    ).exists()


def test_claims_need_two_seeds_and_some_variation(runs):
    add(runs, "adam", 0, 90.0)
    add(runs, "adams", 0, 95.0)
    claim = "AdamS is more accurate than Adam"
    assert findings(runs)[claim].verdict == "undecided"
    assert "needs two seeds each" in findings(runs)[claim].note
    add(runs, "adam", 1, 90.0)
    add(runs, "adams", 1, 95.0)
    assert findings(runs)[claim].verdict == "undecided"
    assert "no variation between seeds" in findings(runs)[claim].note


def test_equal_numbers_of_which_the_mean_is_rounded_do_not_vary(runs):
    for seed in range(3):
        add(runs, "adam", seed, 100 * 343 / 355)
        add(runs, "adams", seed, 100 * 344 / 355)
    finding = findings(runs)["AdamS is more accurate than Adam"]
    assert finding.verdict == "undecided"
    assert "no variation between seeds" in finding.note


def test_claims_about_one_of_several_settings_are_ambiguous(runs):
    fast = {"learning_rate": 0.1, "weight_decay": 0.0}
    for seed in (0, 1):
        add(runs, "adam", seed, 90.0 + seed)
        add(runs, "adam", seed, 80.0 + seed, hyperparameters=fast)
        add(runs, "adams", seed, 95.0 + seed)
    finding = findings(runs)["AdamS is more accurate than Adam"]
    assert (finding.verdict, finding.note) == ("ambiguous", "several settings of adam")


@pytest.mark.parametrize(
    ("sgd", "adamsrt", "verdict"),
    [
        (92.0, 91.8, "holds"),
        (92.0, 90.2, "contradicted"),
        (90.0, 91.8, "no gap to close"),
    ],
)
def test_gap_is_closed_only_where_there_is_one(runs, sgd, adamsrt, verdict):
    for seed in range(4):
        add(runs, "adam", seed, 90.0 + 0.1 * seed)
        add(runs, "sgd", seed, sgd + 0.1 * seed)
        add(runs, "adamsrt", seed, adamsrt + 0.1 * seed)
    (finding,) = [f for claim, f in findings(runs).items() if "gap" in claim]
    assert finding.verdict == verdict


def test_contrast_is_welchs_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 5), rng.normal(0, 3, 8)
    found = stats.contrast([(1, stats.describe(a)), (-1, stats.describe(b))])
    expected = scipy_stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.estimate == pytest.approx(a.mean() - b.mean())
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_contrast_of_three_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered, trials = 0, 2000
    for _ in range(trials):
        samples = [
            stats.describe(rng.normal(m, s, 4)) for m, s in ((1, 1), (2, 2), (4, 1))
        ]
        found = stats.contrast(list(zip((1, -0.5, -0.5), samples, strict=True)))
        covered += found.low <= 1 - 0.5 * 2 - 0.5 * 4 <= found.high
    assert 0.93 < covered / trials < 0.98


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_sample_of_nothing_and_of_one():
    assert stats.describe([]).n == 0
    assert math.isnan(stats.describe([]).mean)
    assert stats.describe([3.0]).mean == 3.0
    assert math.isnan(stats.describe([3.0]).std)
