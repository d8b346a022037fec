"""Grid cells, mirror images, fields tuned by cross-validation, versions evaluated without a
run."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from promptsg import training
from promptsg.checkpoints import load_run
from promptsg.config import PromptSGError
from promptsg.embedding import Embedder, measure
from promptsg.evaluation import ranked_images
from promptsg.fusion import WordPooling, cell_weights
from promptsg.model import PromptSG
from promptsg.training import Trainer
from promptsg.tune import (
    embed_configs,
    measure_configs,
    measure_parts,
    people_needed,
    scatter_table,
    train_people,
    try_fields,
    word_parts,
)
from promptsg.versions import version, without_training

TINY = dict(num_splits=3, train_aspects=())


def tiny(name, **changes):
    return version(name, "hand-vit-tiny").replace(**{**TINY, **changes})


# --- cells
@pytest.mark.parametrize(
    "grid, cells", [((4, 6), (2, 3)), ((7, 7), (1, 2)), ((3, 2), (3, 2)), ((5, 4), (1, 1))]
)
def test_cells_are_means_of_their_patches(grid, cells):
    weights = cell_weights(grid, cells)
    assert weights.shape == (cells[0] * cells[1], grid[0] * grid[1])
    assert torch.allclose(weights.sum(1), torch.ones(len(weights)))
    seen = weights.reshape(-1, *grid)
    for number, cell in enumerate(seen):  # a rectangle of equal weights, from floor to ceiling
        row, column = divmod(number, cells[1])
        inside = torch.zeros(grid, dtype=torch.bool)
        bound = lambda n, many, parts: slice(n * many // parts, -(-(n + 1) * many // parts))
        inside[bound(row, grid[0], cells[0]), bound(column, grid[1], cells[1])] = True
        assert (cell[inside] > 0).all() and not cell[~inside].any()
        assert torch.allclose(cell[inside], cell[inside][0].expand(inside.sum()))


def test_more_cells_than_patches():
    with pytest.raises(
        PromptSGError, match="patch_grid is 3x1, but the image tower has 2x2 patches"
    ):
        cell_weights((2, 2), (3, 1))
    with pytest.raises(PromptSGError, match="patch_grid is 60x1"):
        PromptSG(tiny("best", patch_grid=(60, 1)), 2)


def test_the_embedding_has_a_part_for_each_cell():
    x, looks = torch.randn(3, 16, 8), F.normalize(torch.randn(2, 8), dim=1)
    pool = WordPooling(8, 2, cells=cell_weights((4, 4), (2, 2)))
    found = pool(looks, x, x[:, 0], x).embedding.unflatten(1, (-1, 8))
    assert found.shape == (3, 7, 8) and pool.out_dim == 56 and not list(pool.state_dict())
    corner = F.normalize(x, dim=2).unflatten(1, (4, 4))[:, 2:, :2].mean((1, 2))
    assert torch.allclose(found[:, 3], F.normalize(corner, dim=1), atol=1e-6)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            dict(fusion="patches", supcon_loss_weight=0.0),
            "patch_grid divides the patches of fusion: pool alone",
        ),
        (dict(whiten=False), "whiten_mirrored is about the images of the whitening"),
    ],
)
def test_configs_that_do_not_fit(changes, sentence):
    with pytest.raises(PromptSGError, match=sentence):
        tiny("best", **changes)


# --- measured without a run
@pytest.mark.parametrize("name", ["training_free", "best"])
def test_measure_configs_equals_the_evaluation_of_a_run(name, splits, tmp_path):
    config = tiny(name)
    Trainer(config, splits, tmp_path / "run", progress=False).fit()
    expected, _ = measure(load_run(tmp_path / "run"), splits, ("clipfh", "mba"), progress=False)
    others = {"not whitened": config.replace(whiten=False, whiten_mirrored=False), name: config}
    found = measure_configs(others, splits, progress=False)
    for protocol, result in expected.items():
        assert np.allclose(found[name][protocol].per_split, result.per_split, atol=1e-9)
        assert found[name][protocol].record["config_hash"] == config.hash
    assert not np.allclose(found[name]["mba"].per_split, found["not whitened"]["mba"].per_split)


def test_configs_with_the_same_tower_features_share_one_pass(splits, monkeypatch):
    seen, before = [], PromptSG.__init__

    def counted(self, *arguments):
        before(self, *arguments)
        self.backbone.register_forward_pre_hook(lambda *_: None)
        if not seen or self.backbone is not seen[-1]:
            seen.append(self.backbone)

    monkeypatch.setattr(PromptSG, "__init__", counted)
    two = {"one": tiny("training_free"), "two": tiny("training_free", patch_grid=(1, 2))}
    frame, rows = embed_configs(two, [splits], progress=False)
    assert (
        len(seen) == 1
        and rows["two"][0].shape[1] > rows["one"][0].shape[1]
        and len(frame) == len(rows["one"][0])
    )


def test_measure_configs_rejects_a_trained_version(splits):
    with pytest.raises(PromptSGError, match="paper is trained .*promptsg evaluate"):
        measure_configs({"paper": tiny("paper")}, splits)


def test_without_training_keeps_tower_and_sentences():
    config = version("paper", "hand-rn-tiny").replace(simplified_prompt="A {aspect} hand.")
    free = without_training(config)
    assert (free.model, free.simplified_prompt, free.epochs, free.fusion) == (
        "hand-rn-tiny",
        "A {aspect} hand.",
        0,
        "pool",
    )


# --- fields
@pytest.fixture(scope="module")
def many(tmp_path_factory):
    "Splits of ten train people."
    from promptsg.readers import read_11k
    from promptsg.splits import make_splits
    from promptsg.synth import write_hands

    root = tmp_path_factory.mktemp("many")
    write_hands(root, n_train=10, n_test=3, images_per_aspect=3, seed=2, ring=0.0, progress=False)
    return make_splits(read_11k(root), "dorsal_r", 3, 0, "images", ("dorsal_l",))


def test_each_combination_has_a_row_and_the_best_is_first(many):
    config = tiny("training_free", train_aspects=("dorsal_l",), val_type="images")
    table = try_fields(
        config,
        many,
        {"word_temperature": [5.0, 50.0], "patch_grid": [(1, 1), (1, 2)]},
        folds=2,
        draws=2,
        progress=False,
    )
    assert len(table) == 4 and list(table) == [
        "word_temperature",
        "patch_grid",
        "clipfh",
        "mba",
        "mAP",
        "behind",
        "error",
    ]
    assert table.behind[0] == 0 and table.mAP.is_monotonic_decreasing
    assert np.allclose(table.mAP, (table.clipfh + table.mba) / 2) and np.allclose(
        table.behind, table.mAP[0] - table.mAP
    )


def test_a_row_equals_the_cross_validation_in_loops(many):
    "With the whitening of `Whitening`, fold by fold."
    from promptsg.embedding import mirror_images
    from promptsg.heads import Whitening
    from promptsg.metrics import evaluate_ranking
    from promptsg.tune import person_folds

    config = tiny("best", train_aspects=("dorsal_l",), val_type="images")
    table = try_fields(
        config, many, {"word_temperature": [50.0, 20.0]}, folds=2, draws=1, progress=False
    )
    people = train_people(many)
    plain = PromptSG(config.replace(whiten=False, whiten_mirrored=False), 1).eval()
    embedder = Embedder(plain, plain.config, progress=False)
    rows, turned = (
        embedder.embed(people).of(people),
        embedder.mirrored().embed(mirror_images(people)).of(people),
    )
    who, own, scores = people.identity.to_numpy(), (people.aspect == "dorsal_r").to_numpy(), []
    for fold in range(2):
        others = person_folds(people, 2, 0) != fold
        labels = pd.factorize(people.identity[others])[0]
        whitening = Whitening(rows.shape[1])
        whitening.fit(
            torch.cat([rows[others], turned[others]]),
            torch.from_numpy(np.r_[labels, labels + labels.max() + 1]),
        )
        z = F.normalize(whitening(rows), dim=1)
        for there in (own, own | True):
            shuffled = np.random.default_rng([0, 2, 1, fold]).permutation(np.flatnonzero(there))
            gallery = shuffled[~pd.Series(who[shuffled]).duplicated().to_numpy()]
            asked = np.setdiff1d(np.flatnonzero(own & ~others), gallery)
            scores.append(
                100 * evaluate_ranking(z[asked] @ z[gallery].T, who[asked], who[gallery])["mAP"]
            )
    row = table[table.word_temperature == 50.0].iloc[0]
    assert (row.clipfh, row.mba) == pytest.approx(
        (np.mean(scores[::2]), np.mean(scores[1::2])), abs=0.2
    )


def test_a_trained_version_is_trained_on_the_other_folds(many, monkeypatch):
    trained, whitened, fit, images = [], [], Trainer.fit, training.WhiteningImages

    def seen_by(embedder, frame):
        whitened.append(set(frame.pid))
        return images(embedder, frame)

    monkeypatch.setattr(training, "WhiteningImages", seen_by)

    def watched(self, resume=False):
        trained.append(
            (self.config.epochs, set(self.splits.train.pid), set(self.splits.val_query.pid))
        )
        return fit(self, resume)

    monkeypatch.setattr(Trainer, "fit", watched)
    config = version("image_only", "hand-vit-tiny").replace(
        **TINY,
        select="last",
        steps_per_epoch=1,
        batch_size=4,
        instances=2,
        warmup_epochs=0,
        whiten=True,
        crop_padding=0,
    )
    config = config.replace(val_type="images")  # otherwise its whitening uses the held-out images
    table = try_fields(config, many, {"epochs": [0, 1]}, folds=2, draws=1, progress=False)
    everybody = set(train_people(many).pid)
    assert [epochs for epochs, *_ in trained] == [1, 1] and table.epochs.isin([0, 1]).all()
    for _, seen, held in trained:
        assert not seen & held and seen | held == everybody
    assert whitened == [seen for _, seen, _ in trained]


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"split_seed": [0, 1]}, "split_seed changes the training people"),
        ({"epochs": [0, 2]}, "set select: last"),
        ({"patch_gird": [1, 2]}, "nearest known one is 'patch_grid'"),
    ],
)
def test_fields_that_cannot_be_tuned(many, values, sentence):
    with pytest.raises(PromptSGError, match=sentence):
        try_fields(tiny("image_only"), many, values, folds=2, progress=False)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--try", "epochs"], "needs at least two values"),
        (["--try", "epochs=[1]"], "needs at least two values"),
        (["--try", "epochs=[1,"], "is not FIELD"),
        ([], "give either --words FILE"),
        (["--try", "epochs=[1, 2]", "--words", "x"], "give either --words FILE"),
    ],
)
def test_tune_command_refuses(promptsg, hands, arguments, sentence):
    said = promptsg("tune", "--data", hands, "--config", "best@hand-vit-tiny", *arguments, code=2)
    assert sentence in said.stderr


# --- whitening
def test_the_curve_ends_with_all_people(many):
    model = PromptSG(tiny("training_free"), 1).eval()
    images = pd.concat([train_people(many), ranked_images(many)]).drop_duplicates(
        "path", ignore_index=True
    )
    parts = word_parts(model, images, ["hand"], progress=False)
    table = people_needed(parts, images, many, [*parts], numbers=(2, 5), draws=2)
    assert table.people.tolist() == [2, 2, 5, 5, 10]
    whole = measure_parts(parts, images, many, {"all": [*parts]}, ("clipfh",))["all"][
        "clipfh"
    ].summary["mean"]
    assert table.mAP.iloc[-1] == pytest.approx(whole["mAP"])
    with pytest.raises(PromptSGError, match="10 people, not 11"):
        people_needed(parts, images, many, [*parts], numbers=(11,))


def test_scatter_table_uses_the_train_peoples_directions(many):
    """People differ in the first two numbers, their images in the first eight: the rest is noise of
    both."""
    frame = pd.concat([train_people(many), many.test]).drop_duplicates("path", ignore_index=True)
    rng, people = np.random.default_rng(0), pd.factorize(frame.identity)[0]
    centres = np.concatenate(
        [3 * rng.normal(size=(people.max() + 1, 2)), np.zeros((people.max() + 1, 30))], 1
    )
    noise = rng.normal(size=(len(frame), 32)) * np.r_[np.full(8, 0.5), np.full(24, 0.01)]
    rows = torch.from_numpy(
        np.concatenate([centres[people] + noise, np.full((len(frame), 1), 1e5)], 1)
    )
    table = scatter_table(rows, frame, many, edges=(0, 8))
    assert table.directions.tolist() == ["1 to 8", "9 to 33"]
    assert (
        table.within[0] > 0.95
        and table.between[0] > 0.95
        and table.ratio[0] > 5 > 2 > table.ratio[1]
    )
    assert table.within.sum() == pytest.approx(1) and table.between.sum() == pytest.approx(1)
