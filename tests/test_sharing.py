"Models as folders and on the hub, the card that a run writes of itself, and the ONNX file."
import json

import pytest
import torch

from promptsg.config import PromptSGError
from promptsg.model import PromptSG


def made(config, **changes):
    torch.manual_seed(0)
    return PromptSG(config.replace(**changes), 5).eval()


def noise(model, batch=3):
    return torch.randn(batch, 3, *model.backbone.image_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", [{}, dict(model="hand-rn-tiny"), dict(language=False), dict(classifier="arcface", bnneck_reduction=True),
                                     dict(image_size=(128, 64), unfreeze_blocks=2), dict(model="RN50", pretrained="random", image_size=(64, 32))])
def test_a_saved_model_embeds_exactly_as_before(quick, changes, tmp_path):
    model = made(quick, **changes)
    model.save_pretrained(tmp_path)
    again = PromptSG.from_pretrained(tmp_path)
    assert not again.training and again.config == model.config
    for prompt in ("composed", "simplified") if model.config.language else (None,):
        assert torch.equal(again.embed(noise(model), prompt), model.embed(noise(model), prompt))
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
