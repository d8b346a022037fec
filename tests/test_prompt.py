"""The composed prompt's fast path against open_clip's own blocks, and that the cache follows the
weights."""

import pytest
import torch
from open_clip.transformer import TextTransformer

from promptsg.backbone import load_towers, model_config, tokenizer_for
from promptsg.config import ASPECTS, PromptSGError
from promptsg.prompt import PromptEncoder, fill_aspect, tokenize_prompt

TEMPLATE, SIMPLIFIED = (
    "A photo of a {} person's {aspect} hand.",
    "A photo of a person's {aspect} hand.",
)
# one of each width
SIZES = ["RN50-quickgelu", "ViT-B-16", "RN50x4", "ViT-L-14-quickgelu", "ViT-H-14", "ViT-bigG-14"]


def tower(name, layers=3):
    "The text tower of an open_clip model with its own width, heads and activation, and few blocks."
    import open_clip

    config = model_config(name)
    torch.manual_seed(0)
    text = open_clip.model._build_text_tower(
        config["embed_dim"],
        dict(config["text_cfg"], layers=layers),
        config.get("quick_gelu", False),
    )
    return text, tokenizer_for(config["text_cfg"])


@pytest.fixture
def tiny():
    towers = load_towers("hand-vit-tiny")
    return PromptEncoder(towers.text, towers.tokenizer, TEMPLATE, SIMPLIFIED, "dorsal right")


def tokens(prompt, batch=3, seed=0):
    return (
        0.05 * torch.randn(batch, prompt.width, generator=torch.Generator().manual_seed(seed))
    ).requires_grad_()


def assert_same(prompt, s, atol=2e-5):
    fast, plain = prompt.composed(s), prompt.composed_plain(s)
    for name in ("sentence", "words"):
        one, other = getattr(fast, name), getattr(plain, name)
        assert one.shape == other.shape
        weights = torch.randn(other.shape, generator=torch.Generator().manual_seed(1))
        gradients = [
            torch.autograd.grad((x * weights).sum(), s, retain_graph=True)[0] for x in (one, other)
        ]
        assert torch.allclose(one, other, rtol=1e-4, atol=atol)
        assert gradients[1].abs().max() > 0
        assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[1].abs().max()


@pytest.mark.parametrize("name", SIZES)
def test_exact_for_open_clips_text_towers(name):
    prompt = PromptEncoder(*tower(name), TEMPLATE, SIMPLIFIED, "palmar left")
    assert_same(prompt, tokens(prompt, 2))


@pytest.mark.parametrize(
    "template",
    [
        "{}",
        "{} hand",
        "A photo of a {}",
        "A detailed photo of {}'s {aspect} hand for identification.",
    ],
)
def test_exact_wherever_the_place_is(tiny, template):
    tiny.set_prompt(template)
    assert_same(tiny, tokens(tiny))


@pytest.mark.parametrize(
    "template",
    ["A {color} {}", "A {", "A {aspect.colour} {}", "A {aspect[a]} {}", "A {aspect[9999]} {}"],
)
def test_an_unknown_field_is_an_error(tiny, template):
    with pytest.raises(PromptSGError, match="something other than"):
        tiny.set_prompt(template)


def test_whole_sentence_equals_open_clip(tiny):
    word = tiny.word_embeddings(tiny.tokenizer.encode("left"))
    theirs = tiny.text(tiny.tokenizer(["A photo of a left person's dorsal right hand."]))
    assert torch.allclose(tiny.composed(word).sentence, theirs, atol=1e-5)
    assert torch.allclose(
        tiny.simplified(1).sentence,
        tiny.text(tiny.tokenizer(["A photo of a person's dorsal right hand."])),
        atol=1e-5,
    )


def test_gradient_is_right_by_finite_differences():
    prompt = PromptEncoder(*tower("RN50-quickgelu", 2), TEMPLATE, SIMPLIFIED)
    prompt.double()
    s = tokens(prompt, 2).detach().double().requires_grad_()
    direction = torch.randn(s.shape, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    f = lambda t: prompt.composed(s + t * direction).sentence.pow(2).sum()
    analytic = (torch.autograd.grad(f(0.0), s)[0] * direction).sum()
    with torch.no_grad():
        numeric = (f(1e-6) - f(-1e-6)) / 2e-6
    assert torch.allclose(analytic, numeric, rtol=1e-6)


@pytest.mark.parametrize(
    "weight",
    [
        "positional_embedding",
        "token_embedding.weight",
        "transformer.resblocks.0.attn.in_proj_weight",
    ],
)
def test_a_changed_weight_invalidates_the_cache(tiny, weight):
    s = tokens(tiny).detach()
    before = tiny.composed(s).sentence, tiny.simplified(3).sentence
    state = {
        k: v + 0.02 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0))
        if k == weight
        else v
        for k, v in tiny.text.state_dict().items()
    }
    tiny.text.load_state_dict(state)
    assert not torch.allclose(before[0], tiny.composed(s).sentence, atol=1e-4)
    assert not torch.allclose(before[1], tiny.simplified(3).sentence, atol=1e-4)
    assert torch.allclose(tiny.composed(s).sentence, tiny.composed_plain(s).sentence, atol=1e-5)


def test_cache_follows_a_cast_and_a_replaced_weight(tiny):
    s = tokens(tiny).detach()
    single = tiny.composed(s).sentence
    tiny.double()
    assert (
        tiny.composed(s.double()).sentence.dtype == tiny.simplified(1).words.dtype == torch.double
    )
    assert torch.allclose(tiny.composed(s.double()).sentence.float(), single, atol=1e-5)
    tiny.bfloat16().float()  # the same addresses may come back with rounded weights
    assert not torch.equal(tiny.composed(s).sentence, single)
    assert torch.allclose(tiny.composed(s).sentence, tiny.composed_plain(s).sentence, atol=1e-5)
    other = TextTransformer(
        context_length=40,
        vocab_size=tiny.text.vocab_size,
        width=tiny.width,
        heads=tiny.text.heads,
        layers=tiny.text.transformer.layers,
        output_dim=tiny.text.output_dim,
    )
    tiny.text.load_state_dict(other.state_dict(), assign=True)
    assert torch.allclose(tiny.composed(s).sentence, tiny.composed_plain(s).sentence, atol=1e-5)


def test_inference_mode_first_then_training(tiny):
    with torch.inference_mode():
        tiny.composed(tokens(tiny).detach()), tiny.simplified(2).words
    s = tokens(tiny)
    (tiny.composed(s).words.sum() + (tiny.simplified(3).sentence * s.sum()).sum()).backward()
    assert s.grad.abs().sum() > 0


def test_bfloat16_leaves_no_rounded_values_in_the_cache(tiny):
    s = tokens(tiny).detach()
    exact = tiny.composed(s).sentence
    tiny.set_prompt(TEMPLATE, SIMPLIFIED)
    with torch.autocast("cpu", torch.bfloat16):
        rough, plain = tiny.composed(s), tiny.composed_plain(s)
        assert torch.cosine_similarity(rough.sentence.float(), plain.sentence.float()).min() > 0.99
        assert (
            torch.cosine_similarity(
                rough.words.float().flatten(1), plain.words.float().flatten(1)
            ).min()
            > 0.99
        )
        tiny.simplified(1)
    assert torch.equal(tiny.composed(s).sentence, exact)
    assert tiny.simplified(1).sentence.dtype == torch.float32


def test_no_weight_gets_a_gradient_and_the_prefix_is_not_computed_again(tiny):
    from torch.utils.flop_counter import FlopCounterMode

    s = tokens(tiny)
    tiny.composed(s).sentence.sum().backward()
    assert all(p.grad is None for p in tiny.parameters())
    counts = []
    for compose in (tiny.composed, tiny.composed_plain):
        with FlopCounterMode(display=False) as counter:
            _ = compose(s).sentence
        counts.append(counter.get_total_flops())
    rows = len(tiny.template.ids) - tiny.template.place
    assert counts[0] < counts[1] * rows / tiny.text.context_length


def test_words_are_every_token_after_the_start(tiny):
    s = tokens(tiny)
    features = tiny.composed(s)
    assert features.words.shape == (3, len(tiny.template.ids) - 1, tiny.text.output_dim)
    assert torch.allclose(features.words[:, -1], features.sentence, atol=1e-5)
    assert torch.equal(features.words[0, 0], features.words[1, 0]) and not torch.allclose(
        features.words[0, -1], features.words[1, -1]
    )
    repeated = tiny.simplified(4)
    assert repeated.words.shape == (
        4,
        len(tiny.sentence.ids) - 1,
        tiny.text.output_dim,
    ) and torch.equal(repeated.words[:, -1], repeated.sentence)


def test_unsupported_prompts_and_encoders_are_errors(tiny):
    tiny.set_prompt("A hand.")
    with pytest.raises(PromptSGError, match="no place"):
        tiny.composed(tokens(tiny))
    bidirectional = TextTransformer(
        context_length=40, width=64, heads=2, layers=1, no_causal_mask=True
    )
    custom = TextTransformer(context_length=40, width=64, heads=2, layers=1, block_type="custom")
    for text in (bidirectional, custom):
        with pytest.raises(PromptSGError, match="causal"):
            PromptEncoder(text, tiny.tokenizer, TEMPLATE, SIMPLIFIED)


def test_no_aspect_leaves_single_spaces(tiny):
    assert (
        fill_aspect(TEMPLATE) == "A photo of a {} person's hand."
        and fill_aspect(TEMPLATE, "dorsal right") == "A photo of a {} person's dorsal right hand."
    )
    plain = PromptEncoder(tiny.text, tiny.tokenizer, TEMPLATE, SIMPLIFIED)
    assert (
        plain.template.text == "A photo of a s* person's hand."
        and plain.sentence.text == "A photo of a person's hand."
    )
    assert_same(plain, tokens(plain))


ASPECT_NUMBERS = torch.tensor([0, 1, 2, 3, -1, 2, 1])


@pytest.mark.parametrize(
    "template, simplified",
    [
        (TEMPLATE, SIMPLIFIED),  # s* before the aspect
        ("The {aspect} hand of a {} one.", "The {aspect} hand."),
        ("A {aspect} one, {}, {aspect}.", "A hand."),
    ],
)
def test_each_image_has_the_sentence_of_its_own_aspect(template, simplified):
    towers = load_towers("hand-vit-tiny")
    encoder = lambda aspect: PromptEncoder(
        towers.text, towers.tokenizer, template, simplified, aspect
    )
    prompt = encoder("dorsal left")  # the run's
    s = tokens(prompt, len(ASPECT_NUMBERS))
    found, plain = prompt.composed(s, ASPECT_NUMBERS), prompt.simplified(7, ASPECT_NUMBERS)
    directions = prompt.directions(ASPECT_NUMBERS)
    for row, number in enumerate(ASPECT_NUMBERS):
        alone = encoder([*ASPECTS.values(), "dorsal left"][number])
        assert torch.allclose(
            found.sentence[row], alone.composed(s[row : row + 1]).sentence[0], atol=1e-5
        )
        assert torch.allclose(plain.sentence[row], alone.simplified(1).sentence[0], atol=1e-6)
        assert torch.allclose(directions.expand(7, 1, -1)[row], alone.directions(), atol=1e-5)
    found.sentence.square().sum().backward()
    assert (s.grad.abs().sum(1) > 0).all()


def test_a_template_without_an_aspect_is_one_sentence(tiny):
    tiny.set_prompt("A photo of a {} hand.", "A hand.")
    s = tokens(tiny, 7)
    assert torch.equal(tiny.composed(s, ASPECT_NUMBERS).sentence, tiny.composed(s).sentence)
    assert tiny.directions(ASPECT_NUMBERS).shape == tiny.directions().shape


def test_words_of_sentences_of_different_lengths_are_an_error(tiny):
    lengths = {
        len(tokenize_prompt(TEMPLATE, tiny.tokenizer, aspect).ids) for aspect in ASPECTS.values()
    }
    assert len(lengths) > 1
    for features in (
        tiny.composed(tokens(tiny, 7), ASPECT_NUMBERS),
        tiny.simplified(7, ASPECT_NUMBERS),
    ):
        with pytest.raises(PromptSGError, match="different numbers of tokens.*prompt_aspect: run"):
            _ = features.words
