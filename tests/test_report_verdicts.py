"""The table of rules is ordered, disjoint and complete, and its words follow from intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isbench.report.claims import QUANTITIES, Claim, Measured, _evidence
from isbench.report.inventory import experiments
from isbench.report.measures import Centre, Sample
from isbench.report.verdicts import EFFECT, JUDGED, NOTHING, NUMBER, RANGE, RULES, Evidence, decisive, holm

WORDS = {
    *("not run", "not timed", "not exercised", "baseline did not learn", "one seed", "descriptive"),
    *("confirmed", "smaller", "larger", "refuted", "opposite", "inconclusive"),
}
numbers = st.floats(-5, 5) | st.sampled_from([0.0, 1.0, -1.0])
bounds = numbers | st.sampled_from([-math.inf, math.inf])
shares = st.floats(0, 1) | st.just(math.nan)


def judge(found):
    return decisive(found).name


@st.composite
def evidence(draw):
    """Anything that claims can be judged by: an effect that is turned, a range, a number in its margin, or nothing."""
    low, high = sorted((draw(bounds), draw(bounds)))
    has_neutral = draw(st.booleans())
    size, margin = draw(numbers), draw(st.floats(0, 3))
    if has_neutral and size + margin < 0:
        size = -size
    least, most, published = draw(
        st.sampled_from(
            [
                (size - margin, size + margin, size),
                (size, math.inf, math.nan),
                (size, math.inf, size),
                (math.nan, math.nan, math.nan),
            ]
        )
    )
    return Evidence(
        draw(st.integers(0, 8)),
        draw(st.booleans()),
        draw(shares),
        draw(shares),
        low,
        high,
        least,
        most,
        published,
        has_neutral,
    )


@given(evidence())
def test_exactly_one_of_the_rules_on_intervals_applies_and_the_first_of_all_decides(found):
    on_intervals = [rule for rule in RULES if rule.about != "any claim" and rule.decides(found)]
    assert len(on_intervals) == 1
    before = [rule for rule in RULES if rule.about == "any claim" and rule.decides(found)]
    assert judge(found) == [*before, *on_intervals][0].name


@given(evidence())
def test_words_mean_what_they_say(found):
    """Written from the words of the page, apart from the rules."""
    word = judge(found._replace(n=3, acted=math.nan, learned=math.nan))
    holds_none = found.low <= 0 <= found.high
    touches = found.low <= found.most and found.least <= found.high
    inside = found.least <= found.low and found.high <= found.most
    match found.about:
        case "an effect":
            assert found.least > 0
            assert (word in ("inconclusive", "refuted")) == holds_none
            assert (word in ("inconclusive", "confirmed")) == (found.high >= 0 and touches)
            assert word != "opposite" or found.high < 0
        case "a range":
            assert (word == "confirmed") == inside and (word == "refuted") == (not touches)
        case "a number":
            assert word != "confirmed" or found.high - found.low <= found.most - found.least
            assert (word in ("smaller", "larger")) == (not touches)
        case "nothing":
            assert word == "descriptive"


def test_rules_come_with_the_words_that_are_promised():
    assert {rule.name for rule in RULES} == WORDS and len(JUDGED) == 6
    assert [rule.about for rule in RULES] == sorted(
        (rule.about for rule in RULES), key=["any claim", EFFECT, RANGE, NUMBER, NOTHING].index
    )
    assert all(rule.sentence for rule in RULES)


def verdict(quantity, low, high, n=3, **rest):
    """Judge an interval in the units of its quantity."""
    claim = Claim(text="a claim", quantity=quantity, arm="loss", **rest)
    measured = Measured({}, [], [], None, 0, 0, 0)
    return judge(_evidence(claim, measured, Centre(low, high, low, high, 0.95), n))


@pytest.mark.parametrize(
    ("quantity", "low", "high", "rest", "word"),
    [
        ("train_loss_ratio", 1.2, 3.1, {"published": 3}, "confirmed"),
        ("train_loss_ratio", 1.2, 2.9, {"published": 3}, "smaller"),
        ("train_loss_ratio", 1.2, 2.9, {"published": 3, "margin": 1.1}, "confirmed"),
        ("train_loss_ratio", 3.1, 4.0, {"published": 3}, "larger"),
        ("train_loss_ratio", 3.1, 4.0, {"published": 3, "smallest": 3}, "confirmed"),
        ("train_loss_ratio", 0.9, 2.9, {"published": 3}, "refuted"),
        ("train_loss_ratio", 0.9, 3.1, {"published": 3}, "inconclusive"),
        ("train_loss_ratio", 0.5, 0.9, {"published": 3}, "opposite"),
        ("train_loss_ratio", 0.7, 0.9, {"published": 0.8}, "confirmed"),
        ("train_loss_ratio", 0.85, 0.9, {"published": 0.8}, "smaller"),
        ("train_loss_ratio", 0.5, 0.7, {"published": 0.8}, "larger"),
        ("train_loss_ratio", 1.1, 1.3, {"published": 0.8}, "opposite"),
        ("train_loss_ratio", 1.01, 1.1, {"smallest": 1.05}, "confirmed"),
        ("train_loss_ratio", 1.01, 1.04, {"smallest": 1.05}, "smaller"),
        ("train_loss_ratio", 0.97, 1.04, {"smallest": 1.05}, "refuted"),
        ("train_loss_ratio", 0.97, 1.06, {"smallest": 1.05}, "inconclusive"),
        ("relative_variance", 0.90, 0.97, {"smallest": 0.95, "of": {"signal": "loss"}}, "confirmed"),
        ("relative_variance", 0.96, 1.02, {"smallest": 0.95, "of": {"signal": "loss"}}, "refuted"),
        ("relative_variance", 1.1, 1.3, {"smallest": 0.95, "of": {"signal": "loss"}}, "opposite"),
        ("train_loss_ratio", 0.9, 1.1, {"published": 1, "margin": 1.25}, "confirmed"),
        ("train_loss_ratio", 0.7, 1.1, {"published": 1, "margin": 1.25}, "inconclusive"),
        ("train_loss_ratio", 1.3, 1.6, {"published": 1, "margin": 1.25}, "refuted"),
        ("speedup", 0.95, 3.0, {"at_least": 0.9, "of": {"target": 0.1}}, "confirmed"),
        ("speedup", 0.85, 1.2, {"at_least": 0.9, "of": {"target": 0.1}}, "inconclusive"),
        ("speedup", 0.5, 0.85, {"at_least": 0.9, "of": {"target": 0.1}}, "refuted"),
        ("correlation", 0.6, 0.9, {"smallest": 0.5, "of": {"x": "a", "y": "b"}}, "confirmed"),
        ("correlation", 0.4, 0.9, {"smallest": 0.5, "of": {"x": "a", "y": "b"}}, "inconclusive"),
        ("correlation", 0.1, 0.4, {"smallest": 0.5, "of": {"x": "a", "y": "b"}}, "refuted"),
        ("test_error", 0.049, 0.052, {"published": 0.05, "margin": 0.002}, "confirmed"),
        ("test_error", 0.0505, 0.0519, {"published": 0.05, "margin": 0.002}, "confirmed"),
        ("test_error", 0.04, 0.06, {"published": 0.05, "margin": 0.002}, "inconclusive"),
        ("test_error", 0.051, 0.054, {"published": 0.05, "margin": 0.002}, "inconclusive"),
        ("test_error", 0.053, 0.06, {"published": 0.05, "margin": 0.002}, "larger"),
        ("test_error", 0.04, 0.047, {"published": 0.05, "margin": 0.002}, "smaller"),
        ("test_error", 0.04, 0.06, {}, "descriptive"),
        ("test_error_difference", -1, 2, {}, "descriptive"),
        ("test_error_difference", -3, -1.5, {"smallest": -1}, "confirmed"),
        ("test_error_difference", -0.5, 0.5, {"smallest": -1}, "refuted"),
    ],
)
def test_verdicts_in_the_units_of_their_quantities(quantity, low, high, rest, word):
    assert verdict(quantity, low, high, **rest) == word


def test_what_comes_before_an_interval():
    effect = Evidence(n=3, low=1, high=2, least=1, most=1)
    assert judge(effect) == "confirmed"
    assert judge(effect._replace(n=1)) == "one seed"
    assert judge(effect._replace(n=1, learned=0.049)) == "baseline did not learn"
    assert judge(effect._replace(learned=0.049, acted=0.049)) == "not exercised"
    assert judge(effect._replace(learned=0.05, acted=0.05)) == "confirmed"
    assert judge(effect._replace(n=0, acted=0.0)) == "not run"
    assert judge(effect._replace(n=0, is_shared=True)) == "not timed"


def test_a_wide_interval_is_not_rewarded():
    """Truth at the published number: the narrower the interval, the more often it is called confirmed."""
    random, counts = np.random.default_rng(0), []
    for spread in (0.001, 0.004, 0.016):
        words = []
        for _ in range(200):
            centre = Sample([(v, v) for v in random.normal(0.05, spread, 5)]).centre()
            words.append(verdict("test_error", centre.low, centre.high, 5, published=0.05, margin=0.002))
        counts.append(words.count("confirmed"))
    assert counts[0] > 180 and counts[0] > counts[1] > counts[2] and counts[2] < 5


def test_holm_by_hand():
    # 0.01 <= 0.05 / 4, 0.015 <= 0.05 / 3, 0.03 > 0.05 / 2: the last two fall, though 0.04 <= 0.05 alone.
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.015}) == {"b", "d"}
    assert holm({}) == set() and holm({"a": 0.06}) == set()


def test_every_exhibit_that_can_be_judged_has_one_primary_claim():
    for experiment in experiments():
        judged = [claim for claim in experiment.claims if not math.isnan(claim.allows()[0])]
        assert sum(claim.primary for claim in judged) == (1 if judged else 0), experiment.id
        for claim in judged:
            quantity = QUANTITIES[claim.quantity]
            outside = [value for value in claim.allows() if math.isfinite(value)]
            assert outside and any(math.isfinite(quantity.effect(value)) for value in outside), "it can fail"
