import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from PIL import Image

from promptsg.config import Config, PromptSGError
from promptsg.data import eval_transform, make_splits
from promptsg.evaluation import (PROTOCOLS, Embeddings, Result, combine, embed_frame, embed_images, evaluate, paired_bootstrap, rank_gallery,
                                 ranked_images)
from promptsg.metrics import evaluate_ranking


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hands")
    rows = [(f"{person}", aspect, n) for person in range(12) for aspect in ("dorsal_r", "dorsal_l") for n in range(3)]
    frame = pd.DataFrame(rows, columns=["pid", "aspect", "n"])
    frame = frame.assign(identity=frame.pid + ":" + frame.aspect, side=np.where(frame.pid.astype(int) < 6, "train", "test"),
                         path=[str(folder / f"{row}.png") for row in frame.index], image=[f"{row}.png" for row in frame.index])
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
    return Embeddings({path: row for row, path in enumerate(frame.path)}, F.normalize(torch.tensor(points, dtype=torch.float32)))


class Counter:
    "An embedding that remembers which images it saw."
    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen += [image.numpy().tobytes() for image in images]
        return images.flatten(1)


def test_every_image_is_embedded_once(splits):
    embed = Counter()
    embeddings = embed_images(embed, ranked_images(splits, PROTOCOLS), eval_transform((4, 4)), batch_size=7, progress=False)
    needed = {path for part in (splits.test, *splits.galleries_all) for path in part.path}
    assert len(embed.seen) == len(set(embed.seen)) == len(needed) == len(embeddings.rows)
    for protocol in PROTOCOLS:
        evaluate(embeddings, splits, protocol)
    assert len(embed.seen) == len(needed)


def test_rows_follow_the_frame_and_have_length_one(frame):
    twice = pd.concat([frame[4:6], frame[5:8]])
    embed = Counter()
    features = embed_frame(embed, twice, eval_transform((4, 4)), progress=False)
    assert len(embed.seen) == 4 and torch.equal(features[1], features[2])
    assert features.dtype == torch.float32 and torch.allclose(features.norm(dim=1), torch.ones(5))
    embeddings = embed_images(Counter(), pd.concat([frame[:8], frame[4:]]), eval_transform((4, 4)), progress=False)
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
            expected = evaluate_ranking(embeddings.of(query) @ embeddings.of(gallery).T, query.identity, gallery.identity, ap=rule)
            for measure in ("rank1", "rank5", "mAP", "mINP"):
                assert result.per_split[measure][i] == pytest.approx(expected[measure])
        assert result.cmc.shape == (10, 20) and (result.cmc[:, 0] == result.per_split.rank1).all()
        by_query = result.per_query.groupby("split")
        assert np.allclose(by_query.ap.mean(), result.per_split.mAP)
        assert np.allclose(by_query.first_hit.apply(lambda rank: (rank <= 5).mean()), result.per_split.rank5)
        assert result.summary.loc["mAP", "std"] == pytest.approx(100 * np.std(result.per_split.mAP, ddof=1))


def test_a_result_is_stored_and_read_back(frame, splits, tmp_path):
    config = Config(epochs=3)
    result = evaluate(invented(frame, "identity", noise=1.5), splits, "mba", config=config)
    result.save(tmp_path / "run")
    loaded = Result.load(tmp_path / "run")
    pd.testing.assert_frame_equal(loaded.per_split, result.per_split)
    pd.testing.assert_frame_equal(loaded.per_query, result.per_query, check_dtype=False)
    assert np.array_equal(loaded.cmc, result.cmc) and loaded.record == json.loads(json.dumps(result.record))
    pd.testing.assert_frame_equal(loaded.summary, result.summary)
    assert loaded.record["config_hash"] == config.hash and loaded.record["protocol"]["name"] == "mba"
    assert {"python", "torch", "open_clip", "promptsg"} == set(loaded.record["versions"])
    stored = json.loads((tmp_path / "run/result.json").read_text())
    assert stored["summary"]["rank1"]["mean"] == pytest.approx(result.summary.loc["rank1", "mean"])
    (tmp_path / "run/result.json").write_text("{")
    with pytest.raises(PromptSGError, match="no whole evaluation result"):
        Result.load(tmp_path / "run")


def test_the_data_hash_names_what_was_measured(frame, splits):
    embeddings = invented(frame, "identity")
    hashes = {evaluate(embeddings, splits, protocol).record["data_hash"] for protocol in PROTOCOLS}
    assert len(hashes) == 2
    fewer = make_splits(frame[frame.pid != "11"], "dorsal_r")
    assert evaluate(embeddings, fewer).record["data_hash"] not in hashes


def test_nearest_images_come_first_and_ties_keep_their_order(frame):
    features = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8], [0.6, 0.8]])
    embeddings = Embeddings({path: row for row, path in enumerate(frame.path[:4])}, features)
    order, similarity = rank_gallery(embeddings, frame[:1], frame[1:4], k=9)
    assert order.tolist() == [[1, 2, 0]] and torch.allclose(similarity, torch.tensor([[0.6, 0.6, 0.0]]))


def test_bad_input_is_one_sentence(frame, splits, tmp_path):
    embeddings = invented(frame, "identity")
    with pytest.raises(PromptSGError, match="clipfh, mba"):
        evaluate(embeddings, splits, "market")
    with pytest.raises(PromptSGError, match=".png was not embedded"):
        evaluate(Embeddings({}, embeddings.features), splits)
    with pytest.raises(PromptSGError, match="no image to embed"):
        embed_frame(Counter(), frame[:0], eval_transform((4, 4)))
    with pytest.raises(PromptSGError, match="0.png has NaN"):
        embed_frame(lambda images: images.flatten(1) * float("nan"), frame, eval_transform((4, 4)), progress=False)
    with pytest.raises(PromptSGError, match="at least 1"):
        rank_gallery(embeddings, frame[:1], frame, k=0)


# --- comparing results -------------------------------------------------------------------------------------------
@pytest.fixture
def versions(frame, splits):
    return [evaluate(invented(frame, "identity", noise), splits) for noise in (2.0, 1.0)]


@pytest.mark.parametrize("by, column", [("query", "path"), ("identity", "identity")])
@pytest.mark.parametrize("measure", ["mAP", "rank1"])
def test_the_bootstrap_agrees_with_scipy(versions, measure, by, column):
    a, b = versions
    ours = paired_bootstrap(a, b, measure, n=4000, by=by)
    value = lambda result: result.per_query.ap if measure == "mAP" else (result.per_query.first_hit == 1).astype(float)
    before, after = (value(result).groupby(result.per_query[column]).sum() for result in (a, b))
    counts = a.per_query.groupby(column).size()
    ratio = lambda x, y, n, axis: 100 * (y - x).sum(axis) / n.sum(axis)
    theirs = scipy.stats.bootstrap((before.to_numpy(), after.to_numpy(), counts.to_numpy()), ratio, paired=True, n_resamples=4000,
                                   method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert ours.difference == pytest.approx((b.summary - a.summary).loc[measure, "mean"])
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=0.12 * (theirs.high - theirs.low))


def altered(result, ap):
    "The result with other per-query values, its figures to match."
    per_query = result.per_query.assign(ap=ap)
    return replace(result, per_query=per_query, per_split=result.per_split.assign(mAP=per_query.groupby("split").ap.mean().to_numpy()))


def test_the_bootstrap_on_cases_with_a_known_answer(versions):
    a = altered(versions[0], 0.5)
    assert paired_bootstrap(a, altered(a, 0.7)) == pytest.approx((20, 20, 20))  # the same gain everywhere: no doubt
    assert paired_bootstrap(versions[1], versions[1], "rank5") == (0, 0, 0)
    forth, back = paired_bootstrap(*versions), paired_bootstrap(*versions[::-1])
    assert forth == pytest.approx((-back.difference, -back.high, -back.low))
    # one of six people gains 60 points, nobody else: the draws hold it k times with probability Binomial(6, 1/6)
    one = paired_bootstrap(a, altered(a, np.where(a.per_query.identity == "7:dorsal_r", 1.1, 0.5)), n=4000, by="identity")
    assert one == pytest.approx((10, 0, 30))


def test_seeds_are_averaged_before_they_are_compared(versions):
    a, b = versions
    middle = altered(a, (a.per_query.ap + b.per_query.ap) / 2)
    assert paired_bootstrap(a, [a, b]) == pytest.approx(paired_bootstrap(a, middle))


def test_combine_separates_splits_and_seeds(frame, splits):
    results = [evaluate(invented(frame, "identity", noise), splits) for noise in (1.5, 2.0, 2.5)]
    table = combine(results)
    values = np.array([100 * result.per_split.mAP for result in results])  # (seeds, splits)
    expected = values.mean(), values.std(ddof=1), values.mean(0).std(ddof=1), values.mean(1).std(ddof=1)
    assert tuple(table.loc["mAP", ["mean", "std", "std_splits", "std_seeds"]]) == pytest.approx(expected)
    alone = combine(results[0])
    pd.testing.assert_frame_equal(alone[["mean", "std"]], results[0].summary)
    assert (alone["std"] == alone.std_splits).all() and (alone.std_seeds == 0).all()


def test_the_other_ap_rule_on_the_same_ranking(frame, splits):
    embeddings = invented(frame, "identity", noise=1.5)
    plain, other = evaluate(embeddings, splits), evaluate(embeddings, splits, ap="trapezoid")
    assert other.record["protocol"] == {**plain.record["protocol"], "ap": "trapezoid"}
    assert (other.per_query.first_hit == plain.per_query.first_hit).all() and (other.per_split.mAP < plain.per_split.mAP).all()
    with pytest.raises(PromptSGError, match="no average precision rule 'area'"):
        evaluate(embeddings, splits, ap="area")


def test_only_the_same_measurement_is_compared(frame, splits, versions):
    a, embeddings = versions[0], invented(frame, "identity")
    for other, word in ((evaluate(embeddings, splits, "mba"), "protocol"), (evaluate(embeddings, splits, ap="trapezoid"), "protocol"),
                        (evaluate(embeddings, make_splits(frame[frame.pid != "11"], "dorsal_r")), "data_hash"),
                        (evaluate(embeddings, make_splits(frame, "dorsal_r", seed=1)), "other splits")):
        for call in (lambda: paired_bootstrap(a, other), lambda: combine([a, other])):
            with pytest.raises(PromptSGError, match=word):
                call()
    for call, word in ((lambda: paired_bootstrap(a, a, "mINP"), "measure='mINP'"), (lambda: paired_bootstrap(a, a, by="person"), "by='person'"),
                       (lambda: paired_bootstrap(a, a, n=0), "n=0"), (lambda: combine([]), "at least one")):
        with pytest.raises(PromptSGError, match=word):
            call()
