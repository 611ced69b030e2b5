"""The command line from end to end: options, configuration, JSON, and one sentence for every error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oneshui_hf.runs import Run, read_json
from support.commands import Oneshui, sentence


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original model and its oracle, trained for two epochs on generated faces."""
    import oneshui_hf

    folder = tmp_path_factory.mktemp("runs") / "original"
    original = oneshui_hf.train(dataset="synthetic", forget=3, epochs=2, optimizer="adamw", output_dir=str(folder), keep="last")
    oneshui_hf.retrain(original)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from PIL import Image

    file = tmp_path / "face.png"
    Image.effect_mandelbrot((60, 50), (-2, -1, 1, 1), 30).convert("RGB").save(file)
    return file


def test_train_writes_a_checkpoint_that_transformers_loads(trained: Path) -> None:
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(trained), top_k=12)
    from PIL import Image

    assert len(classify(Image.new("RGB", (40, 40)))) == 12
    record = Run.open(trained).record
    assert record.kind == "original"
    assert record.state == "complete"
    assert record.weights == Run.open(trained).weights
    assert record.options["epochs"] == 2
    assert {"torch", "transformers"} <= set(record.versions)


def test_pipeline_from_preparation_to_evaluation(oneshui: Oneshui, trained: Path, photo: Path, tmp_path: Path) -> None:
    code, out, _ = oneshui("prepare", "--method", "metaunlearn", "--run", trained, "--steps", 2, "--calibration", 0, "--json")
    assert code == 0
    assert json.loads(out)["report"]["meta_steps"] == 2

    code, out, err = oneshui("unlearn", "--run", trained, "--image", photo, "--output-dir", tmp_path / "one", "--json")
    assert code == 0, err
    assert json.loads(out)["report"]["labels"] == "guessed by the model"
    assert json.loads(out)["report"]["method"] == "metaunlearn"
    assert f"Method metaunlearn (photo alone): prepared for {trained}." in err  # none was named
    assert read_json(tmp_path / "one" / "oneshui.json")["parent"]["weights"] == Run.open(trained).weights

    assert oneshui("unlearn", "--run", trained, "--from-split", "--output-dir", tmp_path / "split")[0] == 0
    code, out, err = oneshui("evaluate", "--run", tmp_path / "split", "--json")
    assert code == 0, err
    result = json.loads(out)
    for name in ("retain", "forget", "val", "test"):
        assert 0 <= result[name]["map"] <= 100
        assert result[name]["loss"] > 0
    assert result["tow"] > 0
    assert "gap_closure" in result
    assert json.loads((tmp_path / "split" / "metrics.json").read_text()) == result


@pytest.mark.parametrize(
    "method", ["gradient-ascent", "lfssd", "metaunlearn", "pgu", "random-labels", "reference-guided", "ssd", "svd-projection"]
)
def test_dry_run_estimates_the_size_of_an_artefact_and_prepares_nothing(oneshui: Oneshui, trained: Path, method: str) -> None:
    folder = trained / "methods" / method
    there = folder.exists()
    words = ["--method", method, "--run", trained, *(["--steps", 2, "--calibration", 1] if method == "metaunlearn" else [])]
    code, out, err = oneshui("prepare", *words, "--dry-run", "--json")
    assert code == 0, err
    estimated = json.loads(out)
    assert estimated["seconds"] > 0
    assert estimated["forward"] + estimated["backward"] > 0
    assert folder.exists() == there
    if method in ("pgu", "ssd", "svd-projection", "lfssd"):  # the artefacts of the others are tiny, or depend on training
        _, out, _ = oneshui("prepare", *words, "--overwrite", "--json")
        kept = json.loads(out)["bytes"]
        assert 0.9 * kept < estimated["bytes"] <= kept


def test_dry_run_lists_the_trainings_of_a_cross_fit_and_trains_nothing(oneshui: Oneshui, trained: Path, tmp_path: Path) -> None:
    words = ["prepare", "--method", "forget-keys", "--run", trained, "--dry-run", "--cache-dir", tmp_path / "cache"]
    code, out, err = oneshui(*words, "--folds", 4, "--repeats", 2)
    assert code == 0, err
    assert "8 trainings by the run's recipe" in out
    once, twice, none = (
        json.loads(oneshui(*words, "--json", *more)[1])
        for more in (["--folds", 4, "--repeats", 1], ["--folds", 4, "--repeats", 2], ["--targets", "quantile"])
    )
    assert (once["trainings"], twice["trainings"], none["trainings"]) == (4, 8, 0)
    assert twice["training_photos"] == 2 * once["training_photos"] > none["training_photos"] == 0
    code, _, err = oneshui(*words, "--folds", 1000)
    assert (code, sentence(err)[:19]) == (2, "Error: --folds 1000")
    assert not (tmp_path / "cache").exists()


def test_option_without_effect_is_reported(oneshui: Oneshui, trained: Path) -> None:
    words = ["prepare", "--method", "forget-keys", "--run", trained, "--dry-run", "--targets", "quantile"]
    code, _, err = oneshui(*words, "--folds", 3)
    assert (code, "--folds has no effect with the other options of 'forget-keys', and is ignored." in err) == (0, True)
    assert "no effect" not in oneshui(*words, "--probe-weight", 0.5)[2]
    assert "no effect" not in oneshui(*words, "--folds", 5)[2], "the default, as a benchmark gives it"


def test_preset_applies_to_unlearn(oneshui: Oneshui, trained: Path, photo: Path, tmp_path: Path) -> None:
    words = ["unlearn", "--run", trained, "--method", "jit", "--image", photo, "--json"]
    code, out, err = oneshui(*words, "--preset", "paper", "--copies", 3, "--output-dir", tmp_path / "new")
    assert code == 0, err
    assert json.loads(out)["report"]["method_options"] == {"copies": 3, "lr": 0.01, "sigma": 0.5}
    code, _, err = oneshui(*words, "--preset", "papr", "--output-dir", tmp_path / "other")
    assert code == 2
    assert "Did you mean 'paper'?" in sentence(err)


def test_methods_that_read_training_data_refuse_a_single_image(oneshui: Oneshui, trained: Path, photo: Path) -> None:
    for method in ("fine-tuning", "neggrad-plus", "scrub", "bad-teacher", "salun"):
        code, _, err = oneshui("unlearn", "--run", trained, "--method", method, "--image", photo)
        assert code == 2
        assert "at request time, so one photo is not enough; run it with --from-split" in sentence(err)


def test_method_for_classes_refuses_a_model_of_attributes(oneshui: Oneshui, trained: Path, photo: Path, tmp_path: Path) -> None:
    new, preset = tmp_path / "new", tmp_path / "new.json"
    for words in (("unlearn", "--image", photo, "--output-dir", new), ("tune", "--trials", 2, "--output", preset)):
        code, _, err = oneshui(*words, "--run", trained, "--method", "mu-mis")
        assert code == 2
        assert "needs a model with two or more classes, and not attributes; use another method." in err.splitlines()[-1]
        assert not new.exists()
        assert not preset.exists()


def test_original_has_gap_closure_zero_and_oracle_has_tow_100(oneshui: Oneshui, trained: Path) -> None:
    code, out, _ = oneshui("evaluate", "--run", trained, "--json")
    assert code == 0
    assert json.loads(out)["gap_closure"] == 0
    code, out, _ = oneshui("evaluate", "--run", f"{trained}-oracle", "--oracle", f"{trained}-oracle", "--json")
    assert json.loads(out)["tow"] == 100


def test_predictions_are_stored_and_recomputed_if_damaged(oneshui: Oneshui, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = oneshui("evaluate", "--run", trained, "--json")[1]
    file = trained / "predictions" / "test.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert oneshui("evaluate", "--run", trained, "--json")[1] == first  # metrics exist, so predictions are not read
    assert file.read_bytes() == whole[:100]
    (trained / "metrics.json").unlink()
    assert oneshui("evaluate", "--run", trained, "--json")[1] == first
    assert file.read_bytes() == whole
    (trained / "metrics.json").unlink()
    for name in ("predict", "predict_with_features"):  # metrics from stored predictions need no model
        monkeypatch.setattr(f"oneshui_hf.stages.evaluation.predictions.{name}", None)
    assert oneshui("evaluate", "--run", trained, "--json")[1] == first


def test_result_is_printed_on_stdout(oneshui: Oneshui, trained: Path) -> None:
    code, out, _ = oneshui("evaluate", "--run", trained)
    assert code == 0
    assert "ToW" in out
    assert "forget" in out


def test_unlearn_uses_and_names_the_newest_run(
    oneshui: Oneshui, trained: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oneshui_hf.api_run.RUNS", trained.parent)
    code, _, err = oneshui("unlearn", "--method", "do-nothing", "--image", photo, "--output-dir", tmp_path / "new")
    assert code == 0
    assert str(trained) in err


def test_command_line_takes_precedence_over_the_configuration_file(oneshui: Oneshui, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("dataset: synthetic\nnum-train-epochs: 1\nforget: 2\nseed: 5\noptimizer: adamw\n")
    code, _, err = oneshui("train", "--config", config, "--seed", 7, "--output-dir", tmp_path / "run")
    assert code == 0, err
    record = Run.open(tmp_path / "run").record
    assert (record.seed, record.options["epochs"], record.options["forget"]) == (7, 1, 2)


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["train", "--dataset", "synthetics"], 2, "Did you mean 'synthetic'?"),
        (["train"], 2, "train needs --dataset"),
        (["train", "--dataset", "celeba"], 2, "--data-dir"),
        (["train", "--dataset", "celeba", "--data-dir", "/nowhere"], 2, "is not a folder"),
        (["train", "--dataset", "synthetic", "--epoch", "3"], 2, "--epochs"),
        (["train", "--dataset", "synthetic", "--epochs", "zero"], 2, "--epochs of train takes a whole number, not 'zero'."),
        (["train", "--dataset", "synthetic", "--epochs", "0"], 2, "must be at least 1"),
        (["train", "--dataset", "synthetic", "--optimizer", "adam"], 2, "Did you mean 'adamw'?"),
        (["train", "--dataset", "synthetic", "--image-size", "33"], 2, "multiple of 8"),
        (["train", "--dataset", "synthetic", "--forget", "999"], 2, "--forget 999 is more than"),
        (["train", "--dataset", "synthetic", "--reserve-supports", "999"], 2, "--reserve-supports 999 is more than"),
        (["train", "--dataset", "synthetic", "--model", "/nowhere/model"], 2, "Checkpoint '/nowhere/model' does not exist"),
        (["train", "--dataset", "synthetic", "--split", "/nowhere.json"], 2, "Split file /nowhere.json does not exist"),
        (["train", "--dataset", "synthetic", "--data-dir", "/tmp"], 2, "--data-dir applies to data sets"),
        (["train", "--dataset", "synthetic", "--seed", "99999999999999999999"], 2, "must be at most"),
        (["train", "--dataset", "synthetic", "--resume", "--overwrite"], 2, "give one of them"),
        (["unlearn", "--run", "RUN", "--method", "do-nothing", "--image", "PHOTO", "--labels", ""], 2, "is empty"),
        (["unlearn", "--run", "RUN", "--method", "do-nothing", "--image", "PHOTO", "--data-dir", "x"], 2, "--data-dir is for --from-split"),
        (["methods", "show", "metaunlern"], 2, "Did you mean 'metaunlearn'?"),
        (["train", "--dataset", "synthetic", "--config", "/nowhere.yaml"], 2, "no configuration file"),
        (["train", "--dataset", "synthetic", "--label-columns", "Hat"], 2, "--label-columns applies to your own folder"),
        (["retrain", "--run", "/nowhere"], 2, "There is no run at /nowhere"),
        (["prepare", "--run", "RUN", "--method", "metaunlern"], 2, "Did you mean 'metaunlearn'?"),
        (["prepare", "--run", "RUN", "--method", "do-nothing"], 2, "nothing to prepare"),
        (["prepare", "--run", "RUN", "--preset", "papr"], 2, "Did you mean 'paper'?"),
        (["prepare", "--run", "RUN", "--epoch", "3"], 2, "Did you mean '--epochs'?"),
        (["prepare", "--run", "RUN", "--resume"], 2, "--resume continues a preparation and --overwrite replaces it; give one of them"),
        (["prepare", "--run", "RUN", "--face-encoder", "dlib"], 2, "--face-encoder is for methods that act on each identity separately"),
        (
            ["prepare", "--run", "RUN", "--method", "forget-keys", "--face-encoder", "/nowhere/encoder"],
            2,
            "'/nowhere/encoder' does not exist",
        ),
        (["prepare", "--run", "RUN", "--identity-dropout", "2"], 2, "must be at most 1"),
        (["unlearn", "--run", "RUN", "--method", "gradient-ascent"], 2, "--image FILE"),
        (["unlearn", "--run", "RUN", "--method", "metaunlearn", "--image", "PHOTO", "--labels", "Smilling"], 2, "Did you mean 'Smiling'?"),
        (["unlearn", "--run", "RUN", "--method", "do-nothing", "--image", "/nowhere.jpg"], 1, "/nowhere.jpg does not exist."),
        (["unlearn", "--run", "RUN", "--method", "do-nothing", "--image", "PHOTO", "--identity", "a", "--identity", "b"], 2, "--identity"),
        (["unlearn", "--run", "RUN", "--method", "metaunlearn", "--image", "PHOTO", "--steps", "9"], 2, "fixed when preparing"),
        (["unlearn", "--run", "RUN", "--method", "metaunlearn", "--image", "PHOTO", "--identity", "nobody"], 1, "Identity 'nobody'"),
        (["evaluate", "--run", "RUN", "--oracle", "RUN"], 2, "--oracle takes a model"),
        (["evaluate", "--run", "RUN-oracle", "--original", "RUN-oracle"], 2, "--original takes the original"),
        (["push", "/nowhere", "user/name"], 2, "There is no run at /nowhere"),
        (["evalute"], 2, "Did you mean 'evaluate'"),
        (["evaluate", "--resamples"], 2, "--resamples needs a value"),
        (["retrain", "RUN", "RUN"], 2, "oneshui retrain takes no argument"),
        (["retrain", "RUN", "--run", "RUN-oracle"], 2, "oneshui retrain takes no argument"),
        (["show", "--run"], 2, "--run needs a value"),
        (["train", "--dataset", "synthetic", "--no-bf16=3"], 2, "--no-bf16 takes no value"),
        (["unlearn", "RUN", "--image", "PHOTO", "--keep", "--destroy"], 2, "--keep and --destroy exclude each other"),
        (["unlearn", "RUN", "--image", "PHOTO", "--from-split"], 2, "--image and --from-split exclude each other"),
        (["predict"], 2, "oneshui predict needs RUN"),
        (["predict", "RUN", "/nowhere.jpg"], 1, "/nowhere.jpg does not exist."),
        (["predict", "RUN", "PHOTO", "--top-k", "0"], 2, "--top-k of predict must be at least 1"),
        (["show", "/nowhere"], 2, "There is no run at /nowhere"),
        (["runs", "/nowhere"], 2, "There is no folder /nowhere"),
        (["cache", "clear", "--kind", "originl"], 2, "Did you mean 'original'?"),
        (["data", "chek"], 2, "Did you mean 'check'"),
        (["prepare", "RUN", "--method", "metaunlearn", "--identity-dropout", "much"], 2, "takes a number, not 'much'"),
    ],
)
def test_error_is_one_sentence_and_writes_nothing(
    oneshui: Oneshui, trained: Path, photo: Path, tmp_path: Path, words: list[str], code: int, expected: str
) -> None:
    prepared(trained)
    words = [str(trained) + word[3:] if word.startswith("RUN") else str(photo) if word == "PHOTO" else word for word in words]
    target = tmp_path / "target"
    if words[0] in ("train", "retrain", "unlearn"):
        words += ["--output-dir", str(target)]
    if words[0] == "prepare":
        words += ["--overwrite"]
    got, out, err = oneshui(*words)
    assert expected in sentence(err)
    assert got == code
    assert out == ""
    assert not target.exists()
    assert not list(tmp_path.glob(".*"))


def prepared(run: Path) -> None:
    """Prepare MetaUnlearn once for a run."""
    import oneshui_hf

    if not (run / "methods" / "metaunlearn").exists():
        oneshui_hf.prepare(run, method="metaunlearn", steps=2, calibration=0)


def test_existing_folder_is_not_overwritten(oneshui: Oneshui, trained: Path, photo: Path, tmp_path: Path) -> None:
    before = (trained / "oneshui.json").read_bytes()
    code, _, err = oneshui("train", "--dataset", "synthetic", "--output-dir", trained)
    assert (code, "exists" in sentence(err)) == (2, True)
    assert (trained / "oneshui.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    words = ("unlearn", "--method", "do-nothing", "--run", trained, "--image", photo, "--output-dir", tmp_path / "mine", "--overwrite")
    code, _, err = oneshui(*words)
    assert (code, "is not a run" in sentence(err)) == (2, True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_run_is_not_overwritten_by_a_run_made_from_it(oneshui: Oneshui, trained: Path, photo: Path, tmp_path: Path) -> None:
    before = (trained / "oneshui.json").read_bytes()
    (tmp_path / "link").symlink_to(trained)
    unlearn = ("unlearn", "--method", "do-nothing", "--image", photo)
    for words in (("retrain",), unlearn):
        for place in (trained, trained / "methods" / "mine", tmp_path / "link", trained.parent):
            code, _, err = oneshui(*words, "--run", trained, "--output-dir", place, "--overwrite")
            assert (code, "name another --output-dir" in sentence(err)) == (2, True)
    assert (trained / "oneshui.json").read_bytes() == before


def test_damaged_runs_are_reported(oneshui: Oneshui, trained: Path, photo: Path, tmp_path: Path) -> None:
    import shutil

    words = ("unlearn", "--method", "do-nothing", "--image", photo, "--output-dir", tmp_path / "out", "--run")
    for number, (old, new) in enumerate([('"options": {', '"options": "x", "was": {'), ('"original"', '"foo"')]):
        broken = Path(shutil.copytree(trained, tmp_path / f"broken{number}"))
        text = (broken / "oneshui.json").read_text()
        assert old in text
        (broken / "oneshui.json").write_text(text.replace(old, new, 1))
        code, _, err = oneshui(*words, broken)
        assert (code, "is damaged" in sentence(err)) == (1, True)
    cut = Path(shutil.copytree(trained, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    code, _, err = oneshui(*words, cut)
    assert (code, "not those of its record" in sentence(err)) == (1, True)
    (tmp_path / "afile").write_text("")
    code, _, err = oneshui("unlearn", *words[1:5], "--run", trained, "--output-dir", tmp_path / "afile" / "sub")
    assert (code, "is a file" in sentence(err)) == (2, True)


def test_methods_show_lists_options(oneshui: Oneshui) -> None:
    code, out, _ = oneshui("methods", "show", "metaunlearn")
    assert code == 0
    assert "--max-retain-drop" in out
    assert "paper" in out
    options = {row["option"]: row for row in json.loads(oneshui("methods", "show", "metaunlearn", "--json")[1])["options"]}
    assert options["--identity-dropout"]["max"] == 1
    assert options["--length"]["at"] == "apply"


def test_artefact_of_another_model_is_refused(oneshui: Oneshui, trained: Path, photo: Path, tmp_path: Path) -> None:
    import shutil

    prepared(trained)
    other = tmp_path / "other"
    shutil.copytree(f"{trained}-oracle", other)
    shutil.copytree(trained / "methods", other / "methods")
    words = ["unlearn", "--method", "metaunlearn", "--run", other, "--image", photo, "--output-dir", tmp_path / "out"]
    code, _, err = oneshui(*words)
    assert (code, "other weights" in sentence(err)) == (1, True)
    assert not (tmp_path / "out").exists()
    assert oneshui(*words, "--force")[0] == 0
    assert Run.open(tmp_path / "out").record.report["forced"] is True


def test_unknown_key_of_a_configuration_names_the_nearest(oneshui: Oneshui, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("dataset: synthetic\nepoch: 1\n")
    code, _, err = oneshui("train", "--config", config)
    assert (code, "Did you mean 'epochs'?" in sentence(err)) == (2, True)
    config.write_text("- a\n- b\n")
    assert "'option: value'" in sentence(oneshui("train", "--config", config)[2])
    config.write_text("a: [1\n")
    assert "line 2, is not readable YAML" in sentence(oneshui("train", "--config", config)[2])


def test_full_disk_is_one_sentence(oneshui: Oneshui, trained: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("oneshui_hf.runs.os.fsync", full)
    code, _, err = oneshui("unlearn", "--method", "do-nothing", "--run", trained, "--image", photo, "--output-dir", tmp_path / "out")
    assert (code, "no space left" in sentence(err)) == (1, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [photo.name]


def test_plugins_are_listed_with_their_distribution(oneshui: Oneshui) -> None:
    code, out, _ = oneshui("methods", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert {"do-nothing", "gradient-ascent", "metaunlearn"} <= set(rows)
    assert rows["metaunlearn"]["from"].startswith("oneshui-hf ")
    assert rows["metaunlearn"]["needs"] == "prepare: train, val; apply: support"
    assert {"celeba", "folder", "synthetic"} <= {row["name"] for row in json.loads(oneshui("datasets", "--json")[1])}
