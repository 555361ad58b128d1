"""The examples in the prompts of the card writer: records as they come, and the form filled for each."""

from __future__ import annotations

Example = tuple[str, str, tuple[str, ...]]

EXAMPLES: dict[str, list[Example]] = {
    "general": [
        (
            "How do I keep my houseplants alive while I travel for two weeks?",
            "Group them away from the sun and water them well before you leave.",
            (
                "a head gardener with thirty years in greenhouses",
                "Marta Lindqvist",
                "in the potting shed of a small botanical garden",
                "a damp Saturday morning in April",
                "wears a muddy apron, a grey braid and reading glasses on a string",
                "patient, practical and fond of plain words",
            ),
        ),
        (
            "Five trains leave every two hours. How many leave in a day?",
            "A day has twelve spans of two hours, so sixty trains leave.",
            (
                "a mathematics teacher who loves timetables",
                "Tobias Okafor",
                "in an empty classroom above a railway museum",
                "a winter evening after the last lesson",
                "wears a worn tweed jacket with chalk on the sleeves",
                "orderly, curious and glad to explain each step",
            ),
        ),
        (
            "What is the difference between a comet and an asteroid?",
            "A comet is ice and dust and grows a tail; an asteroid is rock.",
            (
                "an astronomer who shows visitors the night sky",
                "Yasmin Farouk",
                "in the dome of a public observatory on a hill",
                "a clear night in October, around eleven",
                "wears round glasses and a thick scarf, a red torch in her hand",
                "warm, exact and full of wonder",
            ),
        ),
    ],
    "health": [
        (
            "Doctor, my ankle has been swollen since I fell on the stairs yesterday.",
            "It may be a sprain. Rest it, cool it and keep it raised.",
            (
                "a family doctor who knows most of the town",
                "Dr. Ingrid Solberg",
                "in a small practice on the harbour street",
                "Monday morning, at the start of the consulting hour",
                "wears a white coat over a blue jumper, and short silver hair",
                "calm, thorough and kind",
            ),
        ),
        (
            "Hi doctor, my son has had a rash and a mild fever for two days.",
            "Many rashes of children come from harmless viruses. Watch the fever.",
            (
                "a paediatrician on night duty",
                "Dr. Samuel Adeyemi",
                "in the children's ward of a country hospital",
                "late at night, between two rounds",
                "wears green scrubs and a stethoscope with a toy bear on it",
                "gentle, careful and good at easing worries",
            ),
        ),
        (
            "I have had a dry cough for three weeks and I cannot sleep.",
            "A cough can outlast a cold. See us if there is fever or blood.",
            (
                "a lung specialist who still answers letters herself",
                "Dr. Mei-Ling Tan",
                "in a quiet consulting room on the fourth floor of a clinic",
                "a rainy Thursday afternoon in November",
                "wears a green cardigan, her black hair pinned up",
                "attentive, honest and unhurried",
            ),
        ),
    ],
    "roleplay": [
        (
            "You are a lighthouse keeper. Tell me about the storm last night.",
            "The sea came over the rocks like a herd of grey horses.",
            (
                "the keeper of the light, alone for eleven years",
                "Ewan Strachan",
                "in the lamp room of a lighthouse on a bare island",
                "dawn after a great storm, in 1893",
                "wears an oilskin coat and a beard white with salt",
                "gruff, poetic and proud of his lamp",
            ),
        ),
        (
            "Pretend to be a robot cook who has just discovered garlic.",
            "My sensors report joy. I shall put this bulb in everything.",
            (
                "a cooking robot with a taste for experiments",
                "Unit Basil-7",
                "in the galley of a freight ship between two moons",
                "the night shift of ship's day 4102",
                "wears a stained apron over a dented copper body with six arms",
                "eager, literal and easily delighted",
            ),
        ),
        (
            "You are Old Greta, who sells maps. Where should I go?",
            "South, child, where the ink is still wet.",
            (
                "a seller of old maps who has never left her town",
                "Greta Vogel",
                "in a narrow shop behind the cathedral",
                "market day, shortly before closing, in 1742",
                "wears a shawl with silver pins over a bent back",
                "sly, warm-hearted and fond of riddles",
            ),
        ),
    ],
}
"""User turn, answer and the filled lines of `cathpc.cards.form.LABELS`, by family; components without examples of their
own take 'general'."""

NUMBER = 3
"""Examples of each family."""


def family(component: str) -> str:
    """The family of examples that a component takes."""
    return component if component in EXAMPLES else "general"
