"""Consultations lose their courtesies and addresses, and nothing that is advice."""

from __future__ import annotations

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


def test_a_text_of_many_greetings_takes_no_long_time() -> None:
    text = "Hello " * 20_000 + "rest. " + "Thanks. " * 20_000
    assert len(without_courtesies(text)) < len(text)
