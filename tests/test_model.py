"""The prompt matters, gradients go where they should, and every option of the config reaches the
model."""

import pytest
import torch

from promptsg.backbone import load_towers
from promptsg.config import PromptSGError
from promptsg.fusion import CrossAttention
from promptsg.model import PromptSG
from promptsg.prompt import PromptEncoder


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 112, 112, generator=torch.Generator().manual_seed(1))


def build(config, **changes):
    torch.manual_seed(0)
    return PromptSG(config.replace(**changes), 5)


@pytest.mark.parametrize(
    "template",
    ["A photo of a {} hand.", "{}", "A detailed photo of {}'s {aspect} hand for identification."],
)
def test_truncation_is_exact_forward_and_backward(template):
    towers = load_towers("hand-vit-tiny")
    prompt = PromptEncoder(towers.text, towers.tokenizer, template, "A hand.", "palmar left")
    s = torch.randn(2, prompt.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.zeros(2, towers.tokenizer.context_length, dtype=torch.long)
    ids[:, : len(prompt.template.ids)] = torch.tensor(prompt.template.ids)
    x = towers.text.token_embedding(ids).detach().clone()
    x[:, prompt.template.place] = 0
    full = (
        x
        + torch.nn.functional.one_hot(torch.tensor(prompt.template.place), x.shape[1])[
            None, :, None
        ]
        * s[:, None]
    )
    full = towers.text.transformer(
        full + towers.text.positional_embedding, attn_mask=towers.text.attn_mask
    )
    full = towers.text.ln_final(full)[:, len(prompt.template.ids) - 1] @ towers.text.text_projection
    short = prompt.composed(s).sentence
    assert torch.allclose(short, full, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), s)[0] for y in (short, full)]
    assert torch.allclose(*grads, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(fusion="text"),
        dict(text_queries="words"),
        dict(model="hand-rn-tiny"),
        dict(classifier="arcface"),
    ],
)
def test_template_and_pseudo_token_change_the_embedding(quick, images, changes):
    # where tokens are much alike, as noise's are, single precision would round the change away
    model = build(quick, **changes).eval().double()
    x = torch.nn.functional.interpolate(images.double(), model.backbone.image_size)
    first = model(x).embedding
    model.prompt.set_prompt("A captured frame of a {} hand during surveillance.")
    assert (first - model(x).embedding).norm() > 1e-9 * first.norm()
    model.prompt.set_prompt(quick.prompt_template)
    # the same words, the same embedding
    assert (first - model(x).embedding).norm() < 1e-12 * first.norm()
    torch.nn.init.normal_(model.inversion.layers[-1].bias, std=0.3)  # another s*
    assert (first - model(x).embedding).norm() > 1e-9 * first.norm()


@pytest.mark.parametrize("fusion", ["patches", "text"])
def test_gradients(quick, images, fusion):
    model = build(quick, fusion=fusion)
    model(images, labels=torch.arange(4)).embedding.square().sum().backward()
    assert all(p.grad is not None for p in model.inversion.parameters())
    assert model.inversion.layers[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in model.prompt.parameters())


def test_attention_is_the_fused_kernels(images):
    torch.manual_seed(0)
    attend, text, patches = CrossAttention(32, 4), torch.randn(2, 3, 32), torch.randn(2, 9, 32)
    q, k, v = (
        f(n(x)).unflatten(2, (4, -1)).transpose(1, 2)
        for f, n, x in (
            (attend.query, attend.norm_query, text),
            (attend.key, attend.norm_key, patches),
            (attend.value, attend.norm_key, patches),
        )
    )
    fused = attend.out(
        torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    )
    assert torch.allclose(attend(text, patches)[0], fused, atol=1e-6)


def test_output_shapes_and_unit_embeddings(quick, images):
    model = build(quick).eval()
    out, width = model(images, prompt="simplified"), model.prompt.width
    assert out.embedding.shape == out.text.shape == (4, 128) and out.pseudo_token.shape == (
        4,
        width,
    )
    assert out.attention.shape == (4, 4, 49) and torch.allclose(
        out.attention.sum(-1), torch.ones(4, 4), atol=1e-5
    )
    assert torch.allclose(model.embed(images).norm(dim=1), torch.ones(4), atol=1e-5)
    assert torch.equal(out.text[0], out.text[1])


def test_image_only_has_no_language(quick, images):
    model = build(quick, language=False).eval()
    out = model(images)
    assert out.text is None and torch.equal(out.embedding, out.visual)
    with pytest.raises(PromptSGError, match="image-only"):
        model.attention_maps(images)


@pytest.mark.parametrize(
    "changes, word",
    [
        (dict(pseudo_token_dim=3), "pseudo_token_dim"),
        (dict(attention_heads=5), "attention_heads"),
        (dict(unfreeze_blocks=50), "unfreeze_blocks"),
        (dict(image_size=(113, 112)), "image_size"),
    ],
)
def test_what_does_not_fit_names_the_field(quick, changes, word):
    with pytest.raises(PromptSGError, match=word):
        build(quick, **changes)


def test_portrait_images(quick):
    model = build(quick, image_size=(128, 64)).eval()
    assert model.attention_maps(torch.randn(1, 3, 128, 64)).shape == (1, 4, 8, 4)


def test_a_part_and_a_loss_of_ones_own_are_trained_and_loaded(quick, splits, tmp_path):
    from promptsg.checkpoints import load_run
    from promptsg.fusion import Fused
    from promptsg.training import Trainer

    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.share = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, text, patches, embedding):
            return Fused(
                embedding + self.share * text.mean(1),
                torch.full((len(text), 1, patches.shape[1]), 1 / patches.shape[1]),
            )

    class Summed(PromptSG):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.fusion = Sum()

    seen = []

    def losses(output, labels, config, progress):
        seen.append(progress)
        return {"own": output.embedding.square().mean()}

    run = Trainer(
        quick, splits, tmp_path / "run", progress=False, losses=losses, build=Summed
    ).fit()
    assert seen == sorted(seen) and seen[0] == 0 and 0.5 < seen[-1] < 1
    assert (
        "loss_own" in (run / "metrics.csv").read_text()
        and "loss_triplet" not in (run / "metrics.csv").read_text()
    )
    assert load_run(run, build=Summed).fusion.share.item() != 0.5
    with pytest.raises(PromptSGError, match="does not match"):
        load_run(run)
