"A similarity as a sum over parts: exact shares, in words, in search, pictures and explorer."

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from promptsg.config import Config, PromptSGError
from promptsg.explorer import Explorer, draw_attention, draw_ranked
from promptsg.heads import Whitening, likeness, shares, z_scores
from promptsg.model import PromptSG
from promptsg.plots import plot_ranked_lists
from promptsg.readers import read_data
from promptsg.training import Trainer
from promptsg.versions import version

unit = lambda x: F.normalize(x.double(), dim=1)


@pytest.fixture(scope="module")
def fitted():
    "(whitening of 5 parts of 12 numbers, its embeddings (80, 60) before) of made-up people."
    torch.manual_seed(0)
    scale = torch.logspace(-2, 1, 60)[torch.randperm(60)]
    x = torch.randn(20, 60).repeat_interleave(4, 0) + torch.randn(80, 60) * scale
    whitening = Whitening(60)
    whitening.fit(x, torch.arange(80) // 4)
    return whitening, x


def spelled(a, b, whitening, parts):
    "Eq. (5) from what is not whitened yet: y_a . W[:, p] (x_b - mean)[p], and the other way round."
    W, mean = whitening.matrix.double(), whitening.mean.double()
    a, b = (unit(x[None])[0] - mean for x in (a, b))
    size, found = len(a) // parts, []
    for p in range(parts):
        part = slice(p * size, (p + 1) * size)
        sides = (W @ a) @ W[:, part] @ b[part], (W @ b) @ W[:, part] @ a[part]
        found.append(sum(sides) / 2 / (W @ a).norm() / (W @ b).norm())
    return torch.stack(found)


def test_shares_equal_the_equation_and_sum_to_the_cosine(fitted):
    whitening, x = fitted
    y = whitening(x)
    found = shares(y[:7], y[7:], 5, whitening.matrix)
    assert found.shape == (7, 73, 5)
    assert (found.sum(2) - unit(y[:7]) @ unit(y[7:]).T).abs().max() < 1e-6
    for q, g in ((0, 0), (3, 20), (6, 72)):
        expected = spelled(x[q], x[7 + g], whitening, 5)
        assert (found[q, g] - expected).abs().max() < 1e-5
    assert found.std() > 0.01
    assert torch.allclose(found, shares(y[7:], y[:7], 5, whitening.matrix).transpose(0, 1))


def test_without_a_whitening_a_share_is_the_parts_product(fitted):
    _, x = fitted
    found, rows = shares(x[:2], x[2:5], 4), unit(x).unflatten(1, (4, 15))
    assert torch.allclose(found[1, 2], (rows[1] * rows[4]).sum(1))
    with pytest.raises(PromptSGError, match="60 dimensions cannot be split into 7 equal parts"):
        shares(x[:2], x[2:5], 7)


def test_z_scores_are_relative_to_the_gallery():
    torch.manual_seed(0)
    drawn = 3 + torch.randn(2, 30, 4).double() * torch.tensor([1.0, 5.0, 0.1, 0.0])
    found = z_scores(drawn)
    assert torch.allclose(found.mean(1), torch.zeros(2, 4).double(), atol=1e-9)
    assert torch.allclose(found[..., :3].std(1, unbiased=False), torch.ones(2, 3).double())
    assert not found[..., 3].any() and torch.allclose(found[..., :3], z_scores(9 * drawn)[..., :3])
    assert not z_scores(drawn[:, :1]).any()


@pytest.mark.parametrize(
    "values, said",
    [
        ([0.5, -0.2, 0.1], "alike in nail, unlike in skin"),
        ([0.5, 2.0, 0.1], "alike in skin, less in ring"),
        ([-0.5, -0.2, -3.0], "unlike in ring, less in skin"),
        ([0.0, 0.0, 0.0], ""),
    ],
)
def test_likeness_names_the_highest_and_the_lowest(values, said):
    assert likeness(torch.tensor(values), ["nail", "skin", "ring"]) == said
    assert likeness(torch.tensor(values[:1]), ["nail"]) == ""


POOL = dict(fusion="pool", patch_tokens="dense", use_composed_prompt=False)
POOL |= dict(eval_prompt="simplified", supcon_loss_weight=0.0, model="hand-rn-tiny")
NAMES = ("class token", "patches", "hand", "ring")


def test_a_models_parts_have_the_words_names():
    model = PromptSG(Config(words=("hand", "ring"), **POOL), 2).eval()
    assert model.parts == NAMES
    x = torch.randn(4, model.head.out_dim, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.shares(x[:1], x[1:]), shares(x[:1], x[1:], 4))
    assert [bool(one) for one in model.alike(x[0], x[1:])] == [True] * 3
    model.prompt.set_prompt(words=("ring", "skin"))
    assert model.parts[2:] == ("ring", "skin")
    alone = PromptSG(Config(simplified_prompt="A {aspect} hand.", aspect="dorsal_r", **POOL), 2)
    assert alone.parts == ("class token", "patches", "A hand.") and alone.alike(x[0], x[1:]) is None


@pytest.mark.parametrize(
    "changes",
    [
        dict(language=False),
        {},
        dict(POOL, words=["hand", "ring"], classifier="bnneck", bnneck_reduction=True),
    ],
    ids=["image_only", "attention", "reduced"],
)
def test_a_model_without_parts_has_no_shares(changes):
    model = PromptSG(Config(**{"model": "hand-rn-tiny", "attention_heads": 4, **changes}), 2)
    x = torch.eye(3, model.head.out_dim)
    assert model.parts == () and model.alike(x[0], x) is None
    with pytest.raises(PromptSGError, match="similarity has no parts"):
        model.shares(x, x)


# --- where it is shown
@pytest.fixture(scope="module")
def run(splits, tmp_path_factory):
    "A `training_free` run with two words."
    folder = tmp_path_factory.mktemp("shares") / "run"
    config = version("training_free", "hand-rn-tiny").replace(
        num_splits=3, train_aspects=(), words=("hand", "ring")
    )
    Trainer(config, splits, folder, progress=False).fit()
    return folder


def test_search_names_the_most_similar_part(run, hands, splits, promptsg, tmp_path):
    query = splits.queries[0].path[0]
    said = promptsg(
        "search",
        "--run",
        run,
        "--query",
        query,
        "--gallery",
        hands,
        "--top",
        4,
        "--out",
        tmp_path / "found",
    ).stdout
    table = pd.read_csv(tmp_path / "found" / "nearest.csv")
    assert table.alike.str.contains("alike in (?:hand|ring), (?:un|less )").all()
    assert all(one in said for one in table.alike) and "share of" not in said
    parts = table[[f"share of {part}" for part in NAMES]]
    assert np.allclose(parts.sum(axis=1), table.similarity, atol=1e-5)


def test_search_without_words_has_no_new_column(hands, splits, promptsg, tmp_path):
    promptsg(
        "search",
        "--config",
        "paper@hand-rn-tiny",
        "--query",
        splits.queries[0].path[0],
        "--gallery",
        hands,
        "--top",
        4,
        "--out",
        tmp_path / "found",
    )
    table = pd.read_csv(tmp_path / "found" / "nearest.csv")
    assert list(table) == ["rank", "image", "identity", "path", "similarity"]


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_ranked_lists_of_a_model_with_words_name_the_part(run, splits):
    from promptsg.checkpoints import load_run
    from promptsg.cli import ranked_lists
    from promptsg.embedding import Embedder
    from promptsg.evaluation import ranked_images

    model = load_run(run)
    embeddings = Embedder(model, model.config, progress=False).embed(ranked_images(splits))
    said = texts(ranked_lists(embeddings, splits, queries=2, top=3, model=model))
    assert len(said) == 6 and all(" in " in one and "\n" in one for one in said)
    assert texts(ranked_lists(embeddings, splits, queries=2, top=3)) == []


def test_a_ranked_list_has_the_words_below_each_image():
    image = np.full((12, 16, 3), 90, np.uint8)
    row = dict(query=image, gallery=[image] * 3, right=[True] * 3)
    said = [
        "alike in ring, unlike in hand",
        "",
        "alike in the nail of the longest finger, less in hand",
    ]
    figure = plot_ranked_lists([dict(row, alike=said)])
    below = texts(figure)
    assert below[0] == "alike in ring\nunlike in hand" and below[1] == ""
    assert below[2].startswith("alike in the nail") and "…" in below[2].split("\n")[0]
    assert "gallery's mean" in figure.get_supxlabel()
    again = plot_ranked_lists([dict(row, alike=said[::-1])], figure=figure)
    assert again is figure and texts(again) == below[::-1]
    assert "gallery's mean" not in plot_ranked_lists([row]).get_supxlabel()
    with pytest.raises(PromptSGError, match="equally many"):
        plot_ranked_lists([dict(row, alike=said[:2])])


def test_the_explorer_shows_the_part_and_a_map_per_word(run, hands):
    explorer = Explorer(run, read_data(hands), progress=False)
    explorer.set_view(top=5)
    found = explorer.ranked()
    gallery = explorer.run.gallery_for(explorer.state.query)
    embeddings = explorer.run.seen(*explorer.prompt_in_use)[0]
    rows = embeddings.of(explorer.queries[:1]), embeddings.of(gallery)
    said = dict(zip(gallery.path, explorer.run.model.alike(rows[0][0], rows[1])))
    assert found.alike.tolist() == [said[path] for path in found.path] and any(found.alike)
    drawn = texts(draw_ranked(explorer))  # below each picture its identity, then the words
    assert [" ".join(one.split()) for one in drawn[2::2]] == [
        one.replace(",", "") for one in found.alike
    ]
    maps = explorer.attention()
    for number, word in enumerate(explorer.heads):
        explorer.set_view(head=word)
        shown = draw_attention(explorer).axes
        assert [ax.get_title().split("\nAUROC")[0] for ax in shown[:2]] == ["image", word]
        weights = np.asarray(shown[1].images[1].get_array())
        assert np.allclose(weights, maps[0, number] / maps[0, number].mean(), rtol=1e-4)
    explorer.set_prompt("ring, skin")
    explorer.set_view(head="mean")
    assert not explorer.ranked().alike.str.contains("hand").any()
    explorer.set_prompt("hand, ring")
    assert explorer.ranked().alike.tolist() == found.alike.tolist()


def test_the_explorer_without_words_is_unchanged(splits, hands, tmp_path):
    config = version("training_free", "hand-rn-tiny").replace(num_splits=3, train_aspects=())
    Trainer(config, splits, tmp_path / "run", progress=False).fit()
    explorer = Explorer(tmp_path / "run", read_data(hands), progress=False)
    assert "alike" not in explorer.ranked()
    assert not any("alike" in text for text in texts(draw_ranked(explorer)))


def test_each_cell_is_a_part():
    config = version("best", "hand-vit-tiny").replace(words=("hand", "ring"), patch_grid=(1, 2))
    model = PromptSG(config, 2).eval()
    assert model.parts == ("class token", "patches 1-1", "patches 1-2", "hand", "ring")
    rows = F.normalize(torch.randn(4, model.fusion.out_dim), dim=1)
    found = model.shares(rows[:1], rows[1:])
    assert found.shape == (1, 3, 5) and torch.allclose(
        found.sum(2).float(), rows[:1] @ rows[1:].T, atol=1e-5
    )
    assert all(one.startswith(("alike", "unlike")) for one in model.alike(rows[0], rows[1:]))
