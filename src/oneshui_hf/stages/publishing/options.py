"""The options of publication and download. This module imports nothing heavy, so that `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass

from ...options import option
from ..command_options import DataOptions

HUB, RELATED = "Hub", "Models of the same original"  # panels of --help


@dataclass(frozen=True)
class PushOptions:
    """Which run is published, and where."""

    repo_id: str = option(help="Repository on the Hub, as USER/NAME.", panel=HUB)
    run: str | None = option(None, "Run to publish.", path=True)
    private: bool = option(True, "Make a new repository private.", flags=("--private/--public",), panel=HUB)
    with_people: bool = option(False, "Also publish what was prepared per identity, encrypted and without the secrets.", panel=HUB)
    people_are_personal_data: bool = option(False, "Required by --with-people: confirms that personal data are published.", panel=HUB)
    min_batch: int = option(
        1, "Publish an unlearned model with --public only if it forgets at least this many identities.", minimum=1, panel=RELATED
    )
    difference_is_public: bool = option(
        False,
        "Publish an unlearned model although its original is public, or the reverse: the difference of the two shows who was forgotten.",
        panel=RELATED,
    )
    space: str | None = option(
        None, "Also publish the page of `oneshui app` for this model as a Space, as USER/NAME. It has a copy of the weights.", panel=HUB
    )
    revision: str | None = option(None, "Branch to push to. Created if it does not exist.", panel=HUB)
    commit_message: str | None = option(None, "Message of the commit.", panel=HUB)
    create_pr: bool = option(False, "Open a pull request instead of pushing. The repository must exist.", panel=HUB)
    license: str | None = option(
        None, "Licence on the card: an identifier of the Hub, such as apache-2.0. 'unknown' by default.", panel=HUB
    )
    tags: str | None = option(None, "Further tags on the card, separated by commas, or repeat the option.", joined=True, panel=HUB)
    token: str | None = option(
        None,
        "Token of the Hub. That of `hf auth login` or HF_TOKEN by default, which other users of the machine cannot see.",
        secret=True,
        panel=HUB,
    )


@dataclass(frozen=True)
class PullOptions:
    """Which run is fetched, and where to."""

    repo_id: str = option(help="Repository on the Hub, as USER/NAME.", panel=HUB)
    revision: str | None = option(None, "Branch, tag or commit. main by default.", panel=HUB)
    output_dir: str | None = option(None, "Folder of the run. runs/NAME by default.", path=True)
    overwrite: bool = option(False, "Replace an existing run.")


@dataclass(frozen=True, kw_only=True)
class DataPushOptions(DataOptions):
    """Where a data set is published, and what of it."""

    repo_id: str = option(help="Repository on the Hub, as USER/NAME.", panel=HUB)
    keep_names: bool = option(False, "Publish identities and file names unchanged. Numbers by default.", panel=HUB)
    private: bool = option(True, "Make a new repository private.", flags=("--private/--public",), panel=HUB)
    revision: str | None = option(None, "Branch to push to. Created if it does not exist.", panel=HUB)
    commit_message: str | None = option(None, "Message of the commit.", panel=HUB)
