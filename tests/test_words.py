"Dense tokens, words that pool, banks of sentences, and a run in which nothing is trained."

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from promptsg.backbone import Bank, ViTBackbone, load_towers, read_bank, save_bank
from promptsg.caches import frozen_hash
from promptsg.checkpoints import load_run, read_checkpoint
from promptsg.config import ASPECTS, Config, PromptSGError
from promptsg.embedding import Embedder, measure
from promptsg.evaluation import ranked_images
from promptsg.explorer import Explorer, draw_attention
from promptsg.fusion import WordPooling
from promptsg.heads import Whitening
from promptsg.model import PromptSG, untrained
from promptsg.prompt import PLAIN_SENTENCES, BankPrompt, directions
from promptsg.sharing import export_onnx, export_run, model_card
from promptsg.training import Trainer
from promptsg.tune import (
    choose_words,
    measure_parts,
    person_folds,
    train_people,
    whitened_similarity,
    word_parts,
)
from promptsg.versions import version

TINY = ["hand-vit-tiny", "hand-rn-tiny"]
FREE = dict(
    fusion="pool",
    patch_tokens="dense",
    use_composed_prompt=False,
    eval_prompt="simplified",
    supcon_loss_weight=0.0,
)
unit = lambda x: F.normalize(x.float(), dim=-1)


def noise(backbone, images=3, seed=0):
    return torch.randn(
        images, 3, *backbone.image_size, generator=torch.Generator().manual_seed(seed)
    )


def same(a, b, tolerance=1e-5):
    return (a - b).abs().max().item() <= tolerance


# --- dense tokens
def spelled_vit(backbone, images):
    "Eq. (1) of the backbone page, a head at a time, nothing shared with the block's own pass."
    block, visual, x = backbone.blocks[-1], backbone.visual, backbone.stem(images)
    for earlier in backbone.blocks[:-1]:
        x = earlier(x)
    x, width, heads = block.ln_1(x), backbone.width, block.attn.num_heads
    q, k, v = (
        x @ w.T + b
        for w, b in zip(
            block.attn.in_proj_weight.split(width), block.attn.in_proj_bias.split(width)
        )
    )
    seen = []
    for q, k, v in zip(*(t.split(width // heads, -1) for t in (q, k, v))):
        alike = sum((t @ t.mT / (width // heads) ** 0.5).softmax(-1) for t in (q, k))
        seen.append(alike @ v / 2)
    mixed = torch.cat(seen, -1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    return (visual.ln_post(mixed) @ visual.proj)[:, 1:]


def spelled_resnet(backbone, images):
    "The attention pool's value path, with its position embedding: two convolutions of 1x1."
    pool, x = backbone.visual.attnpool, backbone.features_before(images)
    for block in backbone.blocks[backbone.cut :]:
        x = block(x)
    x = x.flatten(2).mT + pool.positional_embedding[1:]
    return pool.c_proj(pool.v_proj(x))


@pytest.mark.parametrize("name, spelled", [*zip(TINY, (spelled_vit, spelled_resnet))])
@torch.no_grad()
def test_dense_tokens_are_those_of_the_equation_and_change_nothing_else(name, spelled):
    backbone = load_towers(name).backbone.eval()
    images, plain = noise(backbone), None
    plain = backbone(images)
    assert plain.dense is None
    backbone.tokens = ("patches", "dense")
    both = backbone(images)
    assert both.dense.shape == both.patches.shape and same(both.dense, spelled(backbone, images))
    assert same(both.embedding, plain.embedding) and same(both.patches, plain.patches)
    assert all(same(a, b) for a, b in zip(both.states, plain.states, strict=True))
    assert (both.dense - both.patches).abs().max() > 0.01
    backbone.tokens = ("dense",)
    alone = backbone(images)
    assert (
        alone.patches is None
        and same(alone.dense, both.dense)
        and same(alone.embedding, plain.embedding)
    )
    assert all(same(a, b) for a, b in zip(alone.states, plain.states, strict=True))


@pytest.mark.parametrize("tokens, kept", [(("dense",), 1), (("patches", "dense"), 50)])
def test_what_nobody_reads_is_not_computed(tokens, kept):
    "Without plain patches the last block's MLP sees the class token alone."
    backbone = load_towers("hand-vit-tiny").backbone.eval()
    backbone.tokens, seen = tokens, []
    backbone.blocks[-1].mlp.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[1])
    )
    with torch.no_grad():
        backbone(noise(backbone, 1))
    assert seen == [kept]


@pytest.mark.parametrize("blocks", [None, 0, 1, 2])
@pytest.mark.parametrize("name", TINY)
def test_dense_tokens_with_frozen_blocks_cut(name, blocks):
    "Whatever is frozen, dense tokens come out of what is kept; states are of blocks that train."
    backbone = load_towers(name).backbone.eval()
    images, states = noise(backbone), 3 if blocks is None else blocks
    with torch.no_grad():
        backbone.tokens = ("patches", "dense")
        whole = backbone(images)
        backbone.unfreeze(blocks)
        kept = backbone.features_before(images)
        cut = backbone.features_after(kept)
    assert (
        same(cut.dense, whole.dense)
        and same(cut.patches, whole.patches)
        and len(cut.states) == min(states, 3)
    )
    if blocks == 0:
        assert len(backbone.blocks) - backbone.cut == (
            1 if isinstance(backbone, ViTBackbone) else 0
        )


@pytest.mark.parametrize("name", TINY)
def test_dense_tokens_have_the_same_gradient_with_checkpointed_blocks(name):
    found = {}
    for again in (False, True):
        backbone = load_towers(name).backbone.train()
        backbone.tokens, backbone.checkpoint_blocks = ("patches", "dense"), again
        features = backbone(noise(backbone, 2))
        (features.dense.square().mean() + features.embedding.square().mean()).backward()
        found[again] = [p.grad for p in backbone.parameters() if p.grad is not None]
    assert len(found[True]) == len(found[False]) > 10
    assert all(same(a, b) for a, b in zip(found[True], found[False]))


def test_paper_reads_dense_tokens_when_told_and_its_text_still_matters(quick):
    torch.manual_seed(0)
    model = PromptSG(quick.replace(patch_tokens="dense"), 3).eval()
    images = noise(model.backbone, 2)
    assert model.backbone.tokens == ("dense",)
    with torch.no_grad():
        features, out = model.backbone(images), model(images)
        fused, *_ = model.fuse(features.embedding, dense=features.dense)
    assert same(fused.embedding, out.embedding) and same(fused.attention, out.attention)
    assert (model(images, "simplified").embedding - out.embedding).abs().max() > 1e-6


# --- the word
def test_a_direction_is_a_sentence_without_the_mean_of_others():
    others = torch.tensor([[1.0, 0, 0], [0, 2.0, 0]])
    expected = torch.tensor([[0.5, -0.5, 0.0]])
    assert same(directions(torch.tensor([[3.0, 0, 0]]), others), unit(expected))
    with pytest.raises(PromptSGError, match="it has no direction"):
        directions(torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 0], [5.0, 0]]))


def test_pooling_is_the_equation_and_has_no_parameter():
    generator = torch.Generator().manual_seed(1)
    words, patches, v, tokens = (
        torch.randn(*shape, generator=generator) for shape in ((2, 8), (3, 5, 8), (3, 8), (3, 5, 8))
    )
    pool, words = WordPooling(8, 2, temperature=7.0), unit(words)
    out = pool(words, patches, v, tokens)
    assert not list(pool.parameters()) and pool.out_dim == 32 and out.embedding.shape == (3, 32)
    for image in range(3):
        t, parts = unit(tokens[image]), [unit(v[image]), unit(unit(patches[image]).mean(0))]
        for word, shown in zip(words, out.attention[image], strict=True):
            look = torch.tensor([float(torch.exp(7 * word @ one)) for one in t])
            look = look / look.sum()
            assert same(shown, look)
            parts.append(unit((look[:, None] * t).sum(0)))
        assert same(out.embedding[image], torch.cat(parts))


def test_the_map_that_is_shown_is_the_one_that_ranks():
    "Tokens that the word does not look at may be anything; the one it looks at may not."
    torch.manual_seed(0)
    word, tokens = F.one_hot(torch.tensor([0]), 8).float(), torch.randn(1, 6, 8)
    tokens[0, 2] = 5 * word[0]
    pool = WordPooling(8, 1, temperature=1000.0)
    part = lambda tokens: pool(word, torch.ones(1, 6, 8), torch.ones(1, 8), tokens).embedding[
        :, 16:
    ]
    look = pool(word, tokens, torch.ones(1, 8), tokens).attention[0, 0]
    assert look.argmax() == 2 and look[2] > 0.99
    away, here = tokens.clone(), tokens.clone()
    away[0, 4], here[0, 2] = -away[0, 4], torch.randn(8)
    assert same(part(away), part(tokens), 1e-4) and not same(part(here), part(tokens), 0.1)


@pytest.mark.parametrize("name", TINY)
def test_the_model_concatenates_class_token_patches_and_words(name):
    torch.manual_seed(0)
    model = PromptSG(
        Config(model=name, words=("ring", "A photo of a hand."), word_temperature=20, **FREE), 4
    ).eval()
    with torch.no_grad():
        features, out = model.backbone(noise(model.backbone)), model(noise(model.backbone))
        words = model.prompt.directions()
    assert out.embedding.shape == (3, 4 * 128) == (3, model.head.out_dim) and out.attention.shape[
        :2
    ] == (3, 2)
    assert out.text is None and out.pseudo_token is None and model.inversion is None
    look = (20 * words @ unit(features.dense).mT).softmax(-1)
    assert same(out.attention, look) and same(
        out.embedding[:, 256:384], unit(look @ unit(features.dense))[:, 0]
    )
    assert same(out.embedding[:, :128], unit(features.embedding))
    with pytest.raises(PromptSGError, match="choose simplified"):
        model(noise(model.backbone), "composed")


def test_words_of_a_text_tower_are_encoded_like_the_prompt():
    model = PromptSG(Config(words=("A photo of a {aspect} hand.",), **FREE), 2).eval()
    model_of_hands = PromptSG(
        Config(simplified_prompt="A photo of a {aspect} hand.", **FREE), 2
    ).eval()
    assert (
        same(model.prompt.directions(), model_of_hands.prompt.directions(), 1e-6)
        and len(PLAIN_SENTENCES) > 40
    )
    encoded = [
        model_of_hands.prompt._encode(one)[:, -1] for one in (model_of_hands.prompt.sentence,)
    ]
    assert same(encoded[0], model_of_hands.prompt.simplified(1).sentence)
    before = model_of_hands.prompt.directions()
    model_of_hands.prompt.set_prompt(simplified="A photo of a ring.")
    assert not same(before, model_of_hands.prompt.directions(), 0.01)
    with pytest.raises(PromptSGError, match="2 words, but the embedding has parts for 1"):
        model.prompt.set_prompt(words=("ring", "hand"))


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (dict(FREE, use_composed_prompt=True), "set use_composed_prompt: false"),
        (dict(FREE, eval_prompt="composed"), "eval_prompt: simplified"),
        (dict(FREE, supcon_loss_weight=0.5), "supcon_loss_weight to 0"),
        (dict(words=("hand",)), "fusion: pool alone"),
        (dict(FREE, words=("hand", "hand")), "a word is given twice"),
        (dict(FREE, words=("hand, ring",)), "none with a comma"),
        (dict(FREE, words=("a {} hand",)), "place {}"),
        (dict(FREE, words=(" ",)), "' ' is none"),
        (dict(FREE, word_temperature=0), "word_temperature must be above 0"),
        (dict(patch_tokens="thick"), "patch_tokens"),
        (dict(epochs=-1), "epochs must be at least 0"),
    ],
)
def test_configs_that_do_not_fit(wrong, sentence):
    with pytest.raises(PromptSGError, match=sentence):
        Config(**wrong)


# --- a bank of sentences
NAMES = ["person", "dog", "hand", "wing", "A photo of a dorsal right hand."]


@pytest.fixture
def bank(tmp_path):
    save_bank(
        tmp_path / "bank.safetensors",
        NAMES,
        torch.randn(5, 128, generator=torch.Generator().manual_seed(0)),
    )
    return str(tmp_path / "bank.safetensors")


def test_a_bank_comes_back_whole(bank, tmp_path):
    found = read_bank(bank, 128)
    assert found.sentences == tuple(NAMES) and same(
        found.vectors, torch.randn(5, 128, generator=torch.Generator().manual_seed(0)), 0
    )
    towers = load_towers("hand-vit-tiny", text_pretrained=bank)
    assert isinstance(towers.text, Bank) and towers.tokenizer is None


@pytest.mark.parametrize(
    "sentences, vectors, sentence",
    [
        (["a", "a"], torch.ones(2, 4), "there twice"),
        (["a", " "], torch.ones(2, 4), "empty"),
        (["a", "b"], torch.ones(3, 4), r"2 sentences for vectors of shape \(3, 4\)"),
        (["a"], torch.ones(1, 4), "two or more"),
        (["a", "b"], torch.tensor([[1.0], [torch.nan]]), "not finite"),
        (["a", "b"], torch.tensor([[1.0], [0.0]]), "vector is 0"),
    ],
)
def test_no_bank_of_bad_sentences(sentences, vectors, sentence, tmp_path):
    with pytest.raises(PromptSGError, match=sentence):
        save_bank(tmp_path / "bank.safetensors", sentences, vectors)
    assert not list(tmp_path.iterdir())


def test_a_bank_speaks_in_a_text_towers_place(bank):
    config = Config(
        text_pretrained=bank,
        simplified_prompt="hand",
        use_composed_prompt=False,
        eval_prompt="simplified",
        attention_heads=4,
    )
    torch.manual_seed(0)
    model, vectors = PromptSG(config, 3).eval(), read_bank(bank).vectors
    images = noise(model.backbone)
    out = model(images)
    assert isinstance(model.prompt, BankPrompt) and not model.composes and out.pseudo_token is None
    assert same(out.text, vectors[[2, 2, 2]], 0)
    model.prompt.set_prompt(simplified="A photo of a {aspect} hand.")
    assert same(model(images).text, vectors[[4, 4, 4]], 0) and not same(
        model(images).embedding, out.embedding, 1e-6
    )
    pooled = PromptSG(Config(text_pretrained=bank, words=("person", "hand"), **FREE), 3).eval()
    centred = unit(vectors) - unit(vectors).mean(0)
    assert same(pooled.prompt.directions(), unit(centred[[0, 2]]))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            dict(simplified_prompt="thing"),
            r"no sentence 'thing'; it has .*'wing'.*choose one of these",
        ),
        (
            dict(fusion="pool", supcon_loss_weight=0, words=("hands",)),
            "no sentence 'hands'; it has 'hand'",
        ),
        (dict(use_composed_prompt=True), "none can be composed"),
        (dict(eval_prompt="composed"), "none can be composed"),
    ],
)
def test_what_a_bank_cannot_say(bank, change, sentence):
    base = dict(
        text_pretrained=bank,
        simplified_prompt="hand",
        use_composed_prompt=False,
        eval_prompt="simplified",
    )
    with pytest.raises(PromptSGError, match=sentence):
        PromptSG(Config(**{**base, **change}), 3)


def test_a_bank_of_another_space_or_damaged(bank, tmp_path):
    with pytest.raises(PromptSGError, match="128 dimensions, where the image tower ends in 64"):
        read_bank(bank, 64)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(bank).read_bytes()[:-9])
    with pytest.raises(PromptSGError, match="not a complete safetensors file"):
        load_towers("hand-vit-tiny", text_pretrained=str(cut))


def test_a_long_bank_names_the_nearest_alone(tmp_path):
    save_bank(
        tmp_path / "b.safetensors", [f"word {i}" for i in range(99)], torch.eye(99, 128) + 0.1
    )
    config = Config(text_pretrained=str(tmp_path / "b.safetensors"), words=("word 100",), **FREE)
    with pytest.raises(PromptSGError, match="'word 10'.* and 87 others"):
        PromptSG(config, 2)


def test_other_vectors_are_another_model(bank, tmp_path):
    config = Config(text_pretrained=bank, words=("hand",), **FREE)
    first = frozen_hash(PromptSG(config, 2))
    save_bank(bank, NAMES, torch.randn(5, 128, generator=torch.Generator().manual_seed(9)))
    assert frozen_hash(PromptSG(config, 2)) != first


def test_a_saved_model_has_its_bank(bank, tmp_path):
    model = PromptSG(Config(text_pretrained=bank, words=("hand",), **FREE), 2).eval()
    model.prompt.set_prompt(words=("dog",))
    model.save_pretrained(tmp_path / "model")
    Path(bank).unlink()
    again, images = PromptSG.from_pretrained(tmp_path / "model"), noise(model.backbone)
    assert same(again.embed(images), model.embed(images), 0) and again.prompt.words == ("dog",)
    again.prompt.set_prompt(words=("person",))
    assert not same(again.embed(images), model.embed(images), 1e-3)


def command(*arguments):
    from promptsg.cli import _run

    return _run([str(one) for one in arguments])


@pytest.mark.parametrize("whose, aspects", [("run", 1), ("image", 4)])
def test_a_bank_says_what_each_image_is_spoken_of(tmp_path, whose, aspects):
    """With `prompt_aspect: image` the bank has the sentence of each aspect, and the model finds
    them."""
    (tmp_path / "sentences.txt").write_text("ring\nA {aspect} hand.\nA hand.\n", encoding="utf-8")
    file = tmp_path / "bank.safetensors"
    command(
        "bank",
        "--sentences",
        tmp_path / "sentences.txt",
        "--config",
        "paper@hand-vit-tiny",
        "--out",
        file,
        "-s",
        f"prompt_aspect={whose}",
        "-s",
        "aspect=palmar_l",
    )
    sentences = read_bank(file).sentences
    assert len(sentences) == 2 + aspects and "A palmar left hand." in sentences
    assert ("A dorsal right hand." in sentences) == (whose == "image")
    config = Config(
        model="hand-vit-tiny",
        simplified_prompt="A {aspect} hand.",
        aspect="palmar_l",
        text_pretrained=str(file),
        prompt_aspect="image",
        **FREE,
    )
    own = torch.tensor([0, 3, -1])
    if whose == "run":
        with pytest.raises(PromptSGError, match="no sentence 'A dorsal right hand.'"):
            PromptSG(config, 2).prompt.simplified(3, own)
        return
    bank, tower = (
        PromptSG(config.replace(text_pretrained=text), 2).prompt for text in (str(file), None)
    )
    assert same(bank.simplified(3, own).sentence, tower.simplified(3, own).sentence)
    assert not same(*bank.simplified(2, own[:2]).sentence, 1e-3)


def test_bank_command_reads_a_tower_out(tmp_path):
    (tmp_path / "sentences.txt").write_text(
        "# words\nring\n\nA photo of a {aspect} hand.\n", encoding="utf-8"
    )
    command(
        "bank",
        "--sentences",
        tmp_path / "sentences.txt",
        "--out",
        tmp_path / "b.safetensors",
        "--config",
        "paper@hand-vit-tiny",
    )
    found = read_bank(tmp_path / "b.safetensors", 128)
    each = [f"A photo of a {aspect} hand." for aspect in ASPECTS.values()]
    assert found.sentences == ("ring", *each)  # the version's images have their own sentences
    tower = PromptSG(Config(simplified_prompt="A photo of a {aspect} hand."), 2).eval()
    assert same(found.vectors[1:2], tower.prompt.simplified(1).sentence)
    with pytest.raises(PromptSGError, match="either --config"):
        command(
            "bank", "--sentences", tmp_path / "sentences.txt", "--out", tmp_path / "c.safetensors"
        )
    (tmp_path / "sentences.txt").write_text("a {} hand", encoding="utf-8")
    with pytest.raises(PromptSGError, match="place {} for s"):
        command(
            "bank",
            "--sentences",
            tmp_path / "sentences.txt",
            "--out",
            tmp_path / "c.safetensors",
            "--config",
            "paper@hand-vit-tiny",
        )
    assert not (tmp_path / "c.safetensors").exists()


def test_bank_command_takes_vectors(tmp_path):
    tables = [np.arange(8, dtype=np.float16).reshape(2, 4) + 1, -np.ones((2, 4), np.float16)]
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for file, table in zip(files, tables):
        np.save(file, table)
    (tmp_path / "names.txt").write_text(
        "# first\ndog\ncat\n# second\ndog\nperson\n", encoding="utf-8"
    )
    ask = lambda *files: command(
        "bank",
        "--sentences",
        tmp_path / "names.txt",
        "--out",
        tmp_path / "b.safetensors",
        *(part for file in files for part in ("--vectors", file)),
    )
    ask(*files)
    found = read_bank(tmp_path / "b.safetensors")
    assert found.sentences == (
        "dog",
        "cat",
        "person",
    )  # a name that comes again keeps its first vector
    assert found.vectors.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [-1] * 4]
    with pytest.raises(PromptSGError, match="4 sentences for"):
        ask(files[0])
    np.save(files[1], np.array([["x"]]))
    with pytest.raises(PromptSGError, match="not a table of floats"):
        ask(*files)


# --- nothing is trained by gradient
@pytest.fixture(scope="module")
def free(splits, tmp_path_factory):
    "A `training_free` run on the drawn hands, and how often an image went through its tower."
    run, seen = tmp_path_factory.mktemp("free") / "run", []

    def build(config, people):
        model = PromptSG(config, people)
        model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
        before = model.backbone.features_before
        model.backbone.features_before = lambda images: (seen.append(len(images)), before(images))[
            1
        ]
        return model

    config = version("training_free", "hand-vit-tiny").replace(num_splits=3, train_aspects=())
    Trainer(config, splits, run, progress=False, build=build).fit()
    return SimpleNamespace(run=run, config=config, seen=sum(seen))


@pytest.mark.parametrize("backbone", ["vitb16", "vitb16-cpu", "rn50", *TINY])
def test_training_free_trains_nothing_on_any_budget(backbone):
    config = version("training_free", backbone)
    assert (
        config.epochs,
        config.unfreeze_blocks,
        config.whiten,
        config.fusion,
        config.patch_tokens,
    ) == (0, 0, True, "pool", "dense")
    assert config.language and not config.cache_frozen and config.words == ()


def test_a_run_without_epochs_is_a_run(free, splits):
    images = pd.concat([splits.train, splits.val_query, splits.val_gallery]).path.nunique()
    assert free.seen == images  # each image once
    assert sorted(os.listdir(free.run)) == [
        "best",
        "config.yml",
        "last",
        "metrics.csv",
        "splits.json",
    ]
    table = pd.read_csv(free.run / "metrics.csv")
    assert (
        list(table) == ["epoch", "val_rank1", "val_mAP"]
        and table.epoch.tolist() == [0]
        and table.val_mAP.between(0, 1).all()
    )
    (best, state), (last, _) = (read_checkpoint(free.run / name) for name in ("best", "last"))
    assert best.keys() == last.keys() and all(torch.equal(best[name], last[name]) for name in best)
    assert state["whitened"] and not any(
        name.startswith(("optimizer", "model/backbone")) for name in best
    )


def test_its_whitening_is_that_of_all_people_of_the_train_side(free, splits):
    model = load_run(free.run)
    people = pd.concat([splits.train, splits.val_query, splits.val_gallery]).drop_duplicates("path")
    other = PromptSG(free.config, 3).eval()
    plain = Embedder(other, other.config, progress=False).embed(people).of(people)
    other.whitening.fit(plain, torch.from_numpy(pd.factorize(people.identity)[0]))
    assert same(
        other.whitening.matrix, model.whitening.matrix, 1e-3 * model.whitening.matrix.abs().max()
    )
    assert same(other.whitening.mean, model.whitening.mean)


def test_it_is_measured_searched_shown_and_handed_on(free, splits, hands, tmp_path):
    from promptsg.readers import read_data

    model = load_run(free.run)
    results, _ = measure(model, splits, ("clipfh", "mba"), progress=False)
    results["clipfh"].save(free.run / "evaluation-clipfh")
    assert results["clipfh"].summary.loc["mAP", "mean"] > 30
    card = model_card(free.run)
    assert (
        "Nothing was trained by gradient" in card
        and free.config.simplified_prompt in card
        and "{} being" not in card
    )
    export_run(free.run, tmp_path / "model")
    again = PromptSG.from_pretrained(tmp_path / "model")
    assert same(again.embed(noise(model.backbone)), model.embed(noise(model.backbone)), 1e-6)
    explorer = Explorer(free.run, read_data(hands), progress=False)
    assert explorer.heads == [free.config.simplified_prompt] and explorer.attention().shape == (
        2,
        1,
        7,
        7,
    )
    before = explorer.ranked().similarity.tolist()
    explorer.set_prompt("A photo of a ring.")
    assert explorer.ranked().similarity.tolist() != before and explorer.heads == [
        "A photo of a ring."
    ]
    assert draw_attention(explorer) is not None
    with pytest.raises(PromptSGError, match="no prompt can be composed"):
        explorer.set_prompt(prompt="composed")
    assert explorer.state.prompt == "simplified"


def test_explorer_has_a_map_for_each_word(splits, hands, tmp_path):
    from promptsg.readers import read_data

    config = version("training_free", "hand-rn-tiny").replace(
        num_splits=3, train_aspects=(), words=("ring", "hand")
    )
    Trainer(config, splits, tmp_path / "run", progress=False).fit()
    explorer = Explorer(tmp_path / "run", read_data(hands), progress=False)
    assert explorer.words == "ring, hand" and explorer.heads == ["ring", "hand"]
    maps = explorer.attention()
    explorer.set_prompt("hand, ring")
    assert same(
        torch.tensor(explorer.attention()), torch.tensor(maps[:, ::-1].copy()), 1e-6
    ) and explorer.heads == ["hand", "ring"]
    with pytest.raises(PromptSGError, match="there are 1 words, but"):
        explorer.set_prompt("hand")
    assert explorer.words == "hand, ring"


def test_onnx_embeds_as_the_model(tmp_path):
    torch.manual_seed(0)
    model = PromptSG(
        Config(words=("hand", "ring"), unfreeze_blocks=0, whiten=True, **FREE), 2
    ).eval()
    assert export_onnx(model, tmp_path / "model.onnx") < 1e-4


def test_resuming_a_finished_run_changes_nothing(free, splits):
    before = {file: file.read_bytes() for file in free.run.rglob("*") if file.is_file()}
    Trainer(free.config, splits, free.run, progress=False).fit(resume=True)
    assert before == {
        file: file.read_bytes() for file in free.run.rglob("*") if file.is_file() and file in before
    }


def test_a_run_killed_before_its_last_checkpoint_goes_on(free, splits, tmp_path, monkeypatch):
    import promptsg.training as training

    # other tests' cached rows came from other batches, and differ from these in the last bit
    monkeypatch.setenv("PROMPTSG_CACHE", str(tmp_path / "cache"))
    saved = training.save_checkpoint

    def dying(folder, *rest):
        if folder.name == "last":
            raise KeyboardInterrupt
        saved(folder, *rest)

    monkeypatch.setattr(training, "save_checkpoint", dying)
    with pytest.raises(training.Stopped, match="before the whitening was fitted"):
        Trainer(free.config, splits, tmp_path / "run", progress=False).fit()
    monkeypatch.setattr(training, "save_checkpoint", saved)
    Trainer(free.config, splits, tmp_path / "run", progress=False).fit(resume=True)
    for name in (
        "best/checkpoint.safetensors",
        "last/checkpoint.safetensors",
        "best/state.json",
        "metrics.csv",
    ):
        assert (tmp_path / "run" / name).read_bytes() == (free.run / name).read_bytes()


def test_with_frozen_features_it_is_the_same(free, splits, tmp_path):
    Trainer(free.config.replace(cache_frozen=True), splits, tmp_path / "run", progress=False).fit()
    rows = splits.test.head(6)
    embedded = [
        Embedder(model, model.config, tmp_path / "cache", progress=False).embed(rows).of(rows)
        for model in map(load_run, (free.run, tmp_path / "run"))
    ]
    assert (embedded[0] * embedded[1]).sum(1).min() > 0.999  # kept in half precision


TWO = """
import sys
from promptsg.data import make_splits, read_11k
from promptsg.training import Trainer
from promptsg.tune import (
    choose_words,
    person_folds,
    measure_parts,
    train_people,
    whitened_similarity,
    word_parts,
)
from promptsg.versions import version
config = version("training_free", "hand-vit-tiny").replace(num_splits=3, train_aspects=())
splits = make_splits(read_11k(sys.argv[1]), "dorsal_r", 3)
Trainer(config, splits, sys.argv[2], progress=False).fit()
"""


def test_two_processes_fit_the_same_whitening(free, hands, splits, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29631",
    ]
    done = subprocess.run(
        [*launch, str(tmp_path / "two.py"), str(hands), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_run(run).whitening.matrix for run in (free.run, tmp_path / "run"))
    assert same(one, two, 1e-3 * one.abs().max())
    assert (
        json.loads((tmp_path / "run" / "last" / "state.json").read_text())["history"][0]["epoch"]
        == 0
    )


# --- words chosen by cross-validation
@pytest.mark.parametrize(
    "rows, fitted, dim, images", [(30, 20, 50, 4), (60, 50, 12, 5), (12, 10, 3000, 5)]
)
def test_whitened_similarity_is_that_of_the_whitening(rows, fitted, dim, images):
    x = unit(torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows)) + 0.3)
    labels, whitening = torch.arange(fitted) // images, Whitening(dim)
    whitening.fit(x[:fitted], labels)
    plain = unit(whitening(x))
    assert same(whitened_similarity(x @ x.T, torch.arange(fitted), labels, dim), plain @ plain.T)
    with pytest.raises(PromptSGError, match="no person has two different images"):
        whitened_similarity(torch.ones(4, 4), torch.arange(4), torch.tensor([0, 0, 1, 1]), 3)


def people(count, images=4):
    who = np.repeat([f"p{i}" for i in range(count)], images)
    return pd.DataFrame(
        {
            "pid": who,
            "identity": who,
            "aspect": "dorsal_r",
            "path": [f"{i}.jpg" for i in range(len(who))],
        }
    )


def test_people_are_dealt_whole():
    frame = people(13)
    dealt = person_folds(frame, 5)
    assert pd.Series(dealt).groupby(frame.pid).nunique().eq(1).all() and sorted(set(dealt)) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert (
        pd.Series(dealt).value_counts().between(8, 12).all()
        and (person_folds(frame, 5) == dealt).all()
    )
    with pytest.raises(PromptSGError, match="3 train-side people are too few for 2 folds"):
        person_folds(people(3), 2)


def test_the_word_that_knows_people_is_chosen_and_noise_is_not():
    generator, frame = torch.Generator().manual_seed(0), people(20)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    knows = unit(draw(20, 32).repeat_interleave(4, 0) + 0.7 * draw(80, 32))
    parts = {
        "class token": unit(draw(80, 32)),
        "patches": unit(draw(80, 32)),
        "noise": unit(draw(80, 32)),
        "ring": knows,
    }
    table = choose_words(parts, frame, "dorsal_r", most=1, progress=False)
    assert table.words.tolist() == ["", "ring"] and table.kept.tolist() == [True, True]
    assert table.gain[1] > 3 * table.error[1] > 0 and table.mAP[1] == pytest.approx(
        table.mAP[0] + table.gain[1]
    )
    useless = choose_words(
        {**parts, "patches": 0 * knows + knows, "ring": parts["noise"]},
        frame,
        "dorsal_r",
        progress=False,
    )
    assert not useless.kept.iloc[-1] and len(useless) == 2


def test_parts_are_those_of_the_models_embedding(splits):
    config = version("training_free", "hand-vit-tiny").replace(
        words=("hand", "ring"), cache_pixels=False
    )
    torch.manual_seed(0)
    model, rows = PromptSG(config.replace(whiten=False), 2).eval(), splits.test.head(3)
    parts = word_parts(model, rows, ["hand", "ring"], progress=False)
    assert list(parts) == ["class token", "patches", "hand", "ring"]
    whole = torch.cat([*parts.values()], 1) / 2
    assert same(Embedder(model, model.config, progress=False).embed(rows).of(rows), whole)
    more = word_parts(model, rows, ["ring"], controls=True, progress=False)
    assert list(more)[2:] == ["ring", "no word", "random"] and same(more["ring"], parts["ring"])
    with torch.no_grad():
        images = [
            row["image"] for row in Embedder(model, model.config, progress=False).evaluation(rows)
        ]
        dense = unit(model.backbone(torch.stack(images)).dense)
    assert same(more["no word"], unit(dense.mean(1))) and not same(
        more["random"], more["ring"], 0.1
    )
    with pytest.raises(PromptSGError, match="only for a version with text pooling"):
        word_parts(PromptSG(Config(), 2), rows, ["hand"])


def test_tune_command_says_what_to_set(hands, tmp_path, capsys):
    (tmp_path / "words.txt").write_text("hand\nring\n", encoding="utf-8")
    command(
        "tune",
        "--data",
        hands,
        "--config",
        "training_free@hand-rn-tiny",
        "--words",
        tmp_path / "words.txt",
        "--most",
        1,
        "--out",
        tmp_path / "table.csv",
        "-s",
        "num_splits=2",
    )
    table, printed = pd.read_csv(tmp_path / "table.csv"), capsys.readouterr().out
    assert (
        len(table) == 2 and table.mAP.between(1, 100).all() and table.words[1] in ("hand", "ring")
    )
    assert (f"words=[{table.words[1]}]" if table.kept[1] else "no word helps") in printed


def test_parts_are_measured_as_the_run_is(free, splits):
    "Class token, patches and the run's sentence side by side have the run's result."
    model, frame = load_run(free.run), pd.concat([train_people(splits), ranked_images(splits)])
    frame, sentence = frame.drop_duplicates("path"), free.config.simplified_prompt
    parts = word_parts(model, frame, [sentence], progress=False)
    made_of = {"all": ["class token", "patches", sentence], "zero-shot": ["class token"]}
    found = measure_parts(parts, frame, splits, made_of, ("clipfh",))
    expected = measure(model, splits, ("clipfh",), progress=False)[0]["clipfh"].summary
    assert np.allclose(found["all"]["clipfh"].summary, expected, atol=0.1)
    plain = measure_parts(parts, frame, splits, made_of, ("clipfh",), whiten=False)
    zero = measure(untrained(free.config), splits, ("clipfh",), progress=False)[0]["clipfh"].summary
    assert np.allclose(plain["zero-shot"]["clipfh"].summary, zero, atol=0.1)


def test_a_report_has_the_version_that_trains_nothing(hands, tmp_path):
    from promptsg.report import load_report, make_report, read_metrics, train_table

    settings = dict(batch_size=8, instances=2, num_splits=2)
    make_report(
        tmp_path,
        ["hand-rn-tiny"],
        ["training_free"],
        data=hands,
        protocols=("clipfh",),
        changes=dict(settings, steps_per_epoch=1, early_stop_patience=None),
        progress=False,
    )
    assert not list(tmp_path.rglob("failed.txt"))
    report = load_report(tmp_path)
    (run,) = {file.parent for file in tmp_path.rglob("config.yml") if "training_free" in str(file)}
    assert read_metrics(run).epoch.tolist() == [0]
    rows = train_table(report, "hand-rn-tiny", "dorsal_r")
    assert rows[rows.epoch == 0].is_best.tolist() == [True]
    assert "training_free" in set(report.results.version)


def test_without_epochs_a_warm_up_is_no_matter():
    assert version("paper", "hand-vit-tiny").replace(epochs=0).warmup_epochs == 1
