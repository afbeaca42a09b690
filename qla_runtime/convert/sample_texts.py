"""Plain sentences for the accuracy report of a conversion that was given no texts of its own."""

from __future__ import annotations

NAME = "the built-in sample of plain English sentences"

_QUESTIONS = (
    (
        "On which days does the market open?",
        "The village lies on a hill above the river. Its market opens on Tuesdays and Fridays, and most of "
        "the farmers who sell there have come every week for twenty years.",
    ),
    (
        "Where did Maria Keller move in 2009?",
        "Maria Keller studied chemistry in Zurich and moved to Lisbon in 2009, where she founded a company "
        "that makes paint from algae. It now has forty employees.",
    ),
    (
        "Where did the passengers spend the night?",
        "The train was late again. By the time it reached the coast, the last ferry had left, and the "
        "passengers spent the night in the waiting room.",
    ),
    (
        "How many units of warmth can a heat pump bring?",
        "A heat pump moves heat instead of making it. For each unit of electricity it uses, it can bring "
        "three or four units of warmth into a house, even on a cold day.",
    ),
    (
        "What colour was the jacket in the parcel?",
        "I ordered the blue jacket in medium, but the parcel held a red one in large. The shop answered "
        "within an hour, apologized, and sent the right one the same day.",
    ),
    (
        "What share of known fish species live in coral reefs?",
        "Coral reefs cover less than one percent of the sea floor, yet a quarter of all known fish species "
        "live in them. Warm water makes the corals pale and weak.",
    ),
    (
        "Where will the new library be built?",
        "The committee met for six hours and agreed on only one thing: the old library will not be torn "
        "down before a new one has been built next to the school.",
    ),
    (
        "What is mixed in the evening?",
        "To bake this bread, mix flour, water, salt and a little yeast in the evening. Leave the dough in a "
        "cool place, and put it into a very hot oven the next morning.",
    ),
    (
        "Who is good in the film?",
        "The film is too long and its jokes are old, but the two leading actors are so good together that I "
        "would gladly watch it again.",
    ),
    (
        "In which street was the pump?",
        "In 1854 the physician John Snow showed on a map of London that most people who had died of cholera "
        "had taken their water from the same pump in Broad Street.",
    ),
    (
        "What should be restarted?",
        "Please restart the router, wait for two minutes, and try again. If the light on the front is still "
        "red, call our support line between eight and six.",
    ),
    (
        "How much did the museum pay for the painting?",
        "The museum bought the painting for nine thousand euros in 1962. Last month an unknown buyer "
        "offered eleven million, and the director said no.",
    ),
)
"""Questions, each with a text that answers it."""


def sample_texts(pairs: bool) -> list[tuple[str, str | None]]:
    """Texts, or pairs of a question and a text that answers it.

    Args:
        pairs: for models that read questions and contexts.
    """
    if pairs:
        return list(_QUESTIONS)
    return [(text, None) for item in _QUESTIONS for text in item]
