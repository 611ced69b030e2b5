"""The Space of a published model: the page of `oneshui app`, with a copy of the model's public files.

oneshui push RUN USER/NAME --space USER/PAGE

A Space has no vault and no request desk, and gets no data of single people, not even encrypted: it only tries methods that need nothing but
the photo. It is as private as the model. The copy in it runs without the Hub and without a token.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...files import link_or_copy, scratch_folder, write_bytes
from ...hub import Repository
from ...methods.identity_store import BLOBS, HEADER, INDEX
from ...reporting import Reporter
from ...runs import METHODS, versions
from .options import PushOptions

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FOLDER = "model"  # of the model's files, in the Space; `app.space` reads it
GRADIO = "6.31.0"  # the Hub installs this version; `pyproject.toml` allows it
PAGE, REQUIREMENTS, CARD = "app.py", "requirements.txt", "README.md"
TEMPLATE = "space.md"
SCRIPT = '''"""The page for one photo, made by `oneshui push --space`. It serves the model in the folder next to it."""

from oneshui_hf.app.space import serve_space

if __name__ == "__main__":
    serve_space(__file__)
'''


def check_space(options: PushOptions) -> None:
    """Check that a Space can be pushed together with the model.

    Raises:
        UsageError: The model is pushed as a pull request.
    """
    if options.space and options.create_pr:
        raise UsageError("--space pushes a Space of your own, so it excludes --create-pr; give one of them.")


def open_space(api: HfApi, name: str, model: Repository, reporter: Reporter) -> Repository:
    """Create the Space, or open an existing one. It is private unless the model is public.

    Raises:
        UsageError: The Space is public, and the model is private.
    """
    return Repository.open_or_create(api, name, kind="space", private=not model.public, revision=None, reporter=reporter)


def push_space(
    space: Repository, model: Repository, public: Path, near: Path, is_published_file: Callable[[str], bool], reporter: Reporter
) -> str:
    """Send the page and the public files of a model in one commit, and return the commit's URL.

    Args:
        space: The Space.
        model: The repository of the model.
        public: Folder with the public files of the run, as they were sent to the model's repository.
        near: A folder on the same file system, for the files that are sent.
        is_published_file: Returns whether a file of a model has a name that a push writes.
        reporter: For progress.
    """

    def is_space_file(file: str) -> bool:
        folder, _, inside = file.partition("/")
        return file in (PAGE, REQUIREMENTS, CARD) or (folder == FOLDER and is_published_file(inside))

    with scratch_folder(near, "space") as folder:
        write_space(folder, public, model.name)
        return space.commit(folder, None, is_space_file, reporter)


def write_space(folder: Path, public: Path, repo_id: str) -> None:
    """Write the files of a Space into an empty folder.

    Args:
        folder: The folder.
        public: Folder with the public files of a run.
        repo_id: The repository of the model.
    """
    for file in sorted(file for file in public.rglob("*") if file.is_file()):
        inside = file.relative_to(public)
        if inside.name in (INDEX, BLOBS) or inside == Path(CARD):
            continue
        target = folder / FOLDER / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(file, target)
    methods = sorted(file.parent.name for file in (folder / FOLDER / METHODS).glob(f"*/{HEADER}"))
    version = versions()["oneshui-hf"]
    write_bytes(folder / PAGE, SCRIPT.encode())
    write_bytes(folder / REQUIREMENTS, f"oneshui-hf[app]=={version}\n".encode())
    write_bytes(folder / CARD, _card(repo_id, version, methods).encode())


def _card(repo_id: str, version: str, methods: list[str]) -> str:
    import yaml
    from jinja2 import Environment, StrictUndefined

    metadata = {
        "title": "Forget a person",
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": PAGE,
        "models": [repo_id],
        "tags": ["machine-unlearning", "oneshui"],
        "pinned": False,
    }
    text = resources.files("oneshui_hf.cards").joinpath(TEMPLATE).read_text(encoding="utf-8")
    body = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n{body.render(repo_id=repo_id, version=version, methods=methods)}"
