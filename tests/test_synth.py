"""Synthetic hands: same seed same bytes, the anatomy the captions claim, and too hard for pixels
alone."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from promptsg.config import ASPECTS, PromptSGError
from promptsg.files import read_json
from promptsg.readers import read_11k
from promptsg.synth import (
    LANDMARKS,
    Nuisance,
    attributes,
    draw_hand,
    landmarks,
    person_of,
    sample_hands,
    sentence,
    write_hands,
)


def shot(seed, **changes):
    "Circumstances of a plain photograph: upright, neutral light, white background."
    plain = dict(
        rotation=0.0,
        shift=np.zeros(2),
        sleeve=None,
        ring=None,
        polish=None,
        texture=0.0,
        background=np.full((2, 3), 255.0),
        exposure=1.0,
        colour=np.ones(3),
        shading=0.0,
    )
    return replace(Nuisance.sample(np.random.default_rng(seed)), **{**plain, **changes})


def silhouette(picture):
    return picture[..., 2].astype(int) < 215


def test_a_picture_is_a_function_of_its_arguments():
    person, nuisance = person_of(5, 1), Nuisance.sample(np.random.default_rng(1))
    picture = draw_hand(person, nuisance, "palmar_l", (160, 120))
    assert picture.shape == (160, 120, 3) and picture.dtype == np.uint8
    assert (picture == draw_hand(person_of(5, 1), nuisance, "palmar_l", (160, 120))).all()
    assert (picture != draw_hand(person_of(5, 2), nuisance, "palmar_l", (160, 120))).any()


@pytest.mark.parametrize(
    "aspect, thumb_left",
    [("dorsal_r", True), ("dorsal_l", False), ("palmar_r", False), ("palmar_l", True)],
)
def test_the_thumb_is_on_the_proper_side(aspect, thumb_left):
    hand = silhouette(draw_hand(person_of(0, 3), shot(2), aspect))
    columns = np.flatnonzero(hand.any(0))
    wrist = np.flatnonzero(hand[-1]).mean()
    # the thumb reaches farther from the wrist's middle
    assert (wrist - columns[0] > columns[-1] - wrist) == thumb_left


def test_nails_show_on_the_back_alone():
    person, red = person_of(0, 4), shot(3, polish="red")

    def reds(aspect):
        picture = draw_hand(person, red, aspect).astype(int)
        return ((picture[..., 0] > 130) & (picture[..., 1] < 80)).sum()

    assert reds("dorsal_r") > 100 and reds("palmar_r") < 10


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"ring": (1, "gold")}, "ring"),
        ({"polish": "blue"}, "polish"),
        ({"sleeve": np.array([200.0, 20, 20, -0.15])}, "sleeve"),
    ],
)
def test_worn_things_are_visible_and_in_the_attributes(changes, name):
    person, bare, worn = person_of(0, 6), shot(4), shot(4, **changes)
    assert (draw_hand(person, bare, "dorsal_l") != draw_hand(person, worn, "dorsal_l")).any()
    assert attributes(person, bare, "dorsal_l")[name] != attributes(person, worn, "dorsal_l")[name]


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("size", [(192, 192), (160, 240)])
def test_landmarks_lie_where_the_hand_is_drawn(aspect, size):
    person, nuisance = person_of(0, 7), shot(6, rotation=9.0, scale=0.36)
    inside = np.pad(silhouette(draw_hand(person, nuisance, aspect, size)), 1)
    points = dict(zip(LANDMARKS, landmarks(person, nuisance, aspect, size) * size[::-1]))
    for finger in ("thumb", "index", "middle", "ring", "little"):
        base, tip = points[f"{finger} base"], points[f"{finger} tip"]
        along = (tip - base) / np.linalg.norm(tip - base)
        (x, y), (beyond_x, beyond_y) = tip - 6 * along, tip + 6 * along
        assert (
            inside[round(y) + 1, round(x) + 1]
            and not inside[round(beyond_y) + 1, round(beyond_x) + 1]
        )


def test_the_worn_ring_lies_at_its_landmark():
    person, bare, worn = person_of(0, 7), shot(6), shot(6, ring=(1, "gold"))
    differs = np.argwhere(
        (
            draw_hand(person, bare, "palmar_r").astype(int) != draw_hand(person, worn, "palmar_r")
        ).any(-1)
    )
    ring = landmarks(person, worn, "palmar_r")[LANDMARKS.index("worn ring")] * 192
    assert np.abs(differs.mean(0)[::-1] - ring).max() < 2
    assert np.isnan(landmarks(person, bare, "palmar_r")[-1]).all()


def test_a_sentence_mentions_the_attributes_that_it_returns():
    phrases = attributes(person_of(0, 8), shot(5, ring=(2, "silver")), "dorsal_r")
    seen = set()
    for seed in range(60):
        text, mentioned = sentence(phrases, np.random.default_rng(seed))
        seen |= mentioned
        assert all(
            (phrases[name] in text) == (name in mentioned)
            for name in ("thumb", "skin", "ring", "veins", "moles")
        )
        assert ("dorsal" in text or "The back" in text) == ("face" in mentioned) and (
            "right hand" in text
        ) == ("side" in mentioned)
    assert seen == {name for name, phrase in phrases.items() if phrase}


def test_the_folder_has_11k_hands_layout(tmp_path):
    table = write_hands(tmp_path, n_train=2, n_test=2, images_per_aspect=2, seed=9, progress=False)
    info = pd.read_csv(tmp_path / "HandInfo.csv", dtype={"id": str})
    assert list(info.columns) == [
        "id",
        "age",
        "gender",
        "skinColor",
        "accessories",
        "nailPolish",
        "aspectOfHand",
        "imageName",
        "irregularities",
    ]
    assert len(table) == len(info) == len(pd.read_csv(tmp_path / "captions.csv")) == 4 * 4 * 2
    assert sorted(info.id.astype(int).unique()) == [1, 2, 1100, 1101]
    assert set(info.aspectOfHand) == set(ASPECTS.values())
    assert all((tmp_path / "Hands" / name).is_file() for name in info.imageName)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "HandInfo.csv",
        "Hands",
        "captions.csv",
        "drawn.json",
    ]
    record = read_json(tmp_path / "drawn.json")
    assert record["drawn by"] == "promptsg synth" and (
        record["n_train"],
        record["n_test"],
        record["seed"],
        record["size"],
    ) == (2, 2, 9, [192, 192])
    assert read_11k(tmp_path).attrs["source"] == "drawn hands of promptsg synth"


@pytest.mark.parametrize("write", ["write_bytes", "to_csv"])
def test_a_full_disk_leaves_no_hand_info(tmp_path, monkeypatch, write):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, write) if write == "write_bytes" else (pd.DataFrame, write)), full)
    with pytest.raises(PromptSGError, match="No space left on device"):
        write_hands(tmp_path, n_train=1, n_test=0, images_per_aspect=1, progress=False)
    assert not (tmp_path / "HandInfo.csv").exists() and not list(tmp_path.rglob(".promptsg-*"))


def test_pixels_alone_do_not_identify_people():
    def pictures(number):
        return [
            cv2.resize(
                draw_hand(
                    person_of(0, number),
                    Nuisance.sample(np.random.default_rng([number, k]), ring=0),
                    "dorsal_r",
                ),
                (32, 32),
                interpolation=cv2.INTER_AREA,
            )
            .astype(float)
            .ravel()
            for k in range(4)
        ]

    # (20 people, 4, pixels)
    shots = np.array([pictures(number) for number in range(1100, 1120)])
    distance = ((shots[:, 1:, None] - shots[None, None, :, 0]) ** 2).sum(-1)  # (20, 3, 20)
    assert (distance.argmin(-1) == np.arange(20)[:, None]).mean() < 0.25


@pytest.mark.parametrize(
    "call",
    [
        lambda path: write_hands(path, n_train=901),
        lambda path: write_hands(path, n_test=-1),
        lambda path: draw_hand(person_of(0, 1), shot(0), "left"),
    ],
)
def test_bad_input_is_one_sentence(call, tmp_path):
    with pytest.raises(PromptSGError, match="[^.]$"):
        call(tmp_path)


def test_sample_hands_are_the_pictures_of_a_folder(tmp_path):
    table = write_hands(tmp_path, 2, 0, 1, progress=False)
    pictures, labels = sample_hands(3, 2, "dorsal_l")
    assert pictures.shape == (6, 192, 192, 3) and labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (pictures == sample_hands(3, 2, "dorsal_l")[0]).all()
    name = table[(table.id == "0000001") & (table.aspectOfHand == "dorsal left")].imageName.iloc[0]
    written = cv2.imread(str(tmp_path / "Hands" / name))[..., ::-1].astype(int)
    assert np.abs(written - pictures[2]).mean() < 4 < np.abs(written - pictures[4]).mean()
