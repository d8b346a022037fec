"""The calibration of a run: fitted on held-out people of its train side, rejected for other
weights."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import promptsg

from promptsg.biometrics import cllr, compare_all, min_cllr, verification
from promptsg.checkpoints import load_run
from promptsg.config import PromptSGError
from promptsg.data import make_splits, read_data
from promptsg.decisions import (
    Decision,
    attribute_labels,
    describe_false_matches,
    describe_match,
    describe_search,
    error_rates,
    fit_decision,
    train_side_scores,
    who_is_it,
)
from promptsg.embedding import Embedder
from promptsg.explorer import Explorer
from promptsg.model import PromptSG
from promptsg.synth import write_hands
from promptsg.training import Trainer
from promptsg.tune import person_folds, train_people
from promptsg.versions import version

TOWER = "hand-vit-tiny"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decisions")
    write_hands(
        folder / "hands", n_train=20, n_test=12, images_per_aspect=3, seed=0, progress=False
    )
    return folder, read_data(folder / "hands")


@pytest.fixture(scope="module")
def free(place):
    folder, frame = place
    config = version("training_free", TOWER)
    splits = make_splits(frame, "dorsal_r", 2, val="images", train_aspects=config.train_aspects)
    return (
        load_run(Trainer(config, splits, folder / "free", progress=False).fit()),
        splits,
        folder / "free",
    )


def embedder(model):
    return Embedder(model, model.config, progress=False)


def test_without_training_every_train_person_is_held_out_once(free):
    model, splits, _ = free
    scores, genuine, people = train_side_scores(model, splits, embedder(model))
    everybody = train_people(splits)
    dealt, pairs = person_folds(everybody), []
    for _, rows in everybody.groupby([dealt, everybody.aspect.to_numpy()]):
        one, other = np.triu_indices(len(rows), 1)
        pairs += [*(rows.identity.to_numpy()[one] == rows.identity.to_numpy()[other])]
    assert (
        people == everybody.pid.nunique()
        and genuine.sum() == sum(pairs)
        and len(genuine) == len(pairs)
    )
    assert genuine.sum() > 50 and (~genuine).sum() > 100
    # the whitening fitted to all of them gives genuine pairs of these people higher similarities
    own = splits.train[splits.train.aspect == "dorsal_r"]
    known, same = compare_all(embedder(model).embed(own).of(own), own.identity).scores()
    assert known[same].mean() > scores[genuine].mean()


def test_a_trained_run_is_calibrated_on_its_validation_people(place):
    folder, frame = place
    config = version("image_only", TOWER).replace(
        epochs=1, steps_per_epoch=1, train_aspects=(), batch_size=8
    )
    splits = make_splits(frame, "dorsal_r", 2)
    model = load_run(Trainer(config, splits, folder / "trained", progress=False).fit())
    scores, genuine, people = train_side_scores(model, splits, embedder(model))
    held = splits.val_query.pid.nunique()
    sizes = np.array(
        [(splits.val_query.identity == one).sum() + 1 for one in splits.val_query.identity.unique()]
    )
    assert people == held and genuine.sum() == (sizes * (sizes - 1) // 2).sum()
    assert len(genuine) == sizes.sum() * (sizes.sum() - 1) // 2
    everybody = model.config.replace(val_type="images")
    model.config = everybody
    with pytest.raises(PromptSGError, match="val_type: identities"):
        train_side_scores(model, splits, embedder(model))


def test_a_saved_decision_is_read_back_and_rejected_for_other_weights(free, tmp_path):
    model, splits, _ = free
    found = fit_decision(model, splits, "isotonic", embedder(model))
    found.save(tmp_path)
    assert Decision.load(tmp_path, model) == found and found.people == 20
    other = PromptSG(model.config, 3).eval()
    with pytest.raises(PromptSGError, match="belongs to other weights"):
        Decision.load(tmp_path, other)
    for wrong in (
        "[]",
        "{}",
        json.dumps({**json.loads((tmp_path / "decision.json").read_text()), "people": "many"}),
    ):
        (tmp_path / "decision.json").write_text(wrong)
        with pytest.raises(PromptSGError, match="promptsg decide --run"):
            Decision.load(tmp_path, model)
    with pytest.raises(PromptSGError, match="has no decision.json"):
        Decision.load(tmp_path / "none", model)


def test_the_cllr_on_test_people_is_near_its_minimum(free):
    model, splits, _ = free
    found = fit_decision(model, splits, embedder=embedder(model))
    scores, genuine = compare_all(
        embedder(model).embed(splits.test).of(splits.test), splits.test.identity
    ).scores()
    assert (
        min_cllr(scores, genuine)
        <= cllr(found.calibration(scores), genuine)
        < min_cllr(scores, genuine) + 0.15
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.99))
def test_who_is_it_is_bayes_rule(seed, prior):
    rng = np.random.default_rng(seed)
    logs = rng.normal(0, 3, (4, 7))
    shares, nobody = who_is_it(logs, prior)
    evidence = (prior / 7 * np.exp(logs)).sum(1) + 1 - prior
    assert np.allclose(nobody, (1 - prior) / evidence) and np.allclose(shares.sum(1) + nobody, 1)
    assert (shares.argmax(1) == logs.argmax(1)).all()


def test_the_sentence_of_a_match():
    nobody = "(probability of nobody: {:.2f})".format
    for log_ratio, share, text in (
        (np.log(240), 0.1, "240"),
        (np.log(3.14), 0.4, "3.1"),
        (1e9, 0.0, "over 1,000,000"),
    ):
        sentence = f"the same person, likelihood ratio {text} {nobody(share)}"
        assert describe_match(log_ratio, share) == sentence
    assert describe_match(np.log(240), 0.9) == "nobody in this gallery (probability 0.90)"
    assert describe_match(np.log(240), 0.1, "0007").startswith("0007: the same person, ")
    for logs, prior in (([[0.0]], 0.0), ([[0.0]], 1.0), ([0.0], 0.5), ([[np.nan]], 0.5)):
        with pytest.raises(PromptSGError, match="between 0 and 1"):
            who_is_it(logs, prior)


def searched(run, query, gallery, out, **options):
    words = ("search", "--run", run, "--query", query, "--gallery", gallery, "--out", out)
    return promptsg(*words, **options)


def test_decide_saves_a_calibration_and_search_prints_likelihood_ratios(free, place):
    (folder, frame), (_, _, run) = place, free
    out = promptsg("decide", "--run", run, "--data", folder / "hands").stdout
    assert "fitted on 20 train-side people" in out and "rule of 3" in out and "Cllr" in out
    tables = {
        name: pd.read_csv(run / "decision" / f"{name}.csv")
        for name in ("verification", "by_ratio", "open_set")
    }
    assert tables["by_ratio"].ratio.tolist() == [1, 10, 100, 1000] and len(tables["open_set"]) == 10
    assert (run / "decision" / "groups-gender.csv").is_file()
    query = frame.path[frame.side == "test"].iloc[0]
    found = searched(run, query, folder / "hands", folder / "found")
    assert "likelihood_ratio" in found.stdout and "nobody" in found.stdout
    assert "likelihood_ratio" in pd.read_csv(folder / "found" / "nearest.csv")
    explorer = Explorer(run, frame, progress=False)
    explorer.set_query(query)
    gallery, found_by = explorer.run.gallery_for(query), embedder(explorer.run.model)
    one = frame[frame.path == query]
    similarity = found_by.embed(one).of(one) @ found_by.embed(gallery).of(gallery).T
    assert explorer.decided() == describe_search(
        Decision.load(run, explorer.run.model), similarity[0], gallery.identity, run
    )
    explorer.set_prompt("a dog")
    assert explorer.decided() == []  # the calibration is not valid for another prompt
    (run / "decision.json").write_text("{}")
    wrong = searched(run, query, folder / "hands", folder / "b", code=2)
    assert "does not hold a decision; promptsg decide" in wrong.stderr


def test_decide_rejects_an_unknown_kind_before_it_reads_the_data(free, tmp_path):
    words = ("decide", "--run", free[2], "--data")
    wrong = promptsg(*words, tmp_path / "none", "--kind", "beta", code=2)
    assert "--kind is 'beta'; choose logistic or isotonic" in wrong.stderr


def test_decide_takes_as_many_folds_as_there_are_people_for(free, place):
    words = ("decide", "--run", free[2], "--data", place[0] / "hands")
    wrong = promptsg(*words, "--folds", 11, code=2)
    assert "20 train-side people are too few for 11 folds" in wrong.stderr
    assert "(on the command line --folds)" in wrong.stderr
    assert "fitted on 20 train-side people" in promptsg(*words, "--folds", 2).stdout


def test_error_rates_equals_the_separate_functions(free):
    model, splits, _ = free
    decision = fit_decision(model, splits, embedder=embedder(model))
    found = error_rates(model, splits, decision, embedder(model), draws=20)
    alone = compare_all(embedder(model).embed(splits.test).of(splits.test), splits.test.identity)
    assert found.threshold == decision.calibration.threshold(1) and found.tested.people == 12
    assert np.array_equal(found.tested.genuine, alone.genuine) and found.verification.value[
        0
    ] == pytest.approx(verification(alone, draws=2).value[0])
    assert set(found.groups) == set(attribute_labels(splits.test)) >= {"gender", "skin colour"}
    assert found.evidence["Cllr"] >= found.evidence["minimum"] and len(found.reliability) > 1
    none = error_rates(model, splits, None, embedder(model), draws=2)
    assert none.by_ratio.empty and none.evidence == {} and none.reliability is None
    assert none.threshold == none.verification.threshold[0]


def test_attributes_with_one_value_are_left_out():
    frame = pd.DataFrame(
        {
            "gender": ["male"] * 4,
            "age": [18, 25, 39, 77],
            "nail_polish": [0, 1, 0, 0],
            "irregularities": [0] * 4,
        }
    )
    labels = attribute_labels(frame)
    assert list(labels) == ["age", "nail polish"]
    assert labels["age"].tolist() == ["under 25", "25 to 39", "25 to 39", "40 and over"]
    assert labels["nail polish"].tolist() == [
        "no nail polish",
        "nail polish",
        "no nail polish",
        "no nail polish",
    ]
    assert attribute_labels(frame[["gender"]]) == {}


def test_describe_search_and_its_false_match_rate(free, tmp_path):
    model, splits, _ = free
    decision = fit_decision(model, splits, embedder=embedder(model))
    at = [decision.calibration.threshold(ratio) for ratio in (500, 2, 0.001)]
    said = describe_search(decision, at, ["b", "a", "a"], tmp_path)
    assert (
        len(said) == 2
        and said[0].startswith("b: the same person, likelihood ratio 500")
        and "among 2 identities" in said[1]
    )
    assert describe_search(decision, at[2:], ["a"], tmp_path)[0].startswith(
        "nobody in this gallery"
    )
    (tmp_path / "decision").mkdir()
    (tmp_path / "decision" / "by_ratio.csv").write_text(
        "ratio,FMR,FMR_low,FMR_high\n1,0.1,0.05,0.2\n100,0.01,0.0,0.03\n1000,0,0,0.01\n"
    )
    assert describe_search(decision, at, ["b", "a", "a"], tmp_path)[2].endswith(
        "1 % [0, 3] of the different-person pairs of test people have a likelihood ratio of 100 or "
        "more, so a person who is not in the gallery gets such an answer in up to 2 % of searches "
        "among 2 identities"
    )
    text = describe_false_matches(tmp_path, np.log(1.5), 3)
    assert "10 % [5, 20]" in text and "likelihood ratio of 1 or more" in text
    assert describe_false_matches(tmp_path, -1, 3) == ""
    (tmp_path / "decision" / "by_ratio.csv").write_text("ratio\n1\n")
    assert describe_false_matches(tmp_path, 1.0, 3) == ""


def test_a_decision_is_rejected_for_other_embedding_settings(free, tmp_path):
    model, splits, run = free
    fit_decision(model, splits, embedder=embedder(model)).save(tmp_path)
    # a setting that does not change the embeddings
    assert Decision.load(tmp_path, load_run(run, num_workers=1)).people == 20
    for changes, words in (
        (dict(mirror=True), "mirror=False, and now it is True"),
        (dict(words=("a dog",)), "words="),
    ):
        with pytest.raises(PromptSGError, match=f"{words}.*promptsg decide --run"):
            Decision.load(tmp_path, load_run(run, **changes))
