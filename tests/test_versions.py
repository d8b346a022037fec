"The chain of versions does what its remarks say, on every backbone it is made for."

import re

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from make_readme import ROOT

from promptsg.config import PromptSGError
from promptsg.distributed import gather_output
from promptsg.losses import identity_loss, supcon
from promptsg.model import PromptSG
from promptsg.training import loss_terms
from promptsg.versions import CHAIN, HANDID, VERSIONS, chain_table, difference, remark, version

BACKBONES = ["vitb16", "rn50", "hand-vit-tiny", "hand-rn-tiny"]
STEPS = list(zip(list(CHAIN), list(CHAIN)[1:]))
resnet = lambda backbone: "rn" in backbone

# What a report names although the version before had it already.
RESTATED = {"v2": {"supcon_temperature"}, "v4": {"bnneck_dim"}, "v8": {"arcface_scale"}}

# field -> the words of which one must stand in a remark that changes it; a dict has them by value
WORDS = {
    "classifier": {"linear": "linear head", "arcface": "ArcFace"},
    "label_smoothing": "label smoothing",
    "triplet_margin": "margin",
    "triplet_unit": "unit vectors",
    "triplet_states": "the embedding alone",
    "supcon_loss_weight": "SupCon",
    "supcon_temperature": "temperature",
    "supcon_ramp": "ramped",
    "lr_clip_visual": ("image tower", "learning rates"),
    "lr_modules": ("the rest", "learning rates"),
    "weight_decay": "weight decay",
    "clip_norm": "clip norm",
    "schedule": {"none": "no schedule", "cosine": "cosine"},
    "warmup_epochs": "warm-up",
    "eta_min": "down to",
    "cross_attention_layers": "cross-attention",
    "transformer_layers": ("one cross-attention", "layers"),
    "prompt_aspect": {"run": "the run's aspect"},
    "fusion": {"text": "text token"},
    "dropout": "dropout",
    "inversion_layers": "inversion MLP",
    "inversion_norm": {False: "without batch norm", True: "with batch norm"},
    "eval_prompt": {
        "simplified": ("simplified in evaluation", "simplified prompt only"),
        "composed": "composed prompt in evaluation",
    },
    "use_composed_prompt": {False: "simplified prompt only"},
    "epochs": "epochs",
    "batch_size": "batches",
    "early_stop_patience": "patience",
    "prompt_template": ("template", "sentence"),
    "simplified_prompt": ("template", "sentence"),
    "loss_id_weight": "cross-entropy",
    "bnneck_reduction": "reduction",
    "bnneck_dim": ("reduction to", "dimensions"),
    "image_size": "input",
    "unfreeze_blocks": "unfrozen",
    "arcface_scale": "scale",
    "arcface_margin": "margin",
    "loss_centre_weight": "centre loss",
}


def fields(name, backbone):
    "What a version says it changes on a backbone."
    return CHAIN[name].changes | (CHAIN[name].resnet if resnet(backbone) else {})


def numbers(text):
    return {
        float(found)
        for found in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text.replace("one ", "1 "))
    }


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("before, name", STEPS)
def test_a_version_differs_from_the_one_before_in_what_it_names_and_nothing_else(
    before, name, backbone
):
    differing = set(difference(version(before, backbone), version(name, backbone))) - {"variant"}
    assert differing == set(fields(name, backbone)) - RESTATED.get(name, set())


@pytest.mark.parametrize("backbone", ["vitb16", "rn50"])
@pytest.mark.parametrize("name", CHAIN)
def test_published_numbers_are_used_as_they_are(name, backbone):
    config = version(name, backbone)
    assert {field: getattr(config, field) for field in fields(name, backbone)} == fields(
        name, backbone
    )


@pytest.mark.parametrize("backbone", ["vitb16", "rn50"])
@pytest.mark.parametrize("name", CHAIN)
def test_the_remark_names_every_changed_field_and_number(name, backbone):
    text = chain_table(backbone, [name]).changed[0]
    for field, value in fields(name, backbone).items():
        words = WORDS[field][value] if isinstance(WORDS[field], dict) else WORDS[field]
        assert any(word in text for word in ([words] if isinstance(words, str) else words)), (
            f"{name}: {field} is not named"
        )
        # "no SupCon", "the embedding alone"
        spoken = field in ("supcon_loss_weight", "triplet_states") and value == 0
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not spoken:
            assert float(value) in numbers(text), f"{name}: {field}'s {value} is not in the remark"
    if "image_size" in fields(name, backbone):
        assert "x".join(map(str, fields(name, backbone)["image_size"])) in text


@pytest.mark.parametrize("backbone", ["vitb16", "rn50"])
@pytest.mark.parametrize("name", CHAIN)
def test_a_logged_variant_is_the_documented_one_with_the_logged_values(name, backbone):
    step, documented, logged = (
        CHAIN[name],
        version(name, backbone),
        version(name + "-logged", backbone),
    )
    values = step.resnet_logged if resnet(backbone) and step.resnet_logged else step.logged
    assert logged == documented.replace(variant=name + "-logged", **values)
    said = remark(name + "-logged", backbone)
    assert all(
        field in said
        and (value in said if isinstance(value, str) else float(value) in numbers(said))
        for field, value in values.items()
    )


@pytest.mark.parametrize("backbone", ["vitb16", "rn50"])
@pytest.mark.parametrize("name", CHAIN)
def test_a_logged_variant_is_what_the_published_log_shows(name, backbone):
    log = pd.read_csv(ROOT / "nbs/analysis/reference/stage3_training_runs.csv").set_index(
        ["backbone", "version"]
    )
    if (backbone, name) not in log.index:
        assert (backbone, name) == ("rn50", "v6")  # the one without a log
        return
    row, config = log.loc[(backbone, name)], version(name + "-logged", backbone)
    assert (config.loss_id_weight, config.loss_tri_weight, config.supcon_loss_weight) == (
        row.weight_id,
        row.weight_triplet,
        row.weight_supcon,
    )
    assert (config.lr_clip_visual, config.batch_size, config.epochs) == (
        row.lr,
        row.batch_size,
        row.epochs_planned,
    )
    if isinstance(row.image_size, str):  # a log that stops in its first epoch names none
        assert "x".join(map(str, config.image_size)) == row.image_size and (
            config.classifier == "arcface"
        ) == (row.arcface_logged == "yes")


@pytest.mark.parametrize("backbone", ["hand-vit-tiny", "hand-rn-tiny"])
@pytest.mark.parametrize(
    "name", [*(name for name in VERSIONS if version(name).epochs), "v8-logged"]
)
def test_every_version_takes_a_step(name, backbone):
    torch.manual_seed(0)
    config, labels = version(name, backbone), torch.tensor([0, 0, 1, 1])
    model = PromptSG(config, num_classes=2).train()
    terms = loss_terms(
        model(torch.randn(4, 3, *model.backbone.image_size), labels=labels),
        labels,
        config,
        progress=0.5,
    )
    sum(terms.values()).backward()
    gradients = [
        p.grad
        for part in (model.backbone, model.inversion if config.language else model.head)
        for p in part.parameters()
        if p.grad is not None
    ]
    assert all(torch.isfinite(term) for term in terms.values())
    assert (
        gradients
        and all(g.isfinite().all() for g in gradients)
        and any(g.abs().sum() > 0 for g in gradients)
    )


# --- CLIP-HandID
PUBLISHED = dict(
    lr_clip_visual=5e-6,
    lr_modules=5e-5,
    weight_decay=5e-4,
    epochs=70,
    warmup_epochs=10,
    warmup_start=0.01,
    step_at=(40, 60),
    step_gamma=0.5,
    inversion_dropout=0.5,
    inversion_layers=3,
    label_smoothing=0.1,
    supcon_temperature=1.0,
    loss_tri_weight=0.0,
    flip=0.5,
    crop_from=(256, 256),
    image_size=(224, 224),
    val_type="images",
    optimizer="adam",
    prompt_template="A photo of a {} hand.",
)


@pytest.mark.parametrize("name", HANDID)
@pytest.mark.parametrize(
    "backbone, own",
    [
        ("vitb16", dict(batch_size=20, inversion_hidden=2048)),
        ("rn50", dict(batch_size=4, inversion_hidden=4096)),
    ],
)
def test_clip_handids_published_numbers_are_used_as_they_are(name, backbone, own):
    config = version(name, backbone)
    assert {field: getattr(config, field) for field in PUBLISHED | own} == PUBLISHED | own


@pytest.mark.parametrize("backbone", [*BACKBONES, "vitb16-cpu"])
def test_clip_handids_two_versions_differ_in_whose_sentence_it_is(backbone):
    assert set(difference(version("handid", backbone), version("handid_text", backbone))) == {
        "variant",
        "use_composed_prompt",
    }


@pytest.fixture(scope="module", params=["hand-vit-tiny", "hand-rn-tiny"])
def handid_text(request):
    torch.manual_seed(0)
    model = PromptSG(version("handid_text", request.param), num_classes=3)
    return model, torch.randn(4, 3, *model.backbone.image_size)


def test_its_embedding_is_both_normalised_vectors_side_by_side(handid_text):
    model, images = handid_text
    model.eval()
    with torch.no_grad():
        seen = model.backbone(images)
        visual, tokens = model.backbone.visual, model.backbone.features_before(images)
        for block in model.backbone.blocks:
            tokens = block(tokens)
        if hasattr(visual, "proj"):
            before = visual.ln_post(tokens[:, 0])
            # what CLIP projects
            assert torch.allclose(before @ visual.proj, seen.embedding, atol=1e-4)
        else:
            before = tokens.flatten(2).mean(2)
        assert torch.allclose(seen.pooled, before, atol=1e-5)
        scaled = [
            (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight
            for x, norm in (
                (before, model.head.first.neck.norm),
                (seen.embedding, model.head.second.neck.norm),
            )
        ]
        expected = F.normalize(torch.cat(scaled, 1), dim=1)
    assert expected.shape[1] == model.backbone.width + model.prompt.text.text_projection.shape[1]
    assert torch.allclose(model.embed(images, mirror=False), expected, atol=1e-5)
    assert torch.allclose(F.normalize(model.ranked(seen), dim=1), expected, atol=1e-5)


def test_its_loss_is_two_identity_losses_and_supcon_of_vectors_as_they_are(handid_text):
    model, images = handid_text
    labels = torch.tensor([0, 0, 1, 2])
    output = model.train()(images, labels=labels)
    terms = loss_terms(gather_output(output), labels, model.config)
    assert set(terms) == {"id", "supcon"} and len(output.more_logits) == 1
    both = identity_loss(output.logits, labels, 0.1) + identity_loss(
        output.more_logits[0], labels, 0.1
    )
    assert torch.isclose(terms["id"], both)
    assert torch.isclose(
        terms["supcon"], supcon(output.visual, output.text, labels, 1.0, unit=False)
    )


def test_its_word_is_the_images_own_and_is_trained(handid_text):
    model, images = handid_text
    output = model.train()(images, labels=torch.arange(4) % 3)
    supcon(output.visual, output.text, torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.inversion.parameters())
    assert model.inversion.layers[0].weight.grad.abs().sum() > 0
    assert (F.normalize(output.text, dim=1)[1:] - F.normalize(output.text, dim=1)[:1]).norm(
        dim=1
    ).min() > 1e-4
    assert model.eval()(images).text is None  # nothing of it is needed to rank


def test_its_inversion_network_says_nothing_of_the_batch(handid_text):
    model, images = handid_text
    v = model.eval().backbone(images).embedding
    assert torch.allclose(model.inversion(v)[:1], model.inversion(v[:1]), atol=1e-6)
    kinds = [type(layer).__name__ for layer in model.inversion.layers]
    assert kinds == ["Linear", "LayerNorm", "GELU", "Dropout"] * 2 + ["Linear", "LayerNorm"]


def test_pixels_are_brought_to_imagenets_mean_and_a_loaded_model_knows(handid_text, tmp_path):
    model, images = handid_text
    assert model.mean == (0.485, 0.456, 0.406) and model.std == (0.229, 0.224, 0.225)
    model.eval().save_pretrained(tmp_path / "mine")
    again = PromptSG.from_pretrained(tmp_path / "mine")
    assert again.mean == model.mean and torch.equal(again.embed(images), model.embed(images))


def test_no_map_of_where_a_text_looks_that_is_in_the_loss_alone(handid_text):
    model, images = handid_text
    with pytest.raises(PromptSGError, match="no attention map"):
        model.attention_maps(images)
