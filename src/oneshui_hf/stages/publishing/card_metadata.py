"""What `push` lets the user add to a model card: its licence and tags. This module imports nothing heavy."""

from __future__ import annotations

import re

from ...errors import UsageError, did_you_mean
from ...name_lists import split_names
from .options import PushOptions

# The identifiers that the Hub accepts: https://huggingface.co/docs/hub/repositories-licenses
LICENSES = (
    *("apache-2.0", "mit", "openrail", "openrail++", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m"),
    *("bigscience-bloom-rail-1.0", "deepfloyd-if-license", "fair-noncommercial-research-license", "h-research", "intel-research"),
    *("afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0"),
    *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0"),
    *("cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0"),
    *("eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "isc"),
    *("lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl", "open-mdw", "osl-3.0", "postgresql", "ofl-1.1"),
    *("ncsa", "unlicense", "zlib", "pddl", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma"),
    *("unknown", "other"),
)
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:+/-]{0,63}")
TOKEN = re.compile(r"[!-~]{1,200}")  # what a header of a request can contain


def check_card_options(options: PushOptions) -> None:
    """Check the licence, the tags and the token of a push. No message contains the token.

    Raises:
        UsageError: The licence is not one of the Hub's identifiers, a tag has other characters, or the token cannot be one.
    """
    if options.license is not None and options.license not in LICENSES:
        raise UsageError(
            f"--license takes an identifier of the Hub, such as apache-2.0, or 'other', not '{options.license}'."
            f"{did_you_mean(options.license, LICENSES)}"
        )
    for tag in user_tags(options):
        if not TAG.fullmatch(tag):
            raise UsageError(f"--tags takes words of letters, digits and . _ : + / -, at most 64 characters each, not '{tag}'.")
    if options.token is not None and not TOKEN.fullmatch(options.token):
        raise UsageError("--token is not a token of the Hub: it is empty, or has spaces or other characters that no token has.")


def user_tags(options: PushOptions) -> tuple[str, ...]:
    """Return the tags of `--tags`."""
    return tuple(split_names(options.tags or ""))
