# SPDX-License-Identifier: Apache-2.0
"""Sentences to calibrate with, and others to measure with: pairs from alike to unrelated."""

CALIBRATION = (
    "The train to the coast leaves at nine in the morning.",
    "She keeps a small garden behind the house.",
    "Interest rates were raised again by a quarter of a point.",
    "How do I reset the password of my account?",
    "Two boys are kicking a ball against the wall.",
    "The committee postponed its decision until next spring.",
    "Water boils at a lower temperature in the mountains.",
    "He repaired the old radio with parts from a broken one.",
    "A recipe for bread needs flour, water, salt and time.",
    "The satellite measures the height of the sea every ten days.",
    "My grandmother told us stories about the war.",
    "The function returns the index of the first match, or -1.",
    "Heavy snow closed both roads over the pass.",
    "Nobody at the party knew the answer.",
    "The patient was given antibiotics for five days.",
    "An eagle circled high above the valley, looking for prey.",
    "Our team lost the final by a single point.",
    "The museum's new wing shows paintings of the 19th century.",
    "Is there a pharmacy near the station that opens on Sundays?",
    "The court dismissed the case for lack of evidence; the company welcomed the ruling.",
    "Mix the paint well before you apply a second coat.",
    "Electric buses are quieter, but their batteries are expensive.",
    "They danced until the band had packed up and gone home.",
    "The memory controller reorders requests so that rows stay open as long as possible.",
    "Yes.",
    "In 1969 three men flew to the Moon, and two of them walked on it for a few hours.",
    "The price of coffee has doubled since last year, say traders in London and New York.",
    "Please send the signed contract back by Friday.",
    "Children learn languages faster than adults do.",
    "The glacier has lost a third of its volume in fifty years.",
)

PAIRS = (
    ("A woman is slicing an onion.", "Someone cuts an onion into pieces."),
    ("The dog chases a cat across the yard.", "A cat is being chased by a dog."),
    ("The plane landed safely in the storm.", "In spite of the gale the aircraft came down well."),
    ("He plays the violin in an orchestra.", "She plays the cello in a quartet."),
    ("The shop is closed on Mondays.", "On Monday you cannot buy anything there."),
    ("The river flooded the village.", "After days of rain the water reached the houses."),
    ("I forgot my umbrella at the office.", "My umbrella is still at work."),
    ("A child is riding a bicycle.", "A man is repairing a motorcycle."),
    ("The company reported record profits.", "The firm earned more than ever before."),
    ("The company reported record profits.", "The firm dismissed half of its workers."),
    ("How can I learn to swim?", "What is the best way to learn swimming?"),
    ("How can I learn to swim?", "How deep is the Baltic Sea?"),
    ("The experiment confirmed the theory.", "The measurements agree with what was predicted."),
    ("Birds fly south in autumn.", "The museum opens at ten o'clock."),
    ("He ate two apples for breakfast.", "The processor has a cache of two megabytes."),
    ("The soup is too salty.", "There is too much salt in the soup."),
    ("She was born in a small town in Norway.", "Her birthplace is a Norwegian village."),
    ("The lecture on black holes was fascinating.", "I enjoyed the talk about astronomy."),
    ("Turn left after the bridge.", "After the bridge, turn right."),
    ("A group of people walks through the forest.", "Hikers follow a path among trees."),
)

LONG = (
    "The lighthouse stands at the end of a narrow spit of sand which the sea covers twice a day, "
    "and whoever wants to visit the keeper must know the tides. For forty years the same man has "
    "climbed the hundred and twelve steps every evening, although the lamp has long been switched "
    "by a computer in the capital. He says that machines fail when the weather is worst, and that "
    "a ship does not ask who lit the light. In winter the supply boat comes only once a month; it "
    "brings flour, coffee, letters from his daughter and newspapers that he reads one after "
    "another, a page a day, so that the news lasts until the next boat. Last spring a film crew "
    "came to make a documentary about him, stayed a week longer than planned because of a storm, "
    "and left convinced that he was right about the machines."
)

__all__ = ["CALIBRATION", "LONG", "PAIRS"]
