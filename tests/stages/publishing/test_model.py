"""Publication against a Hub on the loopback interface: what arrives, what never leaves, what is said when it fails."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshui_hf.vault import vault_root
from support.hub_server import Hub

TOKEN = "quimby7319"  # stands in every name, path and text that must not leave
PHOTO = b"\xff\xd8\xff" + random.Random(0).randbytes(900)
FOLDER = f"/home/{TOKEN}/faces"
LABELS = ("Smiling", "Young", "Glasses")
GRADIENT_ASCENT, METAUNLEARN = "gradient-ascent", "metaunlearn"

# HF_ENDPOINT is read when the client is imported, so it has a process of its own: a request a line, an answer a line.
CLIENT = """
import json, os, sys
from oneshui_hf.errors import OneshuiError
from oneshui_hf.reporting import Reporter
from oneshui_hf.runs import Run
from oneshui_hf.stages.command_options import PullOptions, PushOptions
from oneshui_hf.stages.publishing.model import pull, push

class Heard(Reporter):
    def __init__(self): self.warnings = []
    def warn(self, message): self.warnings.append(message)

print(json.dumps(sorted({"torch", "transformers", "huggingface_hub"} & set(sys.modules))), flush=True)
from huggingface_hub import constants
endpoint = constants.ENDPOINT
for line in sys.stdin:
    step = json.loads(line)
    what, token, run = step.pop("what"), step.pop("token"), step.pop("run", None)
    constants.HF_HUB_OFFLINE = step.pop("offline", False)
    constants.ENDPOINT = step.pop("endpoint", endpoint)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    heard = Heard()
    try:
        if what == "push":
            answer = {"result": push(Run.open(run), PushOptions(**step), heard)}
        else:
            answer = {"result": str(pull(PullOptions(**step), heard).path)}
    except OneshuiError as error:
        answer = {"error": str(error)}
    except Exception as error:
        answer = {"crash": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer | {"warnings": heard.warnings}), flush=True)
"""


class Client:
    """A machine with the Hub's client on it."""

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
        self.heavy = self._answer()

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


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    machine = Client(hub, tmp_path_factory.mktemp("home"))
    yield machine
    assert machine.process.stdin
    machine.process.stdin.close()
    machine.process.wait()


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """Return a maker of runs as training leaves them, with split, metrics and artefacts."""
    return lambda: build_run(tmp_path_factory.mktemp("runs") / "faces")


def build_run(path: Path) -> Any:
    from oneshui_hf.data.schema import Task
    from oneshui_hf.data.split import Split
    from oneshui_hf.models.load import new_model, save_model
    from oneshui_hf.runs import METRICS, SPLIT, Record, Run, hash_weights, write_json, write_record
    from oneshui_hf.stages.command_options import TrainOptions

    path.mkdir()
    model, preprocess = new_model("tiny", Task("multi_label", LABELS), 32, 0)
    save_model(model, preprocess, path)
    options = TrainOptions(dataset="synthetic", model="tiny", image_size=32, forget=2)
    counts = {"images": {"train": 30, "retain": 20, "forget": 10}, "forget_identities": 2}
    dataset = {"name": "synthetic", "fingerprint": "a" * 64, "task": "multi_label", "labels": list(LABELS)}
    record = Record(
        kind="original",
        seed=3,
        options=asdict(options),
        dataset=dataset | {"images": 60, "identities": 9},
        weights=hash_weights(path),
        report={"split": counts, "epochs": 4, "best_epoch": 3, "history": [{"epoch": 1, "train_loss": 0.5}]},
    )
    write_record(path, record)
    person, photo = f"person_{TOKEN}", f"{TOKEN}/0001.jpg"
    Split(0, {"train": [person], "val": [], "test": []}, [person], {person: photo}, {}, "all").save(path / SPLIT)
    write_json(path / METRICS, metrics_by_hand())
    run = Run(path, record)
    prepare_by_hand(run, model)
    return run


def metrics_by_hand() -> dict[str, Any]:
    """Return metrics as `evaluate` writes them."""
    sets = ("retain", "forget", "val", "test")
    attack = {"auc": 0.375, "interval": [0.25, 0.5625], "auc_either_way": 0.625, "balanced_accuracy": 0.59, "smallest_fpr": 0.1}
    floor = {"retain": 1.25, "forget": 2.5, "val": 1.0, "test": 0.75, "tow": 95.5, "oracles": 1}
    return {
        **{name: {"images": 10, "people": 5, "loss": 0.25, "map": 81.5, "balanced_accuracy": 77.5} for name in sets},
        **{"tow": 93.25, "gap_closure": None, "noise_floor": floor, "relearning": {"steps": 7, "at_most": 20}},
        "intervals": {"level": 0.95, "resamples": 100, "tow": [90.5, 96.0], "forget": {"map": [75.5, 86.5], "loss": [0.125, 0.375]}},
        "attacks": {"loss": attack, "rmia_two_sided": attack | {"auc": 0.5, "auc_either_way": 0.5}, "strongest": "loss"},
        "probe": {"accuracy": 50.0},
        "cannot_tell": ["An attack that fails is no proof."],
    }


def prepare_by_hand(run: Any, model: Any) -> None:
    """Write the artefacts that `prepare` would, with weights as they are drawn."""
    from oneshui_hf.methods import Artefact, StepOptions, head_inputs
    from oneshui_plugins.metaunlearn.loss_network import MetaLoss
    from oneshui_plugins.metaunlearn.method import MetaUnlearnOptions

    artefact = Artefact(values={"length": 1e-4}, options=asdict(StepOptions()))
    artefact.save(run.artefact(GRADIENT_ASCENT), GRADIENT_ASCENT, run.weights, replace=False)
    state = MetaLoss(len(LABELS) + head_inputs(model), len(LABELS), 2).state_dict()  # the unknown row and two people
    table = state.pop("embedding.weight")
    artefact = Artefact(
        tensors=state | {"unknown": table[:1]},
        values={"length": 1e-4},
        people={f"person_{TOKEN}": {"learned": table[1], TOKEN: table[2]}, "somebody": {"learned": table[2]}},
        options=asdict(MetaUnlearnOptions()),
    )
    artefact.save(run.artefact(METAUNLEARN), METAUNLEARN, run.weights, replace=False)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def face(path: Path) -> str:
    from PIL import Image

    Image.new("RGB", (48, 48), (200, 150, 120)).save(path)
    return str(path)


def test_a_run_travels_and_unlearns_where_there_is_no_data(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    from oneshui_hf.runs import Run
    from oneshui_hf.stages.command_options import UnlearnOptions
    from oneshui_hf.stages.unlearn import unlearn

    run = make_run()
    pushed = client("push", run=run.path, repo_id="faces")
    assert pushed["result"].startswith(f"{hub.url}/owner/faces/commit/") and not pushed["warnings"]
    assert hub.repos["owner/faces"].private
    sent = hub.files("owner/faces")
    assert sent["model.safetensors"] == (run.path / "model.safetensors").read_bytes()
    assert sorted(sent) == sorted(
        [".gitattributes", "README.md", "config.json", "metrics.json", "model.safetensors", "oneshui.json"]
        + ["preprocessor_config.json"]
        + [f"methods/{m}/artefact.{end}" for m in (GRADIENT_ASCENT, METAUNLEARN) for end in ("json", "safetensors")]
    )

    pulled = client("pull", repo_id="owner/faces", output_dir=tmp_path / "there")
    assert pulled["result"] == str(tmp_path / "there")
    assert not (tmp_path / "there" / ".cache").exists()
    there = Run.open(tmp_path / "there").require_complete()
    assert there.weights == run.weights and there.record.options["lr"] == 1e-3
    assert there.record.options["model"] == "tiny" and there.record.options["optimizer"] == "sgd"
    assert there.record.report == run.record.report and there.record.dataset == run.record.dataset
    for method in (GRADIENT_ASCENT, METAUNLEARN):
        options = UnlearnOptions(method=method, images=(face(tmp_path / "face.png"),))
        unlearned = unlearn(there, options)
        assert unlearned.weights != there.weights
        assert unlearned.record.parent and unlearned.record.parent["weights"] == run.weights

    pushed = client("push", run=unlearned.path, repo_id="owner/forgotten")  # made from a published run, and published in turn
    card = hub.files("owner/forgotten")["README.md"].decode()
    assert "was destroyed afterwards" not in card
    assert pushed["result"] and "1 photo of 1 person" in card and "No method has been prepared" in card and "metaunlearn" in card


def test_the_card_is_written_for_people_and_for_the_hub(hub: Hub, client: Client, make_run: Any) -> None:
    client("push", run=make_run().path, repo_id="owner/card")
    header, _, text = hub.files("owner/card")["README.md"].decode().removeprefix("---\n").partition("\n---\n")
    data = yaml.safe_load(header)
    assert data["pipeline_tag"] == "image-classification" and data["library_name"] == "transformers"
    assert {"oneshui", "machine-unlearning", "original"} <= set(data["tags"])
    [index] = data["model-index"]
    assert index["name"] == "card"
    found = {(r["dataset"].get("split"), m["type"]): m["value"] for r in index["results"] for m in r["metrics"]}
    assert found["forget", "map"] == 81.5 and found["test", "loss"] == 0.25 and found[None, "tow"] == 93.25
    assert "| forget | " in text and "| 10 | 5 | 81.50 [75.5, 86.5] | 0.2500 [0.125, 0.375] |" in text
    assert "| 10 | 5 | 81.50 | 0.2500 |" in text  # a set without intervals
    assert "| loss (strongest) | 0.375 [0.250, 0.562] | 0.625 |" in text and "| rmia-two-sided | 0.500 [0.250, 0.562] | 0.500 |" in text
    assert "changes 1.2 points on retain, 2.5 on forget and 0.8 on test; its ToW is 95.5" in text
    assert "# card\n" in text and "No proof and no certificate" in text and 'model="owner/card"' in text
    assert "Nobody has been forgotten here" in text and "gap closure |" not in text
    assert "Prepared for these very weights, under `methods/`: gradient-ascent, metaunlearn." in text
    assert "{{" not in text and "{%" not in text and "None" not in text.replace("top_k=None", "") and "\n\n\n" not in text


@pytest.mark.parametrize("destroyed", [0, 2])
def test_the_card_tells_what_was_destroyed(make_run: Any, destroyed: int) -> None:
    from oneshui_hf.card import model_card

    record = make_run().record
    record.kind, record.report = "unlearned", {"method": METAUNLEARN, "photos": 2, "people": 2, "seconds": 1.5, "destroyed": destroyed}
    card = model_card(record, {"model_type": "vit"}, {})
    assert ("It took 1.5 seconds. What had been prepared for 2 of them was destroyed afterwards." in card) == bool(destroyed)
    assert ("destroyed" in card) == bool(destroyed)
    assert "\n\n\n" not in card


def test_the_metrics_that_are_published_are_those_that_were_measured(hub: Hub, client: Client, make_run: Any) -> None:
    client("push", run=make_run().path, repo_id="owner/measured")
    sent, measured = json.loads(hub.files("owner/measured")["metrics.json"]), metrics_by_hand()
    for name in ("retain", "forget", "val", "test", "tow", "gap_closure", "noise_floor", "relearning", "intervals", "attacks"):
        assert sent[name] == measured[name], name
    assert sent["compared_with"] == {"original": None, "oracle": None}


def test_nothing_personal_leaves(hub: Hub, client: Client, make_run: Any) -> None:
    run = make_run()
    plant(run.path)
    hub.requests.clear()
    hub.large.clear()  # or the weights would be known from another test, and not be sent
    told = client("push", run=run.path, repo_id="owner/canary", commit_message="first")
    assert "result" in told and any("'teacher'" in warning for warning in told["warnings"])
    sent = hub.sent()
    assert (run.path / "model.safetensors").read_bytes() in sent and b'"best_epoch": 3' in sent  # it does look inside
    assert b"a local checkpoint" in sent and b"a private data set" in sent
    assert TOKEN.encode() not in sent and TOKEN.encode("utf-16-le") not in sent
    assert PHOTO not in sent and PHOTO[100:200] not in sent
    assert str(run.path).encode() not in sent
    words = ("private", "people", "vault", ".key")
    assert not [name for name in hub.files("owner/canary") if any(word in name for word in words) or name.endswith((".jpg", ".bin"))]
    assert not [secret for secret in secrets(run) if secret in sent or secret.hex().encode() in sent]
    assert not [blob for blob in sealed(run) if blob[:64] in sent]


def secrets(run: Any) -> list[bytes]:
    """Return the secrets of a run's people."""
    artefact = json.loads((run.path / "methods" / METAUNLEARN / "people.json").read_text())["artefact"]
    found = [file.read_bytes() for file in (vault_root() / artefact).iterdir()]
    assert len(found) == 3
    return found


def sealed(run: Any) -> list[bytes]:
    """Return what is encrypted with them."""
    from safetensors.numpy import load_file

    return [blob.tobytes() for blob in load_file(run.path / "methods" / METAUNLEARN / "people.safetensors").values()]


def test_what_concerns_single_people_leaves_only_where_it_is_said_twice(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    from oneshui_hf.errors import OneshuiError
    from oneshui_hf.methods import Artefact

    run, before = make_run(), len(hub.requests)
    told = client("push", run=run.path, repo_id="owner/people", with_people=True)["error"]
    assert "personal data" in told
    assert "--people-are-personal-data" in told
    assert "--with-people" in client("push", run=run.path, repo_id="owner/people", people_are_personal_data=True)["error"]
    assert len(hub.requests) == before

    plant(run.path)
    edit(run.path / "methods" / METAUNLEARN / "people.json", lambda v: v.update({TOKEN: TOKEN, "rows": {f"person_{TOKEN}": 1}}))
    hub.requests.clear()
    hub.large.clear()
    twice = {"with_people": True, "people_are_personal_data": True}
    assert "result" in client("push", run=run.path, repo_id="owner/people", **twice)
    sent, files = hub.sent(), hub.files("owner/people")
    own = {f"methods/{METAUNLEARN}/people.{end}" for end in ("json", "safetensors")}
    assert {name for name in files if "people" in name} == own
    assert all(blob in files[f"methods/{METAUNLEARN}/people.safetensors"] for blob in sealed(run))
    assert set(json.loads(files[f"methods/{METAUNLEARN}/people.json"])) == {"format", "artefact", "index"}
    assert TOKEN.encode() not in sent
    assert PHOTO[100:200] not in sent
    assert not [secret for secret in secrets(run) if secret in sent or secret.hex().encode() in sent]
    card = files["README.md"].decode()
    assert "**Personal data:** the files `people.*`" in card
    assert "what was prepared for each" not in card

    # They come along with a pull, and open where the secrets are.
    client("pull", repo_id="owner/people", output_dir=tmp_path / "there")
    there = tmp_path / "there" / "methods" / METAUNLEARN
    assert list(Artefact.load(there, METAUNLEARN, run.weights).people) == [f"person_{TOKEN}", "somebody"]
    with pytest.raises(OneshuiError, match="not on this machine"):
        list(Artefact.load(there, METAUNLEARN, run.weights, vault=tmp_path / "empty").people)
    # A later push without them takes them away.
    assert "result" in client("push", run=run.path, repo_id="owner/people")
    assert not [name for name in hub.files("owner/people") if "people" in name]
    assert "what was prepared for each" in hub.files("owner/people")["README.md"].decode()


def test_people_that_are_not_encrypted_are_refused(hub: Hub, client: Client, make_run: Any) -> None:
    from safetensors.numpy import load_file, save_file

    run, before, twice = make_run(), len(hub.requests), {"with_people": True, "people_are_personal_data": True}
    index, blobs = (run.path / "methods" / METAUNLEARN / f"people.{end}" for end in ("json", "safetensors"))
    right, tensors = index.read_text(), load_file(blobs)

    def refused() -> str:
        told: str = client("push", run=run.path, repo_id="owner/clear", **twice)["error"]
        assert TOKEN not in told.replace(str(run.path), "")
        return told

    save_file(tensors | {f"person_{TOKEN}": next(iter(tensors.values()))}, blobs)
    assert "holds 1 tensors that are no encrypted ones" in refused()
    save_file(tensors, blobs, {"who": TOKEN})
    assert "carries text of its own" in refused()
    save_file(tensors, blobs)
    edit(index, lambda v: v["index"].update({f"person_{TOKEN}": "0" * 32}))
    assert "is no index of people" in refused()
    index.unlink()
    assert "people.json is missing" in refused()
    index.write_text(right)
    assert len(hub.requests) == before
    assert "result" in client("push", run=run.path, repo_id="owner/clear", **twice)


def plant(path: Path) -> None:
    """Put the name, the path and the photo wherever a run can hold them."""
    person, extra = f"person_{TOKEN}", {TOKEN: 1, "who": TOKEN, "each": {f"person_{TOKEN}": 0.5, "7319": TOKEN}}

    def record(value: dict[str, Any]) -> None:
        for name in ("data_dir", "dataset", "model", "split", "output_dir", "label_columns", "optimizer", TOKEN):
            value["options"][name] = FOLDER
        value["dataset"] |= {"name": TOKEN, "fingerprint": TOKEN, "labels": [TOKEN], "images": TOKEN, TOKEN: 1}
        value["parent"] = {"run": FOLDER, "weights": TOKEN}
        method = {"method": METAUNLEARN, "method_options": {"step": "raw", "teacher": FOLDER, person: TOKEN}}
        value["report"] |= {"destroyed": TOKEN, person: 1, "who": TOKEN, "labels": TOKEN, "source": FOLDER, "method_from": TOKEN, **method}
        value["report"]["history"] = [{"epoch": 1, "who": TOKEN, person: 2}]
        value["versions"] |= {TOKEN: "1.0", "torch": TOKEN}

    def artefact(value: dict[str, Any]) -> None:
        value["report"] |= {person: 1, "calibration": [{"loss": 1.0, "who": TOKEN, person: 1}], "photo": FOLDER}
        value["options"]["teacher"] = FOLDER
        value["versions"] |= {TOKEN: "1", "torch": FOLDER}
        value[TOKEN] = TOKEN

    edit(path / "oneshui.json", record)
    edit(path / "methods" / METAUNLEARN / "artefact.json", artefact)
    edit(path / "config.json", lambda v: v.update({"_name_or_path": FOLDER, TOKEN: 1, "hidden_act_note": FOLDER}))
    edit(path / "preprocessor_config.json", lambda v: v.update({TOKEN: 1, "image_mean": [0.5] * 3, "note": FOLDER}))
    edit(path / "metrics.json", lambda v: v.update({TOKEN: 1, "compared_with": {"original": FOLDER}}))
    edit(path / "metrics.json", lambda v: v.update({"cannot_tell": [f"Not about {person}."], "key": TOKEN}))
    parts = ("intervals", "attacks", "noise_floor", "relearning", "probe")
    edit(path / "metrics.json", lambda v: [v[part].update(extra | {"people": [TOKEN]}) for part in parts])
    edit(path / "metrics.json", lambda v: v["intervals"]["forget"].update({TOKEN: [1, 2], person: TOKEN, "loss": [TOKEN, 1.0]}))
    edit(path / "metrics.json", lambda v: v["attacks"]["loss"].update({"direction": TOKEN, person: 1, "auc": TOKEN, "interval": [TOKEN]}))
    edit(path / "metrics.json", lambda v: v["attacks"].update({"strongest": person}))
    edit(path / "metrics.json", lambda v: v["forget"].update({"each": {person: 0.1}, "loss_of": TOKEN}))
    strays: tuple[str, ...] = (
        "photo.jpg",
        "README.md",
        "pytorch_model.bin",
        f"{TOKEN}.json",
        ".gitattributes",
        "predictions/forget.safetensors",
        "predictions/forget-view1.safetensors",
        "curves.json",
        "report.html",
    )
    strays += ("checkpoint-1/model.safetensors", f"methods/{METAUNLEARN}/photo.jpg", f"methods/{TOKEN}/private.json")
    strays += (f"methods/{TOKEN}/people.json", f"methods/{TOKEN}/people.safetensors", f"methods/{GRADIENT_ASCENT}/people.key")
    for name in strays:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(PHOTO + f"{extra}".encode())


def test_an_artefact_or_weights_that_carry_a_name_are_refused(hub: Hub, client: Client, make_run: Any) -> None:
    from safetensors.torch import load_file, save_file

    from oneshui_hf.runs import hash_weights

    run, before = make_run(), len(hub.requests)
    file = run.path / "methods" / METAUNLEARN / "artefact.json"
    edit(file, lambda v: v["values"].update({"rows": {f"person_{TOKEN}": 1}}))
    assert "fault of the method" in client("push", run=run.path, repo_id="owner/refused")["error"]
    edit(file, lambda v: v["values"].pop("rows"))
    weights = run.path / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt", "photographed": TOKEN})
    edit(run.path / "oneshui.json", lambda v: v.update(weights=hash_weights(run.path)))
    assert "photographed" in client("push", run=run.path, repo_id="owner/refused")["error"]
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert "not those of its" in client("push", run=run.path, repo_id="owner/refused")["error"]
    assert len(hub.requests) == before


def test_visibility_is_private_unless_told_otherwise(hub: Hub, client: Client, make_run: Any) -> None:
    run = make_run().path
    assert "result" in client("push", run=run, repo_id="owner/open", private=False)
    assert not hub.repos["owner/open"].private
    before = hub.repos["owner/open"].branches["main"]
    assert "--public" in client("push", run=run, repo_id="owner/open")["error"]
    assert hub.repos["owner/open"].branches["main"] == before
    hub.add("owner/closed", {})
    assert "result" in client("push", run=run, repo_id="owner/closed", private=False)
    assert hub.repos["owner/closed"].private


def test_a_push_replaces_an_earlier_one_and_keeps_what_is_not_its_own(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    old = dict.fromkeys(("model-00001-of-00002.safetensors", "methods/old/artefact.json", "LICENSE", "docs/a.json"), b"old")
    hub.add("owner/again", old)
    client("push", run=make_run().path, repo_id="owner/again", revision="second")
    assert not [name for name in hub.files("owner/again", "second") if name in list(old)[:2]]
    assert {"LICENSE", "docs/a.json"} <= set(hub.files("owner/again", "second"))
    assert set(hub.files("owner/again")) == {".gitattributes", *old}
    assert "no run" in client("pull", repo_id="owner/again", output_dir=tmp_path / "main")["error"]
    assert "result" in client("pull", repo_id="owner/again", output_dir=tmp_path / "second", revision="second")
    assert "no revision 'third'" in client("pull", repo_id="owner/again", output_dir=tmp_path / "x", revision="third")["error"]


def test_what_was_tampered_with_is_not_kept(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    client("push", run=make_run().path, repo_id="owner/tampered")
    weights = bytearray(hub.files("owner/tampered")["model.safetensors"])
    weights[-1] ^= 1
    hub.add("owner/tampered", {"model.safetensors": bytes(weights), "evil.bin": b"pickle", "code.py": b"code"})
    assert "tampered" in client("pull", repo_id="owner/tampered", output_dir=tmp_path / "run")["error"]
    assert list(tmp_path.iterdir()) == []
    assert not [r for r in hub.requests if r.path.endswith(("evil.bin", "code.py"))]


def test_each_failure_is_one_sentence(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    assert client.heavy == []  # importing the stage is cheap
    run, there = make_run().path, tmp_path / "there"
    hub.add("owner/secret", {})

    def error(what: str, **step: Any) -> str:
        told: str = client(what, **{"repo_id": "owner/secret"} | step).get("error", "no error")
        assert told.count("\n") == 0 and told.endswith((".", "`")), told
        return told

    assert "hf auth login" in error("push", run=run, token=None)
    assert "does not let you" in error("push", run=run, token="hf_wrong")
    assert "does not let you" in error("push", run=run, token="hf_stranger")
    assert "USER/NAME" in error("push", run=run, repo_id="a/b/c")
    assert "HF_HUB_OFFLINE" in error("push", run=run, offline=True)
    assert "cannot be reached" in error("push", run=run, endpoint="http://127.0.0.1:9")
    pull = {"output_dir": there}
    assert "does not let you" in error("pull", token="hf_wrong", **pull)
    assert "no repository" in error("pull", token="hf_stranger", **pull)
    assert "no repository" in error("pull", token=None, **pull)
    assert "no repository" in error("pull", repo_id="owner/nothing", **pull)
    assert "USER/NAME" in error("pull", repo_id="a b", **pull)
    assert "HF_HUB_OFFLINE" in error("pull", offline=True, **pull)
    assert "cannot be reached" in error("pull", endpoint="http://127.0.0.1:9", **pull)
    assert list(tmp_path.iterdir()) == []
    there.mkdir()
    (there / "mine.txt").write_text("mine")
    assert "--output-dir" in error("pull", **pull)
    edit(run / "oneshui.json", lambda v: v.update(state="training"))
    assert "has not finished" in error("push", run=run)
