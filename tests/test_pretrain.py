"The embedded weights: training, file size and zero-shot accuracy."

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from promptsg.backbone import EMBEDDED, WEIGHTS, Bank, model_config, save_bank, tokenizer_for
from promptsg.config import PromptSGError
from promptsg.pretrain import (
    TEXT_TOWER,
    _nearness,
    align_text,
    contrastive_loss,
    draw_set,
    embedded_clip,
    pretrain,
    row_attributes,
    split_sentences,
    to_batch,
    true_pairs,
    zero_shot,
)


def random(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_true_pairs_of_sentences_and_pictures():
    phrases = [
        dict(face="dorsal", skin="fair"),
        dict(face="dorsal", skin="dark"),
        dict(face="palmar", skin="fair"),
    ]
    # "dorsal", "dorsal and dark", and a sentence that says nothing
    pairs = true_pairs(phrases, [{"face"}, {"face", "skin"}, set()])
    assert pairs.tolist() == [[True, False, True], [True, True, True], [False, False, True]]


def test_the_loss_is_the_cross_entropy_with_shared_targets():
    image, text, pairs = random(5, 8), random(5, 8, seed=1), torch.eye(5, dtype=torch.bool)
    pairs[0, 1] = pairs[3, 4] = True
    logits = 7 * image @ text.T
    rows = -(logits.log_softmax(1) * pairs / pairs.sum(1, keepdim=True)).sum(1).mean()
    columns = -(logits.log_softmax(0) * pairs / pairs.sum(0, keepdim=True)).sum(0).mean()
    assert torch.isclose(contrastive_loss(image, text, 7, pairs), (rows + columns) / 2)


def test_a_batch_is_never_mirrored():
    picture = np.zeros((1, 96, 96, 3), np.uint8)
    picture[..., :30, :] = 255  # bright on the left
    rng = np.random.default_rng(0)
    for _ in range(20):
        batch = to_batch(picture, rng=rng)
        assert batch.shape == (1, 3, 96, 96) and batch[..., :20].mean() > batch[..., -20:].mean()


def test_shipped_files_fit_in_twelve_megabytes():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 12e6
    for name in EMBEDDED:
        config = json.loads((WEIGHTS / f"{name}.json").read_text())["text_cfg"]
        tensors = load_file(WEIGHTS / f"{name}.safetensors")
        assert all(torch.isfinite(value.float()).all() for value in tensors.values())
        assert (
            tensors["text.token_embedding.weight"].shape[0]
            == config["vocab_size"]
            == tokenizer_for(config).vocab_size
        )


@pytest.mark.parametrize("name", EMBEDDED)
def test_shipped_weights_answer_zero_shot_questions(name):
    pictures, phrases, _ = draw_set(80, model_config(name)["vision_cfg"]["image_size"], seed=41)
    scores = zero_shot(*embedded_clip(name), pictures, phrases)
    assert (scores.accuracy[["face", "side"]] >= 0.95).all()
    # the same answers against other pictures' truth
    shuffled = zero_shot(*embedded_clip(name), pictures, phrases[::-1])
    assert (scores.accuracy > shuffled.accuracy).all()


@pytest.mark.parametrize("name", EMBEDDED)
def test_two_steps_write_a_model_of_the_shipped_shape(name, tmp_path):
    made = load_file(
        pretrain(
            name,
            tmp_path / "made.safetensors",
            images=64,
            steps=2,
            batch=8,
            texts=6,
            unseen=64,
            progress=False,
        )
    )
    shipped = load_file(WEIGHTS / f"{name}.safetensors")
    assert {key: (value.shape, value.dtype) for key, value in made.items()} == {
        key: (value.shape, value.dtype) for key, value in shipped.items()
    }


def test_the_nearest_patches_have_the_largest_weights():
    points = torch.tensor([[[0.1, 0.1], [0.9, 0.4], [float("nan")] * 2]])
    near = _nearness(points, (2, 4))  # 2 rows, 4 columns
    assert near.shape == (1, 8, 3) and near[0, :, :2].argmax(0).tolist() == [0, 3]
    assert torch.allclose(near.sum(1), torch.tensor([[1.0, 1.0, 0.0]]))


def test_common_words_are_single_tokens():
    tokens = tokenizer_for(TEXT_TOWER)("a photo of a left right hand of this person")[0]
    # ten words between the start and the end token, which has the largest id
    assert int(tokens.argmax()) == 11


def test_an_unknown_model_is_one_sentence(tmp_path):
    with pytest.raises(PromptSGError, match="hand-vit-tiny"):
        pretrain("ViT-B-16", tmp_path / "x.safetensors")


def rows(n):
    "A frame of people who differ in aspect and skin, in turn."
    return pd.DataFrame(
        [
            dict(
                aspect=["dorsal_r", "palmar_l"][i % 2],
                skin_color=["dark", "fair"][i // 2 % 2],
                gender="female",
                age=30,
                nail_polish=0,
                accessories=0,
            )
            for i in range(n)
        ]
    )


def test_aligned_text_finds_its_images(tmp_path):
    frame, centres = rows(64), random(4, 16)
    features = F.normalize(centres[torch.arange(64) % 4] + 0.02 * random(64, 16, seed=2), dim=1)
    before = features.clone()
    text = align_text(
        features, frame, tmp_path / "text.safetensors", steps=30, batch=16, progress=False
    ).eval()
    tokenizer, centred = tokenizer_for(TEXT_TOWER), F.normalize(features - features.mean(0), dim=1)
    with torch.no_grad():
        said = F.normalize(
            text(
                tokenizer(
                    [
                        f"A photo of a {face} hand with {skin} skin."
                        for face, skin in (
                            ("dorsal right", "dark"),
                            ("palmar left", "dark"),
                            ("dorsal right", "fair"),
                            ("palmar left", "fair"),
                        )
                    ]
                )
            ),
            dim=1,
        )
    assert ((centred @ said.T).argmax(1) == torch.arange(64) % 4).float().mean() > 0.9
    assert (features == before).all()  # the image side is frozen
    with safe_open(tmp_path / "text.safetensors", "pt") as file:
        assert (
            json.loads(file.metadata()["text_cfg"])["width"] == TEXT_TOWER["width"]
            and file.metadata()["tokenizer"] == "hand_bpe"
        )


def test_alignment_needs_one_embedding_per_row(tmp_path):
    with pytest.raises(PromptSGError, match="3 embeddings .* 4 rows"):
        align_text(torch.zeros(3, 8), rows(4), tmp_path / "x.safetensors")


THINGS = (
    "dog",
    "cat",
    "bird",
    "boat",
    "bottle",
    "chair",
    "a cow",
    "sofa",
    "train",
    "person",
    "sheep",
)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """`taught(vectors (11, 16))`: (weights of a text tower that learnt them beside captions, what
    was printed)."""

    def align(vectors, capsys):
        out = tmp_path_factory.mktemp("taught") / "text.safetensors"
        align_text(
            random(16, 16, seed=2),
            rows(16),
            out,
            steps=30,
            batch=8,
            lr=3e-3,
            progress=False,
            bank=Bank(THINGS, vectors),
        )
        return load_file(out), capsys.readouterr().out.splitlines()

    return align


def test_held_out_sentences_are_not_used_for_training(taught, capsys):
    vectors = random(11, 16, seed=3) + 0.5
    weights, said = taught(vectors, capsys)
    learnt, held = split_sentences(11)
    assert (len(learnt), len(held)) == (8, 3) and sorted([*learnt, *held]) == [*range(11)]
    start = ["learnt before: 8 ", "held out before: 3 ", "learnt after: 8 ", "held out after: 3 "]
    assert [line.startswith(one) for line, one in zip(said, start, strict=True)] == [True] * 4
    cosine = [float(line.split("mean cosine ")[1].split(" ")[0]) for line in said]
    assert cosine[2] > 0.6 > 0.3 > max(cosine[0], cosine[1], cosine[3]), said
    nearest = [float(line.split("nearest for ")[1].split(" ")[0]) for line in said]
    assert (
        nearest[2] > 50 > nearest[0]
        and "(chance 12.5 %)" in said[2]
        and "(chance 33.3 %)" in said[3]
    )
    vectors[held] = random(3, 16, seed=9)
    again, other = taught(vectors, capsys)
    assert (
        all(torch.equal(weights[name], again[name]) for name in weights)
        and other[2] == said[2]
        and other[3] != said[3]
    )
    vectors[learnt[0]] = random(1, 16, seed=9)[0]
    assert not all(
        torch.equal(weights[name], one) for name, one in taught(vectors, capsys)[0].items()
    )


def test_an_unsuitable_bank_is_one_sentence(tmp_path):
    align = lambda bank: align_text(
        torch.zeros(4, 8), rows(4), tmp_path / "x.safetensors", bank=bank
    )
    for bank, said in (
        (Bank(THINGS, random(11, 16)), "16 dimensions and the image embeddings 8"),
        (Bank(THINGS[:5], random(5, 8)), "5 sentences, too few to hold two out"),
        (
            Bank((*THINGS[:10], "hand " * 60), random(11, 8)),
            "has 62 tokens but the text encoder reads 40",
        ),
    ):
        with pytest.raises(PromptSGError, match=said):
            align(bank)
    assert not list(tmp_path.iterdir())


def test_align_text_checks_the_bank_before_the_images(hands, promptsg, tmp_path):
    save_bank(tmp_path / "other.safetensors", THINGS, random(11, 16))
    save_bank(tmp_path / "few.safetensors", THINGS[:3], random(3, 128))
    for name, said in (
        ("other", "holds vectors of 16 dimensions, where the image tower ends in 128"),
        ("few", "the bank has 3 sentences, too few"),
    ):
        answer = promptsg(
            "align-text",
            "--data",
            hands,
            "--config",
            "paper@hand-rn-tiny",
            "--out",
            tmp_path / "t.safetensors",
            "--bank",
            tmp_path / f"{name}.safetensors",
            code=2,
        ).stderr
        assert said in answer and "embedding" not in answer
    assert not (tmp_path / "t.safetensors").exists()


def test_row_attributes_reads_the_columns():
    phrases = [row_attributes(row) for row in rows(2).itertuples()]
    assert (
        phrases[0]["face"] == "dorsal"
        and phrases[0]["side"] == "right"
        and phrases[1]["side"] == "left"
    )
    assert phrases[0]["skin"] == "with dark skin" and phrases[1]["polish"] == ""
