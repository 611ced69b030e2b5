"""The options of `oneshui app`. This module imports nothing heavy, so that `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import option
from .desk_options import DeskOptions

SHOWN, SERVER = "What is shown", "Server"  # panels of --help
MAX_UPLOAD_MB = 64  # as much as a request desk keeps of a photo


@dataclass(frozen=True, kw_only=True)
class AppOptions(DeskOptions):
    """The model, what the page shows besides, and who can reach it."""

    run: str | None = option(None, "Run of the model. The newest original by default.", path=True)
    samples: str | None = option(
        None, "Folder with photos of people who allow it: Try measures what forgetting costs them.", path=True, panel=SHOWN
    )
    benchmark: str | None = option(
        None, "Folder of a benchmark whose methods are compared. By default the evaluated runs next to RUN.", path=True, panel=SHOWN
    )
    face_encoder: str | None = option(
        None, "Encoder that the identities were enrolled with. That of the preparation by default.", path=True, panel=SHOWN
    )
    host: str | None = option(None, "Address to listen on, for other machines. Needs --auth. 127.0.0.1 by default.", panel=SERVER)
    port: int | None = option(None, "Port. The first free one from 7860 on by default.", minimum=1, maximum=65535, panel=SERVER)
    auth: str | None = option(
        None, "Ask for a user name and a password: USER:FILE, where FILE contains the password and only you can read it.", panel=SERVER
    )
    max_upload_mb: int = option(20, "Largest photo that is accepted, in MB.", minimum=1, maximum=MAX_UPLOAD_MB, panel=SERVER)
