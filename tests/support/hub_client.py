"""A process that pushes and pulls runs, and reads histories, with the real client of the Hub, against a Hub on the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .hub_server import Hub

# HF_ENDPOINT is read when the client is imported, so the client runs in a separate process: one request and one answer per line.
CLIENT = """
import json, os, sys
from oneshui_hf.errors import OneshuiError
from oneshui_hf.reporting import Reporter
from oneshui_hf.runs import Run
from oneshui_hf.stages.publishing.options import PullOptions, PushOptions
from oneshui_hf.stages.publishing.model import pull, push

class RecordingReporter(Reporter):
    def __init__(self): self.warnings, self.notes = [], []
    def warn(self, message): self.warnings.append(message)
    def note(self, message): self.notes.append(message)

print(json.dumps(sorted({"torch", "transformers", "huggingface_hub"} & set(sys.modules))), flush=True)
from huggingface_hub import constants
endpoint = constants.ENDPOINT
for line in sys.stdin:
    step = json.loads(line)
    what, token, run = step.pop("what"), step.pop("token"), step.pop("run", None)
    constants.HF_HUB_OFFLINE = step.pop("offline", False)
    if step.pop("killed", False):  # at the moment when the run is sent, or has been downloaded
        import huggingface_hub, signal
        from oneshui_hf.hub import Repository
        from oneshui_hf.stages.publishing import model
        Repository.commit = model._check_downloaded_run = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    constants.ENDPOINT = step.pop("endpoint", endpoint)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    from oneshui_hf.stages.publishing import history
    history.MAX_COMMITS = step.pop("max_commits", 1000)
    reporter = RecordingReporter()
    try:
        if what == "push":
            step |= {"token": step.pop("token_option")} if "token_option" in step else {}
            answer = {"result": push(Run.open(run), PushOptions(**step), reporter)}
        elif what in ("train", "retrain"):
            from oneshui_hf import api
            answer = {"result": str(getattr(api, what)(**step, **({"run": run} if run else {}), reporter=reporter).path)}
        elif what in ("list_revisions", "squash_history", "list_derived_models"):
            from oneshui_hf import api_hub
            answer = {"result": getattr(api_hub, what)(**step)}
        else:
            answer = {"result": str(pull(PullOptions(**step), reporter).path)}
    except OneshuiError as error:
        answer = {"error": str(error)}
    except Exception as error:
        answer = {"crash": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer | {"warnings": reporter.warnings, "notes": reporter.notes}), flush=True)
"""


class Client:
    """A process with the Hub's client."""

    def __init__(self, hub: Hub, home: Path) -> None:
        private = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=environment | private,
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.heavy_imports = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def __call__(self, what: str, token: str | None = "hf_owner", **step: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"what": what, "token": token, **step}, default=str) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        assert "crash" not in answer, answer["crash"]
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
