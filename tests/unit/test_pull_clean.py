"""Consultations lose their courtesies and addresses, and nothing that is advice."""

from __future__ import annotations

import time

import pytest

from cathpc.data.clean import consultation, without_addresses, without_courtesies


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        ("Hi, Welcome to Chat Doctor. I have gone through your query. Use drops. Hope this helps.", "Use drops."),
        ("Hello Dear. Thanks for writing to us. It is a virus. Regards, Chat Doctor.", "It is a virus."),
        ("hello, based on this it is asthma. Take care.", "Based on this it is asthma."),
        ("Rest well. Kind regards, Dr. Andrew Rynne, MD", "Rest well."),
        ("You need an MRI. Let me know if you have further questions. Thanks.", "You need an MRI."),
        ("Thank you for your query. Chat Doctor.", ""),
        ("Myself Dr. Ali. Drink water.", "Drink water."),
        ("Thanks for your query, go to the hospital at once.", "Go to the hospital at once."),
        ("You need an MRI. If you need more help, please do not hesitate to contact me.", "You need an MRI."),
        ("It is mild. Hope I have solved your query. Wishing good health to your uncle. Thanks.", "It is mild."),
        ("Use ice. For more queries please don't hesitate to ask. Get well soon.", "Use ice."),
        ("Rest well. Hope you find this useful. Best wishes, Dr. N. N.", "Rest well."),
    ],
)
def test_greetings_and_sign_offs_go(answer: str, advice: str) -> None:
    assert without_courtesies(answer) == advice


@pytest.mark.parametrize(
    "advice",
    [
        "Take care of your feet, wash them daily.",
        "I hope the fever settles within two days; else see a doctor, and good luck is no plan.",
        "Streptococcus. In case of fever get back to the hospital at once because sepsis is an emergency.",
        "High blood pressure needs treatment. Thankfully it is mild.",
        "Dear friends of yours cannot tell, only a test can.",
        "Regard the wound daily. If it is red, go to a doctor.",
        "Take aspirin. Please do not hesitate to go to the emergency room if chest pain recurs.",
        "It is gastritis. If you have any further concern of bleeding, go to the hospital at once.",
        "The lump is benign. Hope you had the biopsy; the answer depends on it.",
        "Rest. Please feel free to contact your doctor if it gets worse.",
        "Rest. If you have any concerns, do not hesitate to call 911.",
        "Rest. With regards to your diet, eat fibre.",
        "It has spread. I wish you had taken it out before.",
        "It is a rash. DRESS syndrome is rare.",
    ],
)
def test_advice_that_sounds_like_a_courtesy_stays(advice: str) -> None:
    assert without_courtesies(advice) == advice


def test_addresses_and_names_of_doctors_are_masked_and_doses_are_not() -> None:
    text = "Call +91 98765 43210 or (080) 1234 5678, write to a.b@c.com, see www.webmd.com/x, says Dr. John Smith."
    assert without_addresses(text) == "Call [phone] or [phone], write to [email], see [link], says [doctor]."
    doses = "Take 1000-1500 mg/day, BP 120/80 to 140/90, in 2019-2020 and 12 34 56; 0.25 mg of Drotaverine."
    assert without_addresses(doses) == doses


def test_a_question_keeps_its_courtesies_and_loses_its_addresses() -> None:
    asked, _ = consultation("Hello doctor, mail me at x@y.org. Thanks", "Yes.")
    assert asked == "Hello doctor, mail me at [email]. Thanks"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Take 10000-15000 IU, then 60000-80000 IU.", "Take 10000-15000 IU, then 60000-80000 IU."),
        ("Give 9876543210 cells.", "Give 9876543210 cells."),
        ("Call 1-800-273-8255 or 1-(800) 273-8255.", "Call [phone] or [phone]."),
        ("Ring 98765-43210, or 9876543210.", "Ring [phone], or [phone]."),
        ("See Dr. Ali. Drink water.", "See [doctor]. Drink water."),
        ("Dr. P. Koregol and Dr. John K. Smith agree on DRESS.", "[doctor] and [doctor] agree on DRESS."),
    ],
)
def test_telephones_and_names_are_told_from_ranges_and_sentences(text: str, masked: str) -> None:
    assert without_addresses(text) == masked


@pytest.mark.parametrize(
    ("start", "unit", "end"),
    [
        ("a@", "b-", ""),
        ("", "Hello ", "rest."),
        ("Rest. ", "Thanks. ", ""),
        ("a", " ", "b"),
        ("Hi", " ,", "a"),
        ("", "hope i have ", ""),
        ("", "1-800-", ""),
    ],
)
def test_time_grows_with_the_text_and_no_faster(start: str, unit: str, end: str) -> None:
    def seconds(size: int) -> float:
        text = start + unit * (size // len(unit)) + end
        best = float("inf")
        for _ in range(3):
            before = time.process_time()
            consultation(text, text)
            best = min(best, time.process_time() - before)
        return best

    assert seconds(40_000) < 8 * seconds(10_000) + 0.01  # 4 times the text; were it quadratic, 16 times


def test_a_text_of_many_greetings_takes_no_long_time() -> None:
    text = "Hello " * 20_000 + "rest. " + "Thanks. " * 20_000
    assert len(without_courtesies(text)) < len(text)
