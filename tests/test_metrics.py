import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from promptsg import metrics
from promptsg.config import PromptSGError
from promptsg.metrics import (
    auc,
    average_precision,
    cmc,
    eer,
    evaluate_features,
    evaluate_ranking,
    faiss_index,
    first_hit,
    inverse_negative_penalty,
    pairs,
    rank,
    roc,
    tar_at_far,
    top_k,
)

MEASURES = ("rank1", "rank5", "rank10", "mAP", "mINP")


def problem(ties, seed=0, queries=60, gallery=90, people=25):
    "Random scores and ids; with ties, scores take few distinct values."
    rng = np.random.default_rng(seed)
    scores = (
        rng.integers(0, ties, (queries, gallery)) / ties if ties else rng.random((queries, gallery))
    )
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
@pytest.mark.parametrize("memory_mb", [1e-6, 0.05, 256])
def test_ap_equals_scikit_learn_on_random_and_tied_scores(ties, memory_mb):
    scores, q, g = problem(ties)
    ours = evaluate_ranking(scores, q, g, per_query=True, memory_mb=memory_mb)
    theirs = [
        average_precision_score(q[i] == g, scores[i]) if (q[i] == g).any() else np.nan
        for i in range(len(q))
    ]
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
    ranking = rank(
        torch.arange(6, 0, -1)[None].float(), torch.tensor([[5, 0, 2]]), torch.ones(1, 3).bool()
    )
    assert np.isclose(average_precision(ranking).item(), 0.72222222)
    assert np.isclose(average_precision(ranking, "trapezoid").item(), (1 + 7 / 12 + 9 / 20) / 3)
    assert first_hit(ranking).item() == 1 and inverse_negative_penalty(ranking).item() == 0.5


def test_cmc_counts_first_hits_and_the_curve_is_as_long_as_asked():
    curve = cmc(torch.tensor([1.0, 3.0, 3.0, float("nan"), 40.0]), top=20)
    assert (
        curve.shape == (20,)
        and curve[0] == 0.25
        and curve[1] == 0.25
        and curve[2] == 0.75
        and curve[19] == 0.75
    )
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


@pytest.mark.parametrize("width", [40, 400])  # sorted whole; counted by threads
def test_a_similarity_of_minus_infinity_hides_an_image(width):
    rng = np.random.default_rng(4)
    scores, q, g = rng.normal(size=(12, width)), np.arange(12) % 6, np.arange(width) % 7
    hidden = (g[None] != q[:, None]) & (rng.random(scores.shape) < 0.3)
    ours = evaluate_ranking(np.where(hidden, -np.inf, scores), q, g, per_query=True)["per_query"][
        "ap"
    ]
    expected = [
        average_precision_score((q[i] == g)[~hidden[i]], scores[i, ~hidden[i]]) for i in range(12)
    ]
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("width", [40, 400])
@pytest.mark.parametrize(
    "value, identity",
    [(np.nan, 0), (np.nan, 1), (-np.nan, 1), (np.inf, 0), (np.inf, 1), (-np.inf, 0)],
)
@pytest.mark.parametrize("cams", [False, True])
def test_what_is_no_number_is_refused_wherever_it_stands(width, value, identity, cams):
    scores, g, cam = (
        np.random.default_rng(4).normal(size=(5, width)),
        np.arange(width) % 3,
        np.arange(width) // 3 % 2,
    )
    scores[3, np.flatnonzero((g == identity) & (cam == 1))[-1]] = value
    with pytest.raises(PromptSGError, match="NaN or infinite"):
        evaluate_ranking(scores, np.zeros(5), g, *([np.zeros(5), cam] if cams else []))


@pytest.mark.parametrize("queries", [1, 3])
def test_more_threads_than_queries(monkeypatch, queries):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    scores, q, g = (
        np.random.default_rng(5).normal(size=(queries, 400)),
        np.arange(queries),
        np.arange(400) % 9,
    )
    ours = evaluate_ranking(scores, q, g, per_query=True)["per_query"]["ap"]
    np.testing.assert_allclose(
        ours, [average_precision_score(g == i, scores[i]) for i in range(queries)], atol=1e-12
    )


def test_ids_of_two_types_are_equal_only_where_their_values_are():
    big = 2**53
    result = evaluate_ranking(
        np.array([[2.0, 1.0]]), np.array([float(big)]), np.array([big + 1, big]), per_query=True
    )
    # rounded to floats, both would be matches
    assert result["per_query"]["first_hit"].tolist() == [2]


@pytest.mark.parametrize(
    "wrap", [list, np.array, pd.Series, lambda values: np.array(values, object)]
)
@pytest.mark.parametrize(
    "query, gallery",
    [(["1", "2"], [1, 2]), ([1, 2], ["1", "2"]), ([1.0, 2.0], ["1", "2"]), ([(1,), (2,)], [1, 2])],
)
def test_text_against_numbers_is_refused_for_ids_and_cameras(query, gallery, wrap):
    if query[0] == (1,):
        query = pd.Series(query)
    scores = np.array([[0.9, 0.8], [0.7, 0.6]])
    with pytest.raises(PromptSGError, match="query_ids are .* and gallery_ids are .*same way"):
        evaluate_ranking(
            scores, query if isinstance(query, pd.Series) else wrap(query), wrap(gallery)
        )
    with pytest.raises(PromptSGError, match="query_cams are .* and gallery_cams are .*same way"):
        pairs(
            scores,
            [1, 2],
            [1, 2],
            query if isinstance(query, pd.Series) else wrap(query),
            wrap(gallery),
        )


def test_numbers_of_any_type_are_compared_by_value():
    scores = np.array([[0.9, 0.8], [0.7, 0.6]])
    for cams in (
        [1, 2],
        [1.0, 2.0],
        [True, 2],
        np.array([1, 2], np.uint8),
        pd.Series([1, 2.0], dtype=object),
    ):
        found = evaluate_ranking(scores, [1, 1], [1, 1], cams, [1, 3], per_query=True)["per_query"]
        assert found["matches"].tolist() == [1, 2]
    text = evaluate_ranking(
        scores,
        ["a", "b"],
        pd.Series(["a", "b"]),
        np.array(["1", "2"], object),
        np.array(["9", "2"]),
        per_query=True,
    )
    assert text["per_query"]["matches"].tolist() == [1, 0] and text["queries_without_match"] == 1


def test_the_camera_filter_on_a_ranking_worked_by_hand():
    """Query 1, camera 1: the nearest image is its own camera's and left out; then wrong, right,
    wrong, right: AP (1/2 + 2/4) / 2. Query 2, camera 2, nothing left out: right, right, wrong: AP
    1. With the filter off, query 1 has (1 + 2/3 + 3/5) / 3."""
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.9, 0.2, 0.8, 0.3]])
    gallery, cams = ["a", "b", "a", "b", "a"], ["1", "1", "2", "1", "2"]
    on = evaluate_ranking(scores, ["a", "b"], gallery, ["1", "2"], cams, per_query=True)
    off = evaluate_ranking(scores, ["a", "b"], gallery, per_query=True)
    assert (
        on["mAP"] == 0.75
        and on["per_query"]["ap"].tolist() == [0.5, 1]
        and on["per_query"]["first_hit"].tolist() == [2, 1]
    )
    assert on["per_query"]["matches"].tolist() == [2, 2] and off["per_query"][
        "matches"
    ].tolist() == [3, 2]
    assert off["per_query"]["ap"][0] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_who_took_the_matches_away_is_said():
    scores = np.ones((2, 2))
    with pytest.raises(
        PromptSGError, match="camera filter leaves no query a match: 1 of 2 queries"
    ):
        evaluate_ranking(scores, [1, 9], [1, 1], ["a", "b"], ["a", "a"])
    for cams in ([], ["ab", "cd"]):  # nobody to be found, whatever the cameras
        with pytest.raises(PromptSGError, match="write identities the same way"):
            evaluate_ranking(scores, [1, 9], [2, 2], *map(list, cams))


def test_queries_without_a_match_are_counted_and_left_out():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.4]])
    result = evaluate_ranking(scores, ["a", "b", "x"], ["a", "b"], per_query=True)
    assert (
        result["queries"] == 3
        and result["queries_without_match"] == 1
        and result["rank1"] == result["mAP"] == 1
    )
    frame = pd.DataFrame(result["per_query"])
    assert frame.isna().sum(axis=1).tolist() == [0, 0, 3] and frame.matches.tolist() == [1, 1, 0]


def test_numpy_torch_and_half_precision_agree():
    scores, q, g = problem(8)  # eighths are exact in bfloat16
    expected = [evaluate_ranking(scores, q, g)[k] for k in MEASURES]
    for other in (
        torch.from_numpy(scores),
        torch.from_numpy(scores).bfloat16(),
        (scores * 8).astype(int),
    ):
        assert [
            evaluate_ranking(other, torch.from_numpy(q), pd.Series(g))[k] for k in MEASURES
        ] == expected


@pytest.mark.parametrize("memory_mb", [1e-6, 0.01, 256])
def test_features_give_the_numbers_of_the_whole_matrix(memory_mb):
    rng = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(70, 16, generator=rng), torch.randn(50, 16, generator=rng)
    q, g = torch.arange(70) % 30, torch.arange(50) % 30
    whole = evaluate_ranking(F.normalize(query) @ F.normalize(gallery).T, q, g)
    blocks = evaluate_features(3 * query, gallery, q, g, memory_mb=memory_mb)
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


def plain_loop(similarity, q, g, q_cam, g_cam):
    "mAP and CMC one query after the other, sorting each gallery in full."
    precisions, curve = [], np.zeros(20)
    for row, identity, camera in zip(similarity, q, q_cam):
        order = np.argsort(-row, kind="stable")
        match = g[order] == identity
        match = match[~(match & (g_cam[order] == camera))]
        found = match.cumsum()
        precisions.append((found / np.arange(1, len(match) + 1) * match).sum() / match.sum())
        curve += found[:20] > 0
    return np.mean(precisions), curve / len(q)


def test_a_long_gallery_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    g, q = rng.integers(0, 300, 8000), rng.integers(0, 300, 150)
    g_cam, q_cam = rng.integers(0, 6, 8000), rng.integers(0, 6, 150)
    centres = rng.normal(size=(300, 64))
    similarity = (centres[q] + rng.normal(size=(150, 64))) @ (
        centres[g] + rng.normal(size=(8000, 64))
    ).T
    mean_ap, curve = plain_loop(similarity, q, g, q_cam, g_cam)
    ours = evaluate_ranking(similarity, q, g, q_cam, g_cam)
    assert (
        0.3 < mean_ap < 0.99
        and abs(ours["mAP"] - mean_ap) < 1e-6
        and np.allclose(ours["cmc_curve"], curve, atol=1e-6)
    )


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    scores, q, g = problem(30, queries=3)  # fewer queries than threads, too
    before, expected = (
        torch.get_num_threads(),
        [average_precision_score(q[i] == g, scores[i]) for i in range(3)],
    )
    torch.set_num_threads(threads)
    try:
        np.testing.assert_allclose(
            evaluate_ranking(scores, q, g, per_query=True)["per_query"]["ap"], expected, atol=1e-12
        )
    finally:
        torch.set_num_threads(before)


def test_blocks_and_pieces_of_a_long_gallery_equal_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    # three pieces, the last one short
    query, gallery = (
        torch.randn(70, 16, generator=generator),
        torch.randn(9_000, 16, generator=generator),
    )
    q, g = np.arange(70) % 40, np.arange(9_000) % 40
    ours = evaluate_features(query, gallery, q, g, memory_mb=3, per_query=True)["per_query"]
    whole = evaluate_ranking(F.normalize(query) @ F.normalize(gallery).T, q, g, per_query=True)[
        "per_query"
    ]
    for name in ours:
        # a last bit may order two of 9,000 otherwise
        np.testing.assert_allclose(ours[name], whole[name], rtol=1e-3)
    assert abs(ours["ap"].mean() - whole["ap"].mean()) < 1e-6


def test_memory_stays_within_the_budget():
    "4,000 x 30,000 similarities are 480 MB; the whole matrix beside features would show."
    program = """
import resource, torch
from promptsg.metrics import evaluate_features, top_k
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
features, ids = torch.randn(34_000, 16), torch.arange(34_000) % 3000
query, gallery, q, g = features[:4000], features[4000:], ids[:4000], ids[4000:]
evaluate_features(query[:9], gallery, q[:9], g, memory_mb=1)
top_k(query[:9], gallery, 5, memory_mb=1)  # warm-up
before = peak()
evaluate_features(query, gallery, q, g, memory_mb=40)
top_k(query, gallery, 5, memory_mb=40)
print(peak() - before)
"""
    grown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert float(grown) < 80


# --- search
@pytest.mark.parametrize("memory_mb", [1e-6, 0.02, 256])
@pytest.mark.parametrize("k", [1, 7, 60, 999])
def test_top_k_is_a_stable_sort_of_the_gallery(k, memory_mb):
    rng = torch.Generator().manual_seed(0)
    # many equal, sums of squares small
    pick = lambda n: F.one_hot(torch.randint(6, (n, 4), generator=rng), 6).sum(1).float()
    query, gallery = pick(300), F.one_hot(torch.randint(6, (60,), generator=rng), 6).float()
    rows, similarity = top_k(query, gallery, k, memory_mb=memory_mb)
    full = (F.normalize(query) @ gallery.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(rows, full.indices[:, :k]) and torch.equal(similarity, full.values[:, :k])


def test_top_k_without_ties_reads_any_array(tmp_path):
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(5, 32)), rng.normal(size=(3000, 32)).astype(np.float16)
    np.save(tmp_path / "gallery.npy", gallery)
    rows, similarity = top_k(
        query, np.load(tmp_path / "gallery.npy", mmap_mode="c"), 9, memory_mb=0.1
    )
    cosine = (
        query
        @ gallery.T.astype(float)
        / np.linalg.norm(query, axis=1)[:, None]
        / np.linalg.norm(gallery.astype(float), axis=1)
    )
    assert np.array_equal(rows, np.argsort(-cosine)[:, :9])
    assert np.allclose(similarity, -np.sort(-cosine)[:, :9], atol=1e-6)


def test_faiss_finds_the_same():
    pytest.importorskip("faiss")
    rng = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(20, 32, generator=rng), torch.randn(2000, 32, generator=rng)
    exact, flat = top_k(query, gallery, 10), top_k(query, faiss_index(gallery), 10)
    assert torch.equal(exact[0], flat[0]) and torch.allclose(exact[1], flat[1], atol=1e-6)
    near = top_k(query, faiss_index(gallery, "HNSW32"), 10)[0]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(exact[0].tolist(), near.tolist())]) > 7


def test_without_faiss_the_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(PromptSGError, match="pip install faiss-cpu"):
        faiss_index(torch.zeros(2, 3))


@pytest.mark.parametrize(
    "call, word",
    [
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
        (lambda: evaluate_ranking(np.zeros((1, 2)), [1], [1, 2], memory_mb=0), "memory_mb"),
        (lambda: evaluate_features(torch.zeros(1, 3), torch.zeros(2, 4), [1], [1, 2]), "one D"),
        (
            lambda: evaluate_features(
                torch.full((1, 3), float("nan")), torch.ones(2, 3), [1], [1, 2]
            ),
            "NaN",
        ),
        (lambda: top_k(torch.ones(1, 3), torch.ones(2, 3), k=0), "at least 1"),
        (lambda: top_k(torch.ones(0, 3), torch.ones(2, 3)), "0 queries"),
        (lambda: top_k(torch.ones(1, 3), torch.ones(2, 4)), "one D"),
        (lambda: top_k(torch.ones(1, 3), torch.full((2, 3), float("nan"))), "NaN"),
        (lambda: roc([1, 2], [1, 1]), "one kind"),
        (lambda: roc([1, np.nan], [1, 0]), "NaN"),
        (lambda: tar_at_far(np.array([0, 1]), np.array([0, 1]), 2), "fraction"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, word):
    with pytest.raises(PromptSGError, match=word):
        call()


@pytest.mark.parametrize("shape", [(1,), (4,), (1, 3), (5, 3)])
def test_mean_and_spread_over_splits(shape):
    values = np.random.default_rng(0).normal(size=shape)
    mean, std = metrics.mean_std(values)
    table = pd.DataFrame(values)
    assert np.allclose(mean, table.mean().to_numpy().reshape(shape[1:]))
    assert np.allclose(std, table.std().fillna(0).to_numpy().reshape(shape[1:]))


def test_blocks_and_threads_change_no_measure(monkeypatch):
    rng = np.random.default_rng(0)
    scores, people = rng.normal(size=(20, 300)).astype("float32"), rng.integers(8, size=320)
    measure = lambda: metrics.evaluate_ranking(scores, people[:20], people[20:])
    whole = measure()
    monkeypatch.setattr(metrics, "_BLOCK_SCORES", 700)
    blocks = measure()
    monkeypatch.setattr(metrics, "_SHORT_ROW", 1000)
    assert whole == blocks == measure()
