import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import SupConLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer

from promptsg.config import PromptSGError
from promptsg.losses import batch_hard_triplet, centre_loss, identity_loss, supcon


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PK = torch.arange(8).repeat_interleave(4)  # 8 identities x 4 images
UNEVEN = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4])  # two identities have a single image


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_identity_is_the_written_out_cross_entropy(smoothing):
    logits, labels = random(16, 5), torch.arange(16) % 5
    target = (1 - smoothing) * F.one_hot(labels, 5) + smoothing / 5
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert torch.isclose(identity_loss(logits, labels, smoothing), expected)


@pytest.mark.parametrize("labels", [PK, UNEVEN])
@pytest.mark.parametrize("margin", [0.0, 0.3, 5.0])
def test_triplet_agrees_with_pytorch_metric_learning(labels, margin):
    x = random(len(labels), 6)
    distance = LpDistance(normalize_embeddings=False)
    reference = TripletMarginLoss(margin=margin, distance=distance, reducer=MeanReducer())
    expected = reference(x, labels, BatchHardMiner(distance=distance)(x, labels))
    assert torch.isclose(batch_hard_triplet(x, labels, margin), expected, atol=1e-5)


def test_triplet_gradient_agrees_with_pytorch_metric_learning():
    ours, theirs = random(32, 6).requires_grad_(), random(32, 6).requires_grad_()
    distance = LpDistance(normalize_embeddings=False)
    batch_hard_triplet(ours, PK, 1.0).backward()
    reference = TripletMarginLoss(margin=1.0, distance=distance, reducer=MeanReducer())
    reference(theirs, PK, BatchHardMiner(distance=distance)(theirs, PK)).backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_triplet_worked_by_hand():
    x = torch.tensor([0.0, 2.0, 3.0, 3.5, 10.0])[:, None]
    assert batch_hard_triplet(x, torch.tensor([0, 0, 1, 1, 2]), margin=1).item() == 0.625


@pytest.mark.parametrize("labels", [torch.arange(4), torch.zeros(4, dtype=torch.long)])
def test_triplet_without_a_usable_anchor_is_zero_with_gradient(labels):
    x = random(4, 3).requires_grad_()
    loss = batch_hard_triplet(x, labels)
    loss.backward()
    assert loss.item() == 0 and torch.equal(x.grad, torch.zeros_like(x))


def test_triplet_survives_duplicates_and_passes_nan_on():
    x = torch.ones(4, 3, requires_grad=True)
    loss = batch_hard_triplet(x, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert math.isclose(loss.item(), 0.3, rel_tol=1e-6) and x.grad.isfinite().all()
    assert batch_hard_triplet(torch.full((4, 3), float("nan")), torch.tensor([0, 0, 1, 1])).isnan()


@pytest.mark.parametrize("labels", [PK, UNEVEN])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_supcon_agrees_with_pytorch_metric_learning(labels, temperature):
    image, text = random(len(labels), 12), random(len(labels), 12, seed=1)
    reference = SupConLoss(temperature=temperature, reducer=MeanReducer())
    again = labels.clone()  # the same object would make it drop each sample's own pair
    one = reference(image, labels, ref_emb=text, ref_labels=again)
    other = reference(text, labels, ref_emb=image, ref_labels=again)
    assert torch.isclose(supcon(image, text, labels, temperature), one + other, rtol=1e-5)


def test_supcon_with_distinct_labels_is_clips_loss():
    image, text, target = random(8, 12), random(8, 12, seed=1), torch.arange(8)
    logits = F.normalize(image) @ F.normalize(text).T / 0.07
    assert torch.isclose(
        supcon(image, text, target),
        F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target),
    )


def test_supcon_includes_the_own_pair_and_ignores_lengths():
    corners = torch.eye(2).repeat_interleave(2, 0)
    labels = torch.tensor([0, 0, 1, 1])
    assert math.isclose(supcon(corners, corners, labels).item(), 2 * math.log(2), abs_tol=1e-4)
    assert torch.isclose(
        supcon(3 * random(4, 5), random(4, 5, seed=1), labels),
        supcon(random(4, 5), 7 * random(4, 5, seed=1), labels),
    )


def test_supcon_sends_a_gradient_to_both_sides():
    image, text = random(32, 6).requires_grad_(), random(32, 6, seed=1).requires_grad_()
    supcon(image, text, PK).backward()
    assert image.grad.abs().sum() > 0 and text.grad.abs().sum() > 0


def test_centre_is_half_the_mean_squared_distance():
    x, centres = random(32, 6), random(8, 6, seed=1)
    by_hand = sum(((x[i] - centres[PK[i]]) ** 2).sum() for i in range(32)) / 64
    assert torch.isclose(centre_loss(x, PK, centres), by_hand)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: identity_loss(random(4, 3), torch.tensor([0, 1, 2, 3])), "classes"),
        (lambda: identity_loss(random(4, 3), torch.tensor([0, 1, 2, -1])), "classes"),
        (lambda: identity_loss(random(4, 3), torch.tensor([0, 1, 2])), "label per row"),
        (lambda: identity_loss(random(4, 3), torch.rand(4)), "integer"),
        (lambda: identity_loss(random(4, 3), torch.zeros(4, dtype=torch.long), 1.0), "smoothing"),
        (lambda: batch_hard_triplet(random(4, 3), torch.zeros(4, dtype=torch.long), -1), "margin"),
        (lambda: supcon(random(4, 3), random(4, 3), torch.arange(4), 0), "temperature"),
        (lambda: supcon(random(4, 3), random(4, 3), torch.arange(4), float("nan")), "temperature"),
        (lambda: supcon(random(4, 3), random(4, 2), torch.arange(4)), "one text per image"),
        (lambda: centre_loss(random(4, 3), torch.arange(4), random(3, 3)), "classes"),
        (lambda: centre_loss(random(4, 3), torch.arange(4), random(4, 2)), "agree"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, word):
    with pytest.raises(PromptSGError, match=word):
        call()


@pytest.mark.parametrize("labels", [PK, UNEVEN])
def test_supcon_without_normalisation_is_the_written_out_formula(labels):
    image, text = random(len(labels), 6, seed=1), random(len(labels), 6, seed=2)

    def one_way(rows, columns):
        total = 0.0
        for i, row in enumerate(rows):
            log_p = (columns @ row / 2.0).log_softmax(0)
            total -= log_p[labels == labels[i]].mean() / len(rows)
        return total

    expected = one_way(image, text) + one_way(text, image)
    assert torch.isclose(supcon(image, text, labels, 2.0, unit=False), expected, rtol=1e-5)
    unit = supcon(F.normalize(image), F.normalize(text), labels, 2.0, unit=False)
    assert torch.isclose(supcon(image, text, labels, 2.0), unit) and not torch.isclose(
        unit, expected, rtol=1e-2
    )


@pytest.mark.parametrize("labels", [PK, UNEVEN])
def test_the_gradient_of_one_sentence_for_all_ignores_the_labels(labels):
    image, one = (
        random(len(labels), 6).requires_grad_(),
        random(1, 6, seed=3).expand(len(labels), -1),
    )
    (gradient,) = torch.autograd.grad(supcon(image, one, labels, 1.0, unit=False), image)
    even = ((image @ one[0]).softmax(0) - 1 / len(labels))[:, None] * one
    assert torch.allclose(gradient, even, atol=1e-6)
