"""Error rates of decisions, against scikit-learn, explicit loops and known answers."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import det_curve

from promptsg import biometrics
from promptsg.biometrics import (
    Calibration,
    cllr,
    compare_all,
    d_prime,
    det,
    det_table,
    fnir_at_fpir,
    fnmr_at_fmr,
    group_rates,
    min_cllr,
    needed_comparisons,
    open_set,
    open_set_draws,
    open_set_rates,
    rates_at,
    reliability,
    verification,
)
from promptsg.config import PromptSGError
from promptsg.evaluation import Embeddings
from promptsg.metrics import eer


def invent(people, seed=0, images=4, noise=1.0, dim=16):
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(people, dim)), images, 0)
    return torch.tensor(centres + noise * rng.normal(size=centres.shape)).float(), np.repeat(
        np.arange(people), images
    )


def some_scores(seed=0, n=300, decimals=2):
    rng = np.random.default_rng(seed)
    genuine = rng.random(n) < 0.3
    genuine[:2] = True, False
    return rng.normal(genuine, 1).round(decimals), genuine


# --- two errors
@pytest.mark.parametrize("decimals", [1, 12])  # with ties and without
def test_det_agrees_with_scikit_learn(decimals):
    scores, genuine = some_scores(decimals=decimals)
    fmr, fnmr, thresholds = det(scores, genuine)
    theirs = dict(zip(det_curve(genuine, scores)[2], zip(*det_curve(genuine, scores)[:2])))
    ours = dict(zip(thresholds, zip(fmr, fnmr)))
    shared = [one for one in theirs if one in ours]
    assert len(shared) > 10 and all(
        ours[one] == pytest.approx(theirs[one], abs=1e-12) for one in shared
    )
    assert (fmr[0], fnmr[0], thresholds[0]) == (0, 1, np.inf) and (fmr[-1], fnmr[-1]) == (1, 0)


def test_fnmr_at_fmr_is_the_lowest_fnmr_within_the_fmr():
    scores, genuine = some_scores(decimals=1)
    at = [0.0, 0.01, 0.2, 1.0]
    rates = [
        (np.mean(scores[~genuine] >= t), np.mean(scores[genuine] < t))
        for t in [*np.unique(scores), np.inf]
    ]
    expected = [min(fnmr for fmr, fnmr in rates if fmr <= one) for one in at]
    assert fnmr_at_fmr(scores, genuine, at) == pytest.approx(expected)
    assert fnmr_at_fmr(scores, genuine, 0.2) == pytest.approx(expected[2]) and isinstance(
        fnmr_at_fmr(scores, genuine, 0.2), float
    )


def test_d_prime_of_normal_distributions():
    x = stats.norm.ppf(np.linspace(0.001, 0.999, 999))
    assert d_prime(np.append(2 * x + 3, 2 * x), np.repeat([True, False], 999)) == pytest.approx(
        3 / np.std(2 * x)
    )


# --- all comparisons
@pytest.mark.parametrize("one_set", [True, False])
@pytest.mark.parametrize("block", [50, 4_000_000])
def test_compare_all_compares_each_pair_once(monkeypatch, one_set, block):
    monkeypatch.setattr(biometrics, "_BLOCK", block)
    x, who = invent(9)
    other = () if one_set else (x[::2] + 0.1, who[::2])
    found = compare_all(x, who, *other)
    y, them = (x, who) if one_set else other
    similarity = (F.normalize(x, dim=1) @ F.normalize(y, dim=1).T).numpy()
    rows, columns = (
        np.triu_indices(len(x), 1) if one_set else np.indices(similarity.shape).reshape(2, -1)
    )
    scores, own = similarity[rows, columns], who[rows] == them[columns]
    assert found.genuine == pytest.approx(np.sort(scores[own]), abs=1e-6)
    assert found.impostor == pytest.approx(np.sort(scores[~own])[::-1], abs=1e-6)
    assert (
        found.complete
        and found.impostors == (~own).sum()
        and found.people_pairs == 36
        and found.people == 9
    )
    assert found.moments == pytest.approx((scores[~own].mean(), scores[~own].var()), abs=1e-6)
    pairs = pd.Series(map(frozenset, found.impostor_people.tolist())).value_counts()
    assert set(pairs) == ({16} if one_set else {16}) and len(pairs) == 36


def test_compare_all_keeps_the_highest_impostors(monkeypatch):
    monkeypatch.setattr(biometrics, "_BLOCK", 400)
    x, who = invent(20)
    whole, part = compare_all(x, who), compare_all(x, who, keep=100)
    assert len(part.impostor) == 100 and not part.complete and part.impostors == whole.impostors
    assert part.impostor == pytest.approx(whole.impostor[:100]) and part.moments == pytest.approx(
        whole.moments
    )
    assert part.histogram.tolist() == whole.histogram.tolist()
    rows = [verification(one, at=(0.02,), draws=5) for one in (whole, part)]
    assert rows[0].iloc[1].equals(rows[1].iloc[1])
    assert np.isnan(rows[1].value[0]) and "larger keep" in rows[1].note[0]  # the EER lies beyond


# --- with what doubt
def test_verification_equals_the_plain_functions():
    x, who = invent(40, noise=1.5)
    found = compare_all(x.round(decimals=0), who)  # with ties
    scores, genuine = found.scores()
    table = verification(found, at=(0.2, 0.01), draws=20).set_index("measure")
    fmr, fnmr, _ = det(scores, genuine)
    assert table.value["EER"] == pytest.approx(eer(fmr, 1 - fnmr))
    for at, name in ((0.2, "FNMR at FMR 20 %"), (0.01, "FNMR at FMR 1 %")):
        row = table.loc[name]
        assert (
            row.value == pytest.approx(fnmr_at_fmr(scores, genuine, at))
            and row.low <= row.value <= row.high
        )
        passed = scores > row.threshold
        assert passed[~genuine].mean() <= at and (~passed[genuine]).mean() == pytest.approx(
            row.value
        )
        assert row.errors == (~passed[genuine]).sum()
    assert table.value["d'"] == pytest.approx(d_prime(scores, genuine), abs=1e-5)


@pytest.mark.parametrize("one_set", [True, False])
def test_a_bootstrap_draw_weights_pairs_by_both_counts(one_set):
    x, who = invent(8, noise=1.5)
    other = () if one_set else (x[1::2], who[1::2])
    found = compare_all(x, who, *other) if one_set else compare_all(x[::2], who[::2], *other)
    weights = np.array([2, 0, 1, 3, 1, 0, 0, 1.0])
    # each drawn copy is a separate person
    copies = np.repeat(np.arange(8), weights.astype(int))
    sides = []
    for features, people in [(x, who)] if one_set else [(x[::2], who[::2]), (x[1::2], who[1::2])]:
        rows = [(features[people == one], number, one) for number, one in enumerate(copies)]
        sides.append(
            (
                torch.cat([r[0] for r in rows]),
                np.concatenate([[r[1]] * len(r[0]) for r in rows]),
                np.concatenate([[r[2]] * len(r[0]) for r in rows]),
            )
        )
    a, b = (sides[0], sides[0]) if one_set else sides
    similarity = (F.normalize(a[0], dim=1) @ F.normalize(b[0], dim=1).T).numpy()
    rows, columns = (
        np.triu_indices(len(a[0]), 1) if one_set else np.indices(similarity.shape).reshape(2, -1)
    )
    copy, same = a[1][rows] == b[1][columns], a[2][rows] == b[2][columns]
    keep = copy | ~same  # a person and a copy of it are not compared
    expected = fnmr_at_fmr(similarity[rows, columns][keep].round(6), copy[keep], 0.1)
    rates = biometrics._Rates(found)
    assert rates.fnmr_at(rates.weigh(weights), 0.1)[0] == pytest.approx(expected)


def test_rates_that_the_rule_of_3_does_not_support_are_missing():
    table = verification(compare_all(*invent(46)), draws=5).set_index("measure")
    assert np.isfinite(table.value["FNMR at FMR 1 %"]) and np.isnan(
        table.value["FNMR at FMR 0.1 %"]
    )
    assert table.note["FNMR at FMR 0.1 %"] == (
        "needs 3,000 pairs of people (rule of 3), that is 78 people; there are 1,035 pairs"
    )
    assert [needed_comparisons(one) for one in (0.01, 0.001, 0.1)] == [300, 3000, 30]
    assert np.isfinite(verification(compare_all(*invent(78)), draws=2).value[2]) and np.isnan(
        verification(compare_all(*invent(77)), draws=2).value[2]
    )
    easy = verification(compare_all(*invent(46, noise=0.5)), draws=5).set_index("measure")
    assert "fewer than 30" in easy.note["FNMR at FMR 1 %"]


# --- open set
@pytest.mark.parametrize("rank", [1, 3])
def test_open_set_by_an_explicit_loop(rank):
    rng = np.random.default_rng(rank)
    query, gallery = rng.integers(0, 12, 40), rng.integers(0, 6, 30)
    similarity = rng.normal(size=(40, 30)).round(1)  # with ties
    fpir, fnir, thresholds = open_set(similarity, query, gallery, rank)
    assert (fpir[0], fnir[0], thresholds[0]) == (0, 1, np.inf)
    for f, n, t in zip(fpir, fnir, thresholds):
        named, missed = [], []
        for row, identity in zip(similarity, query):
            people = {one: row[gallery == one].max() for one in set(gallery)}
            if identity in people:
                above = sum(
                    score >= people[identity] for one, score in people.items() if one != identity
                )
                missed.append(above >= rank or people[identity] < t)
            else:
                named.append(max(people.values()) >= t)
        assert (f, n) == pytest.approx((np.mean(named), np.mean(missed)))
    at = [0.0, 0.1, 1.0]
    expected = [min(n for f, n in zip(fpir, fnir) if f <= one) for one in at]
    assert fnir_at_fpir(similarity, query, gallery, at, rank) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_with_one_gallery_image_fpir_is_fmr(seed):
    rng = np.random.default_rng(seed)
    query, scores = rng.integers(0, 3, 30), rng.normal(size=30).round(1)
    query[:2] = 0, 1
    fpir, fnir, thresholds = open_set(scores[:, None], query, [0])
    fmr, fnmr, same = det(scores, query == 0)
    assert np.allclose(thresholds, same) and np.allclose(fpir, fmr) and np.allclose(fnir, fnmr)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_curves_are_monotone(seed):
    scores, genuine = some_scores(seed, 60, 1)
    fmr, fnmr, thresholds = det(scores, genuine)
    rng = np.random.default_rng(seed)
    query = np.append([0, 9], rng.integers(0, 10, 20))
    fpir, fnir, levels = open_set(
        rng.normal(size=(22, 15)), query, np.append(0, rng.integers(0, 5, 14))
    )
    for rising, falling, at in ((fmr, fnmr, thresholds), (fpir, fnir, levels)):
        assert (
            (np.diff(rising) >= 0).all()
            and (np.diff(falling) <= 0).all()
            and (np.diff(at) < 0).all()
        )


def test_open_set_draws_leave_people_out_of_every_gallery():
    x, who = invent(40, noise=0.2)
    frame = pd.DataFrame({"path": [f"{n}" for n in range(len(who))], "identity": who.astype(str)})
    found = Embeddings({path: row for row, path in enumerate(frame.path)}, F.normalize(x, dim=1))
    queries = [frame[np.arange(len(frame)) % 4 > 0]] * 2
    galleries = [frame[np.arange(len(frame)) % 4 == 0]] * 2
    table = open_set_draws(found, queries, galleries, at=(0.01, 0.2), enrolled=0.25, draws=3)
    assert (
        len(table) == 6
        and (table.enrolled == 10).all()
        and (table.mated == 30).all()
        and (table.unmated == 90).all()
    )
    assert table["FNIR at FPIR 1 %"].isna().all() and (table["FNIR at FPIR 20 %"] == 0).all()
    assert table.equals(
        open_set_draws(found, queries, galleries, at=(0.01, 0.2), enrolled=0.25, draws=3)
    )
    with pytest.raises(PromptSGError, match="leaves nobody"):
        open_set_draws(found, queries, galleries, enrolled=1.0)
    # 30 of 40 stay out
    assert open_set_draws(found, queries, galleries, draws=1).enrolled.eq(10).all()
    few = [part[part.identity.astype(int) < 30] for part in (queries[0], galleries[0])]
    # 30 are impossible: half
    assert open_set_draws(found, few[:1], few[1:], draws=1).enrolled.eq(15).all()


def test_the_open_set_curve_is_the_mean_of_its_draws():
    x, who = invent(80, noise=1.2)
    frame = pd.DataFrame({"path": [f"{n}" for n in range(len(who))], "identity": who.astype(str)})
    found = Embeddings({path: row for row, path in enumerate(frame.path)}, F.normalize(x, dim=1))
    first = np.arange(len(frame)) % 4 == 0
    table = open_set_draws(found, [frame[~first]], [frame[first]], at=(0.3, 0.1, 0.01), draws=6)
    curve = open_set_rates(table)
    assert curve.fpir.tolist() == [0.01, 0.1, 0.3] and curve.iloc[0, 1:].isna().all()
    assert curve.fnir[2] == pytest.approx(table["FNIR at FPIR 30 %"].mean())
    assert (curve.low <= curve.fnir)[1:].all() and (curve.fnir <= curve.high)[1:].all()
    with pytest.raises(PromptSGError, match="no column of FNIR"):
        open_set_rates(table[["split"]])


def test_a_det_table_begins_at_the_rule_of_3():
    found = compare_all(*invent(46, noise=1.3))
    table = det_table(found, points=12, draws=50)
    assert table.fmr.iloc[0] == pytest.approx(3 / found.people_pairs) and table.fmr.iloc[
        -1
    ] == pytest.approx(0.5)
    scores, genuine = found.scores()
    assert (
        np.allclose(table.fnmr, fnmr_at_fmr(scores, genuine, table.fmr + 1e-12))
        and (np.diff(table.fnmr) <= 0).all()
    )
    assert (table.low <= table.fnmr).all() and (table.fnmr <= table.high).all()
    assert table.attrs["eer"] == verification(found, draws=2).value[0]
    with pytest.raises(PromptSGError, match="too few for any error rate"):
        det_table(compare_all(*invent(3, noise=1.0)))


# --- evidence
def test_cllr_equals_its_formula_and_known_values():
    scores, genuine = some_scores(decimals=12)
    ratio = np.exp(scores)
    expected = (np.log2(1 + 1 / ratio[genuine]).mean() + np.log2(1 + ratio[~genuine]).mean()) / 2
    assert cllr(scores, genuine) == pytest.approx(expected, abs=1e-12)
    assert cllr(0 * scores, genuine) == pytest.approx(1)  # no information
    assert cllr(np.where(genuine, 1e4, -1e4), genuine) == 0  # perfect values


@pytest.mark.parametrize("decimals", [1, 12])
def test_the_isotonic_map_equals_scikit_learn(decimals):
    scores, genuine = some_scores(decimals=decimals)
    weights = np.where(genuine, 0.5 / genuine.sum(), 0.5 / (~genuine).sum())
    posterior = IsotonicRegression().fit(scores, genuine, weights).predict(scores)
    with np.errstate(divide="ignore"):
        assert min_cllr(scores, genuine) == pytest.approx(
            cllr(np.log(posterior) - np.log1p(-posterior), genuine), abs=1e-9
        )
    ours = Calibration.fit(scores, genuine, "isotonic")(scores)
    bound = np.log(genuine.sum() + 1), np.log((~genuine).sum() + 1)
    with np.errstate(divide="ignore"):
        expected = (np.log(posterior) - np.log1p(-posterior)).clip(-bound[0], bound[1])
    assert ours == pytest.approx(expected, abs=1e-6)


def test_the_logistic_map_equals_scikit_learn():
    scores, genuine = some_scores(decimals=12)
    theirs = LogisticRegression(C=1e9, class_weight="balanced", tol=1e-10, max_iter=1000).fit(
        scores[:, None], genuine
    )
    assert Calibration.fit(scores, genuine)(scores) == pytest.approx(
        theirs.decision_function(scores[:, None]), abs=1e-3
    )
    # normal scores with mean +-d^2/2 and variance d^2 are log-likelihood ratios themselves
    x = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    ratios, kinds = np.append(2 * x + 2, 2 * x - 2), np.repeat([True, False], 20_000)
    assert Calibration.fit(ratios, kinds)(np.array([-3.0, 0, 3])) == pytest.approx(
        [-3, 0, 3], abs=0.02
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["logistic", "isotonic"]))
def test_a_calibration_is_monotone_and_inverts_its_thresholds(seed, kind):
    scores, genuine = some_scores(seed, 200)
    found = Calibration.fit(scores, genuine, kind)
    grid = np.linspace(scores.min(), scores.max(), 300)
    assert (np.diff(found(grid)) >= 0).all()
    for ratio in (0.5, 1, 3):
        threshold = found.threshold(ratio)
        if np.isfinite(threshold):
            assert found(np.array(threshold + 1e-9)) >= np.log(ratio) - 1e-6
            assert (
                threshold <= scores.min()
                or found(np.array(threshold - 1e-3)) <= np.log(ratio) + 1e-6
            )
    assert min_cllr(scores, genuine) <= cllr(found(scores), genuine) + 1e-9


def test_reliability_compares_predicted_with_observed():
    x = stats.norm.ppf((np.arange(5_000) + 0.5) / 5_000)
    ratios, kinds = np.append(2 * x + 2, 2 * x - 2), np.repeat([True, False], 5_000)
    table = reliability(ratios, kinds, bins=8)
    assert table.comparisons.sum() == 10_000 and np.allclose(
        table["predicted"], table["observed"], atol=0.02
    )
    boasting = reliability(3 * ratios, kinds, bins=8)
    assert abs(boasting["predicted"] - boasting["observed"]).max() > 0.1


# --- bad input
@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: det([0.1, 0.2], [True, True]), "of one kind"),
        (lambda: fnmr_at_fmr([0.1, 0.2], [True, False], 1.5), "from 0 to 1"),
        (lambda: d_prime([0.1, 0.1, 0.2, 0.2], [True, True, False, False]), "no spread"),
        (lambda: compare_all(torch.ones(3, 2), [1, 2]), "do not fit"),
        (lambda: compare_all(torch.eye(3), [1, 2, 3]), "no two images of one person"),
        (lambda: compare_all(torch.eye(3), [1, 1, 1]), "no images of two people"),
        (lambda: compare_all(torch.tensor([[np.nan, 1.0]] * 2), [1, 1]), "NaN or infinity"),
        (lambda: verification(compare_all(*invent(3)), draws=1), "at least two draws"),
        (lambda: verification(compare_all(*invent(3)), at=(0.0,)), "rates between 0 and 1"),
        (lambda: open_set(np.ones((2, 2)), [1, 2], [1, 2]), "a mate in the gallery"),
        (lambda: open_set(np.ones((2, 2)), [3, 4], [1, 2]), "none in the gallery"),
        (lambda: open_set(np.ones((2, 1)), [1, 2], [1, 2]), "must be finite"),
        (lambda: open_set(np.ones((2, 2)), [1, 3], [1, 2], rank=0), "at least one candidate"),
        (lambda: cllr([0.0, 1.0], [True, True]), "of both kinds"),
        (lambda: Calibration.fit([0.5, 0.5], [True, False]), "all scores are equal"),
        (lambda: Calibration.fit([0.1, 0.9], [True, False]), "not higher than the impostors'"),
        (lambda: Calibration.fit([0.9, 0.1], [True, False], "beta"), "logistic or isotonic"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(PromptSGError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


# --- at a threshold, and groups
def test_rates_at_a_threshold_have_rule_of_3_intervals():
    x, who = invent(30, noise=1.3)
    found = compare_all(x, who)
    scores, genuine = found.scores()
    rates = rates_at(found, 0.3, draws=200)
    assert rates["FMR"].value == pytest.approx((scores[~genuine] >= 0.3).mean())
    assert rates["FNMR"].value == pytest.approx((scores[genuine] < 0.3).mean())
    assert all(rate.low < rate.value < rate.high for rate in rates.values())
    never = rates_at(found, 0.999, draws=20)
    assert never["FMR"] == (0, 0, pytest.approx(3 / 435)) and never["FNMR"] == (
        1,
        pytest.approx(0.9),
        1,
    )
    few = rates_at(found, np.sort(scores[~genuine])[-1], draws=50)["FMR"]
    assert (
        0 < few.value < few.high and few.high >= 3 / 435
    )  # one error gives no smaller bound than none
    with pytest.raises(PromptSGError, match="larger keep"):
        rates_at(compare_all(x, who, keep=50), -0.5)


def grouped():
    "Features of 30 people in three groups: (x, who, kind, frame, embeddings)."
    x, who = invent(30, noise=1.3)
    kind = np.where(who < 16, "a", np.where(who < 27, "b", "c"))
    frame = pd.DataFrame(
        {"path": [f"{n}" for n in range(len(who))], "identity": who.astype(str), "kind": kind}
    )
    found = Embeddings({path: row for row, path in enumerate(frame.path)}, F.normalize(x, dim=1))
    return x, who, kind, frame, found


def test_group_rates_equal_the_rates_of_each_group():
    x, who, kind, frame, found = grouped()
    hits = pd.DataFrame(
        {
            "path": frame.path,
            "identity": frame.identity,
            "first_hit": np.where(kind == "a", 1, 2),
            "ap": np.where(kind == "a", 1, 0.5),
        }
    )
    table = group_rates(found, frame, "kind", 0.3, hits, draws=50).set_index("group")
    assert list(table.index) == ["all", "a", "b", "c"] and list(table.people) == [30, 16, 11, 3]
    for name in ("a", "b"):
        alone = rates_at(compare_all(x[kind == name], who[kind == name]), 0.3, draws=50)
        assert table.FNMR[name] == alone["FNMR"].value and table.FMR_high[name] == alone["FMR"].high
        assert table.FNMR_ratio[name] == pytest.approx(
            table.FNMR[name] / table.FNMR[["a", "b"]].mean()
        )
    assert (table.rank1["a"], table.rank1["b"], table.mAP["b"]) == (1, 0, 0.5)
    assert (
        table.rank1_low["a"],
        table.rank1_high["a"],
        table.mAP_low["b"],
        table.mAP_high["b"],
    ) == (1, 1, 0.5, 0.5)
    assert 0 < table.rank1_low["all"] < table.rank1["all"] < table.rank1_high["all"] < 1
    assert (
        table.note["c"] == "3 people: too few to judge"
        and table.loc["c", ["FMR", "FNMR", "rank1", "mAP"]].isna().all()
    )


def test_groups_with_few_images_and_bad_groups():
    _, who, _, frame, found = grouped()
    once = frame.groupby("identity").head(1).assign(kind="d")  # twelve of them have one image alone
    mixed = pd.concat(
        [
            once[once.identity.astype(int) < 12],
            frame[frame.identity.astype(int).isin(range(20, 24))].assign(kind="d"),
        ]
    )
    judged = group_rates(found, mixed, "kind", 0.3, draws=5).set_index("group").loc["d"]
    assert (
        np.isnan(judged.FNMR)
        and judged.FMR >= 0
        and judged.note == "4 people with two images: too few to judge by FNMR"
    )
    ages = group_rates(found, frame, pd.cut(pd.Series(who), [-1, 14, 30]), 0.3, draws=5)
    assert list(ages.people) == [30, 15, 15]
    for wrong, words in (
        ("colour", "no column 'colour'"),
        ([None] * len(frame), "no image has a label"),
    ):
        with pytest.raises(PromptSGError, match=words):
            group_rates(found, frame, wrong, 0.3)
