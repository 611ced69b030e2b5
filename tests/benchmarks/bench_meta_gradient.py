"""Memory and time of one preparation step of MetaUnlearn, compared with double backward through the model: `nox -s bench`.

Each figure is the peak of a separate process. The model is a ViT-Ti/16 at 224 pixels from scratch; 20 support images; float32.
Both formulations compute the same gradient, which is checked.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

SUPPORT, LABELS, IDENTITIES = 20, 40, 20


def one_step(kind: str, forget: int) -> None:
    """Do one step and print peak memory in MB, seconds, and the norm of the gradient."""
    import numpy as np
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers import ViTConfig, ViTForImageClassification

    from oneshui_hf.data.face_set import FaceSet
    from oneshui_hf.data.preprocess import Preprocess
    from oneshui_hf.data.schema import Task
    from oneshui_hf.methods import losses, norm, seeded
    from oneshui_plugins.metaunlearn.loss_network import MetaLoss, StepSize, SupportImages, meta_gradient, outputs, trainable_parameters
    from oneshui_plugins.metaunlearn.objectives import LossAlignment, score_weight

    task = Task("multi_label", tuple(f"label{k}" for k in range(LABELS)))
    with seeded(0, "bench"):
        config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=LABELS, problem_type=task.problem_type)
        model = ViTForImageClassification(config).eval()
        h = MetaLoss(LABELS + 192, LABELS, IDENTITIES).train()
    rng = np.random.default_rng(0)
    count = 2 * forget + SUPPORT
    store = rng.integers(0, 256, (count, 3, 224, 224), dtype=np.uint8)
    labels = torch.from_numpy(rng.integers(0, 2, (count, LABELS)).astype(np.float32))
    names = tuple(map(str, range(IDENTITIES)))
    faces = FaceSet(store, np.arange(count), labels, torch.zeros(count, dtype=torch.long), Preprocess(224), names)
    support = torch.arange(2 * forget, count)
    pixels, targets = faces.batch(support)
    images = SupportImages(pixels, targets, torch.arange(SUPPORT) % (IDENTITIES + 1))
    theta = trainable_parameters(model, True)
    positions, unseen = torch.arange(forget), torch.arange(forget, 2 * forget)

    started = time.perf_counter()
    if kind == "ours":
        objective = LossAlignment({"forget": faces.subset(positions), "val": faces.subset(unseen)}, {"val": 0.5}, task)
        _, parts, _ = meta_gradient(model, theta, h, images, objective, task.kind, StepSize.normalised(0.05, theta), seed=0)
    else:
        leaves = {name: p.requires_grad_() for name, p in theta.items()}
        with sdpa_kernel(SDPBackend.MATH):
            u = outputs(model, leaves, pixels, task.kind)
            with seeded(0, "mask"):
                m = h(u, targets, images.identity_rows).mean()
            g = dict(zip(leaves, torch.autograd.grad(m, list(leaves.values()), create_graph=True), strict=True))
            updated = {name: p - 0.05 / norm(g) * g[name] for name, p in leaves.items()}

            def weighted(rows: torch.Tensor) -> torch.Tensor:
                pixels, labels = faces.batch(rows)
                logits = torch.func.functional_call(model, updated, kwargs={"pixel_values": pixels}).logits
                return losses(logits, labels, task.kind).mean() * score_weight(logits.detach(), labels, task)

            f, v = weighted(positions), weighted(unseen)
            smooth = torch.nn.functional.smooth_l1_loss
            value = smooth(f, v) + smooth(f, torch.tensor(0.5))
            parts = [p for p in torch.autograd.grad(value, list(h.parameters()), allow_unused=True) if p is not None]
    seconds = time.perf_counter() - started
    size = torch.cat([part.flatten() for part in parts]).norm().item()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds, size)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--forget", nargs="*", type=int, default=[32, 64, 128])
    given = parser.parse_args()
    if given.one:
        one_step(given.one[0], int(given.one[1]))
        return
    rows: dict[int, dict[str, list[float]]] = {}
    print("forget | ours MB | double backward MB | ratio | ours s | double backward s | ratio", flush=True)
    for forget in given.forget:
        rows[forget] = {}
        for kind in ("ours", "double-backward"):
            command = [sys.executable, __file__, "--one", kind, str(forget)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{kind} at {forget} images failed:\n{done.stderr[-2000:]}")
            rows[forget][kind] = [float(word) for word in done.stdout.split()]
        ours, theirs = rows[forget]["ours"], rows[forget]["double-backward"]
        if abs(ours[2] - theirs[2]) > 1e-3 * theirs[2]:
            raise SystemExit(f"The gradients differ: {ours[2]} and {theirs[2]}.")
        print(
            f"{forget:6d} | {ours[0]:7.0f} | {theirs[0]:18.0f} | {theirs[0] / ours[0]:5.2f} | {ours[1]:6.1f} | {theirs[1]:17.1f} | "
            f"{theirs[1] / ours[1]:5.2f}",
            flush=True,
        )
    if {64, 128} <= rows.keys():
        growth = {kind: rows[128][kind][0] / rows[64][kind][0] - 1 for kind in ("ours", "double-backward")}
        print(f"From 64 to 128 forget images: ours {growth['ours']:+.1%}, double backward {growth['double-backward']:+.1%}.")
        if growth["ours"] >= 0.1:
            raise SystemExit("Ours grew by a tenth or more.")


if __name__ == "__main__":
    main()
