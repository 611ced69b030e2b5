from dataclasses import dataclass

from oneshui_hf.methods import Method, Needs, option


@dataclass(frozen=True)
class Options:
    rate: float = option(0.5, "Factor of the gradient.", minimum=0, at="apply")


class HeadAscent(Method[Options]):
    summary = "takes one step of the head alone up the loss of the support images"
    paper = "-"
    needs = Needs(apply=frozenset({"support"}))
    options = Options

    def apply(self, model, data, artefact, options, context):
        import copy

        import torch

        from oneshui_hf.methods import find_head, losses

        new, request = copy.deepcopy(model), data.support
        loss = losses(new(pixel_values=request.pixels).logits, request.labels, context.task.kind).mean()
        weights = list(find_head(new).parameters())
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data += options.rate * gradient
        return new
