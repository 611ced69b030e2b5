"""The letter to the person, in plain language, from the template `cards/letter.md`. The operator adds names and sends it."""

from __future__ import annotations

from datetime import date
from importlib import resources

from ..errors import OneshuiError
from ..printable import escape_markdown
from .entries import LIKE_UNSEEN, shows_no_change
from .states import Request

TEMPLATE = "letter.md"
LETTERS = "letters"  # the folder, in that of the desk
RETENTION = "[date, or the end of the period that the law requires]"
TESTS = {
    LIKE_UNSEEN: "we gave the new version the photo that you sent. Its error on this photo is now in the usual range of "
    "people that it was never trained on.",
    "not yet": "we gave the new version the photo that you sent. Its error on this photo is still smaller than usual for people "
    "that it was never trained on.",
    "too much": "we gave the new version the photo that you sent. Its error on this photo is now larger than usual for people "
    "that it was never trained on.",
    "unknown": "we checked that the new version is the one that the procedure made. We have no range of other people to compare your "
    "photo with.",
}


def write_letter(request: Request, today: date) -> str:
    """Return the letter that answers a request.

    Args:
        request: A request that is refused or served.
        today: The date of the letter.

    Raises:
        OneshuiError: The request is in another state, or its entries are incomplete.
    """
    from jinja2 import Environment, StrictUndefined

    refused, applied, verified, served = (request.last(kind) for kind in ("refused", "applied", "verified", "served"))
    about: dict[str, object] = {"today": today.isoformat(), "received": request.received.isoformat(), "id": request.id}
    about |= {"retention": RETENTION, "refusal": None}
    if request.state == "refused" and refused is not None:
        unknown = request.last("unidentified")
        about |= {"refusal": escape_markdown(refused.content["reason"])}
        about |= {"no_data": escape_markdown(unknown.content["basis"]) if unknown else None}
    elif applied is not None and verified is not None and served is not None:
        people, destroyed = applied.content["people_in_batch"], applied.content["destroyed"]
        about |= {"applied": applied.time.date().isoformat(), "served": served.time.date().isoformat()}
        about |= {"method": escape_markdown(applied.content["method"]), "others": people - 1, "destroyed": destroyed == people}
        about |= {"test": TESTS[verified.content["verdict"]], "no_change": shows_no_change(verified.content)}
    else:
        raise OneshuiError(f"{request.id} is {request.state}, so there is nothing to write to the person yet.")
    text = resources.files(f"{__package__.rpartition('.')[0]}.cards").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text).render(about)
