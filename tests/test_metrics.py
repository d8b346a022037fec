import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from promptsg.config import PromptSGError
from promptsg.metrics import (auc, average_precision, cmc, eer, evaluate_features, evaluate_ranking, first_hit,
                              inverse_negative_penalty, pairs, rank, roc, tar_at_far)

MEASURES = ("rank1", "rank5", "rank10", "mAP", "mINP")


def problem(ties, seed=0, queries=60, gallery=90, people=25):
    "Random scores and ids; with ties, scores take few distinct values."
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, ties, (queries, gallery)) / ties if ties else rng.random((queries, gallery))
    return scores, rng.integers(0, people, queries), rng.integers(0, people, gallery)


def trapezoid_by_loop(scores, match):
    "Area under precision over recall, one distinct score after the other."
    total, area, recall, precision = match.sum(), 0.0, 0.0, 1.0
    for threshold in np.unique(scores)[::-1]:
        shown = scores >= threshold
        new_recall, new_precision = match[shown].sum() / total, match[shown].mean()
        area += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    return area


def worst_order(scores, match):
    "Hits in the order that is worst for the match among equal scores."
    return match[np.lexsort((match, -scores))]


@pytest.mark.parametrize("ties", [0, 2, 5, 30])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_ap_equals_scikit_learn_on_random_and_tied_scores(ties, chunk):
    scores, q, g = problem(ties)
    ours = evaluate_ranking(scores, q, g, per_query=True, chunk=chunk)
    theirs = [average_precision_score(q[i] == g, scores[i]) if (q[i] == g).any() else np.nan for i in range(len(q))]
    np.testing.assert_allclose(ours["per_query"]["ap"], theirs, atol=1e-12)
    assert np.isclose(ours["mAP"], np.nanmean(theirs))


@pytest.mark.parametrize("ties", [0, 2, 5, 30])
def test_trapezoid_first_hit_and_inp_equal_a_loop(ties):
    scores, q, g = problem(ties, seed=1)
    ours = evaluate_ranking(scores, q, g, ap="trapezoid", per_query=True)["per_query"]
    for i in np.flatnonzero(np.isin(q, g)):
        hits = worst_order(scores[i], q[i] == g)
        assert np.isclose(ours["ap"][i], trapezoid_by_loop(scores[i], q[i] == g))
        assert ours["first_hit"][i] == hits.argmax() + 1
        assert np.isclose(ours["inp"][i], hits.sum() / (np.flatnonzero(hits)[-1] + 1))


def test_the_ranking_worked_by_hand():
    hits = torch.tensor([[1, 0, 1, 0, 0, 1]]).bool()
    ranking = rank(torch.arange(6, 0, -1)[None].float(), hits)
    assert np.isclose(average_precision(ranking).item(), 0.72222222)
    assert np.isclose(average_precision(ranking, "trapezoid").item(), (1 + 7 / 12 + 9 / 20) / 3)
    assert first_hit(ranking).item() == 1 and inverse_negative_penalty(ranking).item() == 0.5


def test_cmc_counts_first_hits_and_the_curve_is_as_long_as_asked():
    curve = cmc(torch.tensor([1.0, 3.0, 3.0, float("nan"), 40.0]), top=20)
    assert curve.shape == (20,) and curve[0] == 0.25 and curve[1] == 0.25 and curve[2] == 0.75 and curve[19] == 0.75
    result = evaluate_ranking(np.eye(3), [0, 1, 2], [0, 1, 2])  # fewer gallery images than ranks
    assert result["rank10"] == 1 and len(result["cmc_curve"]) == 20


@pytest.mark.parametrize("ties", [0, 3])
def test_the_order_of_the_gallery_never_matters(ties):
    scores, q, g = problem(ties)
    order = np.random.default_rng(9).permutation(len(g))
    one, other = evaluate_ranking(scores, q, g), evaluate_ranking(scores[:, order], q, g[order])
    assert [one[k] for k in MEASURES] == pytest.approx([other[k] for k in MEASURES], abs=1e-12)


def test_a_collapsed_model_earns_no_rank_1():
    result = evaluate_ranking(np.ones((4, 8)), [0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3])
    assert result["rank1"] == 0 and result["mAP"] == 0.25


@pytest.mark.parametrize("ties", [0, 4])
def test_camera_filter_equals_deleting_the_columns(ties):
    scores, q, g = problem(ties)
    rng = np.random.default_rng(3)
    q_cam, g_cam = rng.integers(0, 2, len(q)), rng.integers(0, 2, len(g))
    ours = evaluate_ranking(scores, q, g, q_cam, g_cam, per_query=True)["per_query"]
    for i in range(len(q)):
        keep = ~((g == q[i]) & (g_cam == q_cam[i]))
        match = q[i] == g[keep]
        expected = average_precision_score(match, scores[i, keep]) if match.any() else np.nan
        np.testing.assert_allclose(ours["ap"][i], expected, atol=1e-12)
        if match.any():
            assert ours["first_hit"][i] == worst_order(scores[i, keep], match).argmax() + 1


def test_queries_without_a_match_are_counted_and_left_out():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.4]])
    result = evaluate_ranking(scores, ["a", "b", "x"], ["a", "b"], per_query=True)
    assert result["queries"] == 3 and result["queries_without_match"] == 1 and result["rank1"] == result["mAP"] == 1
    frame = pd.DataFrame(result["per_query"])
    assert frame.isna().sum(axis=1).tolist() == [0, 0, 3]


def test_numpy_torch_and_half_precision_agree():
    scores, q, g = problem(8)  # eighths are exact in bfloat16
    expected = [evaluate_ranking(scores, q, g)[k] for k in MEASURES]
    for other in (torch.from_numpy(scores), torch.from_numpy(scores).bfloat16(), (scores * 8).astype(int)):
        assert [evaluate_ranking(other, torch.from_numpy(q), pd.Series(g))[k] for k in MEASURES] == expected


@pytest.mark.parametrize("chunk", [1, 13, 500])
def test_features_give_the_numbers_of_the_whole_matrix(chunk):
    rng = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(70, 16, generator=rng), torch.randn(50, 16, generator=rng)
    q, g = torch.arange(70) % 30, torch.arange(50) % 30
    whole = evaluate_ranking(F.normalize(query) @ F.normalize(gallery).T, q, g)
    blocks = evaluate_features(3 * query, gallery, q, g, chunk=chunk)
    assert [blocks[k] for k in MEASURES] == pytest.approx([whole[k] for k in MEASURES], abs=1e-9)


@pytest.mark.parametrize("ties", [0, 4])
def test_roc_and_auc_equal_scikit_learn(ties):
    scores, q, g = problem(ties)
    s, genuine = pairs(scores, q, g)
    far, tar, thresholds = roc(s, genuine)
    expected = roc_curve(genuine, s, drop_intermediate=False)
    for ours, theirs in zip((far, tar, thresholds), expected):
        np.testing.assert_allclose(ours, theirs)
    assert np.isclose(auc(far, tar), roc_auc_score(genuine, s))


def test_pairs_leaves_out_the_own_camera():
    s, genuine = pairs(np.array([[0.9, 0.8, 0.7]]), [1], [1, 1, 2], [0], [0, 1, 0])
    assert s.tolist() == [0.8, 0.7] and genuine.tolist() == [True, False]


def test_eer_and_tar_at_far_on_cases_with_a_known_answer():
    perfect = roc([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0])[:2]
    assert eer(*perfect) == 0 and tar_at_far(*perfect, 0.0) == 1
    mixed = roc([4, 3, 2, 1], [1, 0, 1, 0])[:2]  # FAR 0 .5 .5 1, TAR .5 .5 1 1
    assert eer(*mixed) == 0.5 and tar_at_far(*mixed, 0.49) == 0.5 and tar_at_far(*mixed, 0.5) == 1
    assert eer(*roc([1, 1, 1, 1], [1, 0, 1, 0])[:2]) == 0.5  # one threshold: a coin
    assert eer(*roc([1, 2], [1, 0])[:2]) == 1


@pytest.mark.parametrize("call, word", [
    (lambda: evaluate_ranking(np.full((1, 2), np.nan), [1], [1, 2]), "NaN"),
    (lambda: evaluate_ranking(np.array([[0, np.inf]]), [1], [1, 2]), "infinite"),
    (lambda: evaluate_ranking(np.zeros((1, 0)), [1], []), "at least one"),
    (lambda: evaluate_ranking(np.zeros((0, 1)), [], [1]), "at least one"),
    (lambda: evaluate_ranking(np.zeros((1, 2)), [1], [1]), "must agree"),
    (lambda: evaluate_ranking(np.zeros(2), [1], [1, 2]), "one row per query"),
    (lambda: evaluate_ranking(np.zeros((1, 2)), [3], [1, 2]), "none of the 1 queries"),
    (lambda: evaluate_ranking(np.zeros((1, 2)), ["1"], [1, 2]), "same way"),
    (lambda: evaluate_ranking(np.zeros((1, 2)), [None], [1, 2]), "missing"),
    (lambda: evaluate_ranking(np.zeros((1, 2)), [1], [1, 2], query_cams=[0]), "give both"),
    (lambda: evaluate_ranking(np.zeros((1, 2)), [1], [1, 2], ap="area"), "trapezoid"),
    (lambda: evaluate_ranking(np.zeros((1, 2)), [1], [1, 2], chunk=0), "chunk"),
    (lambda: evaluate_features(torch.zeros(1, 3), torch.zeros(2, 4), [1], [1, 2]), "one D"),
    (lambda: evaluate_features(torch.full((1, 3), float("nan")), torch.ones(2, 3), [1], [1, 2]), "NaN"),
    (lambda: roc([1, 2], [1, 1]), "one kind"),
    (lambda: roc([1, np.nan], [1, 0]), "NaN"),
    (lambda: tar_at_far(np.array([0, 1]), np.array([0, 1]), 2), "fraction"),
])
def test_bad_input_is_one_clear_sentence(call, word):
    with pytest.raises(PromptSGError, match=word):
        call()
