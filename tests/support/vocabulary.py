"""Words that do not come back as identifiers or in help texts, each with the term of the field to use instead.

`tests/test_vocabulary.py` reads this list. A word is compared with the parts of an identifier (`said_with` has `said` and `with`).
"""

from __future__ import annotations

INSTEAD = {
    "anew": "again, resampled",
    "asks": "forget identities, forget set",
    "damage": "retain drop",
    "disobedience": "scrub objective",
    "foresee": "estimate",
    "forecaster": "predictor",
    "guess": "prediction, probe score",
    "guesses": "predictions, probe scores",
    "heard": "recorded",
    "ignorant": "randomly initialised",
    "judge": "score",
    "keyed": "target layers",
    "lesson": "batch",
    "lessons": "batches, training data",
    "loudness": "gain",
    "luck": "u (a uniform draw)",
    "mistaken": "misidentification rate",
    "nobody": "no identity",
    "rehearsal": "simulated request trial",
    "road": "pipeline",
    "said": "logits, predictions",
    "saw": "was trained on",
    "saying": "inference",
    "says": "predictions, outputs",
    "sees": "inputs",
    "somebody": "an identity",
    "spared": "excluded from simulation",
    "spoken": "logits",
    "stock": "model cache",
    "stranger": "unseen identity",
    "strangers": "unseen identities",
    "sureness": "margin",
    "surprise": "Fisher noise",
    "tell": "return, print, report",
    "tells": "returns, prints, reports",
    "thing": "entry, value, file",
    "told": "what the function returns",
    "uphill": "total update",
    "whom": "which identities",
    "witness": "reference model",
    "witnesses": "reference models",
    "world": "toy problem",
}

_EVERYWHERE = (
    *("anew", "foresee", "lesson", "lessons", "luck", "rehearsal", "road", "said", "saw", "saying", "says", "somebody", "spared"),
    *("stranger", "strangers", "tell", "tells", "told", "whom", "witness", "witnesses"),
)

# Words that help texts, docstrings, comments and cards do not use.
INSTEAD_IN_TEXT = {word: INSTEAD[word] for word in _EVERYWHERE} | {
    "alike": "the same",
    "beside": "in addition to, next to",
    "by heart": "memorised",
    "gone on with": "resumed",
    "goes on": "continues",
    "handed in": "support image",
    "people who ask": "forget identities",
    "those who ask": "forget identities",
    "those who stay": "retain identities",
    "whatever": "any",
}
