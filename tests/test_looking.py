"Where a map looks, against scikit-learn; what hiding its patches costs, on a model that is known."

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

from promptsg.config import PromptSGError
from promptsg.evaluation import Embeddings
from promptsg.looking import (
    CELL,
    FILLS,
    LOOKING,
    area_under_roc,
    areas_under,
    cells_of,
    contrast,
    curve_table,
    filled,
    first_patches,
    hand_mask_of,
    hide,
    hiding_curves,
    kinds_of,
    looking_table,
    lost_by_hiding,
    maps_of,
    on_cells,
    on_patches,
    query_maps,
    relevance,
    saturation_mask,
    some_queries,
    where_it_looks,
)
from promptsg.model import PromptSG
from promptsg.readers import read_11k
from promptsg.synth import drawn_mask
from promptsg.versions import version


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_scikit_learns(patches):
    values, mask = np.array([v for v, _ in patches], float), np.array([m for _, m in patches])
    found = area_under_roc(values[None], mask[None])[0]
    if mask.all() or not mask.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(mask, values))


def test_a_mask_of_another_shape():
    with pytest.raises(PromptSGError, match=r"maps \(2, 4\) and masks \(2, 5\)"):
        area_under_roc(np.zeros((2, 4)), np.zeros((2, 5)))


def test_a_patch_is_on_the_hand_where_more_than_half_of_it_is():
    mask = np.zeros((4, 4), bool)
    mask[:2, :2], mask[2, 2:], mask[3, 3] = True, True, True
    assert on_patches(mask, (2, 2)).tolist() == [True, False, False, True]


def test_saturation_sees_colour():
    picture = Image.new("RGB", (4, 2), "white")
    picture.paste((200, 120, 90), (0, 0, 2, 2))
    assert saturation_mask(picture).tolist() == [[True, True, False, False]] * 2


def test_the_mask_is_that_of_the_picture(hands):
    """On the hand the picture has the skin's colour: hand and ground differ clearly in every
    picture."""
    frame = read_11k(hands).head(12)
    for row in frame.itertuples():
        picture, mask = np.asarray(Image.open(row.path), float), drawn_mask(hands, row.image)
        assert mask.shape == picture.shape[:2] and 0.05 < mask.mean() < 0.9
        inner = picture[mask].mean(0), picture[~mask].mean(0)
        assert np.abs(inner[0] - inner[1]).max() > 15, row.image


@pytest.mark.parametrize("image", ["Hand_0000000.jpg", "Hand_9999999.jpg", "other.jpg"])
def test_a_picture_that_was_not_drawn(hands, tmp_path, image):
    with pytest.raises(PromptSGError, match="was not drawn by promptsg synth"):
        drawn_mask(hands, image)
    with pytest.raises(PromptSGError, match="drawn.json"):
        drawn_mask(tmp_path, "Hand_0000001.jpg")


def test_a_models_maps_on_hands(hands):
    model, frame = (
        PromptSG(version("training_free", "hand-vit-tiny"), 1).eval(),
        read_11k(hands).head(6),
    )
    mask_of, kind = hand_mask_of(frame)
    assert kind == "drawn" and kinds_of(model) == ("relevance", "word", "contrast")
    for kind in kinds_of(model):
        table = where_it_looks(model, frame, mask_of, progress=False, kind=kind)
        assert table.path.tolist() == frame.path.tolist()
        assert table.auc.between(0, 1).all() and table.share.between(0, 1).all()
    image_only = PromptSG(version("image_only", "hand-vit-tiny"), 1).eval()
    assert where_it_looks(image_only, frame, mask_of, progress=False).auc.notna().all()
    with pytest.raises(PromptSGError, match="no map 'attention'; it has relevance, contrast"):
        where_it_looks(image_only, frame, mask_of, progress=False, kind="attention")


def test_the_mask_of_what_was_not_drawn(hands, tmp_path):
    Image.new("RGB", (40, 40), (200, 120, 90)).save(tmp_path / "a.png")
    frame = pd.DataFrame({"path": [str(tmp_path / "a.png")]})
    mask_of, kind = hand_mask_of(frame)
    assert kind == "saturation" and mask_of(next(frame.itertuples())).all()
    drawn = read_11k(hands).head(1)
    mask_of, kind = hand_mask_of(drawn)
    assert (
        kind == "drawn"
        and (mask_of(next(drawn.itertuples())) == drawn_mask(hands, drawn.image[0])).all()
    )
    assert hand_mask_of(pd.concat([drawn, frame]))[1] == "saturation"


# --- a model that is known: it sees the mean colours of one patch, and nothing else
SEEN, CELLS = 5, (3, 3)


class _Config:
    language, looks, fusion, patch_tokens = False, False, "patches", "plain"


class _Backbone(nn.Module):
    image_size = (CELLS[0] * CELL, CELLS[1] * CELL)


class OnePatch(nn.Module):
    "Embeds the mean colour of patch `SEEN` of 3 x 3, and a constant."

    config, mean, std = _Config(), (0, 0, 0), (1, 1, 1)

    def __init__(self):
        super().__init__()
        self.backbone, self.scale = _Backbone(), nn.Parameter(torch.tensor(1.0))

    def forward(self, images, prompt=None, aspects=None):
        colours = F.adaptive_avg_pool2d(images, CELLS).flatten(2)[..., SEEN]
        self.retrieval = self.scale * torch.cat([colours, torch.full_like(colours[:, :1], 0.3)], 1)
        return self

    @torch.no_grad()
    def embed(self, images, prompt=None, aspects=None):
        return F.normalize(self(images).retrieval, dim=1)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """(model, queries, gallery, embeddings): six people whose patch `SEEN` has a colour of its own,
    all other patches noise."""
    folder, rng = tmp_path_factory.mktemp("known"), np.random.default_rng(0)
    colours = [
        (230, 30, 30),
        (30, 230, 30),
        (30, 30, 230),
        (230, 230, 30),
        (230, 30, 230),
        (30, 230, 230),
    ]
    rows = []
    for person, colour in enumerate(colours):
        for image in range(3):
            picture = rng.integers(80, 170, (48, 48, 3)).astype(np.uint8)
            picture[16:32, 32:48] = colour  # patch 5: second row, third column
            rows.append((str(folder / f"{person}-{image}.png"), str(person), "dorsal_r", image))
            Image.fromarray(picture).save(rows[-1][0])
    frame = pd.DataFrame(rows, columns=["path", "identity", "aspect", "image"])
    model = OnePatch().eval()
    queries, gallery = (
        frame[one].reset_index(drop=True) for one in (frame.image > 0, frame.image == 0)
    )
    pixels = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
            for path in gallery.path
        ]
    )
    return (
        model,
        queries,
        gallery,
        Embeddings({path: i for i, path in enumerate(gallery.path)}, model.embed(pixels)),
    )


def only(patch, count):
    "Maps that name one patch first."
    maps = torch.zeros(count, 9)
    maps[:, patch] = 1
    return maps.unflatten(1, CELLS)


def test_relevance_names_the_one_patch_that_the_embedding_reads(known):
    model, queries, _, _ = known
    maps = query_maps(model, queries, progress=False)
    assert list(maps) == ["relevance", "contrast"]
    assert torch.allclose(
        maps["relevance"].flatten(1), only(SEEN, len(queries)).flatten(1), atol=1e-5
    )
    assert maps["contrast"].flatten(1)[:, SEEN].max() < 0.9  # the noise elsewhere is contrast too


def test_hiding_the_patch_that_is_read_changes_the_ranking_and_no_other_does(known):
    model, queries, gallery, embeddings = known
    for fill in FILLS:
        named = {str(patch): only(patch, len(queries)) for patch in range(9)}
        curves = hiding_curves(
            model, queries, gallery, embeddings, named, (0, 0.1), fill, progress=False
        )
        table = curve_table(curves)
        assert (table.loc[0, "deletion"] == 100).all()
        for patch in range(9):
            deleted, inserted = (
                table.loc[0.1, (mode, str(patch))] for mode in ("deletion", "insertion")
            )
            assert (deleted if patch != SEEN else inserted) == 100, (fill, patch)
            if fill == "ground":  # what blur and mean leave has a tint of the person's colour
                assert (inserted if patch != SEEN else deleted) < 60, (fill, patch)


def test_curves_end_where_they_must_and_never_rise_for_the_patch_that_is_read(known):
    model, queries, gallery, embeddings = known
    maps = query_maps(model, queries, progress=False)
    curves = hiding_curves(
        model, queries, gallery, embeddings, maps, fill="ground", draws=4, progress=False
    )
    assert len(curves) == 2 * (2 + 4) * 11 * len(queries)
    table = curve_table(curves)
    deletion, insertion = table["deletion"], table["insertion"]
    assert (deletion.loc[0.0] == 100).all() and (insertion.loc[1.0] == 100).all()
    assert (deletion.loc[1.0] == insertion.loc[0.0]).all() and deletion.loc[1.0, "random"] < 60
    assert (deletion.relevance[0.1:] == deletion.relevance[1.0]).all() and (
        insertion.relevance[0.1:] == 100
    ).all()
    areas = areas_under(curves)
    assert areas["deletion", "relevance"] < areas["deletion", "random"] < 1
    assert areas["insertion", "relevance"] > areas["insertion", "random"]
    by_hand = sum((a + b) / 200 * 0.1 for a, b in zip(deletion.random, deletion.random[0.1:]))
    assert areas["deletion", "random"] == pytest.approx(by_hand)


def test_what_a_tenth_costs_by_hand(known):
    model, queries, gallery, embeddings = known
    maps = {"relevance": only(SEEN, len(queries)), "other": only(0, len(queries))}
    curves = hiding_curves(
        model, queries, gallery, embeddings, maps, (0.0, 0.1), "ground", draws=6, progress=False
    )
    lost, other = (lost_by_hiding(curves, name) for name in maps)
    ap = curves[curves["mode"] == "deletion"].groupby(["order", "share"]).ap.mean()
    assert lost.lost == pytest.approx(100 * (1 - ap["relevance", 0.1]))
    assert lost.lost_random == pytest.approx(100 * (1 - ap["random", 0.1]))
    assert lost.ratio == pytest.approx(lost.lost / lost.lost_random) and lost.ratio > 3
    assert 1 < lost.low <= lost.ratio <= lost.high
    assert other.lost == other.ratio == other.low == other.high == 0
    nothing = curves.assign(ap=curves.ap.where(curves.order != "random", 1.0))
    assert lost_by_hiding(nothing, "relevance")[2:] == (np.inf, np.inf, np.inf)
    assert np.isnan(lost_by_hiding(nothing, "other")[2:]).all()
    assert lost_by_hiding(curves, "relevance") == lost  # seeded


def test_a_query_without_a_match_counts_for_nothing(known):
    model, queries, gallery, embeddings = known
    maps = {"relevance": only(SEEN, len(queries))}
    fewer = gallery[gallery.identity != "0"]
    curves = hiding_curves(
        model, queries, fewer, embeddings, maps, (0.0, 0.1), "ground", progress=False
    )
    assert set(curves.identity) == set("12345") and lost_by_hiding(curves, "relevance").lost > 0
    with pytest.raises(PromptSGError, match="none of the 12 queries has an image of its identity"):
        hiding_curves(
            model, queries, gallery.assign(identity="x"), embeddings, maps, progress=False
        )


def test_the_table_of_a_model(known):
    model, queries, gallery, embeddings = known
    table = looking_table(
        model, queries, gallery, embeddings, images=8, fill="ground", progress=False
    )
    assert list(table) == list(LOOKING) and table["map"].tolist() == ["relevance", "contrast"]
    assert (
        (table["images"] == 8).all()
        and (table["mask"] == "saturation").all()
        and (table["fill"] == "ground").all()
    )
    assert table.ratio[0] > 3
    again = looking_table(
        model, queries, gallery, embeddings, images=8, fill="ground", progress=False
    )
    pd.testing.assert_frame_equal(table, again)


def test_queries_are_drawn_one_of_each_person_first(known):
    queries = known[1]
    assert sorted(some_queries(queries, 6).identity) == list("012345")
    assert some_queries(queries, 100).path.is_unique and len(some_queries(queries, 100)) == len(
        queries
    )
    assert some_queries(queries, 6).path.tolist() == some_queries(queries, 6).path.tolist()
    assert some_queries(queries, 6, seed=1).path.tolist() != some_queries(queries, 6).path.tolist()


# --- hiding
def test_hidden_patches_become_the_filling_and_the_others_stay():
    images = torch.rand(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[0, 3] = hidden[1, 0] = True
    assert cells_of((48, 32)) == (3, 2)
    for fill in FILLS:
        there, expected = hide(images, hidden, fill), images.clone()
        expected[0, :, 16:32, 16:], expected[1, :, :16, :16] = (
            filled(images, fill)[0, :, 16:32, 16:],
            filled(images, fill)[1, :, :16, :16],
        )
        assert torch.equal(there, expected)


def test_the_ground_is_the_borders_median_and_the_mean_is_the_mean():
    image = torch.full((1, 3, 32, 32), 0.8)
    image[..., 8:24, 8:24] = 0.1
    image[..., 0, 3] = 0.0
    assert filled(image, "ground").unique().tolist() == pytest.approx([0.8])
    assert filled(image, "mean").unique().tolist() == pytest.approx([image.mean().item()])
    blurred = filled(image, "blur")
    assert (
        0.1 - 1e-6 < blurred[0, 0, 16, 16] < blurred[0, 0, 0, 0] < 0.8 + 1e-6
        and blurred.unique().numel() > 10
    )


def test_an_even_ground_is_no_relevance_and_no_contrast(known):
    image = torch.full((1, 3, 48, 48), 0.5)
    assert torch.allclose(contrast(image), torch.full((1, 3, 3), 1 / 9))  # an even map
    assert torch.allclose(relevance(known[0], image), torch.full((1, 3, 3), 1 / 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_the_first_patches_are_those_with_the_most_weight(weights, data):
    count = data.draw(st.integers(0, len(weights)))
    first = first_patches(torch.tensor([weights], dtype=torch.float32), count)[0].numpy()
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:count]
    assert set(np.flatnonzero(first)) == set(order)


def test_a_coarse_map_on_finer_patches():
    maps = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    fine = on_cells(maps, (4, 4))
    assert fine.sum().item() == pytest.approx(1) and torch.allclose(
        fine[0, 2:, :2], torch.tensor(0.3 / 4)
    )
    assert torch.equal(on_cells(maps, (2, 2)), maps)


# --- the model's own part of a map
def drawn_maps(model, hands, kind="relevance"):
    frame = read_11k(hands).head(8)
    mask_of, _ = hand_mask_of(frame)
    maps = query_maps(model, frame, (kind,), progress=False)[kind]
    masks = np.stack(
        [on_patches(mask_of(row), tuple(maps.shape[1:])) for row in frame.itertuples()]
    )
    return maps.flatten(1).numpy(), masks


def rank_correlation(one, other, masks):
    "Spearman's, of the patches on the hand, mean over images."
    return np.mean([spearmanr(a[m], b[m])[0] for a, b, m in zip(one, other, masks)])


def test_relevance_is_the_models_and_contrast_is_not(hands):
    """Adebayo et al. 2018: with random weights in the tower the map on the hand is another one.
    (Over the whole picture it stays alike, for its factor x - b is 0 on the ground.)"""
    model = PromptSG(version("image_only", "hand-vit-tiny"), 1).eval()
    own, masks = drawn_maps(model, hands)
    random = copy.deepcopy(model)
    torch.manual_seed(0)
    for parameter in random.backbone.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.std() * torch.randn_like(parameter)
    assert rank_correlation(own, drawn_maps(random, hands)[0], masks) < 0.5
    assert rank_correlation(own, drawn_maps(model, hands)[0], masks) == pytest.approx(1)
    assert np.array_equal(
        drawn_maps(model, hands, "contrast")[0], drawn_maps(random, hands, "contrast")[0]
    )


def test_relevance_leaves_the_model_as_it_was(hands):
    model = PromptSG(version("paper", "hand-vit-tiny"), 3).train()
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        maps = relevance(model, images, "simplified", torch.zeros(2, dtype=torch.long))
    assert (
        maps.shape == (2, 7, 7)
        and torch.allclose(maps.sum((1, 2)), torch.ones(2))
        and not maps.requires_grad
    )
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- bad input
@pytest.mark.parametrize(
    "change, words",
    [
        (dict(maps={"one": torch.ones(12, 2, 2)}), r"one \(12, 2, 2\) where \(12, 3, 3\)"),
        (dict(maps={"one": torch.ones(5, 3, 3)}), r"one \(5, 3, 3\) where"),
        (dict(shares=(0, 1.5)), "between 0 and 1"),
        (dict(shares=()), "between 0 and 1"),
        (dict(draws=0), "at least one draw"),
        (dict(fill="red"), "fill is 'red'; choose one of blur, ground, mean"),
    ],
)
def test_bad_curves(known, change, words):
    model, queries, gallery, embeddings = known
    options = dict(maps={"one": only(0, len(queries))}, progress=False) | change
    with pytest.raises(PromptSGError, match=words):
        hiding_curves(model, queries, gallery, embeddings, **options)


def test_other_bad_input(known):
    model, queries, gallery, embeddings = known
    image = torch.rand(1, 3, 48, 48)
    with pytest.raises(
        PromptSGError, match="hidden patches .1, 4. do not fit 1 images of 3 x 3 patches"
    ):
        hide(image, torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(PromptSGError, match="steps is 0"):
        relevance(model, image, steps=0)
    with pytest.raises(PromptSGError, match="no map 'saliency'"):
        maps_of(model, "saliency", image)
    curves = hiding_curves(
        model, queries, gallery, embeddings, {"one": only(0, 12)}, (0.0, 0.2), progress=False
    )
    for order, share in (("two", 0.2), ("one", 0.1)):
        with pytest.raises(PromptSGError, match="curves have no deletion by"):
            lost_by_hiding(curves, order, share)
