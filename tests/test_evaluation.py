import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from promptsg.config import Config, PromptSGError
from promptsg.data import eval_transform, make_splits
from promptsg.evaluation import (
    Embeddings,
    Result,
    combine,
    difference_of,
    embed_frame,
    embed_images,
    evaluate,
    holm,
    interval_of,
    minp_note,
    notes,
    paired_difference,
    rank_gallery,
    ranked_images,
)
from promptsg.metrics import evaluate_ranking

HANDS = ("clipfh", "mba")  # protocols of data without queries and a gallery of its own


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hands")
    rows = [
        (f"{person}", aspect, n)
        for person in range(12)
        for aspect in ("dorsal_r", "dorsal_l")
        for n in range(3)
    ]
    frame = pd.DataFrame(rows, columns=["pid", "aspect", "n"])
    frame = frame.assign(
        identity=frame.pid + ":" + frame.aspect,
        side=np.where(frame.pid.astype(int) < 6, "train", "test"),
        path=[str(folder / f"{row}.png") for row in frame.index],
        image=[f"{row}.png" for row in frame.index],
    )
    rng = np.random.default_rng(0)
    for path in frame.path:
        Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(path)
    return frame


@pytest.fixture
def splits(frame):
    return make_splits(frame, "dorsal_r")


def invented(frame, key, noise=0.05):
    rng = np.random.default_rng(0)
    codes, values = pd.factorize(frame[key])
    points = rng.normal(size=(len(values), 24))[codes] + noise * rng.normal(size=(len(frame), 24))
    return Embeddings(
        {path: row for row, path in enumerate(frame.path)},
        F.normalize(torch.tensor(points, dtype=torch.float32)),
    )


class Counter:
    "An embedding that remembers which images it saw."

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen += [image.numpy().tobytes() for image in images]
        return images.flatten(1)


def test_every_image_is_embedded_once(splits):
    embed = Counter()
    embeddings = embed_images(
        embed, ranked_images(splits, HANDS), eval_transform((4, 4)), batch_size=7, progress=False
    )
    needed = {path for part in (splits.test, *splits.galleries_all) for path in part.path}
    assert len(embed.seen) == len(set(embed.seen)) == len(needed) == len(embeddings.rows)
    for protocol in HANDS:
        evaluate(embeddings, splits, protocol)
    assert len(embed.seen) == len(needed)


def test_rows_follow_the_frame_and_have_length_one(frame):
    twice = pd.concat([frame[4:6], frame[5:8]])
    embed = Counter()
    features = embed_frame(embed, twice, eval_transform((4, 4)), progress=False)
    assert len(embed.seen) == 4 and torch.equal(features[1], features[2])
    assert features.dtype == torch.float32 and torch.allclose(features.norm(dim=1), torch.ones(5))
    embeddings = embed_images(
        Counter(), pd.concat([frame[:8], frame[4:]]), eval_transform((4, 4)), progress=False
    )
    assert torch.allclose(embeddings.of(twice), features)


def test_clipfh_ranks_one_aspect_and_mba_all(frame, splits):
    by_person = invented(frame, "pid")
    alone, together = (evaluate(by_person, splits, protocol) for protocol in ("clipfh", "mba"))
    assert alone.summary.loc["rank1", "mean"] == alone.summary.loc["mAP", "mean"] == 100
    assert together.summary.loc["rank1", "mean"] < 90  # a person's other hand is a wrong answer
    assert (alone.record["gallery"], together.record["gallery"]) == (6, 12)
    perfect = evaluate(invented(frame, "identity"), splits, "mba")
    assert perfect.summary["mean"].eq(100).all() and perfect.summary["std"].eq(0).all()


def test_figures_are_those_of_the_metrics_on_each_split(frame, splits):
    embeddings = invented(frame, "identity", noise=1.5)
    for name, rule in (("clipfh", "mean"), ("mba", "trapezoid")):
        result = evaluate(embeddings, splits, name)
        galleries = splits.galleries if name == "clipfh" else splits.galleries_all
        for i, (query, gallery) in enumerate(zip(splits.queries, galleries)):
            expected = evaluate_ranking(
                embeddings.of(query) @ embeddings.of(gallery).T,
                query.identity,
                gallery.identity,
                ap=rule,
            )
            for measure in ("rank1", "rank5", "mAP", "mINP"):
                assert result.per_split[measure][i] == pytest.approx(expected[measure])
        assert result.cmc.shape == (10, 20) and (result.cmc[:, 0] == result.per_split.rank1).all()
        by_query = result.per_query.groupby("split")
        assert np.allclose(by_query.ap.mean(), result.per_split.mAP)
        assert np.allclose(
            by_query.first_hit.apply(lambda rank: (rank <= 5).mean()), result.per_split.rank5
        )
        assert result.summary.loc["mAP", "std"] == pytest.approx(
            100 * np.std(result.per_split.mAP, ddof=1)
        )


def test_a_result_is_stored_and_read_back(frame, splits, tmp_path):
    config = Config(epochs=3)
    result = evaluate(invented(frame, "identity", noise=1.5), splits, "mba", config=config)
    result.save(tmp_path / "run")
    loaded = Result.load(tmp_path / "run")
    pd.testing.assert_frame_equal(loaded.per_split, result.per_split)
    pd.testing.assert_frame_equal(loaded.per_query, result.per_query, check_dtype=False)
    assert np.array_equal(loaded.cmc, result.cmc) and loaded.record == json.loads(
        json.dumps(result.record)
    )
    pd.testing.assert_frame_equal(loaded.summary, result.summary)
    assert (
        loaded.record["config_hash"] == config.hash and loaded.record["protocol"]["name"] == "mba"
    )
    assert {"python", "torch", "open_clip", "promptsg"} == set(loaded.record["versions"])
    stored = json.loads((tmp_path / "run/result.json").read_text())
    assert stored["summary"]["rank1"]["mean"] == pytest.approx(result.summary.loc["rank1", "mean"])
    (tmp_path / "run/result.json").write_text("{")
    with pytest.raises(PromptSGError, match="no whole evaluation result"):
        Result.load(tmp_path / "run")


def test_the_data_hash_names_what_was_measured(frame, splits):
    embeddings = invented(frame, "identity")
    hashes = {evaluate(embeddings, splits, protocol).record["data_hash"] for protocol in HANDS}
    assert len(hashes) == 2
    fewer = make_splits(frame[frame.pid != "11"], "dorsal_r")
    assert evaluate(embeddings, fewer).record["data_hash"] not in hashes


def test_nearest_images_come_first_and_ties_keep_their_order(frame):
    features = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8], [0.6, 0.8]])
    embeddings = Embeddings({path: row for row, path in enumerate(frame.path[:4])}, features)
    order, similarity = rank_gallery(embeddings, frame[:1], frame[1:4], k=9)
    assert order.tolist() == [[1, 2, 0]] and torch.allclose(
        similarity, torch.tensor([[0.6, 0.6, 0.0]])
    )


def test_bad_input_is_one_sentence(frame, splits, tmp_path):
    embeddings = invented(frame, "identity")
    with pytest.raises(PromptSGError, match="clipfh, mba"):
        evaluate(embeddings, splits, "market")
    with pytest.raises(PromptSGError, match=".png was not embedded"):
        evaluate(Embeddings({}, embeddings.features), splits)
    with pytest.raises(PromptSGError, match="no image to embed"):
        embed_frame(Counter(), frame[:0], eval_transform((4, 4)))
    with pytest.raises(PromptSGError, match="0.png has NaN"):
        embed_frame(
            lambda images: images.flatten(1) * float("nan"),
            frame,
            eval_transform((4, 4)),
            progress=False,
        )
    with pytest.raises(PromptSGError, match="at least 1"):
        rank_gallery(embeddings, frame[:1], frame, k=0)


# --- comparing results
@pytest.fixture
def versions(frame, splits):
    return [evaluate(invented(frame, "identity", noise), splits) for noise in (2.0, 1.0)]


@pytest.mark.parametrize("by, column", [("query", "path"), ("identity", "identity")])
@pytest.mark.parametrize("measure", ["mAP", "rank1"])
def test_with_one_training_the_interval_over_units_is_the_textbooks(versions, measure, by, column):
    """Independent: the jackknife written out, and where all units weigh alike scipy's paired
    t-test."""
    a, b = versions
    ours = paired_difference(a, b, measure, by)
    value = lambda result: (
        result.per_query.ap if measure == "mAP" else (result.per_query.first_hit == 1).astype(float)
    )
    sums = [value(result).groupby(result.per_query[column]).sum() for result in (a, b)]
    gain, counts = 100 * (sums[1] - sums[0]), a.per_query.groupby(column).size()
    assert ours.difference == pytest.approx((b.summary - a.summary).loc[measure, "mean"])
    left = [gain.drop(unit).sum() / counts.drop(unit).sum() for unit in gain.index]
    error = np.sqrt((len(left) - 1) * np.var(left))
    kish = counts.sum() ** 2 / (counts**2).sum()
    reach = scipy.stats.t.ppf(0.975, kish - 1) * error
    assert (ours.low, ours.high) == pytest.approx(
        (ours.difference - reach, ours.difference + reach)
    )
    assert (ours.units, ours.trainings) == (len(gain), 1) and ours.effective == pytest.approx(kish)
    if by == "identity":
        assert counts.nunique() == 1  # so that the mean of the units' means is the mean
        test = scipy.stats.ttest_1samp(gain / counts, 0)
        assert (ours.low, ours.high) == pytest.approx(tuple(test.confidence_interval()))
        assert ours.p == pytest.approx(test.pvalue, abs=1e-9)


def test_trainings_alone_give_the_t_test_over_them():
    """All people gain the same, each training another amount."""
    counts = np.array([3.0, 5, 9, 2])
    before = np.zeros((4, 4))
    gains = np.array([0.01, 0.04, 0.02, 0.06])
    found = difference_of(before, gains[:, None] * counts, counts)
    paired = scipy.stats.ttest_1samp(100 * gains, 0)
    assert found[:3] == pytest.approx((100 * gains.mean(), *paired.confidence_interval()))
    assert found.p == pytest.approx(paired.pvalue) and found.trainings == 4
    # other numbers of trainings: each side has its own spread; a side of one has none
    alone = difference_of(before[:1], gains[:, None] * counts, counts)
    assert alone == pytest.approx(found)
    three = difference_of(gains[:3, None] * counts, before + gains[:, None] * counts, counts)
    parts = [100**2 * np.var(x, ddof=1) / len(x) for x in (gains[:3], gains)]
    reach = np.sqrt(sum(scipy.stats.t.ppf(0.975, n - 1) ** 2 * v for n, v in zip((3, 4), parts)))
    assert three.high - three.difference == pytest.approx(reach) and three.trainings == 4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 12))
def test_properties_of_the_interval(seed, trainings, units):
    """It turns round with its sides, holds its value, and p says whether it holds 0."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 20, units).astype(float)
    before, after = rng.random((2, trainings, units)) * counts
    forth, back = difference_of(before, after, counts), difference_of(after, before, counts)
    assert forth.low <= forth.difference <= forth.high
    assert forth[:4] == pytest.approx((-back.difference, -back.high, -back.low, back.p))
    assert (forth.low <= 0 <= forth.high) == (forth.p >= 0.05)
    assert 1 <= forth.effective <= units and forth.low >= -100 and forth.high <= 100


@pytest.mark.parametrize("trainings, spread", [(3, 0.0), (3, 1.3), (3, 2.9), (1, 0.0)])
def test_the_interval_covers_what_it_promises(trainings, spread):
    """1,000 invented experiments; the truth is 5 points."""
    rng, held = np.random.default_rng(0), []
    for _ in range(1000):
        counts = np.maximum(1, rng.lognormal(2, 0.5, 46).round())
        gain = (
            0.05
            + rng.normal(0, 0.035, 46)
            + rng.normal(0, spread / 100, (trainings, 1))
            + rng.normal(0, 0.02, (trainings, 46))
        )
        found = difference_of(0 * gain, gain * counts, counts)
        held.append(found.low <= 5 <= found.high)
    assert 0.93 <= np.mean(held) <= 0.99


def test_holm_is_the_step_down_procedure():
    rng = np.random.default_rng(0)
    for p in (rng.random(7) ** 3, [0.04, 0.001, 0.03, 0.2], [0.01], [0.02, 0.02]):
        adjusted, rejected = holm(p), set()
        # written out: stop at the first that fails
        for place, one in enumerate(np.argsort(p, kind="stable")):
            if np.asarray(p)[one] > 0.05 / (len(p) - place):
                break
            rejected.add(int(one))
        assert {*np.flatnonzero(adjusted <= 0.05)} == rejected and (adjusted >= p).all()
    for wrong in ([1.2], [[0.1]], [np.nan]):
        with pytest.raises(PromptSGError, match="from 0 to 1"):
            holm(wrong)


def altered(result, ap):
    "The result with other per-query values, its figures to match."
    per_query = result.per_query.assign(ap=ap)
    return replace(
        result,
        per_query=per_query,
        per_split=result.per_split.assign(mAP=per_query.groupby("split").ap.mean().to_numpy()),
    )


def test_differences_with_a_known_answer(versions):
    a = altered(versions[0], 0.5)
    same = paired_difference(a, altered(a, 0.7))
    assert same[:4] == pytest.approx((20, 20, 20, 0))  # the same gain everywhere: no doubt
    assert paired_difference(versions[1], versions[1], "rank5")[:4] == (0, 0, 0, 1)
    # one of six people gains 60 points: the mean gains 10, with an error of 10
    one = paired_difference(a, altered(a, np.where(a.per_query.identity == "7:dorsal_r", 1.1, 0.5)))
    assert one.difference == pytest.approx(10)
    assert one.high - 10 == pytest.approx(10 * scipy.stats.t.ppf(0.975, 5))
    only = lambda result: replace(
        result, per_query=result.per_query.query("identity == '7:dorsal_r'")
    )
    alone = paired_difference(only(a), only(altered(a, 0.7)))
    assert alone[:4] == (pytest.approx(20), -100, 100, 1)  # one person says nothing of others


def test_seeds_are_averaged_before_they_are_compared(versions):
    a, b = versions
    middle = altered(a, (a.per_query.ap + b.per_query.ap) / 2)
    several, once = paired_difference(a, [a, b]), paired_difference(a, middle)
    assert several.difference == pytest.approx(once.difference)
    assert several.high - several.low > once.high - once.low  # the trainings' spread comes on top


def test_combine_separates_splits_and_seeds(frame, splits):
    results = [evaluate(invented(frame, "identity", noise), splits) for noise in (1.5, 2.0, 2.5)]
    table = combine(results)
    values = np.array([100 * result.per_split.mAP for result in results])  # (seeds, splits)
    expected = (
        values.mean(),
        values.std(ddof=1),
        values.mean(0).std(ddof=1),
        values.mean(1).std(ddof=1),
    )
    assert tuple(table.loc["mAP", ["mean", "std", "std_splits", "std_seeds"]]) == pytest.approx(
        expected
    )
    alone = combine(results[0])
    pd.testing.assert_frame_equal(alone[["mean", "std"]], results[0].summary)
    assert (alone["std"] == alone.std_splits).all() and (alone.std_seeds == 0).all()


def test_the_other_ap_rule_on_the_same_ranking(frame, splits):
    embeddings = invented(frame, "identity", noise=1.5)
    plain, other = evaluate(embeddings, splits), evaluate(embeddings, splits, ap="trapezoid")
    assert other.record["protocol"] == {**plain.record["protocol"], "ap": "trapezoid"}
    assert (other.per_query.first_hit == plain.per_query.first_hit).all() and (
        other.per_split.mAP < plain.per_split.mAP
    ).all()
    with pytest.raises(PromptSGError, match="no average precision rule 'area'"):
        evaluate(embeddings, splits, ap="area")


def test_only_the_same_measurement_is_compared(frame, splits, versions):
    a, embeddings = versions[0], invented(frame, "identity")
    for other, word in (
        (evaluate(embeddings, splits, "mba"), "protocol"),
        (evaluate(embeddings, splits, ap="trapezoid"), "protocol"),
        (evaluate(embeddings, make_splits(frame[frame.pid != "11"], "dorsal_r")), "data_hash"),
        (evaluate(embeddings, make_splits(frame, "dorsal_r", seed=1)), "other splits"),
    ):
        for call in (lambda: paired_difference(a, other), lambda: combine([a, other])):
            with pytest.raises(PromptSGError, match=word):
                call()
    for call, word in (
        (lambda: paired_difference(a, a, "mINP"), "measure='mINP'"),
        (lambda: paired_difference(a, a, by="person"), "by='person'"),
        (lambda: combine([]), "at least one"),
    ):
        with pytest.raises(PromptSGError, match=word):
            call()


# --- queries without a match
def without(splits, identity):
    "The splits with an identity gone from every gallery: its queries have no match."
    left = lambda galleries: [
        gallery[gallery.identity != identity].reset_index(drop=True) for gallery in galleries
    ]
    return replace(
        splits, galleries=left(splits.galleries), galleries_all=left(splits.galleries_all)
    )


def by_hand(first_hits, record=None):
    """A result of one split whose queries, one image each of people a, b, c, ..., found their one
    match at these places (None: no match)."""
    first = pd.Series(first_hits, dtype="Int64")
    ap = 1 / first.astype("Float64").to_numpy(float, na_value=np.nan)
    per_query = pd.DataFrame(
        {
            "split": 0,
            "path": [f"{n}.png" for n in range(len(first))],
            "identity": list("abcdef"[: len(first)]),
            "ap": ap,
            "first_hit": first,
        }
    )
    values = dict(
        rank1=(first == 1).mean(),
        rank5=(first <= 5).mean(),
        rank10=(first <= 10).mean(),
        mAP=np.nanmean(ap),
        mINP=np.nanmean(ap),
    )
    known = {"protocol": {"name": "clipfh", "gallery": "galleries", "ap": "mean"}, "data_hash": "x"}
    return Result(
        pd.DataFrame([{"split": 0, **values}]), per_query, np.ones((1, 20)), known | (record or {})
    )


@pytest.mark.parametrize("by", ["query", "identity"])
def test_a_query_without_a_match_counts_for_nothing_in_interval_and_table(by):
    """Three of four queries have a match. a finds one of three first, b two: 33.3 points more,
    where counting the fourth as a hit or as a miss would say 25. With b right everywhere and a
    nowhere, there is no doubt about 100."""
    a, b = by_hand([1, 2, 4, None]), by_hand([1, 1, 2, None])
    assert paired_difference(a, b, "rank1", by=by).difference == pytest.approx(100 / 3)
    assert paired_difference(a, b, "mAP", by=by).difference == pytest.approx(
        100 * ((1 + 1 + 1 / 2) - (1 + 1 / 2 + 1 / 4)) / 3
    )
    for side, share in ((a, 100 / 3), (b, 200 / 3)):
        assert combine(side).loc["rank1", "mean"] == pytest.approx(share)
    assert paired_difference(by_hand([2, 2, 3, None]), by_hand([1, 1, 1, None]), "rank1", by=by)[
        :3
    ] == pytest.approx((100, 100, 100))
    # another query without a match: not the same measurement
    with pytest.raises(PromptSGError, match="other splits"):
        paired_difference(a, by_hand([1, None, 4, 2]))


def test_the_record_counts_queries_without_a_match_and_the_means_leave_them_out(
    frame, splits, tmp_path
):
    embeddings, fewer = invented(frame, "identity", noise=1.5), without(splits, "7:dorsal_r")
    whole, result = evaluate(embeddings, splits), evaluate(embeddings, fewer)
    lost = result.per_query.identity == "7:dorsal_r"
    # 10 splits, 2 images
    assert (
        result.record["queries_without_match"] == lost.sum() == 20
        and whole.record["queries_without_match"] == 0
    )
    assert result.per_query[lost][["ap", "first_hit"]].isna().all(axis=None) and result.per_query[
        ~lost
    ].notna().all(axis=None)
    assert result.per_split.rank1.tolist() == pytest.approx(
        list((result.per_query[~lost].first_hit == 1).groupby(result.per_query.split).mean())
    )
    result.save(tmp_path)
    loaded = Result.load(tmp_path)
    assert loaded.per_query.first_hit.dtype == "Int64" and loaded.per_query.first_hit.equals(
        result.per_query.first_hit
    )
    other = evaluate(invented(frame, "identity", noise=1.0), fewer)
    matched = [one.per_query[~lost] for one in (loaded, other)]
    expected = 100 * ((matched[1].first_hit == 1).mean() - (matched[0].first_hit == 1).mean())
    assert paired_difference(loaded, other, "rank1").difference == pytest.approx(expected)
    assert any(
        line.startswith("x: 20 queries, of all splits, without a right image")
        for line in notes({"x": result})
    )
    with pytest.raises(PromptSGError, match="none of the 2 queries"):
        only = lambda frames: [rows[rows.identity == "7:dorsal_r"] for rows in frames]
        evaluate(embeddings, replace(fewer, queries=only(fewer.queries)))


# --- what the record says
def test_what_the_caller_says_is_in_the_record(frame, splits):
    result = evaluate(
        invented(frame, "identity"),
        splits,
        config=Config(),
        device="cuda:0",
        precision="bf16",
        weights="best 12ab",
        left_out={"a film": 2},
    ).record
    assert (
        result["machine"]["device"] == "cuda:0"
        and result["precision"] == "bf16"
        and result["weights"] == "best 12ab"
    )
    assert result["left_out"] == {**splits.excluded, "a film": 2} and result["cross"] is False
    silent = evaluate(invented(frame, "identity"), replace(splits, cross=True)).record
    assert (
        silent["machine"]["device"] == "not recorded"
        and silent["cross"] is True
        and silent["weights"] is None
    )


def test_minp_is_called_map_only_where_it_is(frame, splits):
    """One right image and the mean of precisions: always equal. Another rule, or two right images:
    not."""
    embeddings = invented(frame, "identity", noise=1.5)
    results = {name: evaluate(embeddings, splits, name) for name in HANDS}
    two = [
        rows[rows.side == "test"].reset_index(drop=True)
        for rows in [frame[(frame.aspect == "dorsal_r") & (frame.n > 0)]]
    ] * 10
    results["two"] = evaluate(
        embeddings,
        replace(splits, queries=[rows[rows.n == 0] for rows in splits.queries], galleries=two),
    )
    results["by mean"] = evaluate(embeddings, splits, "mba", ap="mean")
    assert [result.record["right_images"] for result in results.values()] == [
        [1, 1],
        [1, 1],
        [2, 2],
        [1, 1],
    ]
    for name, result in results.items():
        said = "equals mAP" in minp_note({name: result})
        assert (
            said
            == np.allclose(result.per_split.mAP, result.per_split.mINP)
            == (name in ("clipfh", "by mean"))
        )
    assert minp_note({"clipfh": results["clipfh"]}).endswith(
        "It equals mAP, as each query has one right image and average precision is the mean of "
        "precisions"
    )
    assert "It equals mAP in clipfh; by mean, as" in minp_note(results)


def test_mba_on_one_aspect_says_that_only_the_rule_differs(frame, splits):
    one = frame[frame.aspect == "dorsal_r"]
    alone, embeddings = make_splits(one, "dorsal_r"), invented(frame, "identity", noise=1.5)
    results = {name: evaluate(embeddings, alone, name) for name in HANDS}
    assert [result.record["same_galleries_as"] for result in results.values()] == [None, "clipfh"]
    assert results["mba"].per_split.rank1.equals(results["clipfh"].per_split.rank1)
    assert [
        line for line in notes(results) if line.startswith("mba: the galleries are those of clipfh")
    ]
    assert evaluate(embeddings, splits, "mba").record["same_galleries_as"] is None


def test_images_of_the_querys_own_camera_are_no_matches(frame, splits):
    """Each person's image n was taken by camera n % 2; a query whose gallery image is of its own
    camera has no match left."""
    cameras = lambda parts: [rows.assign(camera=(rows.n % 2).astype(str)) for rows in parts]
    told = replace(
        splits,
        test=cameras([splits.test])[0],
        queries=cameras(splits.queries),
        galleries=cameras(splits.galleries),
        galleries_all=cameras(splits.galleries_all),
    )
    embeddings = invented(frame, "identity", noise=1.5)
    result, plain = evaluate(embeddings, told), evaluate(embeddings, splits)
    camera = {row.path: row.n % 2 for row in frame.itertuples()}
    own = [
        {row.identity: camera[row.path] for row in gallery.itertuples()}
        for gallery in splits.galleries
    ]
    lost = [
        camera[row.path] == own[row.split][row.identity] for row in plain.per_query.itertuples()
    ]
    assert (
        0 < sum(lost) == result.record["queries_without_match"]
        and result.per_query.ap.isna().tolist() == lost
    )
    assert result.record["camera_filter"] and not plain.record["camera_filter"]
    one = replace(
        told,
        **{
            name: [rows.assign(camera="0") for rows in getattr(told, name)]
            for name in ("queries", "galleries")
        },
        test=told.test.assign(camera="0"),
    )
    # one camera for all: nothing to tell apart
    assert evaluate(embeddings, one).per_split.equals(plain.per_split)


# --- the folder of a result
def bytes_of(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(protocol="mba"), "protocol"),
        (dict(config=Config(epochs=9)), "config_hash"),
        (dict(weights="last"), "weights"),
        (dict(fewer=True), "data_hash"),
        (dict(cross=True), "cross"),
    ],
)
def test_a_folder_keeps_the_result_of_another_measurement(frame, splits, tmp_path, change, word):
    embeddings = invented(frame, "identity")
    evaluate(embeddings, splits, config=Config()).save(tmp_path)
    before, change = bytes_of(tmp_path), dict(change)
    other = (
        make_splits(frame[frame.pid != "11"], "dorsal_r") if change.pop("fewer", False) else splits
    )
    other = replace(other, cross=change.pop("cross", False))
    with pytest.raises(
        PromptSGError, match=f"holds a result of another {word} .*choose another folder"
    ):
        evaluate(embeddings, other, **{"config": Config(), **change}).save(tmp_path)
    assert bytes_of(tmp_path) == before


def test_the_same_measurement_is_replaced_whole(frame, splits, tmp_path):
    old, new = (evaluate(invented(frame, "identity", noise), splits) for noise in (1.0, 2.0))
    old.save(tmp_path)
    new.save(tmp_path)
    assert (
        Result.load(tmp_path).per_query.ap.equals(new.per_query.ap) and len(bytes_of(tmp_path)) == 4
    )
    (tmp_path / "result.json").write_bytes(b"\xff{")
    old.save(tmp_path)  # what nobody can read is no result
    assert Result.load(tmp_path).per_query.ap.equals(old.per_query.ap)


@pytest.mark.parametrize("file", range(4))
def test_a_full_disk_at_any_file_leaves_the_old_result(frame, splits, tmp_path, monkeypatch, file):
    old, new = (evaluate(invented(frame, "identity", noise), splits) for noise in (1.0, 2.0))
    old.save(tmp_path)
    before, write, count = bytes_of(tmp_path), Path.write_bytes, iter(range(9))

    def full(self, data):
        if next(count) == file:
            write(self, data[:3])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PromptSGError, match="cannot be written"):
        new.save(tmp_path)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("kept", range(1, 4))
def test_a_kill_between_two_files_is_seen(frame, splits, tmp_path, kept, monkeypatch):
    """The record is replaced last: what a killed save leaves is the new tables beside the old
    record."""
    from promptsg import files

    old, new = (evaluate(invented(frame, "identity", noise), splits) for noise in (1.0, 2.0))
    old.save(tmp_path)
    move, count = files.os.replace, iter(range(9))

    def dies(source, target):
        if next(count) == kept:
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.os, "replace", dies)
        new.save(tmp_path)
    with pytest.raises(PromptSGError, match="no whole evaluation result.*evaluate again"):
        Result.load(tmp_path)
    new.save(tmp_path)
    assert Result.load(tmp_path).per_query.ap.equals(new.per_query.ap)


def spoil(folder, name, change):
    "Change a JSON or CSV file of a result."
    file = folder / name
    if name == "result.json":
        return file.write_text(json.dumps(change(json.loads(file.read_text()))))
    change(pd.read_csv(file)).to_csv(file, index=False)


WRONG = [
    ("result.json", lambda record: [record]),
    ("result.json", lambda record: 3),
    ("result.json", lambda record: record | {"cmc": "x"}),
    ("result.json", lambda record: record | {"cmc": [["a"]]}),
    ("result.json", lambda record: record | {"cmc": [[1], [1, 2]]}),
    *[
        ("result.json", lambda record, name=name, value=value: record | {name: value})
        for name in (
            "protocol",
            "summary",
            "versions",
            "machine",
            "left_out",
            "splits",
            "data_hash",
            "config",
        )
        for value in (3.5, [1], "x" if name != "data_hash" else None)
    ],
    ("result.json", lambda record: record | {"protocol": {"name": 1}}),
    ("result.json", lambda record: {k: v for k, v in record.items() if k != "queries"}),
    ("result.json", lambda record: record | {"summary": {"rank1": {"mean": "x"}}}),
    *[
        ("per_split.csv", change)
        for change in (
            lambda t: t.drop(columns="mINP"),
            lambda t: t.assign(mAP="x"),
            lambda t: t.assign(rank1=100 * t.rank1),
            lambda t: t[:0],
            lambda t: t[:-1],
            lambda t: t.assign(split=0.5),
            lambda t: t.assign(more=1),
        )
    ],
    *[
        ("per_query.csv", change)
        for change in (
            lambda t: t.drop(columns="ap"),
            lambda t: t.assign(first_hit=1.5),
            lambda t: t.assign(first_hit="x"),
            lambda t: t.assign(ap=2.0),
            lambda t: t[:0],
            lambda t: t[:-9],
            lambda t: t.assign(split="x"),
        )
    ],
]


@pytest.mark.parametrize("name, change", WRONG)
def test_a_result_of_wrong_kinds_is_one_sentence(frame, splits, tmp_path, name, change):
    evaluate(invented(frame, "identity", 1.5), splits).save(tmp_path)
    spoil(tmp_path, name, change)
    with pytest.raises(
        PromptSGError, match="holds no whole evaluation result .*evaluate again"
    ) as error:
        Result.load(tmp_path)
    assert "\n" not in str(error.value)


def test_identities_that_look_like_formulas_or_missing_values_are_stored(frame, splits, tmp_path):
    result = evaluate(invented(frame, "identity"), splits)
    names = ["=1+1", "-5", "NA", "007", "1e5", "+x"]
    named = replace(
        result,
        per_query=result.per_query.assign(
            identity=[names[n % 6] for n in range(len(result.per_query))]
        ),
    )
    named.save(tmp_path)
    assert Result.load(tmp_path).per_query.identity.tolist() == named.per_query.identity.tolist()
    assert (
        b",=1+1," not in (tmp_path / "per_query.csv").read_bytes()
        and b",'=1+1," in (tmp_path / "per_query.csv").read_bytes()
    )


def test_the_interval_of_a_mean_is_that_of_its_difference_to_nothing(frame, splits):
    result = evaluate(invented(frame, "identity", 1.5), splits)
    nothing = replace(result, per_query=result.per_query.assign(ap=0.0))
    found, other = interval_of(result), paired_difference(nothing, result)
    assert found[:3] == pytest.approx((other.difference, max(other.low, 0), other.high))
    assert (
        found.difference == pytest.approx(result.summary["mean"]["mAP"])
        and 0 <= found.low < found.difference < found.high <= 100
    )
    several = interval_of([result, result], "rank1")
    assert several.difference == pytest.approx(result.summary["mean"]["rank1"])
    for call, word in (
        (lambda: interval_of(result, "mINP"), "measure='mINP'"),
        (lambda: interval_of([]), "no result"),
    ):
        with pytest.raises(PromptSGError, match=word):
            call()


def test_per_query_keeps_what_the_data_says_of_its_images(frame, tmp_path):
    more = frame.assign(gender=np.where(frame.pid.astype(int) % 2, "male", "female"), age=30)
    result = evaluate(invented(more, "identity"), make_splits(more, "dorsal_r"))
    assert list(result.per_query.columns) == [
        "split",
        "path",
        "identity",
        "ap",
        "first_hit",
        "gender",
        "age",
    ]
    known = more.set_index("path").gender
    assert (result.per_query.gender == result.per_query.path.map(known)).all()
    result.save(tmp_path / "result")
    kept = Result.load(tmp_path / "result").per_query
    assert (kept.gender == result.per_query.gender).all() and (kept.age == 30).all()
