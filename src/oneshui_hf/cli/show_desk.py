"""How the request desk's results are printed on stdout. A name is printed on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..desk.entries import estimated_people, estimated_points
from ..stages.requests.verdict import photo_line
from .printing import number, print_line, table

RECHECKS = {
    "like an unseen identity": "it looks like an unseen identity",
    "no longer": "it no longer looks like an unseen identity",
    "not yet": "it does not look like an unseen identity, and did not in the receipt",
    "too much": "the loss is larger than that of unseen identities (too much)",
    "unknown": "the range of unseen identities is not known, so there is no verdict",
}
RELAPSE = {
    "weights": "the model is from before the request",
    "split": "the person is in its training set",
    "range": "the loss is below the range",
    "receipt": "at least half of what the request changed is undone",
}
FOUND_BY = {
    "name": "by name",
    "photo": "by the face on the photo",
    "operator": "as the operator states",
    "photo alone": "by the photo alone, without a name",
}


def received(result: Mapping[str, Any]) -> None:
    """Print the number of a new request and its due date."""
    print_line(f"Request {result['request']}, received {result['received']}, due {result['due']}.")


def requests(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a row per request. Overdue ones are red on a terminal, and marked everywhere."""
    if not rows:
        print_line("There are no such requests.")
        return
    cells = [
        [row["request"], row["received"], row["due"], row["state"], "-" if row["days_left"] is None else str(row["days_left"]), _notes(row)]
        for row in rows
    ]
    overdue = [place for place, row in enumerate(rows) if row["overdue"]]
    table(["request", "received", "due", "state", "days left", "notes"], cells, text=(0, 1, 2, 3, 5), red=overdue)


def _notes(row: Mapping[str, Any]) -> str:
    return ", ".join(name for name in ("overdue", "extended", "erased") if row[name])


def request(row: Mapping[str, Any]) -> None:
    """Print the state of a request."""
    days = "" if row["days_left"] is None else f", due {row['due']} ({row['days_left']} days left)"
    notes = f" ({_notes(row)})" if _notes(row) else ""
    print_line(f"Request {row['request']} is {row['state']}{days}{notes}.")


def identified(result: Mapping[str, Any]) -> None:
    """Print who the person is, and what this rests on."""
    if result["found_by"] is None:
        print_line(f"Request {result['request']}: unknown. {result['basis']}")
    else:
        shown = result["identity"] if sys.stdout.isatty() else "(its name is printed on a terminal only)"
        who = f"identity {shown}, " if result["identity"] is not None else ""
        print_line(f"Request {result['request']}: {who}{FOUND_BY[result['found_by']]}. {result['basis']}")
    if match := result["match"]:
        rates = f"false matches of unseen identities: {match['false_match_rate']:.1%} (at most {match['false_match_rate_upper']:.1%})"
        print_line(f"Similarity {number(match['similarity'], 3)} of {match['threshold']:.3f} needed; {rates}.")


def without_name(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of an identification as JSON, without the name."""
    return {name: value for name, value in result.items() if name != "identity"}


def applied(result: Mapping[str, Any]) -> None:
    """Print the new run, and what it does to the photo of each request; or what would be done."""
    ids = ", ".join(row["request"] for row in result["requests"])
    if result.get("dry_run"):
        print_line(f"Batch {result['batch']} would apply {result['method']} to {ids} and write {result['run']}. Nothing was changed.")
        if estimate := result["estimate"]:
            refused = estimated_points(estimate) > estimate["budget"]
            print_line(_estimated(estimate) + (" The batch would be refused: a retraining is due." if refused else ""))
        return
    print_line(f"Batch {result['batch']}: {result['method']} for {ids}. New run: {result['run']}")
    for row in result["requests"]:
        print_line(f"{row['request']}: {photo_line(row)} Receipt: {row['receipt']}")
    if estimate := result["estimate"]:
        print_line(_estimated(estimate))
        measured = result["val_loss"]
        print_line(
            "Measured on val: not possible, since the data was not at hand or logits are not finite."
            if measured is None
            else f"Measured on val: {measured:.2f} points lost."
        )
    if result["destroyed"]:
        print_line(f"Destroyed the data prepared for {result['destroyed']} of the people.")
    print_line(f"Head of the ledger, to keep elsewhere as the anchor: {result['head']}")


def _estimated(estimate: Mapping[str, Any]) -> str:
    """Return one sentence about what it costs the others that people are forgotten."""
    beyond = f"; more than the {estimate['simulated']} that were simulated" if estimate["people"] > estimate["simulated"] else ""
    losses = f"{estimate['retain']:.2f} points on retain, {estimate['val']:.2f} on val"
    return f"Estimated loss of the others with {estimated_people(estimate)} forgotten: {losses}; budget {estimate['budget']:g}{beyond}."


def rechecked(result: Mapping[str, Any]) -> None:
    """Print the verdict on each photo, what shows a relapse, and what was not examined."""
    for row in result["requests"]:
        ends = row["unseen"]
        unseen = f"; 90 % of photos of unseen identities have {ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
        earlier = f" ({number(row['loss_before'], 3)} before the request, {number(row['loss_after'], 3)} after it)"
        receipt = earlier if row["labels"] != "predicted" else ""
        findings = f" ({'; '.join(RELAPSE[name] for name in row['shown_by'])})" if row["shown_by"] else ""
        print_line(f"{row['request']}: loss {number(row['loss'], 3)}{receipt}{unseen}; {RECHECKS[row['verdict']]}{findings}.")
    for sentence in dict.fromkeys(sentence for row in result["requests"] for sentence in row["not_measured"]):
        concerned = [row["request"] for row in result["requests"] if sentence in row["not_measured"]]
        print_line(f"{'All' if len(concerned) == len(result['requests']) else ', '.join(concerned)}: {sentence}")
    if result["skipped"]:
        print_line(f"Not examined, since the photo was erased: {', '.join(result['skipped'])}.")
    if any("range" in row["shown_by"] for row in result["requests"]):
        print_line("By chance, 1 in 20 photos of unseen identities is below the range.")
    print_line(f"Head of the ledger, to keep elsewhere as the anchor: {result['head']}")


def relapse(result: Mapping[str, Any]) -> str | None:
    """Return why a recheck fails: a person is remembered again; None if no one is."""
    again = [row["request"] for row in result["requests"] if row["verdict"] == "no longer"]
    if not again:
        return None
    people = f"{len(again)} of {len(result['requests'])} people are remembered again"
    return f"{people} by {result['run']}: {', '.join(again)}. Return to the model of their receipts, or train with --suppress."


def served(result: Mapping[str, Any]) -> None:
    """Print which requests are served."""
    print_line(f"In service: {result['run']}, for {', '.join(result['requests'])}.")


def letter(result: Mapping[str, Any]) -> None:
    """Print the letter, and where it is."""
    for line in str(result["letter"]).splitlines():
        print_line(line)
    if result["file"]:
        print_line(f"Recorded: {result['file']}. Complete a copy of it and send it; the file itself must stay as it is.")


def verified(result: Mapping[str, Any]) -> None:
    """Print what holds, what does not, and what was not checked."""
    for problem in result["problems"]:
        print_line(f"Problem: {problem}")
    for sentence in result["unchecked"]:
        print_line(f"Not checked: {sentence}")
    if result["head"]:
        print_line(f"{result['entries']} entries, {result['requests']} requests. Head: {result['head']}")
    if result["public_key"]:
        print_line(f"Signed by the key {result['public_key']}")
    if not result["problems"]:
        print_line(f"The {result['kind']} holds.")


def failure(result: Mapping[str, Any]) -> str | None:
    """Return why a verification fails; None if everything holds."""
    count = len(result["problems"])
    return f"The {result['kind']} does not hold: {count} problem{'s' if count > 1 else ''}, listed above." if count else None
