"""Time and memory of preparing SSD and PGU, compared with the usual implementations, written anew here from their descriptions.

    python tests/benchmarks/bench_preparation.py [--photos 64] [--repeats 3]

- SSD's authors square the gradient of a batch's mean loss: one backward pass a batch. Ours squares the gradient of each photo, which does
  not depend on the batch; the ratio is what that costs.
- For PGU the usual code keeps the layers' inputs of a batch and multiplies them in single precision. Ours adds up products in double
  precision, of each use of a weight, and of convolutions photo by photo.

Each measurement is a separate process: its processor seconds, and how far its peak memory is above that of a process that has loaded the
model only. The two sides alternate, and the lowest of the repeats counts. The model is a ViT-Ti/16 at 224 pixels with random weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

BATCHES = (8, 4)  # the second one is the default chunk of SSD
TI = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
AIM = 1.5


def prepare(kind: str, side: str, photos: int, batch: int) -> None:
    """Prepare once; print the processor seconds, and the peak memory in MB above that before."""
    import torch
    from meta_step import TASK, random_faces, random_vit

    from oneshui_hf.memory import PeakMemory
    from oneshui_hf.methods import Context
    from oneshui_hf.stages.distributed import make_accelerator

    model, faces = random_vit(TI), random_faces(photos, 224)
    context = Context(TASK, 0, make_accelerator())
    with torch.no_grad():
        model(pixel_values=faces.batch(torch.arange(1))[0])  # the first pass of a process is slower
    work: dict[tuple[str, str], Callable[[], object]] = {
        ("ssd", "ours"): lambda: our_importances(model, faces, batch, context),
        ("ssd", "usual"): lambda: batch_importances(model, faces, batch),
        ("pgu", "ours"): lambda: our_covariances(model, faces, batch, context),
        ("pgu", "usual"): lambda: batch_covariances(model, faces, batch),
    }
    with PeakMemory() as before:
        pass
    started = time.process_time()
    with PeakMemory() as peak:
        work[kind, side]()
    print(time.process_time() - started, (peak.mb or 0) - (before.mb or 0))


def our_importances(model, faces, batch, context):  # type: ignore[no-untyped-def]
    """Return SSD's importances as the method computes them."""
    import torch

    from oneshui_plugins.common.parameter_importance import parameter_importances
    from oneshui_plugins.ssd import SSD

    def value(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return SSD.per_image_value(logits, labels, context.task.kind)

    return parameter_importances(model, faces.batch, torch.arange(len(faces)), value, SSD.power, batch, context)


def batch_importances(model, faces, batch):  # type: ignore[no-untyped-def]
    """Return the mean over batches of the squared gradient of a batch's mean loss."""
    import torch

    from oneshui_hf.methods import losses

    importances = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    batches = torch.arange(len(faces)).split(batch)
    for positions in batches:
        pixels, labels = faces.batch(positions)
        model.zero_grad()
        losses(model(pixel_values=pixels).logits, labels, "multi_label").mean().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                importances[name] += p.grad.clone().pow(2)
    return {name: part / len(batches) for name, part in importances.items()}


def our_covariances(model, faces, batch, context):  # type: ignore[no-untyped-def]
    """Return PGU's covariances as the method computes them."""
    from oneshui_plugins.pgu import PGU

    return PGU.input_covariances(model, len(faces), lambda rows: faces.batch(rows)[0], batch, context)


def batch_covariances(model, faces, batch):  # type: ignore[no-untyped-def]
    """Return the mean product of the inputs of each linear layer and convolution, from the inputs that a batch leaves behind."""
    import torch
    from torch import nn

    inputs: dict[nn.Module, torch.Tensor] = {}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for layer in layers:
        layer.register_forward_hook(lambda module, arguments, output: inputs.update({module: arguments[0].detach()}))
    sums: dict[nn.Module, torch.Tensor] = {}
    counts = dict.fromkeys(layers, 0)
    for positions in torch.arange(len(faces)).split(batch):
        with torch.no_grad():
            model(pixel_values=faces.batch(positions)[0])
        for layer, x in inputs.items():
            if isinstance(layer, nn.Conv2d):
                patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
                x = patches.transpose(1, 2)
            rows = x.reshape(-1, x.shape[-1])
            product = rows.T @ rows
            sums[layer] = sums[layer] + product if layer in sums else product
            counts[layer] += len(rows)
    return {layer: total / counts[layer] for layer, total in sums.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=4)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.one:
        prepare(given.one[0], given.one[1], int(given.one[2]), int(given.one[3]))
        return
    print(f"method | batch | ours s | usual s | ratio (aim {AIM}) | ours MB | usual MB", flush=True)
    for kind in ("ssd", "pgu"):
        for batch in BATCHES if kind == "ssd" else BATCHES[:1]:
            found: dict[str, list[tuple[float, ...]]] = {"ours": [], "usual": []}
            for _ in range(given.repeats):
                for side in found:
                    command = [sys.executable, __file__, "--one", kind, side, str(given.photos), str(batch)]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(f"{kind}, {side} failed:\n{done.stderr[-2000:]}")
                    found[side].append(tuple(map(float, done.stdout.split())))
            (a, x), (b, y) = (tuple(map(min, zip(*rows, strict=True))) for rows in found.values())
            print(f"{kind:6} | {batch:5d} | {a:6.1f} | {b:7.1f} | {a / b:5.2f}           | {x:7.0f} | {y:8.0f}", flush=True)


if __name__ == "__main__":
    main()
