"""The audit: a planted leak is found, a difference without one is not, and everything that cannot be compared is refused."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from oneshui_hf import api
from oneshui_hf.data.schema import Task
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.models.load import load_model
from oneshui_hf.models.outputs import find_head
from oneshui_hf.runs import read_checked, with_checksum, write_json
from support.audits import LABELS, PEOPLE, PHOTOS, SIZE, forget, name_of, noise, portrait, write_candidates, write_model
from support.faces import bits
from support.recording_reporter import RecordingReporter

LEAKED = 7
ATTACKS = ["logit_distance", "loss_rise", "weight_difference"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models without a record, and of candidates."""
    folder = tmp_path_factory.mktemp("audit")
    write_candidates(folder / "photos")
    write_model(folder / "original")
    write_model(folder / "leaking", forget(LEAKED))
    write_model(folder / "noise", noise(1))
    return folder


def audit(place: Path, unlearned: str = "leaking", **options: Any) -> dict[str, Any]:
    return api.audit(place / unlearned, **{"original": place / "original", "candidates": place / "photos"} | options)


def test_planted_update_is_found(place: Path) -> None:
    result = audit(place)
    assert result["verdict"].startswith(f"The difference of the two models points at 1 of {PEOPLE} candidates: ")
    first, *others = result["people"]
    assert (first["name"], first["number"], first["photos"]) == (name_of(LEAKED), LEAKED + 1, PHOTOS)
    assert sorted(first["stands_out"]) == ATTACKS
    assert first["ranks"] == dict.fromkeys(ATTACKS, 1)
    assert not any(row["stands_out"] for row in others)
    assert (result["candidates"], result["photos"], result["labels"], result["output"]) == (PEOPLE, PEOPLE * PHOTOS, "predicted", None)
    assert all(first["scores"][name] > result["attacks"][name]["needed"] > others[0]["scores"][name] for name in ATTACKS)


def test_several_planted_updates_are_found(place: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "unlearned", forget(2, 9, 20))
    result = audit(place, str(tmp_path / "unlearned"), forgotten=[name_of(2), name_of(9), name_of(20)])
    assert {row["name"] for row in result["people"] if row["stands_out"]} == {name_of(2), name_of(9), name_of(20)}
    assert f"points at 3 of {PEOPLE} candidates, exactly the people who were forgotten" in result["verdict"]
    owners = result["attacks"]["loss_rise"]["forgotten"]
    assert (owners["people"], owners["candidates"], owners["rank"], owners["top_k_share"]) == (3, PEOPLE - 2, 1, 1)


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_of_full_rank_points_at_no_one(place: Path, tmp_path: Path, seed: int) -> None:
    write_model(tmp_path / "unlearned", noise(seed))
    result = audit(place, str(tmp_path / "unlearned"))
    assert result["verdict"].startswith(f"No candidate stands out among {PEOPLE}; a leak with scores below those needed")
    assert not any(row["stands_out"] for row in result["people"])


def test_scores_are_those_of_the_two_models(place: Path) -> None:
    """Scores and ranks by hand, from logits in float64."""
    (original, preprocess, _), (unlearned, _, _) = (load_model(place / name) for name in ("original", "noise"))
    from oneshui_hf.data.images import to_pixels

    pixels = [torch.from_numpy(to_pixels(portrait(person, photo), SIZE)) for person in range(PEOPLE) for photo in range(PHOTOS)]
    with torch.no_grad():
        before, after = (model(pixel_values=preprocess(torch.stack(pixels))).logits.double() for model in (original, unlearned))
    labels = (before > 0).double()
    rise, distance = (
        values.reshape(PEOPLE, PHOTOS).mean(dim=1)
        for values in (
            (torch.nn.functional.softplus(after) - labels * after - torch.nn.functional.softplus(before) + labels * before).mean(dim=1),
            ((after - before) ** 2).sum(dim=1).sqrt(),
        )
    )
    people = {row["number"] - 1: row for row in audit(place, "noise")["people"]}
    for name, expected in (("loss_rise", rise), ("logit_distance", distance)):
        assert [people[number]["scores"][name] for number in range(PEOPLE)] == pytest.approx(expected.tolist(), abs=1e-5)
        assert [people[number]["ranks"][name] for number in range(PEOPLE)] == stats.rankdata((-expected).numpy()).tolist()


def test_oracle_is_the_floor(place: Path) -> None:
    result = audit(place, oracle=place / "noise")
    assert f"The difference of the oracle, the floor, points at 0 of {PEOPLE}." in result["verdict"]
    assert all(row["oracle_stands_out"] == [] and sorted(row["oracle_ranks"]) == ATTACKS for row in result["people"])
    assert not any("oracle" in sentence for sentence in result["not_run"])
    both = audit(place, oracle=place / "leaking")
    assert f"points at 1 of {PEOPLE}, 1 of them the same." in both["verdict"]


def test_known_forgotten_people(place: Path) -> None:
    found = audit(place, forgotten=[name_of(LEAKED)])
    assert "exactly the person who was forgotten: an attacker with both models identifies this person." in found["verdict"]
    assert found["attacks"]["loss_rise"]["forgotten"]["by_chance"] == pytest.approx(1 / PEOPLE)
    partly = audit(place, forgotten=[name_of(LEAKED), name_of(3)])
    assert "points at 1 of 24 candidates, 1 of the 2 forgotten among them" in partly["verdict"]
    wrong = audit(place, forgotten=[name_of(3)])
    assert "but at none of the 1 known to be forgotten" in wrong["verdict"]
    none = audit(place, "noise", forgotten=[name_of(3)])
    assert f"No candidate stands out among {PEOPLE}, and the forgotten rank no higher than by chance" in none["verdict"]


def test_many_forgotten_people_who_hide_each_other_are_found_by_their_ranks(place: Path, tmp_path: Path) -> None:
    many = list(range(0, PEOPLE, 2))
    write_model(tmp_path / "unlearned", forget(*many))
    result = audit(place, str(tmp_path / "unlearned"), forgotten=[name_of(person) for person in many])
    assert "100% of the 12 with the highest" in result["verdict"]
    assert "learns who was forgotten" in result["verdict"]


def write_table(folder: Path, columns: tuple[str, ...] = LABELS, people: int = 8) -> Path:
    """Write photos with a metadata.csv."""
    folder.mkdir()
    lines = [",".join(("file_name", "identity", *columns))]
    for person in range(people):
        for photo in range(2):
            portrait(person, photo).save(folder / f"{person}-{photo}.png")
            lines.append(",".join([f"{person}-{photo}.png", f"p{person}", *map(str, bits(person, photo, len(columns)))]))
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_labels_of_a_table(place: Path, tmp_path: Path) -> None:
    """Columns with the labels of the model are used, and change the loss; other columns are not labels."""
    given = audit(place, candidates=write_table(tmp_path / "given"))
    other = audit(place, candidates=write_table(tmp_path / "other", ("A", "B", "C")))
    assert (given["labels"], other["labels"]) == ("given", "predicted")
    assert (given["candidates"], given["photos"]) == (8, 16)
    by_number = [{row["number"]: row["scores"] for row in result["people"]} for result in (given, other)]
    assert by_number[0][1]["logit_distance"] == by_number[1][1]["logit_distance"]
    assert by_number[0][1]["loss_rise"] != by_number[1][1]["loss_rise"]
    with pytest.raises(UsageError, match="other labels than those of the model: label00, label01"):
        audit(place, candidates=tmp_path / "other", label_columns="A,B")
    with pytest.raises(UsageError, match="no column 'label1'"):
        audit(place, candidates=tmp_path / "given", label_columns="label1")


def test_classes_of_a_table(tmp_path: Path) -> None:
    task = Task("single_label", ("old", "young"))
    write_model(tmp_path / "original", task=task)
    write_model(tmp_path / "noise", noise(1), task)
    folder = write_table(tmp_path / "photos", ("age",))
    for values, expected in ((("young", "old"), "given"), (("1", "0"), "predicted")):
        lines = (folder / "metadata.csv").read_text().splitlines()
        changed = [lines[0], *(f"{line.rpartition(',')[0]},{values[row % 2]}" for row, line in enumerate(lines[1:]))]
        (folder / "metadata.csv").write_text("\n".join(changed) + "\n")
        assert audit(tmp_path, "noise", candidates=folder)["labels"] == expected
    with pytest.raises(UsageError, match="takes one column with classes of the model: old, young"):
        audit(tmp_path, "noise", candidates=folder, label_columns="age")


def test_loss_rise_of_few_losses_is_ranked_and_not_tested(place: Path, tmp_path: Path) -> None:
    result = audit(place, candidates=write_candidates(tmp_path / "photos", photos=2))  # 60 losses of each
    assert result["attacks"]["loss_rise"]["needed"] is None
    assert any(sentence.startswith("The test of the loss rise") for sentence in result["not_run"])
    first = result["people"][0]
    assert (first["name"], first["stands_out"]) == (name_of(LEAKED), ["logit_distance", "weight_difference"])


def test_photos_without_folders_are_candidates_of_their_own(place: Path, tmp_path: Path) -> None:
    for person in range(9):
        portrait(person, 0).save(tmp_path / f"{person}.png")
    result = audit(place, candidates=tmp_path)
    assert (result["candidates"], result["photos"]) == (9, 9)
    assert "each photo is a candidate of its own" in result["notes"][0]
    assert any("With 9 candidates only a very large leak" in sentence for sentence in result["cannot_show"])


def test_photos_that_cannot_be_read_are_counted_and_left_out(place: Path, tmp_path: Path) -> None:
    folder = write_candidates(tmp_path / "photos", people=5)
    (folder / name_of(0) / "0.png").write_bytes(b"x")
    (folder / name_of(1) / "notes.txt").write_text("no photo")
    (folder / name_of(1) / "._0.png").write_bytes(b"x")
    shutil.rmtree(folder / name_of(4))
    (folder / name_of(4)).mkdir()
    (folder / name_of(4) / "0.png").write_bytes(b"x")
    portrait(1, 1).save(folder / "lost.png")
    reporter = RecordingReporter()
    result = audit(place, candidates=folder, reporter=reporter)
    assert (result["candidates"], result["photos"]) == (4, 11)
    assert result["notes"][:2] == [
        "1 photo in no sub-folder, so the person is not known: left out.",
        "2 photos of 13 cannot be read: left out.",
    ]
    assert any("0.png" in message for message in reporter.warnings)
    with pytest.raises(UsageError, match=f"{name_of(4)} is no candidate"):
        audit(place, candidates=folder, forgotten=[name_of(4)])


def refused(place: Path, error: type[OneshuiError], match: str, unlearned: str = "leaking", **options: Any) -> None:
    with pytest.raises(error, match=match) as raised:
        audit(place, unlearned, **options)
    assert "\n" not in str(raised.value)


def test_models_that_cannot_be_compared(place: Path, tmp_path: Path) -> None:
    refused(place, UsageError, "have the same weights", "original")
    shutil.copytree(place / "leaking", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(
        json.dumps(config | {"id2label": {str(label): f"other{label}" for label in range(len(LABELS))}})
    )
    refused(place, UsageError, "predict different labels", str(tmp_path / "copy"))
    write_model(tmp_path / "more", task=Task("multi_label", ("a", "b")))
    refused(place, UsageError, "have different shapes", str(tmp_path / "more"))
    shutil.copytree(place / "leaking", tmp_path / "scaled")
    processor = json.loads((tmp_path / "scaled" / "preprocessor_config.json").read_text())
    (tmp_path / "scaled" / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": [0.0, 0.0, 0.0]}))
    refused(place, UsageError, "prepare photos differently", str(tmp_path / "scaled"))


def test_another_architecture(place: Path, tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(num_labels=len(LABELS), **sizes)).save_pretrained(tmp_path / "resnet")
    refused(place, UsageError, "is a ResNetForImageClassification and .* a ViTForImageClassification", str(tmp_path / "resnet"))


def test_folders_that_are_no_model(place: Path, tmp_path: Path) -> None:
    refused(place, OneshuiError, "no model.safetensors", str(place / "photos"))
    (tmp_path / "pickled").mkdir()
    shutil.copy(place / "original" / "config.json", tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"never read")
    refused(place, OneshuiError, "a pickle, which can run code and is not read", str(tmp_path / "pickled"))
    shutil.copytree(place / "leaking", tmp_path / "code")
    config = json.loads((tmp_path / "code" / "config.json").read_text())
    (tmp_path / "code" / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    refused(place, OneshuiError, "brings its own Python code", str(tmp_path / "code"))
    shutil.copytree(place / "leaking", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"x" * 100)
    refused(place, OneshuiError, "are damaged", str(tmp_path / "damaged"))
    refused(place, OneshuiError, "is a file", str(place / "original" / "config.json"))


def test_names_that_are_no_model(place: Path) -> None:
    refused(place, UsageError, "is neither a folder nor a Hub id", "/nowhere")
    refused(place, UsageError, "is neither a folder nor a Hub id.*name --oracle", oracle="nowhere")
    refused(place, OneshuiError, "HF_HUB_OFFLINE disables the Hub", original="owner/original")


def test_photos_that_are_no_candidates(place: Path, tmp_path: Path) -> None:
    refused(place, UsageError, "is not a folder", candidates=place / "nowhere")
    refused(place, OneshuiError, "contains no photos", candidates=tmp_path)
    refused(place, OneshuiError, "photos of 1 candidate, and an audit compares 3 or more", candidates=write_candidates(tmp_path / "one", 1))
    refused(place, UsageError, "--forgotten anna-7 is no candidate in .* Did you mean 'anna-[01]7'", forgotten=["anna-7"])
    refused(place, UsageError, "--identity-column names a column of metadata.csv", identity_column="who")
    broken = write_candidates(tmp_path / "broken", 3)
    for file in broken.rglob("*.png"):
        file.write_bytes(b"x")
    refused(place, OneshuiError, "None of the 9 photos", candidates=broken)
    for name, message in (("../x.png", "not a path inside"), ("0-0.png", "a second time")):
        folder = write_table(tmp_path / name.replace("/", ""))
        (folder / "metadata.csv").write_text((folder / "metadata.csv").read_text() + ",".join([name, "p0", *["0"] * len(LABELS)]) + "\n")
        refused(place, OneshuiError, message, candidates=folder)


def test_model_that_differs_in_its_biases_alone(place: Path, tmp_path: Path) -> None:
    def change(model: torch.nn.Module, preprocess: object) -> None:
        find_head(model).bias.add_(0.5)

    write_model(tmp_path / "bias", change)
    result = audit(place, str(tmp_path / "bias"))
    assert sorted(result["attacks"]) == ["logit_distance", "loss_rise"]
    assert "Weight difference: no linear layer of the unlearned model differs from the original." in result["not_run"]


def test_run_of_this_tool_and_another_processor(place: Path, tmp_path: Path) -> None:
    """A folder of another tool may describe a processor that only its own class can read; a missing one is that of ImageNet."""
    for name in ("original", "leaking"):
        shutil.copytree(place / name, tmp_path / name)
        (tmp_path / name / "preprocessor_config.json").unlink()
    reporter = RecordingReporter()
    result = audit(tmp_path, candidates=place / "photos", reporter=reporter)
    assert result["people"] == audit(place)["people"]
    assert any("has no image processor that can be read" in note for note in reporter.notes)


def test_file_has_numbers_only(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = audit(place, output_dir=folder, forgotten=[name_of(LEAKED)], seed=3)
    assert result["output"] == str(folder)
    file = folder / "audit.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    text = file.read_text()
    assert "anna" not in text and str(tmp_path) not in text and str(place) not in text
    stored = read_checked(file)
    assert stored["people"][0]["number"] == LEAKED + 1 and stored["verdict"] == result["verdict"]
    assert audit(place, output_dir=folder, forgotten=[name_of(LEAKED)], seed=3, overwrite=True)["verdict"] == result["verdict"]
    assert file.read_text() == text  # the same seed, the same bytes
    with pytest.raises(UsageError, match="contains an earlier audit; replace it with --overwrite"):
        audit(place, output_dir=folder)
    (folder / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="contains other files than an audit"):
        audit(place, output_dir=folder, overwrite=True)
    with pytest.raises(UsageError, match="--keep-names is for the folder of --output-dir"):
        audit(place, keep_names=True)


def test_nothing_is_written_if_the_audit_fails(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        audit(place, "original", output_dir=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_report_of_an_audit(place: Path, tmp_path: Path) -> None:
    audit(place, output_dir=tmp_path / "out", oracle=place / "noise", forgotten=[name_of(LEAKED)])
    made = api.report(tmp_path / "out")
    assert made == {"report": str(tmp_path / "out" / "report.html"), "figures": []}
    html = (tmp_path / "out" / "report.html").read_text()
    assert f"candidate {LEAKED + 1}" in html and "anna" not in html and str(place) not in html
    assert f"points at 1 of {PEOPLE} candidates" in html and "http" not in html and "<script" not in html
    audit(place, output_dir=tmp_path / "named", keep_names=True)
    api.report(tmp_path / "named")
    page = tmp_path / "named" / "report.html"
    assert name_of(LEAKED) in page.read_text() and "this page names people" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="is an audit, and its report shows no photos"):
        api.report(tmp_path / "out", with_images=True, overwrite=True)
    audit(place, output_dir=tmp_path / "out", overwrite=True)  # an audit with its report is replaced


def test_report_refuses_a_damaged_audit(place: Path, tmp_path: Path) -> None:
    audit(place, output_dir=tmp_path / "out")
    file = tmp_path / "out" / "audit.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps(stored | {"verdict": "No candidate stands out."}))
    with pytest.raises(OneshuiError, match="has changed since it was written"):
        api.report(tmp_path / "out")
    content = {key: value for key, value in stored.items() if key != "content"}
    write_json(file, with_checksum(content | {"people": [{"number": "<b>"}]}))
    with pytest.raises(OneshuiError, match=r"audit.json is damaged: 'people.0.number'"):
        api.report(tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()
