"""What the gradient on an unseen photo of a person shares with the gradient on this person's trained photos.

python tests/studies/gradient_overlap.py RUN [--people N]

A method that reads only the support image, and takes a step along a gradient there, changes what the model memorised of a person as far as
the two gradients agree. For each person with a photo that was kept out of training, the cosine between the gradient of the loss on this
photo and the mean gradient on the person's trained photos is compared, layer by layer, with that for the trained photos of other people.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.schema import TaskKind
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import generator, losses, parameters, sample
from oneshui_hf.models.load import load_model
from oneshui_hf.runs import Run
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.run_data import open_data
from oneshui_plugins.metaunlearn.loss_network import layer_of
from oneshui_plugins.metaunlearn.objectives import mean_gradient

SEED, CHUNK = 0, 32
ALL = "all layers"
NORMAL_QUANTILE = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Overlap:
    """Cosines between gradients on unseen photos and mean gradients on trained photos.

    Attributes:
        layers: Names of the layers; the last one is all of them together.
        cosines: (layers, people, people): row p is for the unseen photo of person p, column q for the trained photos of person q.
        norms: Norms of the gradients on the unseen photo and on the trained photos, each a mean over people, (2, layers).
    """

    layers: list[str]
    cosines: torch.Tensor
    norms: torch.Tensor

    def own_cosines(self) -> torch.Tensor:
        """Return the cosines with the person's own trained photos, (layers, people)."""
        return self.cosines.diagonal(dim1=1, dim2=2)

    def other_cosines(self) -> torch.Tensor:
        """Return the cosines with other people's trained photos, (layers, people, people - 1)."""
        count = self.cosines.shape[1]
        return self.cosines[:, ~torch.eye(count, dtype=torch.bool)].view(len(self.layers), count, -1)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per layer.

        `own` and `others` are mean cosines, `difference` is own minus others with half the width of its 95 % interval over the photos, and
        `auc` is the probability that the own cosine exceeds that of a random other person.
        """
        own, others = self.own_cosines(), self.other_cosines()
        differences = own - others.mean(dim=2)
        above = (own.unsqueeze(2) > others).double() + 0.5 * (own.unsqueeze(2) == others).double()
        rows = []
        for index, layer in enumerate(self.layers):
            error = differences[index].std() / own.shape[1] ** 0.5
            rows.append(
                {
                    "layer": layer,
                    "own": own[index].mean().item(),
                    "others": others[index].mean().item(),
                    "difference": differences[index].mean().item(),
                    "half_width": NORMAL_QUANTILE * error.item(),
                    "auc": above[index].mean().item(),
                    "norm_unseen": self.norms[0, index].item(),
                    "norm_trained": self.norms[1, index].item(),
                }
            )
        return rows


def measure_overlap(model: torch.nn.Module, kind: TaskKind, unseen: FaceSet, train: FaceSet) -> Overlap:
    """Return the overlap for a model.

    Args:
        model: In eval mode.
        kind: The task kind.
        unseen: Photos that the model was not trained on, one of each person.
        train: The training photos. Those of the people in `unseen` are compared.
    """
    people = unseen.identities.tolist()
    singles = [_gradient_by_layer(model, unseen.subset(torch.tensor([position])), kind) for position in range(len(unseen))]
    layers = list(singles[0])
    on_unseen = {layer: torch.stack([gradient[layer] for gradient in singles]) for layer in layers}
    del singles
    products = torch.zeros(len(layers), len(people), len(people), dtype=torch.float64)
    squares = torch.zeros(2, len(layers), len(people), dtype=torch.float64)  # of unseen photos and of trained people
    squares[0] = torch.stack([on_unseen[layer].norm(dim=1) ** 2 for layer in layers])
    for column, person in enumerate(people):
        trained = _gradient_by_layer(model, train.subset(train.positions_of[person]), kind)
        squares[1, :, column] = torch.stack([trained[layer].norm() ** 2 for layer in layers])
        products[:, :, column] = torch.stack([on_unseen[layer] @ trained[layer] for layer in layers])
    products, squares = _with_total(products, dim=0), _with_total(squares, dim=1)
    cosines = products / (squares[0].unsqueeze(2) * squares[1].unsqueeze(1)).sqrt()
    return Overlap([*layers, ALL], cosines, squares.sqrt().mean(dim=2))


def _gradient_by_layer(model: torch.nn.Module, faces: FaceSet, kind: TaskKind) -> dict[str, torch.Tensor]:
    """Return the gradient of the mean loss on some photos, as one vector per layer."""
    gradient = mean_gradient(model, parameters(model), faces, lambda logits, labels, positions: losses(logits, labels, kind), CHUNK)[2]
    parts: dict[str, list[torch.Tensor]] = {}
    for name, part in gradient.items():
        parts.setdefault(layer_of(name), []).append(part.flatten())
    return {layer: torch.cat(flat) for layer, flat in parts.items()}


def _with_total(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Append the sum over the layers."""
    return torch.cat([tensor, tensor.sum(dim=dim, keepdim=True)], dim=dim)


def select_unseen(train: FaceSet, support: FaceSet, people: int) -> FaceSet:
    """Return one photo of each of at most `people` people that was kept out of training: the support images first, then reserved photos.

    Raises:
        UsageError: Fewer than two people have one.
    """
    reserved = [] if train.reserved is None else [train.reserved]
    chosen: dict[int, tuple[int, torch.Tensor]] = {}  # by person: row of the photo, and its labels
    for faces in (support, *reserved):
        for person, positions in faces.positions_of.items():
            if person in train.positions_of:
                chosen.setdefault(person, (int(faces.rows[positions[0]]), faces.labels[positions[0]]))
    if len(chosen) < 2:
        raise UsageError("Fewer than two training people have a photo that was kept out of training, so nothing can be compared.")
    identities = torch.tensor(sorted(chosen))[sample(len(chosen), people, generator(SEED, "unseen photos"))]
    rows, labels = zip(*(chosen[person] for person in identities.tolist()), strict=True)
    return FaceSet(train.store, np.array(rows), torch.stack(labels), identities, train.preprocess, train.people)


def format_rows(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table as lines."""
    width = max(len(row["layer"]) for row in rows)
    lines = [f"{'layer':<{width}}     own  others  difference          AUC   norm: unseen  trained"]
    for row in rows:
        difference = f"{row['difference']:+.3f} ± {row['half_width']:.3f}"
        lines.append(
            f"{row['layer']:<{width}}  {row['own']:+.3f}  {row['others']:+.3f}  {difference:<16}  {row['auc']:5.3f}   "
            f"{row['norm_unseen']:12.3f} {row['norm_trained']:8.3f}"
        )
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", help="a run with its data")
    parser.add_argument("--people", type=int, default=30, help="most people whose unseen photo is compared")
    given: Any = parser.parse_args()
    if given.people < 2:
        raise UsageError("--people is at least 2.")
    run, accelerator = Run.open(given.run), make_accelerator()
    sets = open_data(run, accelerator).sets
    model, _, task = load_model(run.path, accelerator.device)
    unseen = select_unseen(sets["train"], sets["support"], given.people)
    overlap = measure_overlap(model.eval(), task.kind, unseen, sets["train"])
    print(f"{len(unseen)} people; cosine of the gradient on an unseen photo with that on trained photos, of the same and of other people:")
    print("\n".join(format_rows(overlap.rows())))


if __name__ == "__main__":
    try:
        main()
    except OneshuiError as error:
        sys.exit(str(error))
