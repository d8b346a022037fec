"""Steps after the embedding, against their definitions in loops, known answers and properties."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from promptsg import after
from promptsg.after import (
    by_person,
    database_augmentation,
    evaluate_after,
    k_reciprocal,
    mean_templates,
    mirror_sum,
    normalise,
    query_expansion,
)
from promptsg.config import PromptSGError
from promptsg.data import HandDataset, eval_transform
from promptsg.evaluation import Result, evaluate, paired_difference, ranked_images
from promptsg.metrics import evaluate_ranking

SEEDS = st.integers(0, 10_000)


def invent(count, seed=0, dim=6, people=4):
    "Rows of a few invented people, of any length."
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, dim))[np.arange(count) % people]
    return torch.tensor(3 * (centres + 0.7 * rng.normal(size=(count, dim))))


def with_copies(count, seed, dim=3):
    "Rows of few values, so that many images and distances are equal."
    rows = np.random.default_rng(seed).integers(-1, 2, size=(count, dim))
    rows[0], rows[~rows.any(1)] = [1, 0, 0], 1
    rows[1] = -1
    return torch.tensor(rows).double()


def unit(x):
    return F.normalize(torch.as_tensor(x).double(), dim=1)


def lengths(x):
    return x.double().norm(dim=1).numpy()


# --- mirror images
@given(SEEDS)
def test_a_mirror_sum_has_length_one_and_treats_both_alike(seed):
    one, other = invent(5, seed), invent(5, seed + 1)
    found = mirror_sum(one, other)
    assert found.dtype == torch.float32 and lengths(found) == pytest.approx(1, abs=1e-6)
    assert torch.equal(found, mirror_sum(other, one)) and torch.equal(
        found, mirror_sum(7 * one, other)
    )
    assert torch.allclose(found.double(), F.normalize(unit(one) + unit(other)), atol=1e-6)
    assert torch.allclose(mirror_sum(one, one).double(), unit(one), atol=1e-6)


def feed_of(quick, **changes):
    from promptsg.embedding import Embedder
    from promptsg.model import PromptSG

    config = quick.replace(**changes)
    torch.manual_seed(0)
    return Embedder(PromptSG(config, 3).eval(), config, progress=False)


def test_mirrored_embeddings_are_those_of_the_image_and_its_mirror_image(quick, splits):
    embedder, frame = feed_of(quick, prompt_aspect="image"), splits.galleries_all[0]
    frame = pd.concat([frame[:5], frame[:2], frame[-2:]])  # two images twice, and other aspects
    found = embedder.embed(frame, batch_size=4, mirror=True)
    model = embedder.model
    plain = HandDataset(frame, eval_transform(embedder.size, model.mean, model.std))
    others = {
        "dorsal_r": "dorsal_l",
        "dorsal_l": "dorsal_r",
        "palmar_r": "palmar_l",
        "palmar_l": "palmar_r",
    }
    turned = HandDataset(
        frame.assign(aspect=frame.aspect.map(others)),
        eval_transform(embedder.size, model.mean, model.std),
    )
    for place, path in enumerate(frame.path):
        image = plain[place]["image"][None]
        embed = lambda x, dataset: model.embed(
            x, aspects=torch.tensor([int(dataset[place]["aspect"])])
        )
        with torch.inference_mode():
            both = unit(embed(image, plain)) + unit(embed(image.flip(3), turned))
        assert torch.allclose(
            found.of(frame[place : place + 1]).double(), F.normalize(both), atol=1e-5
        ), path
    assert (
        len(found.rows) == frame.path.nunique() == 7
        and found.trained_on is embedder.model.trained_on
    )


# --- k-reciprocal re-ranking
def spelled_out(query, gallery, k1, k2, lam):
    "Zhong et al. 2017 as their code has it, dense and in loops."
    rows = torch.cat([unit(query), unit(gallery)]).numpy()
    n, queries = len(rows), len(query)
    distance = np.array([[round(2 - 2 * float(a @ b), 9) for b in rows] for a in rows])
    distance = (distance / distance.max(0)).T
    order = distance.argsort(1, kind="stable")

    def reciprocal(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    weights = np.zeros((n, n))
    for i in range(n):
        near = reciprocal(i, k1)
        expanded = set(near)
        for j in near:
            brought = reciprocal(j, int(np.around(k1 / 2)))
            if len(brought & near) > 2 / 3 * len(brought):
                expanded |= brought
        for j in expanded:
            weights[i, j] = np.exp(-distance[i, j])
        if expanded:
            weights[i] /= weights[i].sum()
    if k2 != 1:
        weights = np.array([weights[order[i, :k2]].mean(0) for i in range(n)])
    final = np.zeros((queries, n - queries))
    for i in range(queries):
        for j in range(queries, n):
            lower = np.minimum(weights[i], weights[j]).sum()
            final[i, j - queries] = (1 - lower / (2 - lower)) * (1 - lam) + distance[i, j] * lam
    return final


@pytest.mark.parametrize(
    "k1, k2, lam", [(20, 6, 0.3), (6, 1, 0.0), (7, 3, 0.5), (1, 2, 0.3), (3, 9, 0.1), (39, 40, 0.3)]
)
def test_k_reciprocal_is_the_published_algorithm(k1, k2, lam):
    query, gallery = invent(12, 1), invent(28, 2)
    found = k_reciprocal(query, gallery, k1, k2, lam)
    assert found.dtype == torch.float32 and found.shape == (12, 28)
    assert np.abs(found.numpy() - spelled_out(query, gallery, k1, k2, lam)).max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 12), st.integers(1, 8), st.sampled_from([0.0, 0.3]))
def test_k_reciprocal_with_equal_images(seed, k1, k2, lam):
    rows = with_copies(22, seed)
    found = k_reciprocal(rows[:7], rows[7:], k1, k2, lam)
    assert np.abs(found.numpy() - spelled_out(rows[:7], rows[7:], k1, k2, lam)).max() < 1e-6


@pytest.mark.parametrize(
    "rows", [invent(60, 3), with_copies(60, 4)], ids=["different", "with copies"]
)
def test_the_block_size_changes_nothing(monkeypatch, rows):
    whole = k_reciprocal(rows[:20], rows[20:], 8, 3)
    assert torch.allclose(
        k_reciprocal(rows[:20], rows[20:], 8, 3, memory_mb=1e-6), whole, rtol=0, atol=1e-7
    )  # a row at a time
    monkeypatch.setattr(after, "_step", lambda *_: 7)
    monkeypatch.setattr(after, "_TOGETHER", 50)
    assert torch.allclose(k_reciprocal(rows[:20], rows[20:], 8, 3), whole, rtol=0, atol=1e-7)


@given(SEEDS)
@settings(deadline=None)
def test_lam_1_keeps_the_order(seed):
    query, gallery = invent(6, seed), invent(15, seed + 1)
    distances = k_reciprocal(query, gallery, 5, 2, lam=1.0).numpy()
    cosines = (unit(query) @ unit(gallery).T).numpy()
    for row, similar in zip(distances, cosines):
        assert (np.diff(row[np.argsort(-similar)]) >= 0).all()


def test_distances_are_0_to_1_for_any_norm():
    query, gallery = invent(9, 5), invent(30, 6)
    found = k_reciprocal(query, gallery, 6, 2)
    assert found.min() >= 0 and found.max() <= 1
    assert torch.allclose(k_reciprocal(5 * query, gallery.float(), 6, 2), found, atol=1e-6)
    assert torch.equal(k_reciprocal(query.numpy(), gallery.numpy(), 6, 2), found)


def test_a_copy_of_the_query_comes_first():
    rows = invent(24, 8)
    found = k_reciprocal(rows[:4], torch.cat([rows[4:], rows[:4]]), 6, 2)
    assert found.argmin(1).tolist() == [20, 21, 22, 23] and found.min(1).values == pytest.approx(
        0, abs=1e-6
    )


def test_a_query_depends_on_the_other_queries():
    "What the notebook warns of, and that one query at a time does not."
    query, gallery = invent(12, 1), invent(28, 2)
    alone = k_reciprocal(query[:1], gallery, 6, 2)
    assert not torch.allclose(k_reciprocal(query, gallery, 6, 2)[:1], alone, atol=1e-3)
    assert torch.equal(alone, k_reciprocal(query[:1].clone(), gallery, 6, 2))


def test_memory_stays_within_the_budget():
    rows = invent(3000, 9, dim=16, people=150).float()  # 3000 x 3000 distances would be 72 MB
    budget = 16
    tracemalloc.start()
    try:
        found = k_reciprocal(rows[:500], rows[500:], memory_mb=budget)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    result = found.numpy().nbytes / 1e6
    assert peak - result < 1.25 * budget and peak < 0.5 * 72


# --- query expansion
def expanded_by_loops(query, gallery, k, alpha, skip_self=False):
    query, gallery, rows = unit(query), unit(gallery), []
    for n, q in enumerate(query):
        scores = [
            (-float(q @ g), place)
            for place, g in enumerate(gallery)
            if not (skip_self and place == n)
        ]
        total = q.clone()
        for score, place in sorted(scores)[:k]:
            total = total + (max(0.0, -score) ** alpha if alpha else 1.0) * gallery[place]
        rows.append(total / total.norm())
    return torch.stack(rows)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(0, 15), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_expansion_is_the_weighted_mean(seed, k, alpha):
    query, gallery = invent(6, seed), invent(15, seed + 1)
    found = query_expansion(query, gallery, k, alpha)
    assert found.dtype == torch.float32 and lengths(found) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(found.double(), expanded_by_loops(query, gallery, k, alpha), atol=1e-5)
    k = min(k, 14)
    found = database_augmentation(gallery, k, alpha)
    assert lengths(found) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(
        found.double(), expanded_by_loops(gallery, gallery, k, alpha, skip_self=True), atol=1e-5
    )


@given(SEEDS)
@settings(deadline=None)
def test_k_0_or_a_large_alpha_gives_the_query(seed):
    query, gallery = invent(6, seed), invent(15, seed + 1)
    assert torch.equal(query_expansion(query, gallery, k=0), unit(query).float())
    assert torch.allclose(
        query_expansion(query, gallery, k=5, alpha=1e9).double(), unit(query), atol=1e-6
    )
    assert torch.equal(database_augmentation(gallery, k=0), unit(gallery).float())


def test_an_image_is_not_its_own_neighbour_among_copies():
    gallery = torch.cat([torch.eye(3).double()[:1].repeat(5, 1), torch.eye(3).double()])
    found = database_augmentation(gallery, k=2, alpha=0)
    assert torch.allclose(found[:6], torch.eye(3)[:1].repeat(6, 1))  # copies among themselves
    alone = database_augmentation(torch.eye(3), k=1, alpha=3)  # the neighbour has cosine 0
    assert torch.equal(alone, torch.eye(3))


def test_query_expansion_does_not_depend_on_other_queries():
    query, gallery = invent(6), invent(15, 1)
    assert torch.allclose(
        query_expansion(query[:1], gallery, 3), query_expansion(query, gallery, 3)[:1], atol=1e-6
    )


# --- several gallery images
@given(SEEDS, st.integers(1, 6))
def test_scores_and_templates_of_people(seed, people):
    rng = np.random.default_rng(seed)
    ids = np.array([f"p{n}" for n in rng.integers(people, size=12)])
    query, gallery = unit(invent(5, seed)), unit(invent(12, seed + 1))
    similarity = query @ gallery.T
    highest, names = by_person(similarity, ids)
    mean, same = by_person(similarity.numpy(), pd.Series(ids, index=range(50, 62)), "mean")
    templates, also = mean_templates(gallery, ids)
    assert list(names) == list(same) == list(also) == list(dict.fromkeys(ids))
    for place, name in enumerate(names):
        own = torch.from_numpy(ids == name)
        assert torch.allclose(highest[:, place], similarity[:, own].amax(1))
        assert torch.allclose(mean[:, place], similarity[:, own].mean(1))
        centre = gallery[own].mean(0)
        assert torch.allclose(templates[place].double(), centre / centre.norm(), atol=1e-6)
        assert torch.allclose(
            query @ templates[place].double() * centre.norm(), mean[:, place], atol=1e-6
        )
    assert lengths(templates) == pytest.approx(1, abs=1e-6)


def test_with_one_image_per_person_all_three_are_equal():
    query, gallery, ids = unit(invent(5)), unit(invent(7, 1)), np.arange(7)[::-1]
    for how in ("max", "mean"):
        scores, people = by_person(query @ gallery.T, ids, how)
        assert torch.equal(scores, query @ gallery.T) and people.tolist() == ids.tolist()
    assert torch.allclose(
        mean_templates(gallery, torch.tensor(ids.copy()))[0].double(), gallery, atol=1e-6
    )


def test_one_high_score_changes_max_only():
    scores = torch.tensor([[0.9, 0.0, 0.5, 0.5]])
    assert (
        by_person(scores, [1, 1, 2, 2])[0].argmax() == 0
        and by_person(scores, [1, 1, 2, 2], "mean")[0].argmax() == 1
    )


# --- normalisation
def normalised_by_loops(similarity, query_cohort, gallery_cohort, how, top):
    found = np.zeros(similarity.shape)
    level = lambda scores: (np.mean(scores), np.std(scores))
    chosen = lambda scores: sorted(scores)[-top:] if how == "as" else scores
    for i, row in enumerate(similarity):
        for j, score in enumerate(row):
            (mq, sq), (mg, sg) = level(chosen(query_cohort[i])), level(chosen(gallery_cohort[j]))
            z, t = (score - mg) / sg, (score - mq) / sq
            found[i, j] = {"z": z, "t": t}.get(how, (z + t) / 2)
    return found


@given(SEEDS, st.sampled_from(["z", "t", "s", "as"]))
def test_normalise_equals_loops(seed, how):
    rng, top = np.random.default_rng(seed), 4 if how == "as" else None
    scores, queries, gallery = (
        rng.normal(size=(5, 7)),
        rng.normal(size=(5, 9)),
        rng.normal(size=(7, 9)),
    )
    found = normalise(scores, queries, gallery, how, top)
    assert found.numpy() == pytest.approx(
        normalised_by_loops(scores, queries, gallery, how, top), abs=1e-9
    )
    turned = normalise(scores.T, gallery, queries, {"z": "t", "t": "z"}.get(how, how), top)
    assert turned.T.numpy() == pytest.approx(
        found.numpy(), abs=1e-9
    )  # s and as are symmetric, z and t each other's mirror


def test_z_and_t_normalise_one_side():
    rng = np.random.default_rng(0)
    scores, queries, gallery = (
        rng.normal(size=(20, 30)),
        rng.normal(size=(20, 9)),
        rng.normal(size=(30, 9)),
    )
    ids = np.arange(20), np.arange(30) % 20
    by_t = normalise(scores, queries, None, "t")
    assert evaluate_ranking(by_t, *ids) == evaluate_ranking(scores, *ids)
    by_z = normalise(scores, None, gallery, "z")
    assert (by_z.numpy().argsort(0) == scores.argsort(0)).all() and evaluate_ranking(
        by_z, *ids
    ) != evaluate_ranking(scores, *ids)
    assert torch.allclose(
        normalise(scores, queries, gallery, "as", 9), normalise(scores, queries, gallery, "s")
    )
    z = normalise(
        gallery.T, None, gallery, "z"
    )  # the cohort itself has mean 0 and deviation 1 with each image
    assert z.mean(0) == pytest.approx(0, abs=1e-9) and z.std(0, correction=0) == pytest.approx(1)


# --- measuring
@pytest.fixture(scope="module")
def embeddings(splits, quick):
    return feed_of(quick).embed(ranked_images(splits, ["clipfh", "mba"]))


@pytest.mark.parametrize("protocol", ["clipfh", "mba"])
def test_an_identity_step_gives_the_plain_result(embeddings, splits, protocol):
    plain = evaluate(embeddings, splits, protocol)
    found = evaluate_after(
        lambda query, gallery: query @ gallery.T, "nothing", embeddings, splits, protocol
    )
    assert (
        found.per_query.equals(plain.per_query)
        and found.per_split.equals(plain.per_split)
        and (found.cmc == plain.cmc).all()
    )
    assert (
        found.record == {**plain.record, "control": "nothing"}
        and paired_difference(plain, found).difference == 0
    )


def test_a_step_has_its_own_result_folder(embeddings, splits, tmp_path):
    plain = evaluate(embeddings, splits)
    worst = evaluate_after(
        lambda query, gallery: -(query @ gallery.T), "turned round", embeddings, splits
    )
    assert worst.summary["mean"].mAP < plain.summary["mean"].mAP
    query, gallery = splits.queries[1], splits.galleries[1]
    own = evaluate_ranking(
        -(embeddings.of(query) @ embeddings.of(gallery).T),
        query.identity,
        gallery.identity,
        per_query=True,
    )
    assert (
        worst.per_split.mAP[1] == own["mAP"]
        and worst.per_query[worst.per_query.split == 1].ap.tolist()
        == own["per_query"]["ap"].tolist()
    )
    plain.save(tmp_path / "plain")
    with pytest.raises(PromptSGError, match="control"):
        worst.save(tmp_path / "plain")
    worst.save(tmp_path / "other")
    assert Result.load(tmp_path / "other").per_query.ap.tolist() == worst.per_query.ap.tolist()


def test_cameras_are_filtered_as_in_evaluate(embeddings, splits):
    from dataclasses import replace

    seen = lambda frame: frame.assign(
        camera=[len(path) % 2 + number % 2 for number, path in enumerate(frame.path)]
    )
    both = replace(
        splits,
        test=seen(splits.test),
        queries=[*map(seen, splits.queries)],
        galleries=[*map(seen, splits.galleries)],
    )
    plain = evaluate(embeddings, both)
    found = evaluate_after(lambda query, gallery: query @ gallery.T, "nothing", embeddings, both)
    assert plain.record["camera_filter"] and found.per_query.equals(plain.per_query)


# --- bad input
ROWS, OTHER, SCORES = invent(6), invent(8, 1), torch.rand(6, 8)
NAN = torch.full((6, 6), torch.nan)
COHORT = torch.rand(8, 5), torch.rand(6, 5)
MISTAKES = {
    "shapes differ": (lambda: mirror_sum(ROWS, OTHER), "a row for each image"),
    "cancel": (lambda: mirror_sum(ROWS, -ROWS), "has no direction"),
    "NaN": (lambda: mirror_sum(ROWS, NAN), "mirror images hold NaN"),
    "zero": (lambda: query_expansion(torch.zeros(1, 6), OTHER, 1), "row 0 of the queries is zero"),
    "one dimension": (lambda: k_reciprocal(ROWS[0], OTHER), r"\(N, D\)"),
    "empty": (lambda: k_reciprocal(ROWS[:0], OTHER), "at least one"),
    "infinity": (lambda: k_reciprocal(ROWS, OTHER / 0), "gallery's features hold NaN"),
    "widths": (
        lambda: k_reciprocal(ROWS, OTHER[:, :3]),
        "6 dimensions and the gallery's features 3",
    ),
    "k1 beyond": (lambda: k_reciprocal(ROWS, OTHER, 14), "k1 is 14 .* from 1 to 13"),
    "k1 below": (lambda: k_reciprocal(ROWS, OTHER, 0), "k1 is 0"),
    "k2 beyond": (lambda: k_reciprocal(ROWS, OTHER, 5, 15), "k2 is 15 .* from 1 to 14"),
    "k1 no number": (lambda: k_reciprocal(ROWS, OTHER, 2.5), "whole number"),
    "lam": (lambda: k_reciprocal(ROWS, OTHER, 5, 2, 1.5), "lam is 1.5"),
    "lam NaN": (lambda: k_reciprocal(ROWS, OTHER, 5, 2, float("nan")), "lam is nan"),
    "memory": (lambda: k_reciprocal(ROWS, OTHER, 5, 2, memory_mb=0), "memory_mb is 0"),
    "all equal": (lambda: k_reciprocal(torch.ones(6, 2), torch.ones(8, 2), 5, 2), "same embedding"),
    "k beyond": (lambda: query_expansion(ROWS, OTHER, 9), "k is 9 .* from 0 to 8"),
    "k beyond others": (lambda: database_augmentation(OTHER, 8), "k is 8 .* from 0 to 7"),
    "alpha": (lambda: query_expansion(ROWS, OTHER, 2, -1), "alpha is -1"),
    "alpha, no neighbour": (lambda: query_expansion(ROWS, OTHER, 0, float("inf")), "alpha is inf"),
    "expansion widths": (lambda: query_expansion(ROWS, OTHER[:, :3], 1), "6 dimensions"),
    "how": (lambda: by_person(SCORES, range(8), "median"), "'max' or 'mean'"),
    "ids": (lambda: by_person(SCORES, range(6)), "8 gallery images"),
    "missing id": (lambda: by_person(SCORES, ["a", None, *"bcdefg"]), "1 of them missing"),
    "NaN scores": (lambda: by_person(SCORES * torch.nan, range(8)), "NaN"),
    "template ids": (lambda: mean_templates(ROWS, range(8)), "6 images"),
    "templates cancel": (
        lambda: mean_templates(torch.cat([ROWS, -ROWS]), [0] * 12),
        "has no direction",
    ),
    "norm": (lambda: normalise(SCORES.T, *COHORT, "x"), "'z', 't', 's' or 'as'"),
    "no top": (lambda: normalise(SCORES.T, *COHORT, "as"), "give top"),
    "top unasked": (lambda: normalise(SCORES.T, *COHORT, "s", 3), "only for .as."),
    "top beyond": (lambda: normalise(SCORES.T, *COHORT, "as", 6), "top is 6 .* from 2 to 5"),
    "cohort rows": (lambda: normalise(SCORES, *COHORT, "s"), r"\(6, 5\) for 8 gallery images"),
    "cohort of one": (lambda: normalise(SCORES, COHORT[1][:, :1], None, "t"), "at least two"),
    "no cohort": (lambda: normalise(SCORES, None, COHORT[0], "s"), "queries have no cohort"),
    "cohort NaN": (lambda: normalise(SCORES, NAN, None, "t"), "cohort of the queries has NaN"),
    "cohort equal": (lambda: normalise(SCORES, torch.ones(6, 5), None, "t"), "equal"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_input_is_one_sentence(name):
    wrong, said = MISTAKES[name]
    with pytest.raises(PromptSGError, match=said) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_a_step_with_another_shape_is_an_error(embeddings, splits):
    with pytest.raises(PromptSGError):
        evaluate_after(lambda query, gallery: gallery @ query.T, "wrong", embeddings, splits)


# --- an embedding with its mirror image's, wherever a run embeds
def whitened_run(quick, frame, folder, **changes):
    "A run without gradient whose whitening is fitted to images and mirror images."
    from promptsg.training import Trainer

    config = quick.replace(
        language=False, supcon_loss_weight=0, epochs=0, whiten=True, cache_pixels=False, **changes
    )
    from promptsg.data import make_splits

    splits = make_splits(frame, "dorsal_r", 3, val="images", train_aspects=("dorsal_l",))
    return Trainer(config.replace(val_type="images"), splits, folder, progress=False).fit(), splits


@pytest.fixture(scope="module")
def frame(hands):
    from promptsg.data import read_11k

    return read_11k(hands)


@pytest.fixture(scope="module")
def mirrored_run(quick, frame, tmp_path_factory):
    return whitened_run(quick, frame, tmp_path_factory.mktemp("mirror") / "run", mirror=True)


def step_by_step(model, frame, numbers=None):
    "(N, D): each image and its mirror image through the tower and one whitening, then added."
    transform = eval_transform(model.backbone.image_size, model.mean, model.std)
    rows = []
    for item in map(HandDataset(frame, transform).__getitem__, range(len(frame))):
        with torch.no_grad():
            sides = [
                model.head(model.backbone(x[None]).embedding).embedding
                for x in (item["image"], item["image"].flip(2))
            ]
            white = [
                (unit(side) - model.whitening.mean) @ model.whitening.matrix.double()
                for side in sides
            ]
        rows.append(unit(unit(white[0]) + unit(white[1])))
    return torch.cat(rows)


def test_a_run_with_mirror_ranks_sums_of_whitened_embeddings(mirrored_run):
    from promptsg.checkpoints import load_run
    from promptsg.embedding import Embedder, measure

    run, splits = mirrored_run
    model = load_run(run)
    result, embeddings = measure(model, splits, progress=False)
    naive = step_by_step(model, splits.test)
    assert torch.allclose(embeddings.of(splits.test).double(), naive, atol=1e-4)
    assert result["clipfh"].record["config"]["mirror"] is True
    plain = Embedder(model, model.config, progress=False).embed(splits.test, mirror=False)
    assert (plain.of(splits.test) - embeddings.of(splits.test)).abs().max() > 1e-2
    # the whitening has seen both, each mirror image as somebody else's
    embedder = Embedder(model, model.config, progress=False)
    people = pd.concat([splits.train, splits.val_query]).drop_duplicates("path")
    raw = dict(mirror=False, whitened=False)
    rows = torch.cat(
        [
            embedder.embed(people, **raw).of(people),
            embedder.mirrored().embed(people, **raw).of(people),
        ]
    )
    names = [*people.identity, *(people.identity + " mirrored")]
    from promptsg.heads import Whitening

    whitening = Whitening(rows.shape[1])
    whitening.fit(rows, torch.from_numpy(pd.factorize(np.array(names))[0]))
    assert torch.allclose(whitening.matrix, model.whitening.matrix, rtol=1e-3, atol=1e-3)


def test_mirror_on_a_finished_run_keeps_its_whitening(quick, frame, tmp_path):
    from promptsg.checkpoints import load_run
    from promptsg.embedding import Embedder, WhiteningImages

    run, splits = whitened_run(quick, frame, tmp_path / "run")
    off, on = load_run(run), load_run(run, mirror=True)
    assert torch.equal(off.whitening.matrix, on.whitening.matrix)
    found = Embedder(on, on.config, progress=False).embed(splits.test).of(splits.test)
    assert torch.allclose(found.double(), step_by_step(off, splits.test), atol=1e-4)
    images = WhiteningImages(Embedder(on, on.config, progress=False), splits.train)
    again = type(on.whitening)(on.head.out_dim)
    images.fit(again, splits.train)  # as its own was fitted: to no mirror image
    images.mirror = None
    other = type(on.whitening)(on.head.out_dim)
    images.fit(other, splits.train)
    assert torch.equal(again.matrix, other.matrix)


def test_embed_adds_the_mirror_image(mirrored_run):
    from promptsg.checkpoints import load_run
    from promptsg.embedding import Embedder

    run, splits = mirrored_run
    model, some = load_run(run), splits.test[:4]
    transform = eval_transform(model.backbone.image_size, model.mean, model.std)
    images = torch.stack([HandDataset(some, transform)[n]["image"] for n in range(4)])
    numbers = torch.tensor([0, 1, -1, 3])
    found = model.embed(images, aspects=numbers)
    assert torch.allclose(
        found, Embedder(model, model.config, progress=False).embed(some).of(some), atol=1e-4
    )
    assert torch.allclose(found, model.embed(images.flip(-1)), atol=1e-5)
    for bad in (dict(frozen=images), dict(images=images, whitened=False)):
        with pytest.raises(PromptSGError, match="mirror=False"):
            model.embed(**bad)


def test_a_mirror_image_gets_the_aspect_of_the_other_hand(quick):
    embedder = feed_of(quick, prompt_aspect="image", mirror=True)
    images = torch.randn(3, 3, *embedder.size)
    said = []
    plain = embedder.model.fuse
    embedder.model.fuse = lambda *a, **k: said.append(a[4]) or plain(*a, **k)
    embedder.model.embed(images, aspects=torch.tensor([0, 3, -1]))
    assert [one.tolist() for one in said] == [[0, 3, -1], [1, 2, -1]]


def test_the_cache_separates_images_and_mirror_images(quick, splits, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTSG_CACHE", str(tmp_path))
    embedder = feed_of(quick, mirror=True)
    seen = []
    embed = embedder.model.embed
    embedder.model.embed = lambda *a, **k: seen.append(1) or embed(*a, **k)
    monkeypatch.setattr("promptsg.embedding.foreign_code", lambda model: "")
    both = embedder.embed(splits.test, batch_size=len(splits.test))
    assert len(seen) == 2
    own = embedder.embed(splits.test, mirror=False)
    turned = embedder.mirrored().embed(splits.test)
    again = embedder.embed(splits.test)
    assert len(seen) == 2  # nothing was made twice
    assert torch.equal(both.features, again.features)
    assert torch.equal(both.features, mirror_sum(own.features, turned.features))


def test_mirror_needs_whitened_embeddings(quick, splits):
    with pytest.raises(PromptSGError, match="mirror=False"):
        feed_of(quick, mirror=True).embed(splits.test, whitened=False)


@pytest.mark.parametrize("whiten", (True, False))
def test_measure_configs_with_mirror_equals_a_run(quick, frame, whiten, tmp_path):
    from promptsg.checkpoints import load_run
    from promptsg.embedding import measure
    from promptsg.tune import measure_configs
    from promptsg.versions import version

    base = version("training_free", "hand-vit-tiny").replace(
        num_splits=2, mirror=True, whiten=whiten, cache_pixels=False
    )
    from promptsg.data import make_splits
    from promptsg.training import Trainer

    splits = make_splits(frame, "dorsal_r", 2, val="images", train_aspects=("dorsal_l",))
    run = Trainer(base, splits, tmp_path / "run", progress=False).fit()
    own, _ = measure(load_run(run), splits, progress=False)
    found = measure_configs({"it": base}, splits, ("clipfh",), progress=False)["it"]["clipfh"]
    assert np.allclose(found.per_query.ap, own["clipfh"].per_query.ap)


def test_similarities_of_mirror_sums():
    from promptsg.tune import _summed

    one, other = unit(invent(6, 1)), unit(invent(6, 2))
    both = torch.cat([one, other])
    sums = mirror_sum(one, other).double()
    assert torch.allclose(_summed(both @ both.T, 6), sums @ sums.T, atol=1e-6)


# --- steps by name
def test_each_named_step_equals_its_function(quick, splits, frame):
    from promptsg.after import STEPS, cohort_of, measure_steps, step_differences, step_notes

    embedder = feed_of(quick)
    cohort = cohort_of(splits, frame, "mba")
    assert set(cohort.aspect) == set(splits.galleries_all[0].aspect)
    assert not set(cohort.pid) & set(splits.test.pid) and len(cohort)
    assert set(cohort_of(splits, frame).aspect) == {"dorsal_r"}
    some = pd.concat([ranked_images(splits, ("clipfh", "mba")), cohort])
    embeddings = embedder.embed(some)
    names = [name for name in STEPS if name != "rerank"]
    for protocol in ("clipfh", "mba"):
        found, seconds = measure_steps(names, embeddings, splits, protocol, cohort)
        C = embeddings.of(cohort)
        by_hand = {
            "rerank-few": lambda q, g: -k_reciprocal(q, g, 6, 2),
            "expand": lambda q, g: query_expansion(q, g, 1) @ g.T,
            "augment": lambda q, g: q @ database_augmentation(g, 1).T,
            "z": lambda q, g: normalise(q @ g.T, None, g @ C.T, "z"),
            "s": lambda q, g: normalise(q @ g.T, q @ C.T, g @ C.T, "s"),
            "as": lambda q, g: normalise(q @ g.T, q @ C.T, g @ C.T, "as", 20),
        }
        for name, after_ in by_hand.items():
            other = evaluate_after(after_, name, embeddings, splits, protocol)
            pd.testing.assert_frame_equal(found[name].per_query, other.per_query)
            assert found[name].record["control"] == name
        none = evaluate(embeddings, splits, protocol)
        for name in ("t", "max", "mean"):  # change no ranking here
            assert np.allclose(found[name].per_split.mAP, none.per_split.mAP)
        table = step_differences(none, found)
        assert set(table.step) == set(names) == set(seconds)
        assert (table.p_holm >= table.p - 1e-12).all()
        notes = step_notes(["max", "z"], splits, protocol)
        assert "no effect here" in notes[0] and "no effect here" not in notes[1]


def test_max_and_mean_combine_gallery_images(quick, splits):
    from dataclasses import replace

    from promptsg.after import measure_steps, step_notes

    embeddings = feed_of(quick).embed(splits.test)
    wide = splits.test.sample(frac=1, random_state=0).drop(
        index=splits.queries[0].index[:4], errors="ignore"
    )
    two = replace(
        splits,
        queries=splits.queries[:1],
        galleries=[wide[~wide.path.isin(splits.queries[0].path[:6])]],
    )
    two = replace(two, queries=[splits.queries[0][:6]])
    two = replace(two, galleries_all=two.galleries)
    found, _ = measure_steps(["max", "mean"], embeddings, two)
    assert "no effect here" not in " ".join(step_notes(["max"], two))
    query, gallery = two.queries[0], two.galleries[0]
    scores = (embeddings.of(query) @ embeddings.of(gallery).T).numpy()
    for how, result in found.items():
        for row, (who, line) in enumerate(zip(query.identity, scores)):
            people = pd.Series(line).groupby(gallery.identity.to_numpy()).agg(how)
            if who in people.index:
                place = int((people > people[who]).sum()) + 1
                assert result.per_query.first_hit[row] == place


def test_an_unknown_or_impossible_step_is_one_sentence(quick, splits):
    from promptsg.after import check_steps, measure_steps

    for names, cohort, said in (
        (["nonsense"], True, "no step 'nonsense'"),
        (["z", "z"], True, "given twice"),
        (["max", "z"], False, "needs a cohort"),
    ):
        with pytest.raises(PromptSGError, match=said):
            check_steps(names, cohort)
    with pytest.raises(PromptSGError, match="k1 is 20"):
        few = splits.queries[0][:3]
        from dataclasses import replace

        measure_steps(
            ["rerank"],
            feed_of(quick).embed(splits.test),
            replace(splits, queries=[few], galleries=splits.galleries[:1]),
        )


# --- another data set's whitening
def test_the_other_whitening_is_fitted_to_unranked_people(mirrored_run, tmp_path):
    from promptsg.checkpoints import load_run
    from promptsg.data import cross_splits, read_11k
    from promptsg.embedding import WHITENED, Embedder, measure, measure_whitenings
    from promptsg.heads import Whitening
    from promptsg.synth import write_hands

    write_hands(
        tmp_path / "other", n_train=5, n_test=4, images_per_aspect=3, seed=11, progress=False
    )
    other = read_11k(tmp_path / "other")
    run, _ = mirrored_run
    model = load_run(run)
    splits = cross_splits(other, "dorsal_r", 2, 0, model.trained_on, ("dorsal_l",))
    assert splits.cross and set(splits.train.aspect) == {"dorsal_r", "dorsal_l"}
    ranked = set(splits.test.pid).union(*(gallery.pid for gallery in splits.galleries_all))
    assert not set(splits.train.pid) & ranked and len(set(splits.train.pid)) == 5
    found = measure_whitenings(model, splits, ("clipfh",), progress=False)
    own, _ = measure(model, splits, progress=False)
    a, b = found["own whitening"]["clipfh"], found[WHITENED]["clipfh"]
    assert np.allclose(a.per_query.ap, own["clipfh"].per_query.ap)
    assert b.record["control"] == WHITENED and a.record.get("control") is None
    assert paired_difference(a, b).units == 4
    # by hand: the same tower with another whitening in it
    embedder, people = Embedder(model, model.config, progress=False), splits.train
    raw = dict(mirror=False, whitened=False)
    rows = torch.cat(
        [
            embedder.embed(people, **raw).of(people),
            embedder.mirrored().embed(people, **raw).of(people),
        ]
    )
    names = np.array([*people.identity, *(people.identity + " mirrored")])
    model.whitening = Whitening(rows.shape[1])
    model.whitening.fit(rows, torch.from_numpy(pd.factorize(names)[0]))
    by_hand, _ = measure(model, splits, progress=False)
    assert np.allclose(b.per_query.ap, by_hand["clipfh"].per_query.ap)


def test_sides_of_another_data_set(frame):
    from promptsg.data import cross_splits, make_splits

    bare = frame.assign(side="")
    found = cross_splits(bare, "dorsal_r", 2, 0, None, ())
    same = make_splits(bare, "dorsal_r", 2)  # halves the people in the same way
    assert set(found.test.pid) == set(same.test.pid)
    assert set(found.train.aspect) == {"dorsal_r"}
    everybody = cross_splits(frame, "dorsal_r", 2)
    assert not len(everybody.train) and set(everybody.test.pid) == set(frame.pid)
    with pytest.raises(PromptSGError, match="has no train person"):
        cross_splits(frame.assign(side="test"), "dorsal_r", 2, 0, None, ())


def test_extra_people_join_galleries_and_no_whitening(frame):
    from promptsg.data import cross_splits

    last = frame.pid[frame.side == "test"].iloc[0]
    found = cross_splits(
        frame.assign(side=frame.side.where(frame.pid != last, "extra")), "dorsal_r", 2, 0, None, ()
    )
    assert all(last in set(gallery.pid) for gallery in found.galleries_all)
    assert last not in set(found.train.pid) | set(found.test.pid)
