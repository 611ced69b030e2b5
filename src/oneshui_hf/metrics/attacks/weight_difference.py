"""The difference attack on weights: whose photos lie in the row space of the weight difference of two models?

Direction: a higher share of a candidate's layer inputs in the row space means that the update was more likely computed for them; the
forgotten people should rank no higher than with the oracle's difference.

What it cannot show: a difference of full rank, as between two trainings, contains every input, so that no one stands out. That excludes no
leak by the outputs.

Source: this project. That a gradient of a linear layer is spanned by the layer's inputs is the basis of reconstruction from gradients
(Geiping, Bauermeister, Dröge, Moeller, "Inverting Gradients", NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...errors import OneshuiError
from ...models.layer_inputs import RowSpace as RowSpace


def row_spaces(model: Mapping[str, torch.Tensor], original: Mapping[str, torch.Tensor]) -> dict[str, RowSpace]:
    """Return the row space of each layer's weight difference, by the name of its weight; of matrices that are equal there is none.

    An update of a linear layer by gradients of some photos is a sum of outer products with the layer's inputs for these photos, so the row
    space of the difference is spanned by those inputs.

    Args:
        model: The weights of the unlearned model, as `state_dict` returns them.
        original: The weights of the original.

    Raises:
        OneshuiError: The two have other layers or shapes.
    """
    require_same_layers(model, original)
    return {
        name: _row_space(weight.double() - original[name].double())
        for name, weight in model.items()
        if weight.dim() == 2 and weight.is_floating_point() and not torch.equal(weight, original[name])
    }


def require_same_layers(model: Mapping[str, torch.Tensor], original: Mapping[str, torch.Tensor]) -> None:
    """Check that two models have weights of the same names and shapes.

    Raises:
        OneshuiError: They have not.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (model, original)]
    if shapes[0] != shapes[1]:
        count = len(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise OneshuiError(
            f"The two models have other layers or shapes ({count} differences), so their weights cannot be subtracted; compare models of "
            "one architecture."
        )


def _row_space(difference: torch.Tensor) -> RowSpace:
    """Return the row space of a difference, float64 (out, in), from the eigenvectors of the smaller of its two Gram matrices.

    This is several times faster than a singular value decomposition. Singular values below the rounding errors of float32 weights are left
    out; above them the Gram matrix, whose errors are those of float64, is precise enough.
    """
    rows, columns = difference.shape
    is_wide = rows <= columns
    gram = difference @ difference.T if is_wide else difference.T @ difference
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(0), vectors.flip(1)
    smallest = max(rows, columns) * torch.finfo(torch.float32).eps  # relative to the largest, as for the numerical rank
    kept = squares > squares[0] * smallest**2
    squares, vectors = squares[kept], vectors[:, kept]
    directions = (vectors / squares.sqrt()).T @ difference if is_wide else vectors.T
    return RowSpace(directions.float(), squares / squares.sum())


def changed_numbers(model: Mapping[str, torch.Tensor], original: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return how many numbers of each tensor differ, for the tensors that differ.

    Raises:
        OneshuiError: The two have other layers or shapes.
    """
    require_same_layers(model, original)
    counts = {name: int((tensor != original[name]).sum()) for name, tensor in model.items()}
    return {name: count for name, count in counts.items() if count}


def weight_difference_scores(energies: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the score of each photo, float64 (n,): the mean over layers of its standardised energy. Higher: more likely forgotten.

    The energy of a photo in a layer, see `models.layer_inputs.layer_energies`, is the share of its centred inputs in the row
    space. Layers differ in their level and spread, so each is standardised over the candidates (mean 0, deviation 1) and counts equally; a
    layer whose energies are all equal counts as 0. Nothing is fitted. The score of a photo depends on the other candidates, and a layer
    that changed little counts as much as one that changed much.

    An update of full rank that no input stands out from, such as the difference of two trainings in another order, gives every candidate
    about the same energy, so the ranks are those of chance.

    Args:
        energies: Of each layer, (n,).

    Raises:
        OneshuiError: There is no layer.
    """
    if not energies:
        raise OneshuiError("No linear layer differs between the two models, so no photo can be scored by their weight difference.")
    values = torch.stack([of_layer.double() for of_layer in energies.values()])
    deviations = values.std(dim=1, correction=0, keepdim=True)
    centred = values - values.mean(dim=1, keepdim=True)
    return torch.where(deviations > 0, centred / deviations, 0).mean(dim=0)
