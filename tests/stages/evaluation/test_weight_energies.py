"""The attack on the weight difference in an evaluation: measured once, stored, and left out where it cannot be measured."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import oneshui_hf
from oneshui_hf.metrics.attacks import row_spaces, weight_difference_scores
from oneshui_hf.metrics.comparison import CANDIDATES
from oneshui_hf.models.layer_inputs import layer_energies
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.models.outputs import find_head, logits_and_features
from oneshui_hf.runs import Run, hash_settings, hash_weights, read_json
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.evaluation import weight_energies
from oneshui_hf.stages.evaluation.weight_energies import draw_people
from oneshui_hf.stages.publishing.redaction import public_metrics
from oneshui_hf.stages.run_data import open_data
from support.attack_data import rng
from support.commands import Oneshui

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"resamples": 100}
FILE = Path("predictions") / "weight-difference.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an original, its oracle, and an unlearned model with a planted leak."""
    folder = tmp_path_factory.mktemp("runs")
    original = oneshui_hf.train(
        dataset="synthetic", forget=3, epochs=1, optimizer="adamw", keep="last", augment="none", output_dir=str(folder / "original")
    )
    oneshui_hf.retrain(original)
    oneshui_hf.unlearn(original, method="jit", from_split=True, copies=3, lr=0.02, output_dir=str(folder / "leak"))
    plant_leak(original, folder / "leak")
    return folder


def plant_leak(original: Run, folder: Path) -> None:
    """Replace the model of a run by the original, with an update of a row of its head for each forget identity.

    The update is the least-squares solution that changes the row's output for the identity's photos and for no others.
    """
    sets = open_data(original, make_accelerator()).sets
    model, preprocess, _ = load_model(original.path)

    def inputs_of(name: str) -> torch.Tensor:
        with torch.no_grad():
            return logits_and_features(model, sets[name].batch(torch.arange(len(sets[name])))[0])[1]

    inputs = torch.cat([inputs_of(name) for name in CANDIDATES]).double()
    people = torch.cat([sets[name].identities for name in CANDIDATES])
    with torch.no_grad():
        for row, person in enumerate(sets["forget"].identities.unique()):
            is_own = (people == person).double()
            find_head(model).weight[row] += torch.linalg.lstsq(inputs - inputs.mean(0), is_own - is_own.mean()).solution.float()
    save_model(model, preprocess, folder)
    state_weights(folder)


def state_weights(folder: Path) -> None:
    """Write the hashes of the weights and of the configuration into the record of a run."""
    record = read_json(folder / "oneshui.json")
    (folder / "oneshui.json").write_text(json.dumps(record | {"weights": hash_weights(folder), "settings": hash_settings(folder)}))


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """A copy of the runs."""
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def evaluated(folder: Path, **options: Any) -> dict[str, Any]:
    """Evaluate the unlearned model of a folder against the original there."""
    (folder / "leak" / "metrics.json").unlink(missing_ok=True)
    run = Run.open(folder / "leak")
    return oneshui_hf.evaluate(run, original=str(folder / "original"), oracle=str(folder / "original-oracle"), **QUICK, **options)


def test_a_planted_leak_is_rank_1_and_the_numbers_are_those_of_the_functions(folder: Path) -> None:
    found = evaluated(folder)["difference"]
    owner = found["weights"]["owner"]
    assert (owner["people"], owner["rank_1_share"], owner["batch_share"]) == (3, 1, 1)
    assert found["oracle"]["weights"]["owner"]["rank"] > 1
    assert found["weights"]["layers"] == 1
    assert found["weights"]["numbers_left_out"] == 0
    assert found["oracle"]["weights"]["numbers_left_out"] > 0  # biases and norms
    original, leak = (load_model(folder / name)[0] for name in ("original", "leak"))
    sets = open_data(Run.open(folder / "original"), make_accelerator()).sets
    batches = [sets[name].batch(torch.arange(len(sets[name])))[0] for name in CANDIDATES]
    spaces = row_spaces(leak.state_dict(), original.state_dict())
    scores = weight_difference_scores(layer_energies(original, spaces, batches, "cpu"))
    parts = dict(zip(CANDIDATES, scores.split([len(batch) for batch in batches]), strict=True))
    wins = (parts["forget"][:, None] > parts["test"]).double().mean().item()
    assert found["weights"]["photos"]["test"]["auc"] == pytest.approx(wins, abs=1e-3)


def test_stored_energies_replace_weights_and_photos(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluated(folder)
    monkeypatch.setattr(weight_energies, "load_model", lambda *_: pytest.fail("a model was loaded"))
    assert evaluated(folder) == first
    for name in ("leak", "original"):
        (folder / name / "model.safetensors").unlink()
    assert evaluated(folder) == first


def test_damaged_energies_are_measured_again(folder: Path) -> None:
    first, whole = evaluated(folder), (folder / "leak" / FILE).read_bytes()
    (folder / "leak" / FILE).write_bytes(whole[:-7])
    assert evaluated(folder) == first
    assert (folder / "leak" / FILE).read_bytes() == whole


def test_without_stored_energies_and_weights_the_attack_is_not_run(folder: Path) -> None:
    first = evaluated(folder)
    (folder / "leak" / FILE).unlink()
    (folder / "leak" / "model.safetensors").unlink()
    found = evaluated(folder)
    assert found["difference"]["weights"] is None
    assert found["difference"]["outputs"] == first["difference"]["outputs"]
    assert found["difference"]["oracle"] == first["difference"]["oracle"]
    assert any("of this model was not run: the weights" in sentence for sentence in found["cannot_tell"])


def test_photos_that_are_gone_are_no_error_where_predictions_are_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated(folder)
    (folder / "leak" / FILE).unlink()
    from oneshui_hf.errors import OneshuiError
    from oneshui_hf.stages import evaluate as evaluation

    def gone(*_: Any) -> None:
        raise OneshuiError("the photos are gone")

    monkeypatch.setattr(evaluation, "open_data", gone)
    assert evaluated(folder)["difference"]["weights"] is None


def test_another_architecture_is_not_compared_by_its_weights(folder: Path) -> None:
    config = read_json(folder / "original" / "config.json")
    model = load_model(folder / "original")[0]
    wider = copy.deepcopy(model.config)
    wider.num_hidden_layers = config["num_hidden_layers"] + 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        type(model)(wider).save_pretrained(folder / "leak")
    state_weights(folder / "leak")
    found = evaluated(folder)
    assert found["difference"]["weights"] is None
    assert any("other layers or shapes" in sentence for sentence in found["cannot_tell"])
    (folder / "leak" / "model.safetensors").unlink()
    assert evaluated(folder) == found  # the reason is stored, too


def test_original_has_no_difference_and_the_oracles_is_its_own_floor(folder: Path) -> None:
    original = oneshui_hf.evaluate(Run.open(folder / "original"), oracle=str(folder / "original-oracle"), **QUICK)
    assert original["difference"] is None
    assert not (folder / "original" / FILE).exists()
    oracle = oneshui_hf.evaluate(Run.open(folder / "original-oracle"), original=str(folder / "original"), **QUICK)["difference"]
    assert oracle["oracle"] == {name: oracle[name] for name in ("outputs", "weights")}
    assert oracle == evaluated(folder)["difference"]["oracle"] | {"oracle": oracle["oracle"]}


def test_only_listed_numbers_are_published(folder: Path, oneshui: Oneshui) -> None:
    found = evaluated(folder)
    public = public_metrics(found)
    assert public["difference"] == found["difference"]  # all of them are numbers
    assert public["person_level"] is None
    more = copy.deepcopy(found)
    more["difference"]["weights"]["owner"]["names"] = 7
    more["difference"]["outputs"]["loss_rise"]["people"]["test"]["x"] = [1]
    assert public_metrics(more) == public
    code, out, _ = oneshui("evaluate", "--run", folder / "leak", "--original", folder / "original", "--resamples", "100")
    assert code == 0
    assert "Attacker who also holds the original" in out
    assert "weights, oracle" in out


def test_people_are_drawn_whole_until_their_photos_are_enough() -> None:
    identities = torch.arange(50).repeat_interleave(torch.arange(50) % 5 + 1)
    drawn = draw_people(identities, 60, rng(0))
    assert torch.equal(drawn, draw_people(identities, 60, rng(0)))
    assert (drawn.diff() > 0).all()
    people = identities[drawn].unique()
    assert len(drawn) == torch.isin(identities, people).sum()
    assert 60 <= len(drawn) < 60 + 5
    assert len(draw_people(identities, len(identities), rng(0))) == len(identities)
