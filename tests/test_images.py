"""Pictures are read as a viewer shows them; caches hold what was written; augmentation belongs to the image."""
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from promptsg.data import HandDataset, PKSampler, mixed_seed, train_transform


# --- the random numbers of augmentation belong to (seed, epoch, row, draw) -----------------------
@pytest.fixture
def noise(tmp_path):
    "Twelve pictures of noise of three people, the first with two pictures."
    rng, paths = np.random.default_rng(0), [str(tmp_path / f"{n}.png") for n in range(12)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (20, 16, 3), dtype=np.uint8)).save(path)
    return pd.DataFrame({"path": paths, "identity": list("aabbbbbccccc")})


def epoch_of(frame, workers, epoch=1, share=(0, 1), seed=0):
    "The images (B, 3, H, W) of an epoch's batches."
    data = HandDataset(frame, train_transform((20, 16), flip=0.5, jitter=0.3), seed=seed)
    sampler = PKSampler(frame.identity, 2, 4, seed, batches=4, share=share, numbered=True)
    for part in (data, sampler):
        part.set_epoch(epoch)
    return [batch["image"] for batch in DataLoader(data, batch_sampler=sampler, num_workers=workers)]


def test_augmentation_is_the_same_whatever_the_workers_and_processes(noise):
    torch.manual_seed(0)
    one = epoch_of(noise, 0)
    for workers in (1, 2):
        torch.manual_seed(workers)
        assert all(map(torch.equal, one, epoch_of(noise, workers)))
    halves = [epoch_of(noise, 0, share=(i, 2)) for i in range(2)]
    assert all(torch.equal(whole, torch.cat(pair)) for whole, *pair in zip(one, *halves))
    for other in (epoch_of(noise, 0, epoch=2), epoch_of(noise, 0, seed=1)):
        assert not any(map(torch.equal, one, other))


def test_two_draws_of_an_image_differ_and_no_other_random_number_is_touched(noise):
    data = HandDataset(noise, train_transform((20, 16), flip=0.5))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, plain = data[5, 0], data[5, 1], data[5]
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first["image"], second["image"]) and torch.equal(first["image"], plain["image"])
    assert first["index"] == second["index"] == 5 and torch.equal(data[-7]["image"], plain["image"])
    assert len({data[n, 0]["image"].std().item() for n in range(12)}) == 12
    with pytest.raises(IndexError):
        data[12]


def test_a_numbered_sampler_counts_the_draws_of_an_epoch():
    people = list("aabbbbbccccc")
    numbered, plain = (PKSampler(people, 2, 4, seed=2, batches=6, numbered=n) for n in (True, False))
    pairs, rows = (sum(sampler, []) for sampler in (numbered, plain))
    assert [row for row, _ in pairs] == rows
    assert pairs == [(row, rows[:place].count(row)) for place, row in enumerate(rows)]
    assert pairs == sum(numbered, [])  # each epoch counts from 0


def test_seeds_keep_every_number_apart():
    seeds = {mixed_seed(seed, epoch, row, draw) for seed in (0, 2**40) for epoch in range(4)
             for row in range(50) for draw in range(3)}
    assert len(seeds) == 2 * 4 * 50 * 3 and all(0 <= seed < 2**32 for seed in seeds)
