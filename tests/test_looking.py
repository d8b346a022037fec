"Where a map looks, against scikit-learn; masks of drawn hands."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from promptsg.config import PromptSGError
from promptsg.looking import area_under_roc, on_patches, saturation_mask, where_it_looks
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
    "On the hand the picture has the skin's colour: hand and ground differ clearly in every picture."
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
    model, frame = PromptSG(version("training_free", "hand-vit-tiny"), 1).eval(), read_11k(hands).head(6)
    table = where_it_looks(model, frame, lambda row: drawn_mask(hands, row.image), progress=False)
    assert table.path.tolist() == frame.path.tolist()
    assert table.auc.between(0, 1).all() and table.share.between(0, 1).all()
    image_only = PromptSG(version("image_only", "hand-vit-tiny"), 1).eval()
    with pytest.raises(PromptSGError, match="no text and so no attention map"):
        where_it_looks(image_only, frame, lambda row: None, progress=False)
