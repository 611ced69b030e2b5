"""One value where a list is expected, names with commas, and people whose names YAML would change, from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oneshui_hf
from oneshui_hf.errors import UsageError
from support.commands import Oneshui, sentence
from support.faces import portrait

CLASSES = ("(25, 32)", "(0, 2)", "yes")
PEOPLE = ["011", "9", "yes", "null", "1e3", *(f"p{number}" for number in range(9))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> oneshui_hf.Run:
    """A model of one class per photo. Classes contain commas, people have names that YAML resolves to numbers and truth values."""
    folder = tmp_path_factory.mktemp("data")
    lines = ["file_name,identity,class"]
    for number, person in enumerate(PEOPLE):
        for photo in range(4):
            portrait(number, photo).save(folder / f"{number}-{photo}.png")
            lines.append(f'{number}-{photo}.png,{person},"{CLASSES[(number + photo) % 3]}"')
    (folder / "metadata.csv").write_text("\n".join(lines))
    output = tmp_path_factory.mktemp("runs") / "original"
    return oneshui_hf.train(dataset=str(folder), model="tiny", forget=2, epochs=1, output_dir=output, image_column="file_name")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    portrait(1, 9).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that are made from photos."""
    from oneshui_hf.stages import unlearn

    made: list[Any] = []
    make = unlearn._request_from_photos
    monkeypatch.setattr(unlearn, "_request_from_photos", lambda *given: made.append(make(*given)) or made[-1])
    return made


@pytest.mark.parametrize("as_given", [str, Path, lambda file: [file], lambda file: (str(file),), lambda file: np.array([str(file)])])
def test_one_photo_is_a_list_of_one(run: oneshui_hf.Run, photo: Path, tmp_path: Path, as_given: Callable[[Path], Any]) -> None:
    assert [row["image"] for row in oneshui_hf.predict(run, as_given(photo))] == [str(photo)]
    assert run.predict(as_given(photo))[0]["image"] == str(photo)
    made = oneshui_hf.unlearn(run, as_given(photo), method="do-nothing", output_dir=tmp_path / "new")
    assert made.record.report["photos"] == 1


@pytest.mark.parametrize(("identity", "expected"), [(12, "12"), ("011", "011"), (["9"], "9"), (np.int64(9), "9"), (("null",), "null")])
def test_one_identity_is_a_list_of_one(
    run: oneshui_hf.Run, photo: Path, tmp_path: Path, requests: list[Any], identity: Any, expected: str
) -> None:
    oneshui_hf.unlearn(run, photo, method="do-nothing", identity=identity, output_dir=tmp_path / "new")
    assert requests[0].people == (expected,)


@pytest.mark.parametrize("values", [{"images": 3.5}, {"images": b"x"}, {"images": [None]}, {"identity": True}, {"labels": {"a": 1}}])
def test_other_values_are_refused_in_one_sentence(run: oneshui_hf.Run, photo: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^--{next(iter(values))} of unlearn takes "):
        oneshui_hf.unlearn(run, **{"images": photo, "method": "do-nothing", "output_dir": tmp_path / "new"} | values)
    assert not (tmp_path / "new").exists()


def test_option_is_given_once(run: oneshui_hf.Run) -> None:
    with pytest.raises(UsageError, match="'lr' and 'learning_rate', which are the same option"):
        oneshui_hf.train(dataset="synthetic", lr=1, learning_rate=2)


@pytest.mark.parametrize(
    "line",
    [
        *("identity: 011", "identity: [011]", "identity:\n- 011", "identity: '011'"),
        *("identity: yes", "identity: [yes]", "identity: [null]", "identity: 1e3", "identity: 9"),
    ],
)
def test_person_of_a_configuration_has_the_name_that_is_written(
    oneshui: Oneshui, run: oneshui_hf.Run, photo: Path, tmp_path: Path, requests: list[Any], line: str
) -> None:
    (tmp_path / "c.yaml").write_text(f"method: do-nothing\nimage: {photo}\nlabels: yes\n{line}\noutput-dir: {tmp_path}/new\nseed: 1_0\n")
    code, _, err = oneshui("unlearn", run.path, "--config", tmp_path / "c.yaml")
    assert code == 0, err
    (request,) = requests
    assert request.people == (line.strip("]'").replace("[", " ").replace("'", " ").split()[-1],)
    names = json.loads((run.path / "oneshui.json").read_text())["dataset"]["labels"]
    assert names[int(request.labels[0])] == "yes"
    assert json.loads((tmp_path / "new" / "oneshui.json").read_text())["seed"] == 10


@pytest.mark.parametrize("name", CLASSES)
def test_class_with_a_comma_can_be_named(
    oneshui: Oneshui, run: oneshui_hf.Run, photo: Path, tmp_path: Path, requests: list[Any], name: str
) -> None:
    words = ["unlearn", run.path, "--method", "do-nothing", "--image", photo, "--labels", name, "--output-dir", tmp_path / "new"]
    assert oneshui(*words)[0] == 0
    oneshui_hf.unlearn(run, photo, method="do-nothing", labels=name, output_dir=tmp_path / "other")
    oneshui_hf.unlearn(run, [photo, photo], method="do-nothing", labels=[name, CLASSES[0]], output_dir=tmp_path / "third")
    names = run.record.dataset["labels"]
    assert [[names[label] for label in request.labels.tolist()] for request in requests] == [[name], [name], [name, CLASSES[0]]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["(25, 33)"], "The model has no label '(25'."),
        (["(25, 32),(0, 2)"], "This model predicts one class per photo, so --labels takes one, not '(25, 32),(0, 2)'."),
        (["(25, 32)", "(0, 2)"], "This model predicts one class per photo, so --labels takes one, not '(25, 32), (0, 2)'."),
        ([","], "This model predicts one class per photo, so --labels takes one, not ','."),
    ],
)
def test_wrong_class_is_one_sentence(
    oneshui: Oneshui, run: oneshui_hf.Run, photo: Path, tmp_path: Path, labels: list[str], message: str
) -> None:
    given = [word for label in labels for word in ("--labels", label)]
    code, _, err = oneshui("unlearn", run.path, "--method", "do-nothing", "--image", photo, *given, "--output-dir", tmp_path / "new")
    assert (code, message in sentence(err)) == (2, True), err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "given", [["Age, in years"], ["Age, in years,Scarf"], ["Scarf", "Age, in years"], ['"Age, in years",Scarf'], ["Scarf,Age,in years"]]
)
def test_column_with_a_comma_can_be_named(oneshui: Oneshui, photo_folder: Callable[..., Path], given: list[str]) -> None:
    folder = photo_folder()
    head, *rows = (folder / "metadata.csv").read_text().splitlines()
    cells = [f"{row},{number % 2},{number // 2 % 2}" for number, row in enumerate(rows)]
    (folder / "metadata.csv").write_text("\n".join([f'{head},"Age, in years",Scarf', *cells]))
    expected = {name for name in ("Age, in years", "Scarf") if any(name[:3] in word for word in given)}
    config = folder.parent / "c.yaml"
    config.write_text(f"label-columns: {json.dumps(given)}\ndataset: {folder}\n")
    repeated = [word for text in given for word in ("--label-columns", text)]
    for words in (["--dataset", folder, *repeated], ["--config", config]):
        code, out, err = oneshui("data", "check", *words, "--json")
        assert code == 0, err
        assert set(json.loads(out)["class_balance"]) == expected
    found = oneshui_hf.load_dataset(str(folder), label_columns=sorted(expected))["train"].features["labels"]
    assert set(found) == expected
    code, _, err = oneshui("data", "check", "--dataset", folder, "--label-columns", "Scraf,Age, in years")
    assert (code, "has no column 'Scraf'. Did you mean 'Scarf'?" in sentence(err)) == (2, True)
    code, _, err = oneshui("data", "check", "--dataset", folder, "--fixed-labels", "Age, in years,Hut")
    assert (code, "--fixed-labels names 'Hut'" in sentence(err)) == (2, True)
