"""Documents through all three stages."""

import json
from pathlib import Path

import numpy as np
import pytest

from celery_worker.pipelines.document import category, sentences, sentiment
from celery_worker.pipelines.document.papers import pdf
from celery_worker.pipelines.document.sentences import chunks_of, language_of, sentences_of
from celery_worker.testing import run
from jobs.errors import BadInput, ParamsInvalid

FOLDER = Path(__file__).parent
EXAMPLE = json.loads((FOLDER / "example.json").read_text())
DUTCH = "De molen staat aan de rivier. Elke herfst brengen de boeren hun graan, en de molenaar maalt het tot meel."
ANGRY = "The soup was cold and awful, and the waiter was rude. We love the garden, though. It rained."


@pytest.fixture(scope="module")
def curie():
    return run(FOLDER, EXAMPLE["params"], input=EXAMPLE["input"])


def report_of(done):
    return json.loads(done.artifacts["report.json"].read_text())


def test_the_example_names_who_and_where_with_true_offsets(curie):
    # Given the example's report
    report = report_of(curie)
    # Then every mention is what stands at its offsets, inside its sentence
    for entity in report["entities"]:
        for mention in entity["mentions"]:
            sentence = report["sentences"][mention["sentence"]]
            assert report["text"][mention["start"] : mention["end"]] == entity["text"]
            assert sentence["start"] <= mention["start"] < mention["end"] <= sentence["end"]
    named = {(entity["text"], entity["kind"]) for entity in report["entities"]}
    assert {("Marie Curie", "PERSON"), ("Warsaw", "GPE"), ("Paris", "GPE"), ("Pierre Curie", "PERSON")} <= named


def test_the_example_is_about_science_and_its_sentences_sound_as_they_do(curie):
    report = report_of(curie)
    assert report["text"] == EXAMPLE["input"]["text"]
    assert [sentence["text"] for sentence in report["sentences"]][4].startswith("Years of unprotected work")
    assert [sentence["label"] for sentence in report["sentences"]][2:5] == ["positive", "positive", "negative"]
    assert curie.result["categories"][0]["category"] == "science"
    assert sum(one["score"] for one in curie.result["categories"]) == pytest.approx(1, abs=0.001)
    assert len(curie.result["key_sentences"]) == 2


def test_the_three_tasks_are_parts_of_their_own(curie):
    assert [part["task"] for part in curie.outputs["inference"]] == ["entities", "sentiment", "category"]


def test_the_page_shows_what_was_found_and_runs_nothing(tmp_path):
    # Given a text that tries to be markup
    hostile = 'Anna Smith met <script>alert("x")</script> in Berlin. <img src=x onerror=alert(1)> was there & more.'
    page = run(FOLDER, input={"text": hostile}).artifacts["highlighted.html"].read_text()
    # Then it is text, beside the marks of ours
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert '<mark style="background:#c8efcf" data-kind="GPE">Berlin</mark>' in page
    assert "default-src 'none'" in page


def test_a_pdf_s_entities_know_their_pages(tmp_path):
    # Given two pages
    (tmp_path / "two.pdf").write_bytes(pdf(["Angela Merkel lived in Berlin.", "Barack Obama lived in Chicago."]))
    report = report_of(run(FOLDER, {"entities": ["PERSON"]}, [tmp_path / "two.pdf"]))
    # Then each name is on its own, and other kinds are left out
    assert [(e["text"], e["mentions"][0]["page"]) for e in report["entities"]] == [
        ("Angela Merkel", 1),
        ("Barack Obama", 2),
    ]


def test_a_caller_s_own_categories_replace_ours(tmp_path):
    asked = {"complaint": "I am not satisfied and want my money back.", "order": "I would like to order three of them."}
    text = "The kettle broke after two days. I am very disappointed and demand a full refund of the price."
    found = run(FOLDER, {"categories": asked}, input={"text": text}).result["categories"]
    assert {one["category"] for one in found} == {"complaint", "order", "other"}
    assert found[0]["category"] == "complaint"


def test_what_is_about_nothing_known_is_other():
    text = "Dear Anna, thank you for the parcel. The socks fit, and our cat sleeps on the printer every morning."
    assert run(FOLDER, input={"text": text}).result["categories"][0]["category"] == "other"


def test_what_is_near_to_everyday_passages_is_rather_other():
    # Given a background whose last passages are of one kind, and two chunks as near to the one category as each other
    rng = np.random.default_rng(1)
    passages = rng.normal(size=(40, 16))
    passages[30:, :2] += (0, 4)
    background = passages / np.linalg.norm(passages, axis=1, keepdims=True)
    chunks, categories = np.eye(16)[[1, 2]], np.eye(16)[[0]]
    head = category.Head(slope=2.0, bias=-1.0, weight=1.5, background=(), everyday=10)
    # When they are judged, Then the one that is like those passages is the one that is about nothing known
    homely, strange = category.judge(chunks, categories, background, head)[:, -1]
    assert homely > 0.95 > 0.6 > strange
    assert category.homeliness(background, background, 10)[30:].min() > category.homeliness(chunks[1:], background, 10)


def test_another_language_is_told_and_not_guessed_at():
    # Given a Dutch text
    done = run(FOLDER, input={"text": DUTCH})
    # Then nothing is made up about it
    assert (done.result["language"]["code"], done.result["analysed"], done.result["entities"]) == ("nl", False, [])
    assert done.result["sentiment"] is None
    assert "not analysed" in done.artifacts["highlighted.html"].read_text()
    # And a caller who knows better is believed
    assert run(FOLDER, {"language": "en"}, input={"text": DUTCH}).result["analysed"]


def test_sentences_keep_to_their_paragraphs_and_pages():
    text = "A heading without a stop\n\nDr. Smith left at 5 p.m. yesterday.\nHe came\nback."
    spans = sentences_of(text, [(0, len(text))])
    assert [text[start:end] for start, end in spans] == [
        "A heading without a stop",
        "Dr. Smith left at 5 p.m. yesterday.",
        "He came\nback.",
    ]
    pages = [(0, 25), (26, len(text))]
    first = chunks_of(sentences_of(text, pages), pages)[0]
    assert text[slice(*first)] == "A heading without a stop"


def told(text):
    return [text[start:end] for start, end in sentences_of(text, [(0, len(text))])]


def test_a_long_paragraph_is_cut_between_its_sentences():
    # Given a paragraph on one line that no model would hold as a whole
    one = "The mayor of Rotterdam opened the new bridge on Monday and everyone in Delft was happy about it."
    assert told(" ".join([one] * 200)) == [one] * 200


def test_flags_families_and_scripts_without_blanks_are_cut_where_they_end():
    assert told("We won \U0001f680. \U0001f1f3\U0001f1f1 is happy.")[-1].endswith("\U0001f1f3\U0001f1f1 is happy.")
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467 They ate in Paris."
    assert told(f"He loves it. {family}") == ["He loves it.", family]
    assert told("\u6211\u4eec\u559c\u6b22\u3002\u660e\u5e74\uff01") == [
        "\u6211\u4eec\u559c\u6b22\u3002",
        "\u660e\u5e74\uff01",
    ]


def test_a_word_without_end_and_sentences_without_end_are_bounded(monkeypatch):
    # Given one word of 100,000 letters, then it is cut into pieces that a model can hold
    long = "a" * 100_000
    assert max(end - start for start, end in sentences_of(long, [(0, len(long))])) <= 4_000
    # Given more sentences than pages could hold, then that is said
    monkeypatch.setattr(sentences, "MAX_SENTENCES", 20)
    many = "No.\n\n" * 21
    with pytest.raises(BadInput, match="more than 20 sentences"):
        sentences_of(many, [(0, len(many))])


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "OK."),
        ("en", "It was great in Paris."),
        ("en", "Jose Garcia visited Sao Paulo. He loved it."),  # rather Spanish, and possibly English
        ("zh", "我们非常喜欢这个城市\u3002"),
        ("hi", "महापौर ने कल नया पुल खोला।"),
        ("es", "La sopa estaba fría pero nos encanta el jardín."),  # not surely Spanish, surely not English
        ("nl", "Wij gaan morgen met de trein."),
        ("de", "The bridge was opened. Die Brücke ist sehr schön geworden, sagte er. Alle waren sehr froh."),
    ],
)
def test_a_short_text_is_english_unless_it_hardly_can_be(code, text):
    assert language_of(text)["code"] == code


@pytest.mark.parametrize("text", ["", "\u0000", "\ud800", "\ufeff \n"])
def test_an_input_without_text_is_bad_input(text):
    with pytest.raises(BadInput):
        run(FOLDER, input={"text": text})


def test_a_document_can_be_dismissed_while_it_is_worked_on():
    assert run(FOLDER, input={"text": ANGRY}, dismiss_at=("inference", 2)).dismissed


@pytest.mark.parametrize(
    "params",
    [
        {"language": "nl"},
        {"entities": ["DOG"]},
        {"categories": {"a": ""}},
        {"categories": {"\n": "abc"}},
        {"categories": {"other": "abc"}},
        {"key_sentences": 21},
    ],
)
def test_params_that_make_no_sense_are_refused_at_the_door(params):
    with pytest.raises(ParamsInvalid):
        run(FOLDER, params, input=EXAMPLE["input"])


def test_the_neutral_band_is_between_the_two():
    head = sentiment.Head.of({"vector": [], "lexicon": [], "grams": {}, "bias": 0.0, "band": 0.2})
    assert [head.label(score) for score in (-0.3, -0.2, 0.0, 0.2, 0.3)] == [
        "negative",
        "neutral",
        "neutral",
        "neutral",
        "positive",
    ]
