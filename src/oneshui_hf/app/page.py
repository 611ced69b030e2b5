"""The page: its tabs, and what its buttons do. Gradio is imported here, after `security.private_uploads` has set its variables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from ..errors import OneshuiError, UsageError
from . import rendering
from .choices import first_choice, require_choice
from .evaluated import compare_methods
from .examples import Example
from .forgetting import NOT_CHECKED, request_rows
from .messages import CollectingReporter, error_sentence
from .photos import Photo
from .sessions import Sessions
from .workbench import Workbench

T = TypeVar("T")

NO_PHOTO = "Give a photo first."
FORGET = "Forget this person\N{HORIZONTAL ELLIPSIS}"
QUICK: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
WORKING: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "model"}
SWEEP = (30, 60)  # every 30 seconds, files that are older than 60 are removed: uploads of a tab that was closed meanwhile
ANNOUNCE = "() => document.querySelectorAll('.oh-live').forEach(part => part.setAttribute('aria-live', 'polite'))"
SHOW_RESULT = """() => {
  const cards = [...document.querySelectorAll('.oh-result .oh-card')];
  const part = document.querySelector('.oh-message') || cards.find(card => card.offsetParent);
  const place = part && part.getBoundingClientRect();
  if (place && (place.top < 0 || place.top > window.innerHeight - 160)) part.scrollIntoView({block: 'start'});
}"""  # on a narrow screen, what changed is below the buttons
QUESTION = (
    "Forgetting writes a new model and cannot be undone for the data that was prepared for this person. The request, with the photo and "
    "the name encrypted, is recorded at the request desk."
)


def take_upload(payload: Any) -> bytes | None:
    """Return the bytes of an uploaded photo, and remove its file: it is not needed any more."""
    if payload is None or payload.path is None:
        return None
    file = Path(payload.path)
    try:
        return file.read_bytes()
    except OSError:  # removed since
        return None
    finally:
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Gradio makes a folder for each upload
            file.parent.rmdir()


class Page:
    """The handlers of the page. Each returns what its outputs show; an error is shown as a sentence."""

    def __init__(self, workbench: Workbench, sessions: Sessions) -> None:
        """Remember what the handlers use.

        Args:
            workbench: The model.
            sessions: What the visitors have on the page.
        """
        self._workbench, self._sessions = workbench, sessions

    def show_photo(self, data: bytes | None, request: gr.Request) -> tuple[Any, ...]:
        """Return the emptied input, an error or nothing, the person, the prediction, the chosen method, and no identity."""
        return self._show(data, None, request)

    def show_example(self, request: gr.Request) -> tuple[Any, ...]:
        """Return the same as `show_photo` for the next generated photo, with its identity."""
        session = self._sessions.of(request.session_hash)
        example = self._workbench.examples[session.examples % len(self._workbench.examples)]
        session.examples += 1
        return self._show(example.data, example, request)

    def _show(self, data: bytes | None, example: Example | None, request: gr.Request) -> tuple[Any, ...]:
        """Return what the outputs of `show_photo` show; those of an earlier request are emptied."""
        session = self._sessions.of(request.session_hash)
        session.photo, session.forgotten = None, None
        predicted: list[str] = []
        is_known = example is not None

        def examine() -> str:
            nonlocal is_known
            photo, reporter = Photo.of(_require(data)), CollectingReporter()
            found = self._workbench.examine(photo, reporter)
            session.photo = photo
            predicted.append(rendering.prediction(found))
            is_known = is_known or (found.match is not None and found.match.accepted)
            return rendering.person_on(photo, found, reporter.sentences, example.sentence if example else None)

        message, person = _guarded(examine)
        method = first_choice(self._workbench.choices, identity_known=is_known)
        chosen, identity = gr.update(value=method), gr.update(value=example.identity if example else "")
        shown = (None, message, person, "".join(predicted), chosen, identity)
        return shown if self._workbench.photo_alone else (*shown, "", "", gr.update(visible=False), *self.cancel())

    def try_method(self, name: str | None, identity: str, request: gr.Request) -> tuple[str, Any]:
        """Return an error or nothing, and what forgetting would change; after an error, what is shown stays."""
        photo = self._sessions.of(request.session_hash).photo

        def compute() -> str:
            reporter, given = CollectingReporter(), _require(photo)
            choice = require_choice(self._workbench.choices, name)
            found = self._workbench.try_method(given, choice, _text(identity), reporter)
            return rendering.trial(given, found, self._workbench.input_size, reporter.sentences)

        message, changes = _guarded(compute)
        return message, changes or gr.skip()

    def ask_first(self, name: str | None, request: gr.Request) -> tuple[str, Any, Any]:
        """Return an error or nothing, and show the first question if there is a photo."""
        photo = self._sessions.of(request.session_hash).photo

        def check() -> str:
            _require(photo)
            require_choice(self._workbench.choices, name)
            return ""

        message, _ = _guarded(check)
        return message, gr.update(visible=not message), gr.update(visible=False)

    def ask_second(self, checked: bool) -> tuple[str, Any, Any]:
        """Return an error or nothing, and show the second question if the photo was checked."""
        message = "" if checked else rendering.error_box(NOT_CHECKED)
        return message, gr.update(visible=not checked), gr.update(visible=checked)

    def cancel(self) -> tuple[Any, Any, bool]:
        """Hide both questions."""
        return gr.update(visible=False), gr.update(visible=False), False

    def forget(self, name: str | None, identity: str, checked: bool, request: gr.Request) -> tuple[str, str, Any, Any, Any]:
        """Return an error or nothing, the result, the hidden questions, and the button that puts the new model into service."""
        session = self._sessions.of(request.session_hash)

        def apply() -> str:
            reporter = CollectingReporter()
            choice = require_choice(self._workbench.choices, name)
            session.forgotten = self._workbench.forget(_require(session.photo), choice, _text(identity), checked=checked, reporter=reporter)
            return rendering.forgotten(session.forgotten, reporter.sentences)

        message, result = _guarded(apply)
        return message, result, gr.update(visible=False), gr.update(value=False), gr.update(visible=not message)

    def heading(self) -> str:
        """Return the top of the page."""
        run = self._workbench.run
        return rendering.heading(run.path.name, run.task, len(run.labels), photo_alone=self._workbench.photo_alone)

    def serve(self, request: gr.Request) -> tuple[str, str, Any, Any, str]:
        """Return an error or nothing, the letter, the hidden button, the methods of the new model, and the top of the page."""
        session = self._sessions.of(request.session_hash)

        def answer() -> str:
            if session.forgotten is None:
                raise UsageError("Forget a person first.")
            letter = self._workbench.serve_and_answer(session.forgotten, CollectingReporter())
            return rendering.answered(session.forgotten.request, letter, str(session.forgotten.run.path))

        message, result = _guarded(answer)
        return message, result, gr.update(visible=bool(message)), self.methods(), self.heading()

    def methods(self) -> Any:
        """Return the methods that can be chosen now."""
        choices = [(rendering.choice_label(choice), choice.name) for choice in self._workbench.choices]
        return gr.update(choices=choices, value=first_choice(self._workbench.choices, identity_known=False))

    def ask_identity(self, name: str | None) -> Any:
        """Show the field for the identity if the method acts on one."""
        return gr.update(visible=any(choice.name == name and choice.needs_identity for choice in self._workbench.choices))

    def requests(self) -> str:
        """Return the requests of the desk."""
        message, table = _guarded(lambda: rendering.requests_table(request_rows(self._workbench.desk)))
        return message or table

    def leave(self, request: gr.Request) -> None:
        """Forget the visitor: the tab was closed."""
        self._sessions.drop(request.session_hash)


def _guarded(action: Callable[[], str]) -> tuple[str, str]:
    """Return an error as a sentence, or nothing and the result."""
    try:
        return "", action()
    except Exception as error:
        sentence = error_sentence(error)
        if sentence is None:
            raise
        return rendering.error_box(sentence), ""


def _require(given: T | None) -> T:
    if given is None:
        raise OneshuiError(NO_PHOTO)
    return given


def _text(identity: str | None) -> str | None:
    return (identity or "").strip() or None


def build_page(workbench: Workbench, sessions: Sessions) -> gr.Blocks:
    """Return the page.

    Args:
        workbench: The model.
        sessions: What the visitors have on the page.
    """
    page = Page(workbench, sessions)
    with gr.Blocks(title="oneshui", analytics_enabled=False, delete_cache=SWEEP) as blocks:
        heading = gr.HTML(page.heading())
        if workbench.photo_alone:
            method = _photo_tab(page, workbench, heading)
        else:
            with gr.Tab("One photo"):
                method = _photo_tab(page, workbench, heading)
            with gr.Tab("Requests") as tab:
                table = gr.HTML(elem_classes="oh-live")
                refresh = gr.Button("Refresh")
            for event in (tab.select, refresh.click):
                event(page.requests, None, table, **QUICK)
            with gr.Tab("Methods"):
                _comparison_tab(workbench)
        for shown, part in ((page.methods, method), (page.heading, heading)):  # another visitor may have put a new model into service
            blocks.load(shown, None, part, **QUICK)
        blocks.load(None, js=ANNOUNCE, api_visibility="private")
        blocks.unload(page.leave)
    return blocks


def _photo_tab(page: Page, workbench: Workbench, heading: gr.HTML) -> gr.Radio:
    """Add the photo, the methods and the buttons; return the methods."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            photo = gr.Image(label="Photo of the person: drop, paste, choose or take one", sources=["upload", "webcam", "clipboard"],
                             type="filepath", height=260, buttons=[], elem_id="oh-photo")  # fmt: skip
            photo.preprocess = take_upload  # type: ignore[method-assign]  # our own decoding, and no copy on the disk
            example = gr.Button("Use a generated face", visible=bool(workbench.examples), elem_id="oh-example")
            method = gr.Radio(label="Method", elem_classes="oh-methods", elem_id="oh-method", interactive=True)
            identity = gr.Textbox(label="Identity, as named in the training data", visible=False, max_length=200, elem_id="oh-identity",
                                  info="If it is empty, the face is compared with the enrolled people.")  # fmt: skip
            attempt = gr.Button("Try", variant="primary", elem_id="oh-try")
            ask = None if workbench.photo_alone else gr.Button(FORGET, variant="stop", elem_id="oh-forget")
        with gr.Column(scale=3, min_width=300):
            message = gr.HTML(elem_classes="oh-live")
            emptied = _forget_controls(page, ask, message, method, identity, heading) if ask else []
            person = gr.HTML(elem_classes=["oh-live", "oh-result"])
            view = gr.HTML(rendering.steps(), elem_classes=["oh-live", "oh-result"])
    seen = [photo, message, person, view, method, identity, *emptied]
    photo.input(page.show_photo, photo, seen, **WORKING).then(None, js=SHOW_RESULT)  # an upload, a pasted and a taken photo
    example.click(page.show_example, None, seen, **WORKING).then(None, js=SHOW_RESULT)
    method.change(page.ask_identity, method, identity, **QUICK)
    attempt.click(page.try_method, [method, identity], [message, view], **WORKING).then(None, js=SHOW_RESULT)
    return method


def _forget_controls(page: Page, ask: gr.Button, message: gr.HTML, method: gr.Radio, identity: gr.Textbox, heading: gr.HTML) -> list[Any]:
    """Add the two questions and the results of forgetting; return what a new photo empties or hides, the questions included."""
    with gr.Group(visible=False) as first:
        gr.HTML(f"<h2>Forget this person?</h2><p>{QUESTION}</p>", padding=True)
        checked = gr.Checkbox(label="I have checked that the photo shows the person who asks.", elem_id="oh-checked")
        with gr.Row():
            go_on = gr.Button("Continue", elem_id="oh-continue")
            stop = gr.Button("Cancel")
    with gr.Group(visible=False) as second:
        gr.HTML("<h2>Really forget this person now?</h2><p>There is no button that takes it back.</p>", padding=True)
        with gr.Row():
            forget = gr.Button("Forget now", variant="stop", elem_id="oh-now")
            stop_again = gr.Button("Cancel")
    result = gr.HTML(elem_classes=["oh-live", "oh-result"])
    serve = gr.Button("The new model is in service: write the letter", visible=False, elem_id="oh-serve")
    letter = gr.HTML(elem_classes=["oh-live", "oh-result"])
    ask.click(page.ask_first, method, [message, first, second], **QUICK)
    go_on.click(page.ask_second, checked, [message, first, second], **QUICK)
    for event in (stop.click, stop_again.click, method.change, identity.change):  # what was answered is about the earlier choice
        event(page.cancel, None, [first, second, checked], **QUICK)
    forget.click(page.forget, [method, identity, checked], [message, result, second, checked, serve], **WORKING).then(None, js=SHOW_RESULT)
    serve.click(page.serve, None, [message, letter, serve, method, heading], **WORKING).then(None, js=SHOW_RESULT)
    return [result, letter, serve, first, second, checked]


def _comparison_tab(workbench: Workbench) -> None:
    """Add the tables that compare methods, each with a choice of the column that it is sorted by."""
    try:
        tables = compare_methods(workbench.run, workbench.options.benchmark)
    except OneshuiError as error:
        gr.HTML(rendering.error_box(str(error)))
        return
    if not tables:
        gr.HTML(rendering.nothing_to_compare(str(workbench.run.path)))
    for found in tables:
        with gr.Row():
            column = gr.Dropdown(list(found.columns), value=found.columns[0], label="Sort by", interactive=True)
            order = gr.Radio(["ascending", "descending"], value="ascending", label="Order", interactive=True)
        table = gr.HTML(rendering.comparison_table(found, found.columns[0], descending=False), elem_classes="oh-live")

        def resort(column: str, order: str, found: Any = found) -> str:
            return rendering.comparison_table(found, column, descending=order == "descending")

        gr.on([column.change, order.change], resort, [column, order], table, show_progress="hidden", api_visibility="private")
