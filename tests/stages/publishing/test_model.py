"""Publication of a run on a Hub on the loopback interface: what is sent, what never leaves this machine, and the error messages."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshui_hf.files import lock_output
from oneshui_hf.vault import vault_root
from support.hub_client import Client
from support.hub_server import Hub

CANARY = "quimby7319"  # occurs in every name, path and text that must not leave this machine
PHOTO = b"\xff\xd8\xff" + random.Random(0).randbytes(900)
FOLDER = f"/home/{CANARY}/faces"
LABELS = ("Smiling", "Young", "Glasses")
GRADIENT_ASCENT, METAUNLEARN = "gradient-ascent", "metaunlearn"


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """Return a factory of runs as training writes them, with split, metrics and artefacts."""
    return lambda: build_run(tmp_path_factory.mktemp("runs") / "faces")


def build_run(path: Path) -> Any:
    from oneshui_hf.data.schema import Task
    from oneshui_hf.data.split import Split
    from oneshui_hf.models.load import save_model
    from oneshui_hf.models.new import new_model
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
        report={"split": counts, "epochs": 4, "best_epoch": 3, "history": [{"epoch": n, "train_loss": 0.5} for n in range(1, 5)]},
    )
    write_record(path, record)
    person, photo = f"person_{CANARY}", f"{CANARY}/0001.jpg"
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
    """Write artefacts as `prepare` does, with random weights."""
    from oneshui_hf.methods import Artefact, StepOptions, feature_dim
    from oneshui_plugins.metaunlearn import MetaUnlearnOptions
    from oneshui_plugins.metaunlearn.loss_network import MetaLoss

    artefact = Artefact(values={"length": 1e-4}, options=asdict(StepOptions()))
    artefact.save(run.artefact(GRADIENT_ASCENT), GRADIENT_ASCENT, run.weights, replace=False)
    state = MetaLoss(len(LABELS) + feature_dim(model), len(LABELS), 2).state_dict()  # the row of unknown identities and two identities
    table = state.pop("embedding.weight")
    artefact = Artefact(
        tensors=state | {"unknown": table[:1]},
        values={"length": 1e-4},
        people={f"person_{CANARY}": {"learned": table[1], CANARY: table[2]}, "somebody": {"learned": table[2]}},
        options=asdict(MetaUnlearnOptions()),
    )
    artefact.save(run.artefact(METAUNLEARN), METAUNLEARN, run.weights, replace=False)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_artefact(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change an artefact's header as a method that wrote it so: with valid hashes, and with its per-identity data prepared for it."""
    from oneshui_hf.methods.artefact import Artefact, read_header, write_header

    header = read_header(folder)
    change(header)
    content = {name: value for name, value in header.items() if name not in ("content", "tensors")}
    people = dict(Artefact.load(folder, header["method"], header["weights"]).people)
    written = write_header(folder, content)
    if people:
        from oneshui_hf.methods.identity_store import save_identities

        save_identities(folder, people, vault_root(), written)


def face(path: Path) -> str:
    from PIL import Image

    Image.new("RGB", (48, 48), (200, 150, 120)).save(path)
    return str(path)


@pytest.mark.slow
def test_pulled_run_can_unlearn_without_the_data(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
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

    pulled = client("pull", repo_id="owner/faces", output_dir=tmp_path / "pulled")
    assert pulled["result"] == str(tmp_path / "pulled")
    assert not (tmp_path / "pulled" / ".cache").exists()
    pulled_run = Run.open(tmp_path / "pulled").require_complete()
    assert pulled_run.weights == run.weights and pulled_run.record.options["lr"] == 1e-3
    assert pulled_run.record.options["model"] == "tiny" and pulled_run.record.options["optimizer"] == "sgd"
    assert pulled_run.record.report == run.record.report and pulled_run.record.dataset == run.record.dataset
    for method in (GRADIENT_ASCENT, METAUNLEARN):
        options = UnlearnOptions(method=method, images=(face(tmp_path / "face.png"),))
        unlearned = unlearn(pulled_run, options)
        assert unlearned.weights != pulled_run.weights
        assert unlearned.record.parent and unlearned.record.parent["weights"] == run.weights

    pushed = client("push", run=unlearned.path, repo_id="owner/forgotten")  # made from a published run, and published itself
    card = hub.files("owner/forgotten")["README.md"].decode()
    assert "was destroyed afterwards" not in card
    assert pushed["result"] and "1 photo of 1 person" in card and "No method has been prepared" in card and "metaunlearn" in card


def test_model_card_has_metadata_for_the_hub_and_text_for_readers(hub: Hub, client: Client, make_run: Any) -> None:
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
    assert "differs by 1.2 points on retain, 2.5 on forget and 0.8 on test; its ToW is 95.5" in text
    assert "# card\n" in text and "No proof and no certificate" in text and 'model="owner/card"' in text
    assert "Nobody has been forgotten here" in text and "gap closure |" not in text
    assert "Prepared for these weights, under `methods/`: gradient-ascent, metaunlearn." in text
    assert "{{" not in text and "{%" not in text and "None" not in text.replace("top_k=None", "") and "\n\n\n" not in text


@pytest.mark.parametrize("destroyed", [0, 2])
def test_model_card_states_that_prepared_data_was_destroyed(make_run: Any, destroyed: int) -> None:
    from oneshui_hf.card import model_card

    record = make_run().record
    record.kind, record.report = "unlearned", {"method": METAUNLEARN, "photos": 2, "people": 2, "seconds": 1.5, "destroyed": destroyed}
    card = model_card(record, {"model_type": "vit"}, {})
    assert ("It took 1.5 seconds. Data prepared for 2 of them was destroyed afterwards." in card) == bool(destroyed)
    assert ("destroyed" in card) == bool(destroyed)
    assert "\n\n\n" not in card


def test_published_metrics_equal_the_measured_ones(hub: Hub, client: Client, make_run: Any) -> None:
    client("push", run=make_run().path, repo_id="owner/measured")
    sent, measured = json.loads(hub.files("owner/measured")["metrics.json"]), metrics_by_hand()
    for name in ("retain", "forget", "val", "test", "tow", "gap_closure", "noise_floor", "relearning", "intervals", "attacks"):
        assert sent[name] == measured[name], name
    assert sent["compared_with"] == {"original": None, "oracle": None}


def test_no_personal_data_is_sent(hub: Hub, client: Client, make_run: Any) -> None:
    run = make_run()
    plant_canary(run.path)
    hub.requests.clear()
    hub.large.clear()  # otherwise the weights would be known from another test, and not be sent
    answer = client("push", run=run.path, repo_id="owner/canary", commit_message="first")
    assert "result" in answer and any("'teacher'" in warning for warning in answer["warnings"])
    sent = hub.sent()
    assert (run.path / "model.safetensors").read_bytes() in sent and b'"best_epoch": 3' in sent  # `sent` contains the file contents
    assert b"a local checkpoint" in sent and b"a private data set" in sent
    assert CANARY.encode() not in sent and CANARY.encode("utf-16-le") not in sent
    assert PHOTO not in sent and PHOTO[100:200] not in sent
    assert str(run.path).encode() not in sent
    words = ("private", "people", "vault", ".key")
    assert not [name for name in hub.files("owner/canary") if any(word in name for word in words) or name.endswith((".jpg", ".bin"))]
    assert not [secret for secret in identity_keys(run) if secret in sent or secret.hex().encode() in sent]
    assert not [blob for blob in encrypted_blobs(run) if blob[:64] in sent]


def identity_keys(run: Any) -> list[bytes]:
    """Return the encryption keys of a run's identities."""
    artefact = json.loads((run.path / "methods" / METAUNLEARN / "people.json").read_text())["artefact"]
    found = [file.read_bytes() for file in (vault_root() / artefact).iterdir()]
    assert len(found) == 4  # and the HMAC of its folder
    return found


def encrypted_blobs(run: Any) -> list[bytes]:
    """Return the data encrypted with these keys."""
    from safetensors.numpy import load_file

    return [blob.tobytes() for blob in load_file(run.path / "methods" / METAUNLEARN / "people.safetensors").values()]


def test_identity_data_is_only_sent_with_both_flags(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    from oneshui_hf.errors import OneshuiError
    from oneshui_hf.methods import Artefact

    run, before = make_run(), len(hub.requests)
    answer = client("push", run=run.path, repo_id="owner/people", with_people=True)["error"]
    assert "personal data" in answer
    assert "--people-are-personal-data" in answer
    assert "--with-people" in client("push", run=run.path, repo_id="owner/people", people_are_personal_data=True)["error"]
    assert len(hub.requests) == before

    plant_canary(run.path)
    edit(run.path / "methods" / METAUNLEARN / "people.json", lambda v: v.update({CANARY: CANARY, "rows": {f"person_{CANARY}": 1}}))
    hub.requests.clear()
    hub.large.clear()
    both_flags = {"with_people": True, "people_are_personal_data": True}
    assert "result" in client("push", run=run.path, repo_id="owner/people", **both_flags)
    sent, files = hub.sent(), hub.files("owner/people")
    own = {f"methods/{METAUNLEARN}/people.{end}" for end in ("json", "safetensors")}
    assert {name for name in files if "people" in name} == own
    assert all(blob in files[f"methods/{METAUNLEARN}/people.safetensors"] for blob in encrypted_blobs(run))
    assert set(json.loads(files[f"methods/{METAUNLEARN}/people.json"])) == {"format", "artefact", "index", "seal"}
    assert CANARY.encode() not in sent
    assert PHOTO[100:200] not in sent
    assert not [secret for secret in identity_keys(run) if secret in sent or secret.hex().encode() in sent]
    card = files["README.md"].decode()
    assert "**Personal data:** the files `people.*`" in card
    assert "data prepared for each person" not in card

    # A pull downloads them; they can be decrypted where the keys are.
    client("pull", repo_id="owner/people", output_dir=tmp_path / "pulled")
    pulled_artefact = tmp_path / "pulled" / "methods" / METAUNLEARN
    assert list(Artefact.load(pulled_artefact, METAUNLEARN, run.weights).people) == [f"person_{CANARY}", "somebody"]
    with pytest.raises(OneshuiError, match="not on this machine"):
        list(Artefact.load(pulled_artefact, METAUNLEARN, run.weights, vault=tmp_path / "empty").people)
    # The public header is another one, so it is sealed anew, which needs the secrets.
    assert Artefact.load(pulled_artefact, METAUNLEARN, run.weights).sealed
    vault_root().rename(tmp_path / "away")
    assert "not on this machine" in client("push", run=run.path, repo_id="owner/people", **both_flags)["error"]
    (tmp_path / "away").rename(vault_root())
    # A later push without the flags removes them.
    assert "result" in client("push", run=run.path, repo_id="owner/people")
    assert not [name for name in hub.files("owner/people") if "people" in name]
    assert "data prepared for each person" in hub.files("owner/people")["README.md"].decode()


def test_identity_data_that_is_not_encrypted_is_an_error(hub: Hub, client: Client, make_run: Any) -> None:
    from safetensors.numpy import load_file, save_file

    run, before, both_flags = make_run(), len(hub.requests), {"with_people": True, "people_are_personal_data": True}
    index, blobs = (run.path / "methods" / METAUNLEARN / f"people.{end}" for end in ("json", "safetensors"))
    right, tensors = index.read_text(), load_file(blobs)

    def error_message() -> str:
        answer: str = client("push", run=run.path, repo_id="owner/clear", **both_flags)["error"]
        assert CANARY not in answer.replace(str(run.path), "")
        return answer

    save_file(tensors | {f"person_{CANARY}": next(iter(tensors.values()))}, blobs)
    assert "contains 1 tensors that are not encrypted" in error_message()
    save_file(tensors, blobs, {"who": CANARY})
    assert "contains text in its metadata" in error_message()
    save_file(tensors, blobs)
    edit(index, lambda v: v["index"].update({f"person_{CANARY}": "0" * 32}))
    assert "is not an index of identities" in error_message()
    index.unlink()
    assert "people.json is missing" in error_message()
    index.write_text(right)
    assert len(hub.requests) == before
    assert "result" in client("push", run=run.path, repo_id="owner/clear", **both_flags)


def plant_canary(path: Path) -> None:
    """Put the name, the path and the photo wherever a run can contain them."""
    person, extra = f"person_{CANARY}", {CANARY: 1, "who": CANARY, "each": {f"person_{CANARY}": 0.5, "7319": CANARY}}

    def record(value: dict[str, Any]) -> None:
        for name in ("data_dir", "dataset", "model", "split", "output_dir", "label_columns", "optimizer", CANARY):
            value["options"][name] = FOLDER
        value["dataset"] |= {"name": CANARY, "fingerprint": CANARY, "labels": [CANARY], CANARY: 1, "more": {CANARY: CANARY}}
        value["parent"] = {"run": FOLDER, "weights": CANARY}
        method = {"method": METAUNLEARN, "method_options": {"step": "raw", "teacher": FOLDER, person: CANARY}}
        value["report"] |= {
            "more": CANARY,
            person: 1,
            "who": CANARY,
            "labels": CANARY,
            "source": FOLDER,
            "method_from": CANARY,
            **method,
        }
        value["report"]["history"] = [{"epoch": n, "train_loss": 0.5, person: 2} for n in range(1, 5)]
        value["versions"] |= {CANARY: "1.0", "torch": CANARY}

    def artefact(value: dict[str, Any]) -> None:
        value["report"] |= {person: 1, "calibration": [{"loss": 1.0, "who": CANARY, person: 1}], "photo": FOLDER}
        value["options"]["teacher"] = FOLDER
        value["versions"] |= {CANARY: "1", "torch": FOLDER}
        value[CANARY] = CANARY

    edit(path / "oneshui.json", record)
    edit_artefact(path / "methods" / METAUNLEARN, artefact)
    edit(path / "config.json", lambda v: v.update({"_name_or_path": FOLDER, CANARY: 1, "hidden_act_note": FOLDER}))
    edit(path / "preprocessor_config.json", lambda v: v.update({CANARY: 1, "image_mean": [0.5] * 3, "note": FOLDER}))
    edit(path / "metrics.json", lambda v: v.update({CANARY: 1, "compared_with": {"original": FOLDER}}))
    edit(path / "metrics.json", lambda v: v.update({"cannot_tell": [f"Not about {person}."], "key": CANARY}))
    parts = ("noise_floor", "relearning", "probe")
    edit(path / "metrics.json", lambda v: [v[part].update({CANARY: 1, person: 0.5}) for part in parts])
    edit(path / "metrics.json", lambda v: v["intervals"].update(extra | {"people": [CANARY]}))
    edit(path / "metrics.json", lambda v: v["intervals"]["forget"].update({CANARY: [1, 2], person: [0.5]}))
    edit(path / "metrics.json", lambda v: v["attacks"]["loss"].update({"direction": CANARY, person: 1, "interval": [0.5]}))
    edit(path / "metrics.json", lambda v: v["attacks"].update({"strongest": person, person: {"auc": 0.5, "who": CANARY}}))
    edit(path / "metrics.json", lambda v: v["forget"].update({"each": {person: 0.1}, "loss_of": CANARY}))
    strays: tuple[str, ...] = (
        "photo.jpg",
        "README.md",
        "pytorch_model.bin",
        f"{CANARY}.json",
        ".gitattributes",
        "predictions/forget.safetensors",
        "predictions/forget-view1.safetensors",
        "curves.json",
        "report.html",
    )
    strays += ("checkpoint-1/model.safetensors", f"methods/{METAUNLEARN}/photo.jpg", f"methods/{CANARY}/private.json")
    strays += (f"methods/{CANARY}/people.json", f"methods/{CANARY}/people.safetensors", f"methods/{GRADIENT_ASCENT}/people.key")
    for name in strays:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(PHOTO + f"{extra}".encode())


def test_artefact_or_weights_that_contain_a_name_are_an_error(hub: Hub, client: Client, make_run: Any) -> None:
    from safetensors.torch import load_file, save_file

    from oneshui_hf.runs import hash_weights

    run, before = make_run(), len(hub.requests)
    artefact = run.path / "methods" / METAUNLEARN
    edit_artefact(artefact, lambda v: v["values"].update({"rows": {f"person_{CANARY}": 1}}))
    assert "bug in the method" in client("push", run=run.path, repo_id="owner/refused")["error"]
    edit_artefact(artefact, lambda v: v["values"].pop("rows"))
    weights = run.path / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt", "photographed": CANARY})
    edit(run.path / "oneshui.json", lambda v: v.update(weights=hash_weights(run.path)))
    assert "photographed" in client("push", run=run.path, repo_id="owner/refused")["error"]
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert "not those of its" in client("push", run=run.path, repo_id="owner/refused")["error"]
    assert len(hub.requests) == before


def test_repository_is_private_unless_public_is_requested(hub: Hub, client: Client, make_run: Any) -> None:
    run = make_run().path
    assert "result" in client("push", run=run, repo_id="owner/open", private=False)
    assert not hub.repos["owner/open"].private
    before = hub.repos["owner/open"].branches["main"]
    assert "--public" in client("push", run=run, repo_id="owner/open")["error"]
    assert hub.repos["owner/open"].branches["main"] == before
    hub.add("owner/closed", {})
    assert "result" in client("push", run=run, repo_id="owner/closed", private=False)
    assert hub.repos["owner/closed"].private


def test_push_removes_files_of_an_earlier_push_in_one_commit_and_keeps_other_files(
    hub: Hub, client: Client, make_run: Any, tmp_path: Path
) -> None:
    published = {"model-00001-of-00002.safetensors", "methods/old/artefact.json", "methods/old/people.json"}
    foreign = {"LICENSE", "docs/a.json", "docs/README.md", "methods/old/notes/artefact.json", "model/extra.safetensors"}
    hub.add("owner/again", dict.fromkeys(published | foreign, b"old"))
    commits = len(hub.repos["owner/again"].commits)
    client("push", run=make_run().path, repo_id="owner/again", revision="second")
    assert len(hub.repos["owner/again"].commits) == commits + 1
    after = set(hub.files("owner/again", "second"))
    assert not after & published
    assert foreign <= after
    assert set(hub.files("owner/again")) == {".gitattributes", *published, *foreign}
    assert "does not contain a run" in client("pull", repo_id="owner/again", output_dir=tmp_path / "main")["error"]
    assert "result" in client("pull", repo_id="owner/again", output_dir=tmp_path / "second", revision="second")
    assert "no revision 'third'" in client("pull", repo_id="owner/again", output_dir=tmp_path / "x", revision="third")["error"]


def test_pull_of_a_tampered_run_leaves_no_file(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    client("push", run=make_run().path, repo_id="owner/tampered")
    weights = bytearray(hub.files("owner/tampered")["model.safetensors"])
    weights[-1] ^= 1
    hub.add("owner/tampered", {"model.safetensors": bytes(weights), "evil.bin": b"pickle", "code.py": b"code"})
    assert "tampered" in client("pull", repo_id="owner/tampered", output_dir=tmp_path / "run")["error"]
    assert list(tmp_path.iterdir()) == []
    assert not [r for r in hub.requests if r.path.endswith(("evil.bin", "code.py"))]
    hub.add("owner/tampered", {"oneshui.json": b"{"})
    assert "owner/tampered: oneshui.json is not JSON" in client("pull", repo_id="owner/tampered", output_dir=tmp_path / "run")["error"]
    assert list(tmp_path.iterdir()) == []


LINKED = {
    "weights": "model.safetensors",
    "record": "oneshui.json",
    "metrics": "metrics.json",
    "encrypted data": f"methods/{METAUNLEARN}/people.safetensors",
    "an artefact": f"methods/{METAUNLEARN}",
    "all artefacts": "methods",
}


@pytest.mark.parametrize("name", LINKED)
def test_links_in_a_run_are_not_followed(hub: Hub, client: Client, make_run: Any, tmp_path: Path, name: str) -> None:
    run, before = make_run().path, len(hub.requests)
    place = run / LINKED[name]
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    answer = client("push", run=run, repo_id="owner/linked", with_people=True, people_are_personal_data=True)
    assert answer.get("error", "") == f"{place} is a link, so nothing was sent; replace it by what it leads to, or remove it."
    assert len(hub.requests) == before


def test_links_that_are_not_published_and_second_names_of_a_file_are_accepted(
    hub: Hub, client: Client, make_run: Any, tmp_path: Path
) -> None:
    run = make_run().path
    (run / "notes.txt").symlink_to("/etc/passwd")
    (tmp_path / "second").hardlink_to(run / "model.safetensors")
    (tmp_path / "run").symlink_to(run)  # the user's own choice
    assert "result" in client("push", run=tmp_path / "run", repo_id="owner/second")
    assert not [name for name in hub.files("owner/second") if "notes" in name]
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_a_pipe_in_a_run_is_not_read(client: Client, make_run: Any) -> None:
    run = make_run().path
    (run / "metrics.json").unlink()
    os.mkfifo(run / "metrics.json")
    assert "is not a regular file" in client("push", run=run, repo_id="owner/pipe")["error"]


HOSTILE_NAMES = (
    *("../x", "methods/../../x/artefact.json", "methods/../artefact.json", "/tmp/x/artefact.json", "methods//artefact.json", "a\\b"),
    *("methods/a\\..\\..\\b/artefact.json", "methods/C:/artefact.json", f"methods/{'x' * 300}/artefact.json", "model/../x.safetensors"),
    *("methods/a\x00b/artefact.json", "methods/\x1b[31m/artefact.json", "methods/ /artefact.json", "modelé.safetensors", "Config.json"),
    *("methods/SSD/artefact.json", f"model{'x' * 300}.safetensors", "model\n.safetensors", "model*.safetensors", ".git/config"),
)


def test_hostile_file_names_in_a_repository_are_not_downloaded(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    run = make_run()
    client("push", run=run.path, repo_id="owner/hostile")
    hub.add("owner/hostile", dict.fromkeys(HOSTILE_NAMES, b"evil"))
    hub.requests.clear()
    folder = tmp_path / "a/b/c"
    assert "result" in client("pull", repo_id="owner/hostile", output_dir=folder)
    assert not [name for name in HOSTILE_NAMES if (folder / "model.safetensors").read_bytes() == b"evil" or b"evil" in hub.large]
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink())
    own = ("README.md", "config.json", "metrics.json", "model.safetensors", "oneshui.json", "preprocessor_config.json")
    artefacts = [f"methods/{m}/artefact.{end}" for m in (GRADIENT_ASCENT, METAUNLEARN) for end in ("json", "safetensors")]
    assert found == sorted(f"a/b/c/{name}" for name in (*own, *artefacts))
    downloads = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert {path.rpartition("/")[2] for path in downloads} <= {*own, "artefact.json", "artefact.safetensors"}


def kill(hub: Hub, home: Path, what: str, **step: Any) -> None:
    """Run a step in a process that is killed when the run is sent, or has been downloaded."""
    home.mkdir()
    doomed = Client(hub, home)
    with pytest.raises(json.JSONDecodeError):  # it does not answer
        doomed(what, killed=True, **step)
    assert doomed.process.wait() == -9


@pytest.mark.slow
def test_what_a_killed_push_left_is_cleared_by_the_next_command(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    run = make_run().path
    before = sorted(Path(tempfile.gettempdir()).glob("oneshui-push-*"))
    kill(hub, tmp_path / "home", "push", run=run, repo_id="owner/killed")
    left = [path for path in run.parent.iterdir() if path != run]
    assert [path for path in left if (path / "model.safetensors").is_file()]
    assert sorted(Path(tempfile.gettempdir()).glob("oneshui-push-*")) == before  # nothing is written there
    assert os.stat(next(path for path in left if path.is_dir())).st_mode & 0o777 == 0o700  # noqa: PTH116
    assert "result" in client("push", run=run, repo_id="owner/killed")
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_what_a_killed_pull_left_is_cleared_by_the_next_command(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    client("push", run=make_run().path, repo_id="owner/fetched")
    folder = tmp_path / "runs" / "pulled"
    kill(hub, tmp_path / "home", "pull", repo_id="owner/fetched", output_dir=folder)
    assert not folder.exists()
    assert [path for path in folder.parent.iterdir() if (path / "model.safetensors").is_file()]
    assert "result" in client("pull", repo_id="owner/fetched", output_dir=folder)
    assert [path.name for path in folder.parent.iterdir()] == ["pulled"]


def test_a_second_pull_into_the_same_folder_ends_with_one_sentence(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    client("push", run=make_run().path, repo_id="owner/busy")
    folder = tmp_path / "pulled"
    with lock_output(folder):
        answer = client("pull", repo_id="owner/busy", output_dir=folder)
    assert "Another process is writing" in answer["error"]
    assert "result" in client("pull", repo_id="owner/busy", output_dir=folder)


def test_a_pull_that_replaces_a_run_destroys_the_secrets_of_its_artefacts(client: Client, make_run: Any) -> None:
    run = make_run()
    keys = vault_root() / json.loads((run.path / "methods" / METAUNLEARN / "people.json").read_text())["artefact"]
    client("push", run=run.path, repo_id="owner/replaced")
    assert any(keys.iterdir())
    assert "result" in client("pull", repo_id="owner/replaced", output_dir=run.path, overwrite=True)
    assert not keys.exists() or not any(keys.iterdir())


def test_a_pull_that_replaces_a_link_keeps_the_run_that_it_leads_to(client: Client, make_run: Any, tmp_path: Path) -> None:
    run = make_run()
    keys = vault_root() / json.loads((run.path / "methods" / METAUNLEARN / "people.json").read_text())["artefact"]
    before = sorted(keys.iterdir())
    client("push", run=run.path, repo_id="owner/alias")
    (tmp_path / "alias").symlink_to(run.path)
    assert "result" in client("pull", repo_id="owner/alias", output_dir=tmp_path / "alias", overwrite=True)
    assert not (tmp_path / "alias").is_symlink()
    assert (run.path / "split.json").exists()
    assert sorted(keys.iterdir()) == before


def test_each_error_is_one_sentence(hub: Hub, client: Client, make_run: Any, tmp_path: Path) -> None:
    assert client.heavy_imports == []  # importing the module is cheap
    run, output_dir = make_run().path, tmp_path / "pulled"
    hub.add("owner/secret", {})

    def error(what: str, **step: Any) -> str:
        answer: str = client(what, **{"repo_id": "owner/secret"} | step).get("error", "no error")
        assert answer.count("\n") == 0 and answer.endswith((".", "`")), answer
        return answer

    assert "hf auth login" in error("push", run=run, token=None)
    assert "denies you this access" in error("push", run=run, token="hf_wrong")
    assert "denies you this access" in error("push", run=run, token="hf_other")
    assert "USER/NAME" in error("push", run=run, repo_id="a/b/c")
    assert "HF_HUB_OFFLINE" in error("push", run=run, offline=True)
    assert "cannot be reached" in error("push", run=run, endpoint="http://127.0.0.1:9")
    pull = {"output_dir": output_dir}
    assert "denies you this access" in error("pull", token="hf_wrong", **pull)
    assert "does not exist or you cannot access it" in error("pull", token="hf_other", **pull)
    assert "does not exist or you cannot access it" in error("pull", token=None, **pull)
    assert "does not exist or you cannot access it" in error("pull", repo_id="owner/nothing", **pull)
    assert "USER/NAME" in error("pull", repo_id="a b", **pull)
    assert "HF_HUB_OFFLINE" in error("pull", offline=True, **pull)
    assert "cannot be reached" in error("pull", endpoint="http://127.0.0.1:9", **pull)
    assert list(tmp_path.iterdir()) == []
    output_dir.mkdir()
    (output_dir / "mine.txt").write_text("mine")
    assert "--output-dir" in error("pull", **pull)
    edit(run / "oneshui.json", lambda v: v.update(state="training"))
    assert "has not finished" in error("push", run=run)
