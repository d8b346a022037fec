"The explorer's logic and its widgets, each driven as a person would, without a browser."

import re
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ipywidgets import HTML, Button
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from promptsg.checkpoints import load_run
from promptsg.config import PromptSGError
from promptsg.data import eval_transform, load_image, read_11k
from promptsg.embedding import Embedder, measure
from promptsg.explorer import (
    ORDERS,
    VIEWS,
    Explorer,
    OpenRun,
    Panel,
    _html,
    _Kept,
    draw_attention,
    draw_ranked,
    explore,
    find_runs,
    prompt_places,
    save_view,
    short_labels,
    word_maps,
)
from promptsg.looking import area_under_roc, on_patches, relevance
from promptsg.synth import drawn_mask
from promptsg.training import Trainer

PAPER, CONTROL = "paper@hand-vit-tiny, seed 0", "image_only@hand-vit-tiny, seed 0"
BAD = {
    "A {} hand of {}.": "2 places",
    "A hand.": "no place",
    "A {} {colour} hand.": "colour",
    "A {} hand" + " and a hand" * 20: "tokens",
    "A {": "remove it",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, quick, splits):
    "A folder like a report's: a run with language and one without, a few steps each."
    root = tmp_path_factory.mktemp("runs")
    for variant, language in (("paper", True), ("image_only", False)):
        config = quick.replace(
            variant=variant, language=language, epochs=1, steps_per_epoch=8, lr_modules=5e-3
        )
        Trainer(config, splits, root / "hand-vit-tiny" / f"{variant}-seed0", progress=False).fit()
    return root


@pytest.fixture(scope="module")
def frame(hands):
    return read_11k(hands)


@pytest.fixture
def explorer(runs, frame):
    "On the run with language, the other one opened too."
    made = Explorer(runs, frame, progress=False)
    assert made.state.run == PAPER and list(made.measures()) == [PAPER]
    made.set_run(CONTROL)
    made.set_run(PAPER)
    return made


@pytest.fixture
def panel(explorer):
    return Panel(explorer)


def words_in(view):
    "What an HTML view says, its pictures' descriptions included."
    return " ".join([*re.findall('alt="(.*?)"', view.value), re.sub("<.*?>", " ", view.value)])


# --- which runs
def test_runs_are_found_below_a_folder_in_the_order_of_versions(runs):
    assert list(find_runs(runs)) == [CONTROL, PAPER]
    assert find_runs(runs / "hand-vit-tiny/paper-seed0") == {
        PAPER: runs / "hand-vit-tiny/paper-seed0"
    }
    assert list(find_runs({"mine": str(runs / "hand-vit-tiny/paper-seed0")})) == ["mine"]


def test_equal_names_give_way_to_folders(runs, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yml").write_bytes(
            (runs / "hand-vit-tiny/paper-seed0/config.yml").read_bytes()
        )
    assert list(find_runs(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("nothing", [{}, "nowhere"])
def test_no_run_says_how_to_make_one(nothing):
    with pytest.raises(PromptSGError, match="promptsg train"):
        find_runs(nothing)


# --- an open run
@pytest.mark.parametrize("prompt", ["composed", "simplified"])
def test_what_is_kept_gives_the_embeddings_of_the_whole_model(explorer, prompt):
    run, words = explorer.run, {"composed": "A {} hand.", "simplified": "A hand."}[prompt]
    kept, attention = run.seen(prompt, words)
    model, paths = load_run(explorer.folders[PAPER]), run.frame.path[:3]
    model.prompt.set_prompt(**{"template" if prompt == "composed" else "simplified": words})
    pixels = torch.stack(
        [
            eval_transform(model.backbone.image_size, model.mean, model.std)(load_image(path))
            for path in paths
        ]
    )
    assert torch.allclose(model.embed(pixels, prompt), kept.features[:3], atol=1e-5)
    assert torch.allclose(model.attention_maps(pixels, prompt), attention[:3], atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        dict(model="hand-rn-tiny"),
        dict(text_queries="words"),
        dict(fusion="text"),
        dict(whiten=True),
        dict(language=False),
    ],
    ids=str,
)
def test_every_image_under_new_words_is_as_the_plain_forward_has_it(
    quick, splits, frame, tmp_path, changes, monkeypatch
):
    monkeypatch.setattr("promptsg.explorer._AT_ONCE", 5)  # several pieces, the last one short
    Trainer(
        quick.replace(epochs=1, steps_per_epoch=1, **changes), splits, tmp_path, progress=False
    ).fit()
    run, model, words = (
        OpenRun(tmp_path, frame, progress=False),
        load_run(tmp_path),
        "A {} hand in a red sleeve.",
    )
    kept, attention = run.seen("composed", words)
    if model.config.language:
        model.prompt.set_prompt(template=words)
    transform = eval_transform(model.backbone.image_size, model.mean, model.std)
    with torch.no_grad():
        whole = model(
            torch.stack([transform(load_image(path)) for path in run.frame.path]), prompt="composed"
        )
    torch.testing.assert_close(
        kept.features, F.normalize(whole.retrieval, dim=1), rtol=0, atol=1e-5
    )
    if model.config.language:
        torch.testing.assert_close(attention.flatten(2), whole.attention, rtol=1e-4, atol=1e-6)


def test_new_words_change_ranking_attention_and_measures_and_read_no_picture(explorer, monkeypatch):
    before, maps = explorer.ranked(), explorer.attention()
    monkeypatch.setattr(Embedder, "tower", lambda *_: pytest.fail("the image tower ran again"))
    explorer.set_prompt("A {} hand in a red sleeve.")
    after = explorer.ranked().set_index("image").similarity.reindex(before.image).to_numpy()
    assert (
        np.abs(after - before.similarity).min() > 1e-6
        and np.abs(explorer.attention() - maps).max() > 1e-6
    )
    assert list(explorer.measures()) == [CONTROL, PAPER, f"{PAPER}, this prompt"]
    explorer.reset_prompt()
    assert explorer.ranked().equals(before) and list(explorer.measures()) == [CONTROL, PAPER]


@pytest.mark.parametrize("prompt", ["composed", "simplified"])
def test_relevance_is_that_of_the_whole_model_and_no_picture_is_read_twice(
    explorer, prompt, monkeypatch
):
    explorer.set_prompt("A {} hand." if prompt == "composed" else "A hand.", prompt)
    maps, paths = explorer.relevance(), explorer.pair
    model = load_run(explorer.folders[PAPER])
    model.prompt.set_prompt(
        **{"template" if prompt == "composed" else "simplified": explorer.words}
    )
    transform = eval_transform(model.backbone.image_size, model.mean, model.std)
    own = relevance(model, torch.stack([transform(load_image(path)) for path in paths]), prompt)
    assert maps.shape == (2, 1, 7, 7) and np.allclose(maps[:, 0], own, atol=1e-5)
    monkeypatch.setattr(
        "promptsg.explorer.load_image", lambda path: pytest.fail(f"{path} was read again")
    )
    explorer.set_prompt("A {} hand in a red sleeve." if prompt == "composed" else "A red sleeve.")
    if explorer.pair == paths:
        assert np.abs(explorer.relevance() - maps).max() > 1e-6


def test_the_number_over_a_map_is_that_of_its_pictures(explorer, hands):
    names = dict(zip(explorer.run.frame.path, explorer.run.frame.image))
    masks = np.stack([on_patches(drawn_mask(hands, names[path]), (7, 7)) for path in explorer.pair])
    relevance, attention = explorer.relevance(), explorer.attention()
    for maps in (relevance, attention):
        expected = np.mean(
            [
                area_under_roc(
                    maps[i].reshape(maps.shape[1], -1), np.tile(masks[i], (maps.shape[1], 1))
                )
                for i in (0, 1)
            ],
            axis=0,
        )
        areas, mask = explorer.on_hand(maps)
        assert np.allclose(areas, expected) and mask == "drawn"
    title = lambda head: (
        explorer.set_view(head=head),
        draw_attention(explorer).axes[1].get_title(),
    )[1]
    assert title("relevance") == f"relevance\nAUROC {explorer.on_hand(relevance)[0][0]:.2f}"
    assert title("head 2") == f"head 2\nAUROC {explorer.on_hand(attention)[0][1]:.2f}"
    mean = attention.mean(1, keepdims=True)
    assert title("mean") == f"mean of heads\nAUROC {explorer.on_hand(mean)[0][0]:.2f}"


def test_a_version_without_language_has_relevance(explorer):
    explorer.set_run(CONTROL)
    explorer.set_view(head="head 2")
    assert draw_attention(explorer).axes[1].get_title().startswith("relevance\nAUROC 0.")


def test_measures_are_those_of_evaluate(explorer, splits):
    expected = measure(load_run(explorer.folders[PAPER]), splits, progress=False)[0]["clipfh"]
    found = explorer.measures()[PAPER]
    assert np.allclose(found.summary, expected.summary) and np.allclose(found.cmc, expected.cmc)


def test_a_version_not_opened_has_the_measures_it_was_saved_with(runs, frame, splits):
    fresh = Explorer(
        {"a": runs / "hand-vit-tiny/paper-seed0", "b": runs / "hand-vit-tiny/image_only-seed0"},
        frame,
        progress=False,
    )
    assert list(fresh.measures()) == ["a"]
    result = fresh.measures()["a"]
    result.save(runs / "hand-vit-tiny/image_only-seed0/evaluation-clipfh")
    try:
        assert np.allclose(fresh.measures()["b"].cmc, result.cmc)
        fresh.set_run("b")
        assert not np.allclose(fresh.measures()["b"].summary, result.summary)
    finally:
        for file in (runs / "hand-vit-tiny/image_only-seed0/evaluation-clipfh").iterdir():
            file.unlink()


# --- the state
def test_the_ranking_is_ordered_and_right_is_the_querys_person(explorer):
    found, who = explorer.ranked(), explorer.queries.identity[0]
    assert (
        found.similarity.is_monotonic_decreasing and (found.right == (found.identity == who)).all()
    )
    explorer.set_view(top=20)
    assert explorer.ranked().right.sum() == 1  # one image of each person in this protocol's gallery


def test_a_query_is_never_ranked_against_itself(explorer):
    gallery = explorer.run.splits.galleries[0]
    explorer.set_query(gallery.path[0])
    explorer.set_view(top=20)
    assert (
        gallery.path[0] not in set(explorer.ranked().path)
        and len(explorer.ranked()) == len(gallery) - 1
    )


@pytest.mark.parametrize("words", BAD, ids=BAD.values())
def test_bad_words_leave_the_state(explorer, words):
    explorer.set_prompt("A {} hand.")
    before, ranked = explorer.state, explorer.ranked()
    with pytest.raises(PromptSGError, match=BAD[words]):
        explorer.set_prompt(words)
    assert explorer.state == before and explorer.ranked().equals(ranked)


def test_a_version_keeps_what_was_typed_for_it(explorer):
    explorer.set_prompt("A {} hand.")
    explorer.set_run(CONTROL)
    assert explorer.words == "" and explorer.heads == []
    for refused in (explorer.attention, lambda: explorer.set_prompt("A {} hand.")):
        with pytest.raises(PromptSGError, match="without language"):
            refused()
    explorer.set_run(PAPER)
    assert explorer.words == "A {} hand."
    explorer.set_prompt(prompt="simplified")
    assert explorer.words == explorer.run.config.simplified_prompt
    with pytest.raises(PromptSGError, match="choose one of"):
        explorer.set_run("nobody")


def test_an_own_picture_has_no_right_answer(explorer, tmp_path):
    Image.new("RGB", (40, 30), "tan").save(tmp_path / "own.png")
    explorer.set_query(tmp_path / "own.png")
    assert explorer.ranked().right.isna().all() and explorer.attention().shape[:2] == (2, 4)
    (tmp_path / "no.jpg").write_text("no image")
    with pytest.raises(PromptSGError, match="no.jpg"):
        explorer.set_query(tmp_path / "no.jpg")
    assert Path(explorer.state.query).name == "own.png"
    explorer.set_run(CONTROL)
    assert Path(explorer.state.query).name == "own.png" and explorer.ranked().right.isna().all()
    assert np.isnan(explorer.average_precision())


def test_an_own_picture_that_changes_on_disk_is_another_query(explorer, tmp_path):
    path = tmp_path / "own.png"
    load_image(explorer.queries.path[0]).crop((9, 9, 90, 90)).save(path)
    explorer.set_query(path)
    first = explorer.ranked().similarity.tolist()
    Image.new("RGB", (40, 30), "tan").save(path)
    explorer.set_query(path)
    assert explorer.ranked().similarity.tolist() != first


def test_no_message_names_the_folder_of_uploads(explorer):
    for name in ("no.jpg", "a b/..", "x" * 80):
        with pytest.raises(PromptSGError) as refused:
            explorer.set_upload(name, b"no image")
        assert "promptsg-explorer" not in str(refused.value)


def test_two_uploads_of_one_name_are_two_pictures(explorer):
    content = [Path(path).read_bytes() for path in explorer.queries.path[[0, 9]]]
    explorer.set_upload("hand.jpg", content[0])
    first = explorer.ranked()
    explorer.set_upload("hand.jpg", content[1])
    assert not explorer.ranked().similarity.equals(first.similarity)


def test_chance_takes_another_query_of_the_split(explorer):
    first = explorer.state.query
    explorer.random_query(seed=0)
    assert explorer.state.query != first and explorer.state.query in set(explorer.queries.path)


# --- the pictures
def test_a_view_drawn_into_its_last_figure_shows_what_a_new_figure_does(panel, explorer):
    for words in ("A {} hand in a red sleeve.", "A {} hand."):
        panel.words.value = words
    panel.query.value = explorer.queries.path[3]
    panel.top.value = 3
    panel.head.value = "every head"
    panel.head.value = "head 2"
    new = _Kept(places=panel._kept.places)
    assert {name: view.value for name, view in panel.views.items()} == {
        name: _html(parts(explorer, new), new) for name, (parts, _) in VIEWS.items()
    }
    assert set(new.figures.values()).isdisjoint(panel._kept.figures.values())


def test_the_identity_stands_under_every_picture(explorer):
    explorer.set_view(top=7)
    found, axes = explorer.ranked(), draw_ranked(explorer).axes
    below = [ax.texts[0].get_text() if ax.texts else "" for ax in axes]
    wanted = short_labels([explorer.run.identity(explorer.state.query), *found.identity])
    assert len(wanted) == 7 and below[: len(wanted) + 1] == [*wanted[:6], "", wanted[6]]
    assert [ax.get_title() for ax in axes[:8]] == ["query", *"12345", "", "6"]


def test_labels_are_short_and_name_the_aspect_only_where_it_differs():
    assert short_labels(["a:dorsal_r", "b:dorsal_r", "?"]) == ["a", "b", "own picture"]
    assert short_labels(["a:dorsal_r", "a:palmar_l"]) == ["a dors r", "a palm l"]
    assert short_labels(["john.smith", "x"]) == ["john·smith", "x"]


def test_long_names_do_not_overlap(explorer, monkeypatch):
    long = "a-very-long-name-of-a-person"
    monkeypatch.setattr(OpenRun, "identity", lambda self, path: long)
    explorer.set_view(head="every word")
    words = "A {} hand with extraordinarily incomprehensible ornamentation."
    explorer.set_prompt(words)
    for figure in (
        draw_ranked(explorer),
        *(p.figure for p in VIEWS["attention"][0](explorer, _Kept())),
    ):
        FigureCanvasAgg(figure).draw()
        texts = [
            t for ax in figure.axes for t in (*ax.texts, ax.title, ax.xaxis.label) if t.get_text()
        ]
        boxes = [text.get_window_extent() for text in texts]
        hits = [
            (a.get_text(), b.get_text())
            for i, a in enumerate(texts)
            for j, b in enumerate(texts[:i])
            if boxes[i].shrunk(0.98, 0.7).overlaps(boxes[j].shrunk(0.98, 0.7))
        ]
        assert hits == []


def test_each_word_of_the_sentence_has_a_map(explorer):
    run, (prompt, words) = explorer.run, explorer.prompt_in_use
    names = [word for word, _ in prompt_places(run, explorer.state.query, prompt, words)]
    assert names == ["A", "photo", "of", "a", "s*", "person's", "dorsal", "right", "hand"]
    maps = word_maps(run, explorer.state.query, prompt, words)
    assert maps.shape == (9, 7, 7) and np.allclose(maps.sum((1, 2)), 1, atol=1e-5)
    explorer.set_view(head="every word")
    parts = list(VIEWS["attention"][0](explorer, _Kept()))
    titles = [ax.get_title().split("\n")[0] for part in parts for ax in part.figure.axes]
    assert [title for title in titles if title not in ("", "image")] == names
    explorer.set_run(CONTROL)
    assert prompt_places(explorer.run, explorer.state.query, *explorer.prompt_in_use) == []
    with pytest.raises(PromptSGError, match="no map for each word"):
        word_maps(explorer.run, explorer.state.query, *explorer.prompt_in_use)


def test_a_words_map_is_the_attention_where_the_words_look(quick, splits, frame, tmp_path):
    config = quick.replace(text_queries="words", prompt_aspect="run", epochs=1, steps_per_epoch=1)
    Trainer(config, splits, tmp_path, progress=False).fit()
    run = OpenRun(tmp_path, frame, progress=False)
    words, path = "A {} hand", run.frame.path[0]
    _, attention = run.seen("composed", words)
    maps = word_maps(run, path, "composed", words)
    # the attention is the mean over the words' tokens and the end token
    with torch.inference_mode():
        run._set_words("composed", words)
        tower = {name: rows[:1] for name, rows in run.tower.items()}
        text = run.model.say(run.model.inversion(tower["embedding"]), "composed", 1).words
        end = run.model.fusion.cross[0](text, tower["patches"])[1][0, :, -1].mean(0)
    whole = (maps.sum(0) + end.reshape(7, 7).numpy()) / 4
    assert np.allclose(whole, attention[0].mean(0).numpy(), atol=1e-6)


# --- failures, two versions, saved figures
def test_worst_first_orders_by_the_average_precision_of_evaluate(panel, explorer):
    result = explorer.run.result(*explorer.prompt_in_use).per_query
    ap = result[result.split == 0].set_index("path").ap
    panel.order.value = ORDERS[1]
    paths = [path for _, path in panel.query.options]
    assert [ap[path] for path in paths] == sorted(ap) and len(paths) == len(ap)
    assert panel.query.value == paths[0] and explorer.average_precision() == ap.min()
    assert panel.query.label.startswith(f"AP {100 * ap.min():.1f} %")
    assert f"average precision {100 * ap.min():.1f} %" in words_in(panel.views["ranked"])
    panel.following.click()
    assert panel.query.value == paths[1]
    panel.order.value = ORDERS[0]
    assert [path for _, path in panel.query.options] == explorer.queries.path.tolist()
    assert panel.query.value == paths[1]
    with pytest.raises(PromptSGError, match="worst first"):
        explorer.set_order("best first")


def test_two_versions_stand_side_by_side_on_one_query(panel, explorer):
    panel.other.value = CONTROL
    shown = panel.views["ranked"].value
    assert shown.count("<img ") == 2 and shown.count("average precision") == 2
    own = Explorer({"other": explorer.folders[CONTROL]}, explorer.frame, progress=False)
    own.set_query(explorer.state.query)
    assert explorer.ranked(CONTROL).equals(own.ranked())
    assert explorer.average_precision(CONTROL) == own.average_precision()
    panel.query.value = explorer.queries.path[3]
    assert panel.views["ranked"].value.count(Path(explorer.queries.path[3]).name) == 2
    panel.version.value = CONTROL  # a version is not compared with itself
    assert panel.other.value is None and panel.views["ranked"].value.count("<img ") == 1
    with pytest.raises(PromptSGError, match="choose one of"):
        explorer.set_other("nobody")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_saved_figure_holds_what_is_seen_and_never_replaces_a_file_unasked(
    panel, tmp_path, suffix
):
    path = tmp_path / "new" / f"state{suffix}"
    panel.file.value = str(path)
    panel.save.click()
    assert str(path) in words_in(panel.notes["save"]) and path.is_file()
    first = path.read_bytes()
    if suffix == ".png":
        assert Image.open(path).width > 600
    else:
        text = first.decode()
        assert text.count("<svg") > 3 and text.count("<image") >= 7
        path_in_browser(path)
    panel.save.click()
    assert "exists already" in words_in(panel.notes["save"]) and path.read_bytes() == first
    panel.top.value = 2
    panel.over.value = True
    panel.save.click()
    assert "replaced" in words_in(panel.notes["save"]) and not panel.over.value
    assert path.read_bytes() != first


def path_in_browser(path):
    "An SVG file is well-formed and has a size."
    root = ElementTree.parse(path).getroot()
    assert float(root.get("width").removesuffix("pt")) > 400


@pytest.mark.parametrize(
    "name, views, words",
    [("a.gif", "ranked", ".svg"), ("a", "ranked", ".png"), ("a.png", "x", "measures")],
)
def test_what_cannot_be_saved_is_one_sentence(explorer, tmp_path, name, views, words):
    with pytest.raises(PromptSGError, match=words):
        save_view(explorer, tmp_path / name, views)
    assert not any(tmp_path.iterdir())


def test_a_view_that_cannot_be_drawn_leaves_every_view_and_the_state(panel, monkeypatch):
    before, state = {n: v.value for n, v in panel.views.items()}, panel.explorer.state
    monkeypatch.setattr(
        "promptsg.explorer.draw_cmc", lambda _: (_ for _ in ()).throw(PromptSGError("no curve"))
    )
    panel.words.value = "A {} hand in a red sleeve."
    assert {n: v.value for n, v in panel.views.items()} == before
    assert panel.explorer.state == state and "no curve" in words_in(panel.notes["prompt"])


# --- the widgets
def test_typing_words_changes_every_picture(panel):
    before = {name: view.value for name, view in panel.views.items()}
    panel.words.value = "A {} hand in a red sleeve."
    assert (
        panel.explorer.words == "A {} hand in a red sleeve." and panel.notes["prompt"].value == ""
    )
    assert all(view.value != before[name] for name, view in panel.views.items())
    assert "red sleeve" in words_in(panel.views["attention"]) and "this prompt" in words_in(
        panel.views["measures"]
    )
    panel.own.click()
    assert (
        panel.words.value == panel.explorer.run.config.prompt_template
        and {n: v.value for n, v in panel.views.items()} == before
    )


@pytest.mark.parametrize("words", BAD, ids=BAD.values())
def test_bad_words_are_answered_beside_the_box_and_the_pictures_stay(panel, words):
    before = {name: view.value for name, view in panel.views.items()}
    panel.words.value = words
    assert BAD[words] in words_in(panel.notes["prompt"]) and panel.words.value == words
    assert {name: view.value for name, view in panel.views.items()} == before
    panel.top.value = 3
    assert panel.notes["prompt"].value == "" and panel.words.value == panel.explorer.words


def test_the_kind_of_prompt_changes_words_and_pictures(panel):
    before = panel.views["attention"].value
    panel.prompt.value = "simplified"
    assert (
        panel.words.value == panel.explorer.run.config.simplified_prompt
        and panel.views["attention"].value != before
    )
    assert "this prompt" in words_in(panel.views["measures"])


def test_another_version_changes_the_curve_and_says_what_it_has_not(panel):
    before = panel.views["measures"].value
    assert f"shown: {PAPER}" in before
    panel.prompt.value = "simplified"
    panel.version.value = CONTROL
    assert f"shown: {CONTROL}" in panel.views["measures"].value and "without language" in words_in(
        panel.views["attention"]
    )
    assert panel.words.disabled and panel.head.disabled and "no prompt" in panel.words.placeholder
    panel.version.value = PAPER
    assert (
        not panel.words.disabled
        and panel.views["measures"].value == before
        and panel.prompt.value == "composed"
    )


def test_a_version_that_cannot_be_opened_is_answered_and_the_old_one_stays(runs, frame, tmp_path):
    (tmp_path / "config.yml").write_bytes(
        (runs / "hand-vit-tiny/paper-seed0/config.yml").read_bytes()
    )
    panel = Panel(
        Explorer(
            {"whole": runs / "hand-vit-tiny/paper-seed0", "begun": tmp_path}, frame, progress=False
        )
    )
    before = panel.views["ranked"].value
    panel.version.value = "begun"
    assert (
        "checkpoint" in words_in(panel.notes["version"])
        and panel.version.value == "whole"
        and panel.views["ranked"].value == before
    )


@pytest.mark.parametrize(
    "control, value, changed",
    [
        ("head", "head 2", {"attention"}),
        ("head", "every head", {"attention"}),
        ("strength", 50, {"attention"}),
        ("top", 3, {"ranked"}),
    ],
)
def test_a_choice_of_view_draws_what_hangs_on_it(panel, control, value, changed):
    before = {name: view.value for name, view in panel.views.items()}
    getattr(panel, control).value = value
    assert {name for name, view in panel.views.items() if view.value != before[name]} == changed


def test_queries_by_list_chance_path_and_upload(panel, tmp_path):
    seen = [panel.views["ranked"].value]

    def is_new():
        seen.append(panel.views["ranked"].value)
        return seen[-1] != seen[-2]  # chance may choose the first one again

    panel.query.value = panel.explorer.queries.path[3]
    assert is_new() and panel.explorer.queries.image[3] in words_in(panel.views["ranked"])
    panel.random.click()
    assert is_new() and panel.query.value == panel.explorer.state.query
    Image.new("RGB", (40, 30), "tan").save(tmp_path / "own.png")
    panel.path.value = str(tmp_path / "own.png")
    assert (
        is_new()
        and panel.query.label == "own: own.png"
        and "same person" not in words_in(panel.views["ranked"])
    )
    panel.path.value = str(tmp_path / "none.png")
    assert "none.png" in words_in(panel.notes["query"]) and not is_new()
    content = (tmp_path / "own.png").read_bytes()
    panel.upload.value = (
        {
            "name": "up.png",
            "type": "image/png",
            "size": len(content),
            "content": memoryview(content),
            "last_modified": datetime.now(),
        },
    )
    assert panel.query.label == "own: up.png" and panel.notes["query"].value == ""
    panel.path.value = ""
    assert panel.query.label == "own: up.png"


def controls(panel):
    return [
        control
        for row in panel.children
        if hasattr(row, "children")
        for control in row.children
        if not isinstance(control, HTML)
    ]


def test_every_control_has_a_label_and_fits_a_narrow_cell(panel):
    assert (
        len(controls(panel)) == 17
        and len({control.description for control in controls(panel)}) == 17
    )
    assert all(control.description and control.tooltip for control in controls(panel))
    for widget in [*controls(panel), *panel.children]:
        assert not any(
            int(size) > 320
            for size in re.findall(
                r"(\d+)px", f"{widget.layout.width} {widget.layout.min_width} {widget.layout.flex}"
            )
        )
    assert any(isinstance(control, Button) for control in controls(panel))


def test_every_picture_is_described(panel):
    for view in panel.views.values():
        assert (
            all(len(words) > 20 for words in re.findall('<img alt="(.*?)"', view.value))
            and view.value.count("<img ") == 1
        )


# --- one line
def test_explore_opens_on_a_folder_of_runs(runs, hands):
    assert isinstance(explore(runs / "hand-vit-tiny/paper-seed0", hands, progress=False), Panel)


@pytest.mark.parametrize(
    "runs_given, data, word",
    [
        ("nowhere", "nowhere", "promptsg train"),
        ({}, None, "promptsg train"),
        (None, None, "data=FOLDER"),
        (None, "nowhere", "nowhere"),
    ],
)
def test_nothing_to_look_at_is_a_sentence_not_a_traceback(runs, runs_given, data, word):
    shown = explore(runs if runs_given is None else runs_given, data)
    assert isinstance(shown, HTML) and word in words_in(shown) and "Error" not in shown.value


@pytest.mark.parametrize("changes", (dict(), dict(language=False, supcon_loss_weight=0)))
def test_a_run_with_mirror_ranks_sums_here_too(changes, quick, splits, frame, tmp_path):
    config = quick.replace(
        epochs=1, steps_per_epoch=1, mirror=True, prompt_aspect="image", **changes
    )
    Trainer(config, splits, tmp_path / "run", progress=False).fit()
    opened = OpenRun(tmp_path / "run", frame, progress=False)
    prompt = config.eval_prompt, opened.words(config.eval_prompt)
    _, whole = measure(load_run(tmp_path / "run"), splits, progress=False)
    assert torch.allclose(opened.seen(*prompt)[0].of(splits.test), whole.of(splits.test), atol=1e-4)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(
        tmp_path / "mine.png"
    )
    path = opened.add(str(tmp_path / "mine.png"))
    assert len(opened.seen(*prompt)[0].features) == len(opened.frame) and path in set(
        opened.frame.path
    )
