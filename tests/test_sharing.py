"Models as folders and on the hub, the model card of a run, and the ONNX file."

import json

import pytest
import torch

from promptsg.config import PromptSGError
from promptsg.model import PromptSG


def made(config, **changes):
    torch.manual_seed(0)
    return PromptSG(config.replace(**changes), 5).eval()


def noise(model, batch=3):
    return torch.randn(
        batch, 3, *model.backbone.image_size, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(model="hand-rn-tiny"),
        dict(language=False),
        dict(classifier="arcface", bnneck_reduction=True),
        dict(image_size=(128, 64), unfreeze_blocks=2),
        dict(model="RN50", pretrained="random", image_size=(64, 32)),
    ],
)
def test_a_saved_model_embeds_exactly_as_before(quick, changes, tmp_path):
    model = made(quick, **changes)
    model.save_pretrained(tmp_path)
    again = PromptSG.from_pretrained(tmp_path)
    assert not again.training and again.config == model.config
    for prompt in ("composed", "simplified") if model.config.language else (None,):
        assert torch.equal(again.embed(noise(model), prompt), model.embed(noise(model), prompt))
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


def test_the_placeholder_survives_saving(quick, tmp_path):
    from promptsg.sharing import _Embedding

    template = "The s* sign of a {} person's {aspect} hand."
    model = made(quick)
    model.prompt.set_prompt(template, "The s* sign.")
    model.save_pretrained(tmp_path / "one")
    again = PromptSG.from_pretrained(tmp_path / "one")
    assert (
        again.prompt.template == model.prompt.template and again.config.prompt_template == template
    )
    assert again.prompt.sentence.text == again.config.simplified_prompt == "The s* sign."
    built = made(quick, prompt_template=template)
    assert built.prompt.template.place == model.prompt.template.place
    with torch.no_grad():
        found = _Embedding(again, "composed")(noise(model))  # what the ONNX file is made of
    assert torch.equal(again.embed(noise(model), "composed"), model.embed(noise(model), "composed"))
    assert (found - model.embed(noise(model), "composed")).abs().max() < 1e-4


def test_files_have_user_permissions_and_follow_no_link(quick, tmp_path):
    import os
    from stat import S_IMODE

    (tmp_path / "secret").write_text("kept")
    (tmp_path / "model").mkdir()
    for name in ("config.json", "README.md", "model.safetensors"):
        (tmp_path / "model" / f"{name}.part").symlink_to(tmp_path / "secret")
    (tmp_path / "model" / "config.json").symlink_to(tmp_path / "secret")
    (tmp_path / "model" / "README.md").symlink_to(tmp_path / "not there")
    before = os.umask(0o027)
    try:
        made(quick).save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    written = [
        tmp_path / "model" / name for name in ("config.json", "README.md", "model.safetensors")
    ]
    assert {S_IMODE(file.stat().st_mode) for file in written} == {0o640} and not any(
        file.is_symlink() for file in written
    )
    assert (tmp_path / "secret").read_text() == "kept" and not (tmp_path / "not there").exists()


def test_the_training_record_has_no_names(quick, tmp_path):
    from promptsg.splits import TrainSide

    model = made(quick)
    assert model.trained_on is None
    model.save_pretrained(tmp_path / "unknown")
    assert PromptSG.from_pretrained(tmp_path / "unknown").trained_on is None
    model.trained_on = TrainSide(frozenset({"0000559"}), frozenset({"b" * 24, "a" * 24}))
    model.save_pretrained(tmp_path / "known")
    record = (tmp_path / "known" / "config.json").read_text()
    assert json.loads(record)["trained_on"] == ["a" * 24, "b" * 24] and "0000559" not in record
    assert PromptSG.from_pretrained(tmp_path / "known").trained_on == TrainSide(
        frozenset(), model.trained_on.images
    )


def test_another_image_size_is_named(saved):
    with pytest.raises(
        PromptSGError, match="images of another size; leave image_size as it was"
    ) as said:
        PromptSG.from_pretrained(saved, image_size=128)
    assert "another model" not in str(said.value)


def test_a_model_with_nan_is_not_saved(quick, tmp_path):
    model = made(quick)
    with torch.no_grad():
        model.head.classifier.weight[0, 0] = float("nan")
    with pytest.raises(PromptSGError, match="not finite, first in 'head.classifier.weight'"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_equal_models_are_equal_files(quick, tmp_path):
    for name in ("one", "two"):
        made(quick).save_pretrained(tmp_path / name)
    assert (
        len({(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")}) == 1
    )


def test_changed_words_are_saved(quick, tmp_path):
    model = made(quick)
    model.prompt.set_prompt("A picture of {}, a {aspect} hand.", "Somebody's {aspect} hand.")
    model.save_pretrained(tmp_path)
    again = PromptSG.from_pretrained(tmp_path)
    for prompt in ("composed", "simplified"):
        assert torch.equal(again.embed(noise(model), prompt), model.embed(noise(model), prompt))


def test_its_own_text_tower_is_saved(quick, tmp_path):
    from open_clip.transformer import TextTransformer
    from safetensors.torch import save_file

    sizes = dict(context_length=40, vocab_size=4014, width=64, heads=2, layers=1)
    text = TextTransformer(**sizes, output_dim=128)
    save_file(
        {name: t.contiguous() for name, t in text.state_dict().items()},
        tmp_path / "text.safetensors",
        metadata={"text_cfg": json.dumps(sizes)},
    )
    model = made(quick, text_pretrained=str(tmp_path / "text.safetensors"))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "text.safetensors").unlink()
    assert torch.equal(
        PromptSG.from_pretrained(tmp_path / "model").embed(noise(model)), model.embed(noise(model))
    )


def test_a_replaced_part_needs_its_class(quick, tmp_path):
    class Narrow(PromptSG):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.fusion.blocks = self.fusion.blocks[:1]

    torch.manual_seed(0)
    model = Narrow(quick, 5).eval()
    model.save_pretrained(tmp_path)
    assert torch.equal(
        Narrow.from_pretrained(tmp_path).embed(noise(model)), model.embed(noise(model))
    )
    with pytest.raises(PromptSGError, match="fusion.blocks.1.*the class that has the part"):
        PromptSG.from_pretrained(tmp_path)


@pytest.fixture
def saved(quick, tmp_path):
    made(quick).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def other_weights(folder):
    made(PromptSG.from_pretrained(folder).config, transformer_layers=2).save_pretrained(
        folder.parent / "other"
    )
    (folder.parent / "other" / "model.safetensors").replace(folder / "model.safetensors")


def recorded(folder, **values):
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | values))


def flip(folder):
    "One bit of the last number."
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


BROKEN = {
    "holds no config.json": lambda folder: (folder / "config.json").unlink(),
    "model.safetensors does not exist": lambda folder: (folder / "model.safetensors").unlink(),
    "not a complete safetensors file": truncate,
    "weights of another model .*fusion.blocks.1": other_weights,
    "config.json cannot be read as JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config.json holds a list": lambda folder: (folder / "config.json").write_text("[]"),
    "does not describe a promptsg model .*'config'": lambda folder: (
        folder / "config.json"
    ).write_text('{"model_type": "clip"}'),
    "does not describe a promptsg model .*'epohcs'": lambda folder: recorded(
        folder, config={"epohcs": 1}
    ),
    "does not describe a promptsg model .*'identities' is '5'": lambda folder: recorded(
        folder, identities="5"
    ),
    "does not describe a promptsg model .*'tower' is 3": lambda folder: recorded(folder, tower=3),
    "does not describe a promptsg model .*'trained_on'": lambda folder: recorded(
        folder, trained_on=[1]
    ),
    "describes another model than model.safetensors holds": lambda folder: recorded(
        folder, identities=9_999_999
    ),
    "describes another model than .*both together": lambda folder: recorded(
        folder, tower="ViT-bigG-14"
    ),
    "another text tower than it holds": lambda folder: recorded(folder, text_cfg={"layers": 10**9}),
    "another text tower than it": lambda folder: recorded(folder, text_cfg={"width": "wide"}),
    "damaged: its numbers are not those that were written": flip,
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_folder_is_one_sentence(words, saved):
    BROKEN[words](saved)
    with pytest.raises(PromptSGError, match=words) as said:
        PromptSG.from_pretrained(saved)
    assert "\n" not in str(said.value)


def test_no_pickle_is_opened(saved):
    import pickle

    (saved / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    (saved / "model.safetensors").write_bytes(pickle.dumps({}))
    with pytest.raises(PromptSGError, match="not a complete safetensors file"):
        PromptSG.from_pretrained(saved)


class Hub:
    "HfApi's two calls of a push, on a folder."

    def __init__(self, folder):
        self.folder, self.sent = folder, []

    def create_repo(self, repo_id, private=None, exist_ok=False, **rest):
        self.sent.append((repo_id, private))
        return type("Url", (), {"repo_id": repo_id})

    def upload_folder(self, repo_id, folder_path, **rest):
        import shutil

        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://hub/{repo_id}"


def test_upload_and_download_from_the_hub(quick, tmp_path, monkeypatch):
    from huggingface_hub import hub_mixin

    hub, model = Hub(tmp_path), made(quick)
    monkeypatch.setattr(hub_mixin, "HfApi", lambda token=None: hub)
    monkeypatch.setattr(
        "promptsg.model.snapshot_download",
        lambda repo, allow_patterns, revision, **rest: tmp_path / repo,
    )
    card = "---\nlicense: mit\n---\n# Mine\n"
    assert (
        model.push_to_hub("me/hands", private=True, model_card_kwargs=dict(card=card))
        == "https://hub/me/hands"
    )
    assert (
        hub.sent == [("me/hands", True)] and (tmp_path / "me/hands/README.md").read_text() == card
    )
    assert torch.equal(
        PromptSG.from_pretrained("me/hands").embed(noise(model)), model.embed(noise(model))
    )


def test_without_a_network_the_hub_is_one_sentence(quick, tmp_path, monkeypatch):
    from huggingface_hub import hub_mixin

    class Absent:
        def create_repo(self, **rest):
            raise ConnectionError("no route to host\nand a second line")

    monkeypatch.setattr(hub_mixin, "HfApi", lambda token=None: Absent())
    with pytest.raises(
        PromptSGError, match="could not be sent to 'me/hands'.*no route to host"
    ) as said:
        made(quick).push_to_hub("me/hands")
    assert "\n" not in str(said.value)
    for name in ("me/hands", "not a name at all!", str(tmp_path / "nowhere")):
        with pytest.raises(PromptSGError, match="could not be fetched from the hub"):
            PromptSG.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)


# --- the card
@pytest.fixture(scope="module")
def run(quick, splits, tmp_path_factory):
    from promptsg.checkpoints import load_run
    from promptsg.embedding import Embedder
    from promptsg.evaluation import evaluate, ranked_images
    from promptsg.training import Trainer

    out = Trainer(quick, splits, tmp_path_factory.mktemp("sharing") / "run", progress=False).fit()
    embeddings = Embedder(load_run(out), quick, progress=False).embed(
        ranked_images(splits, ("clipfh", "mba"))
    )
    for protocol in ("clipfh", "mba"):
        evaluate(embeddings, splits, protocol, config=quick).save(out / f"evaluation-{protocol}")
    return out


def table_rows(card):
    return [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in card.splitlines()
        if line.startswith("|")
    ]


def test_the_card_is_the_record(run, quick, splits):
    from huggingface_hub import ModelCard

    from promptsg.evaluation import Result
    from promptsg.sharing import model_card

    card, rows = model_card(run), table_rows(model_card(run))
    for protocol in ("clipfh", "mba"):
        result = Result.load(run / f"evaluation-{protocol}")
        said = next(row for row in rows if row[0] == protocol)[1:]
        assert said == [
            f"{row['mean']:.2f} ± {row['std']:.2f}" for row in result.summary.to_dict("records")
        ]
        assert (
            result.record["data_hash"] in card
            and result.record["versions"]["torch"] in card
            and result.record["machine"]["platform"] in card
        )
    values = dict(row for row in rows if len(row) == 2)
    assert values["identities trained on"] == str(splits.train.identity.nunique()) and values[
        "images trained on"
    ] == str(len(splits.train))
    assert values["config"] == quick.hash
    assert "consent" in card and "surveillance" in card
    data = ModelCard(card).data
    assert data.license == "apache-2.0" and data.library_name == "promptsg"


def copied(run, tmp_path, **changes):
    "The run with other fields in its config.yml."
    import shutil

    from promptsg.config import Config

    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "config.yml").write_text(
        Config.from_yaml(run / "config.yml").replace(**changes).to_yaml()
    )
    return copy


@pytest.mark.parametrize(
    "pretrained, licence, words",
    [
        ("openai", "mit", "MIT"),
        ("my.safetensors", "other", "`my.safetensors`; their licence is not in the run"),
    ],
)
def test_the_card_names_the_licence_of_the_weights(run, tmp_path, pretrained, licence, words):
    from huggingface_hub import ModelCard

    from promptsg.sharing import model_card

    card = model_card(copied(run, tmp_path, pretrained=pretrained))
    assert ModelCard(card).data.license == licence and words in card.split("## Licence")[1]
    # the evaluation was made with other weights than the config now names
    assert "`pretrained` = `'embedded'`" in card


@pytest.mark.parametrize(
    "changes, words",
    [({}, "chosen on images of the train side"), (dict(select="last"), "The last epoch was used")],
)
def test_the_card_states_how_the_epoch_was_selected(run, tmp_path, changes, words):
    from promptsg.sharing import _selection, model_card

    card = model_card(copied(run, tmp_path, **changes))
    assert words in card and ("was chosen on" in card) == (not changes)
    assert "there was no selection" in _selection("best", 1)


def test_the_card_names_the_data_that_was_read(run, tmp_path):
    from promptsg.sharing import model_card

    copy = copied(run, tmp_path)
    said = lambda: next(row[1] for row in table_rows(model_card(copy)) if row[0] == "data set")
    stored = json.loads((copy / "splits.json").read_text())
    for source, words in (
        ("drawn hands of promptsg synth", "drawn hands of promptsg synth"),
        ("", "images in the layout of 11K Hands"),
    ):
        (copy / "splits.json").write_text(json.dumps(stored | {"source": source}))
        assert said() == words


def test_user_texts_are_escaped_in_the_card(run, tmp_path):
    from promptsg.sharing import _code, _text, model_card

    evil = "x`<img src=x>`|`\n\n# Title"
    card = model_card(copied(run, tmp_path, pretrained=evil, prompt_template="{} `<b>` | hand"))
    assert (
        "\n# Title" not in card
        and "`` x`<img src=x>`|` # Title ``" in card
        and "`` {} `<b>` | hand ``" in card
    )
    assert _code("a``b") == "``` a``b ```" and _code("") == "` `"
    assert _text("<a> [b](c) `d`\n*e*") == r"&lt;a&gt; \[b\](c) \`d\` \*e\*"
    copy = tmp_path / "copy"
    stored = json.loads((copy / "splits.json").read_text())
    (copy / "splits.json").write_text(json.dumps(stored | {"source": "a|b <script>"}))
    assert r"| data set | a\|b &lt;script&gt; |" in model_card(copy)


@pytest.mark.parametrize(
    "file, content",
    [
        ("best/state.json", "[]"),
        ("best/state.json", '{"best_epoch": "2", "classes": []}'),
        ("splits.json", '{"train": 3}'),
        ("metrics.csv", "a,b\n1,2\n"),
        ("metrics.csv", "epoch,val_mAP,val_rank1\n1,x,y\n"),
    ],
)
def test_wrong_types_are_one_sentence(run, tmp_path, file, content):
    from promptsg.sharing import model_card

    copy = copied(run, tmp_path)
    (copy / file).write_text(content)
    with pytest.raises(PromptSGError, match=file.split("/")[-1]):
        model_card(copy)


def test_an_incomplete_run_is_not_exported(run, tmp_path, monkeypatch):
    import promptsg.sharing as sharing

    model = sharing.load_run(run)
    with torch.no_grad():
        model.head.classifier.weight[0, 0] = float("inf")
    monkeypatch.setattr(sharing, "load_run", lambda run: model)
    with pytest.raises(PromptSGError, match="not finite"):
        sharing.export_run(run, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_the_card_of_an_unmeasured_run_has_no_results(run, tmp_path):
    import shutil

    from promptsg.sharing import model_card

    copy = copied(run, tmp_path)
    for protocol in ("clipfh", "mba"):
        shutil.rmtree(copy / f"evaluation-{protocol}")
    card = model_card(copy)
    assert "Not measured yet" in card and "±" not in card


@pytest.mark.parametrize(
    "file",
    ["config.yml", "splits.json", "metrics.csv", "best/state.json", "evaluation-mba/per_query.csv"],
)
def test_a_run_with_a_missing_file_has_no_card(run, tmp_path, file):
    from promptsg.sharing import model_card

    copy = copied(run, tmp_path)
    (copy / file).unlink()
    with pytest.raises(PromptSGError, match=file.split("/")[-1].split(".")[0]):
        model_card(copy)


# --- export
def test_export_from_the_command_line(run, tmp_path):
    from test_cli import promptsg

    from promptsg.checkpoints import load_run
    from promptsg.sharing import model_card

    assert (
        "from_pretrained" in promptsg("export", "--run", run, "--out", tmp_path / "shared").stdout
    )
    model = load_run(run)
    assert torch.equal(
        PromptSG.from_pretrained(tmp_path / "shared").embed(noise(model)), model.embed(noise(model))
    )
    body = lambda text: text.split("---\n", 2)[2]  # the header is YAML, written anew
    assert body((tmp_path / "shared" / "README.md").read_text()) == body(model_card(run))
    assert (
        "already has a model"
        in promptsg("export", "--run", run, "--out", tmp_path / "shared", code=2).stderr
    )
    people = json.loads((run / "best" / "state.json").read_text())["classes"]
    assert not any(person in (tmp_path / "shared" / "config.json").read_text() for person in people)


@pytest.mark.parametrize(
    "name, prompt, changes",
    [
        ("hand-vit-tiny", "composed", dict(text_queries="words", classifier="bnneck")),
        ("hand-vit-tiny", "simplified", {}),
        ("hand-rn-tiny", "composed", {}),
        ("hand-rn-tiny", "simplified", dict(text_queries="words", fusion="text")),
        ("hand-vit-tiny", "composed", dict(language=False)),
    ],
)
def test_the_onnx_file_embeds_as_the_model_does(quick, name, prompt, changes, tmp_path):
    import onnxruntime

    from promptsg.sharing import TOLERANCE, export_onnx

    model = made(quick, model=name, **changes).train()
    assert export_onnx(model, tmp_path / "m.onnx", prompt) < TOLERANCE and model.training
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        found = torch.from_numpy(session.run(None, {"images": noise(model, batch).numpy()})[0])
        assert (found - model.embed(noise(model, batch), prompt)).abs().max() < TOLERANCE
        assert torch.allclose(found.norm(dim=1), torch.ones(batch), atol=1e-5)


def test_an_onnx_file_that_differs_is_deleted(quick, tmp_path, monkeypatch):
    import promptsg.sharing as sharing

    monkeypatch.setattr(
        sharing, "_write_onnx", lambda network, size, file: file.write_bytes(b"not checked")
    )
    for difference in (1.0, float("nan")):
        monkeypatch.setattr(
            sharing, "_largest_difference", lambda *arguments, difference=difference: difference
        )
        with pytest.raises(PromptSGError, match="would differ"):
            sharing.export_onnx(made(quick), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(quick, tmp_path, monkeypatch):
    import importlib.util

    from promptsg.sharing import export_onnx

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else True
    )
    with pytest.raises(PromptSGError, match=r"needs onnxscript;.*promptsg\[export\]"):
        export_onnx(made(quick), tmp_path / "m.onnx")


def test_a_model_with_mirror_is_read_back_and_exported_with_it(quick, tmp_path):
    import onnxruntime

    from promptsg.model import PromptSG
    from promptsg.sharing import TOLERANCE, export_onnx

    model = made(quick, mirror=True)
    model.save_pretrained(tmp_path / "kept")
    again, images = PromptSG.from_pretrained(tmp_path / "kept"), noise(model, 3)
    assert torch.equal(again.embed(images), model.embed(images))
    assert (model.embed(images, mirror=False) - model.embed(images)).abs().max() > 1e-3
    assert export_onnx(model, tmp_path / "m.onnx") < TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    assert (found - model.embed(images)).abs().max() < TOLERANCE
