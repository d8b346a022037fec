import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import ArcFaceLoss
from sklearn.covariance import ledoit_wolf

from promptsg.config import PromptSGError
from promptsg.heads import (
    ArcFace,
    BNNeck,
    BNNeckArcFace,
    BNNeckPair,
    LinearHead,
    Whitening,
    shrunk_covariance,
)
from promptsg.parts import part


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(12) % 5


@pytest.mark.parametrize(
    "name, options, width",
    [
        ("linear", {}, 16),
        ("arcface", {}, 16),
        ("arcface", {"reduction": True, "reduced_dim": 6}, 6),
    ],
)
def test_every_head_has_one_interface(name, options, width):
    head = part("head", name)(16, 5, **options)
    for labels in (LABELS, None):
        output = head(random(12, 16), labels)
        assert (
            output.embedding.shape == (12, width)
            and output.logits.shape == (12, 5)
            and head.out_dim == width
        )
    (output.logits.square().sum() + output.embedding.square().sum()).backward()
    assert all(p.grad is not None for p in head.parameters() if p.requires_grad)


def test_a_pair_is_two_necks_with_a_classifier_each():
    head, x = BNNeckPair(4, 5, first=6), random(12, 10, seed=1)
    output = head(x, LABELS)
    normal = lambda part: (part - part.mean(0)) / (part.var(0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(
        output.embedding, torch.cat([normal(x[:, :6]), normal(x[:, 6:])], 1), atol=1e-5
    )
    assert torch.allclose(
        output.logits, normal(x[:, 6:]) @ head.second.linear.classifier.weight.T, atol=1e-6
    )
    assert torch.allclose(
        output.more[0], normal(x[:, :6]) @ head.first.linear.classifier.weight.T, atol=1e-6
    )
    assert len(output.more) == 1 and head.out_dim == 10
    (output.logits.square().sum() + output.more[0].square().sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters() if p.requires_grad)


def test_a_pair_names_the_widths_it_needs():
    with pytest.raises(PromptSGError, match=r"got 4 numbers for each image and needs 6 \+ 4"):
        BNNeckPair(4, 5, first=6)(random(12, 4))


def test_linear_embedding_is_the_feature_and_the_first_loss_is_ln_c():
    x = random(12, 16)
    output = LinearHead(16, 5)(x, LABELS)
    assert torch.equal(output.embedding, x)
    assert math.isclose(F.cross_entropy(output.logits, LABELS).item(), math.log(5), abs_tol=0.05)


@pytest.mark.parametrize("scale, margin", [(30, 0.35), (64, 0.5), (10, 1.2), (30, 0.0)])
def test_arcface_agrees_with_pytorch_metric_learning(scale, margin):
    x = random(12, 16)
    head = ArcFace(16, 5, scale, margin)
    with torch.no_grad():
        head.weight[:3] *= -4  # lengths must not matter
        x[0] = -head.weight[0]  # past pi - m: the continuation
    reference = ArcFaceLoss(5, 16, margin=math.degrees(margin), scale=scale)
    with torch.no_grad():
        reference.W.copy_(head.weight.T)
    assert torch.isclose(
        F.cross_entropy(head(x, LABELS).logits, LABELS), reference(x, LABELS), rtol=1e-4
    )


def test_the_margin_moves_only_the_own_class_and_only_with_labels():
    head, x = ArcFace(16, 5), random(12, 16)
    plain, moved = head(x).logits, head(x, LABELS).logits
    own = F.one_hot(LABELS, 5).bool()
    assert torch.equal(plain[~own], moved[~own]) and (moved[own] < plain[own]).all()


def test_arcface_decreases_over_the_whole_range_of_angles():
    angle = torch.linspace(0, math.pi, 500)
    head = ArcFace(2, 1, scale=1.0, margin=0.5)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0]]))
    logit = head(
        torch.stack([angle.cos(), angle.sin()], 1), torch.zeros(500, dtype=torch.long)
    ).logits[:, 0]
    assert (logit.diff() < 0).all()


def test_arcface_gradient_is_finite_on_and_opposite_the_class():
    head = ArcFace(4, 2)
    x = torch.stack(
        [head.weight[0].detach(), -head.weight[0].detach(), torch.zeros(4)]
    ).requires_grad_()
    head(x, torch.zeros(3, dtype=torch.long)).logits.sum().backward()
    assert x.grad.isfinite().all() and head.weight.grad.isfinite().all()


def test_arcface_keeps_float32_inside_autocast():
    head, x = ArcFace(16, 5), random(12, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(x, LABELS).logits
    assert inside.dtype == torch.float32 and torch.allclose(inside, head(x, LABELS).logits)


def test_bnneck_has_no_shift_and_the_embedding_is_taken_after_it():
    neck = BNNeck(16, reduction=True, reduced_dim=6)
    assert not neck.norm.bias.requires_grad and (neck.norm.bias == 0).all()
    head, x = BNNeckArcFace(16, 5), 5 * random(64, 16) + 3
    after = head(x, torch.arange(64) % 5).embedding
    assert torch.allclose(after.mean(0), torch.zeros(16), atol=1e-5)
    head.eval()
    assert torch.equal(head(x).embedding, head.neck(x))


@pytest.mark.parametrize("rows, stretch", [(5, 1.0), (40, 1.0), (400, 30.0)])
def test_the_covariance_is_shrunk_as_scikit_learn_does(rows, stretch):
    x = random(rows, 16).double()
    x[:, 0] *= stretch
    theirs, _ = ledoit_wolf(x.numpy(), assume_centered=True)
    torch.testing.assert_close(
        shrunk_covariance(x), torch.from_numpy(theirs), rtol=1e-10, atol=1e-12
    )


def test_whitened_identities_have_equal_variance_in_all_directions():
    labels, stretch = torch.arange(2000) % 40, torch.ones(6).index_fill(0, torch.tensor([1]), 8.0)
    x = 20 * random(40, 6)[labels] + random(2000, 6, seed=1) * stretch
    whitening = Whitening(6)
    assert torch.equal(whitening(x), F.normalize(x))  # nothing is fitted yet
    whitening.fit(x, labels)
    after = whitening(3 * x)  # length does not count
    within = after - torch.stack([after[labels == i].mean(0) for i in range(40)])[labels]
    # all but what the shrinkage leaves
    torch.testing.assert_close(within.T @ within / 2000, torch.eye(6), rtol=0, atol=0.15)
    assert after.mean(0).abs().max() < 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        assert whitening(x).dtype == torch.float32


@pytest.mark.parametrize(
    "call, word",
    [
        (
            lambda: Whitening(4).fit(random(3, 4), torch.arange(3)),
            "a person with two different images",
        ),
        (lambda: Whitening(4).fit(random(3, 4), torch.arange(2)), "label per row"),
        (lambda: ArcFace(4, 2, scale=0), "scale"),
        (lambda: ArcFace(4, 2, margin=-0.1), "margin"),
        (lambda: ArcFace(4, 2, margin=28.6), "radians"),
        (lambda: ArcFace(4, 2)(random(3, 4), torch.tensor([0, 1, 2])), "classes"),
        (lambda: ArcFace(4, 2)(random(3, 4), torch.tensor([0, 1])), "label per row"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, word):
    with pytest.raises(PromptSGError, match=word):
        call()
