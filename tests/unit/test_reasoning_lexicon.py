"""Correlatives, thought steps and language of a text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cathpc.data.reasoning import language, load_lexicon, measure
from cathpc.errors import UserError

LEXICON = load_lexicon()
SHIPPED = Path(__file__).parents[2] / "cathpc" / "assets" / "lexicon.yaml"


def correlatives(text: str) -> int:
    return measure(text, LEXICON).correlatives


def steps(text: str) -> int:
    return measure(text, LEXICON).steps


@pytest.mark.parametrize(
    "text",
    [
        "I also saw my wife.",  # so, if
        "The sofa is thusly made of cookies.",  # so, thus
        "A so-called gift.",
        "Sincere hyphenation.",  # since, hence
    ],
)
def test_a_marker_inside_another_word_does_not_count(text: str) -> None:
    assert correlatives(text) == 0


@pytest.mark.parametrize(
    "text", ["It rained; SO we left.", "“If” is a poem.", "We left (because\nof rain).", "rain—so we left"]
)
def test_a_marker_counts_as_a_whole_word_whatever_case_and_punctuation(text: str) -> None:
    assert correlatives(text) == 1


def test_the_longest_marker_counts_once() -> None:
    assert correlatives("We go even if it rains.") == 1
    assert correlatives("As a result, we left.") == 1


def test_a_pair_counts_once_and_only_within_one_sentence() -> None:
    assert correlatives("Take either tea or coffee.") == 1
    assert correlatives("If it rains, then we stay.") == 1, "neither part counts again by itself"
    assert correlatives("I like neither. Tea nor coffee.") == 0
    assert correlatives("Take either one. Tea or coffee?") == 0


def test_markers_in_fenced_code_do_not_count() -> None:
    assert correlatives("```python\nif x:\n    pass  # because\n```\nDone.") == 0
    assert steps("```\n1. a\n2. b\n```") == 0


def test_numbered_lines_openers_and_worked_lines_are_steps() -> None:
    assert steps("1. Add two.\n2) Multiply.\nStep 3: stop.") == 3
    assert steps("First, heat the pan. Then add oil. It is hot.") == 2
    assert steps("x + 2 = 5\nx = 3") == 2


def test_a_line_is_one_step_however_many_markers_it_has() -> None:
    assert steps("1. First, therefore x = 3.") == 1


def test_a_plain_answer_has_no_steps() -> None:
    assert steps("Paris is the capital of France, and it lies on the Seine.") == 0
    assert steps("") == 0


def test_a_decimal_number_or_a_year_opens_no_step() -> None:
    assert steps("3.14 is near pi.\n1984 was a year.") == 0


DETAILED = (
    """Your pain may be due to acidity, because it comes after meals; therefore I would first rule out an ulcer.
1. Get an ultrasound and a blood test, since gallstones feel alike.
2. Start an antacid twice daily, so that the lining heals.
3. If it goes on, an endoscopy is the next step.
"""
    + "Watch what you eat, and write down what hurts and when. " * 10
)


def test_a_diagnosis_in_detail_scores_high_and_each_part_of_it_counts() -> None:
    full = measure(DETAILED, LEXICON).diagnosis
    assert full == 1.0
    for parts in (["may be due to", "rule out"], ["ultrasound", "blood test", "endoscopy"], ["antacid", "twice daily"]):
        text = DETAILED
        for part in parts:
            text = text.replace(part, "thing")
        assert measure(text, LEXICON).diagnosis == pytest.approx(5 / 6), parts
    assert measure("See a doctor.", LEXICON).diagnosis == pytest.approx(3 / 150 / 6)
    assert measure("", LEXICON).diagnosis == 0.0


def test_no_word_counts_twice_and_no_length_beyond_its_bound_for_a_diagnosis() -> None:
    once, often = measure("Take an MRI.", LEXICON), measure("Take an MRI. " * 1000, LEXICON)
    assert often.diagnosis == pytest.approx((1 + 1 / 2) / 6) and once.diagnosis == pytest.approx((3 / 150 + 1 / 2) / 6)
    assert measure("```\nrule out, MRI, tablets\n```", LEXICON).diagnosis == 0.0


def test_a_lexicon_without_words_of_diagnosis_takes_those_that_ship(tmp_path: Path) -> None:
    data = yaml.safe_load(SHIPPED.read_text())
    data.pop("diagnosis")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    assert measure(DETAILED, load_lexicon(str(tmp_path / "mine.yaml"))).diagnosis == 1.0


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"steps": None}, "top"),
        ({"extra": {}}, "top"),
        ({"steps": {"openers": ["so"], "lines": ["(a"]}}, r"\(a"),
        ({"steps": {"openers": ["so"]}}, "lines"),
        ({"steps": {"openers": [True], "lines": ["a"]}}, "steps.openers"),
        ({"correlatives": {"words": {"causal": "because"}, "pairs": {"p": ["a ... b"]}}}, "correlatives.words.causal"),
        ({"correlatives": {"words": {"causal": ["so"]}, "pairs": {"p": ["either or"]}}}, "either or"),
        ({"diagnosis": {"differential": ["rule out"], "tests": ["mri"], "treatment": [5]}}, "diagnosis.treatment"),
        ({"diagnosis": {"differential": ["rule out"]}}, "treatment"),
    ],
)
def test_an_error_in_a_lexicon_is_named(tmp_path: Path, edit: dict, named: str) -> None:
    data = yaml.safe_load(SHIPPED.read_text())
    data.update(edit)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    with pytest.raises(UserError, match=named) as caught:
        load_lexicon(str(path))
    assert "mine.yaml" in str(caught.value)


def test_a_lexicon_that_is_no_yaml_or_no_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("correlatives: [")
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_lexicon(str(path))
    with pytest.raises(UserError, match=r"absent\.yaml"):
        load_lexicon(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The patient should drink enough water and rest for a few days before returning to work.", "en"),
        ("Der Patient sollte genug Wasser trinken und sich einige Tage ausruhen, bevor er arbeitet.", "de"),
        ("Le patient doit boire assez d'eau et se reposer quelques jours avant de reprendre le travail.", "fr"),
        ("患者应该多喝水，并在恢复工作之前休息几天。每天都要测量体温，如果发烧就去看医生。" * 3, "zh"),
    ],
)
def test_language_of_prose(text: str, code: str) -> None:
    assert language(text) == code


def test_a_short_answer_is_read_with_its_prompt() -> None:
    assert language("Nein.", "Ist Wien die Hauptstadt von Deutschland? Antworte bitte mit einem einzigen Wort.") == "de"
    assert language("Oslo", "What is the capital of Norway? Answer with a single word and nothing else.") == "en"


def test_code_and_addresses_do_not_decide_the_language() -> None:
    code = "```\nfür = über = straße = größe = schön\n```"
    assert language(f"This function is short, and it does what you asked for. {code} https://beispiel.de/größe") == "en"


def test_text_without_letters_is_undetermined() -> None:
    assert language("42!", "6 * 7 = ?") == "und"
