"""`train --download`: a named data set whose folder is not found is replaced by its copy on the Hub."""

from __future__ import annotations

import dataclasses

from ..errors import UsageError
from .command_options import TrainOptions


def with_hub_copy(options: TrainOptions) -> TrainOptions:
    """Return the options of a training on the copy of its data set on the Hub; the same ones if the folder of the data set is found.

    Raises:
        UsageError: `--download` is given, and no copy of the data set is known, or its folder is named as well.
    """
    if not options.download:
        return options
    if options.data_dir:
        raise UsageError("--data-dir names the folder of the data set, so --download has nothing to fetch; give one of them.")
    from ..data.load import named_layout

    layout = named_layout(options.dataset)
    if layout is None or layout.hub_copy is None:
        raise UsageError(f"--download fetches the copy of a named data set on the Hub, and none of '{options.dataset}' is known; omit it.")
    dataset = options.dataset if layout.usual_folder() else layout.hub_copy.repo_id
    return dataclasses.replace(options, dataset=dataset, download=False)


def download_question(options: TrainOptions) -> str | None:
    """Return the question to ask before a data set is downloaded; None if `--download` downloads nothing.

    Raises:
        UsageError: See `with_hub_copy`.
    """
    from ..data.load import named_layout

    layout = named_layout(options.dataset)
    if with_hub_copy(options).dataset == options.dataset or layout is None or layout.hub_copy is None:
        return None
    copy = layout.hub_copy
    return f"No folder of '{options.dataset}' was found. Train on {copy.repo_id} from the Hub ({copy.size} to download, if not cached)?"
