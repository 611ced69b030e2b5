"""MetaUnlearn: learn, while training data exists, a loss whose one gradient step on a photo forgets the person on it.

De Min, Mancini, Lathuiliere, Roy, Ricci: "Unlearning Personal Data from a Single Image", TMLR 2025. The mathematics is in `meta_loss`.
The preset `paper` is the original recipe. The defaults differ where that is known to be wrong or unsafe: the step has a given length,
learned and then chosen on simulated requests; all parameters take it; requests of varied size are simulated; a person without an
embedding is served by an 'unknown' row; and the simulated photo is one that the model was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oneshui_hf.methods import Context, DataAccess, Method, Needs, OneshuiError, derive, generator, option, seeded

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, Request, Simulated

    from .meta_loss import MetaLoss, Photos, Weights

ADAPTIVE_RATE = 0.05  # of the logarithm of the step length, for Adam
START_LENGTH = 2e-4  # share of the model's norm at which the length starts to be learned


@dataclass(frozen=True)
class MetaUnlearnOptions:
    """Options of MetaUnlearn."""

    steps: int = option(200, "Meta-steps, each on its own simulated requests.", minimum=1)
    epochs: int = option(0, "Passes over the people who can ask, in place of a number of steps; 0 leaves it to --steps.", minimum=0)
    lr: float = option(1e-3, "Peak learning rate of the loss network (AdamW with amsgrad, cosine to 0).", minimum=0)
    step: str = option("normalised", "A step of learned length, or eta times the gradient as it is.", choices=("normalised", "raw"))
    eta: float = option(0.1, "Factor of the raw step.", minimum=0)
    length: float | None = option(
        None,
        "Length of the normalised step as a share of the model's norm; the prepared one by default.",
        minimum=0,
        at="apply",
    )
    vary_size: bool = option(True, "Simulate requests of 1 to twice as many people as the run's own, not of that size only.")
    unseen_support: bool = option(True, "Simulate requests with photos that the model was not trained on.")
    identity_dropout: float = option(0.5, "How often a simulated person is treated as unknown.", minimum=0, maximum=1)
    move_tokens: bool = option(True, "Let class token and position embedding take the step too.")
    requests_per_step: int = option(1, "Simulated requests a meta-step; at least one a process.", minimum=1)
    photos: int = option(128, "Most forget images, and most val images, of a meta-step.", minimum=2)
    chunk: int = option(32, "Images a forward-backward pass; memory grows with it, the result does not change.", minimum=1)
    calibration: int = option(3, "Simulated requests on which the length is chosen; 0 keeps the learned one.", minimum=0)


class MetaUnlearn(Method[MetaUnlearnOptions]):
    """A learned loss, and one step of it."""

    summary = "one step of a loss learned for forgetting, on the photos handed in"
    paper = "De Min et al., Unlearning Personal Data from a Single Image, TMLR 2025"
    needs = Needs(prepare=frozenset({"train", "val"}), apply=frozenset({"support"}))
    options = MetaUnlearnOptions
    prepares = "required"
    presets = ("oneshui_plugins.presets", "metaunlearn.json")

    def prepare(self, model: nn.Module, data: DataAccess, options: MetaUnlearnOptions, context: Context) -> Artefact:
        """Learn phi, and the length of the step, on simulated requests."""
        import torch

        from oneshui_hf.methods import Artefact, choose_length, norm, parameters

        from .meta_loss import meta_gradient, movable

        theta = movable(model, options.move_tokens)
        scale = norm(parameters(model)).item()
        plan = _plan(data, options, context)
        asking = sorted({person for requests in plan for request in requests for person in request.people})
        rows = {person: row for row, person in enumerate(asking, start=1)}
        h = _network(model, context, len(rows)).to(context.device).train()
        log_length = torch.tensor(START_LENGTH * scale, dtype=torch.float64).log()
        normalised = options.step == "normalised"

        rate = torch.optim.AdamW(h.parameters(), lr=options.lr, amsgrad=True)
        length_rate = torch.optim.Adam([log_length], lr=ADAPTIVE_RATE)
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, len(plan)) for o in (rate, length_rate)]
        strangers = _strangers(model, data, context)

        history = []
        process, world = context.accelerator.process_index, context.accelerator.num_processes
        for number, requests in enumerate(context.reporter.track(plan, "Learning the loss")):
            length = log_length.exp().item() if normalised else options.eta
            total = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
            sums = [torch.zeros_like(p) for p in h.parameters()]
            for turn in range(process, len(requests), world):
                words = (number, turn)
                photos = _photos(requests[turn], rows, options, context, words)
                objective = _objective(requests[turn], data, strangers, options, context, words)
                value, parts, by_length = meta_gradient(
                    model, theta, h, photos, objective, context.task.kind,
                    length=length, normalised=normalised, seed=derive(context.seed, "dropout", *words),
                )  # fmt: skip
                total = [total[0] + value, total[1] + by_length]
                sums = [a + b for a, b in zip(sums, parts, strict=True)]
            value, by_length = (context.accelerator.reduce(t.to(context.device), "sum").item() / len(requests) for t in total)
            for parameter, part in zip(h.parameters(), sums, strict=True):
                parameter.grad = context.accelerator.reduce(part, "sum") / len(requests)
            log_length.grad = torch.tensor(by_length * length, dtype=torch.float64)  # dA/dlog r = r dA/dr
            rate.step()
            if normalised:
                length_rate.step()
            for schedule in schedules:
                schedule.step()
            history.append({"objective": value, "length": length})

        h.eval()
        length = log_length.exp().item()
        calibration: list[dict[str, Any]] = []
        if normalised and options.calibration:

            def direction(request: Simulated) -> Weights:
                # The people who will ask are served by the unknown row, unless only their own rows were trained.
                photos = _photos(request, {} if options.identity_dropout else rows, options, context, ("calibration",))
                return _unit(model, theta, h, photos, context)

            length, calibration = choose_length(
                model, data, direction, context, unseen=options.unseen_support, requests=options.calibration
            )
        state = h.state_dict()
        table = state.pop("embedding.weight")
        return Artefact(
            tensors=state | {"unknown": table[:1]},
            values={"length": length / scale},
            private_tensors={"known": table[1:]},
            private_values={"rows": {data.train.people[p]: rows.get(p, 0) for p in data.train.positions_of}},
            report={"meta_steps": len(plan), "history": history, "learned_length": history[-1]["length"] / scale,
                    "calibration": calibration},
        )  # fmt: skip

    def apply(
        self,
        model: nn.Module,
        data: DataAccess,
        artefact: Artefact | None,
        options: MetaUnlearnOptions,
        context: Context,
    ) -> nn.Module:
        """Return the model after one step of the learned loss on the photos."""
        import torch

        from oneshui_hf.methods import moved, norm, parameters, targets

        from .meta_loss import Photos, gradient, movable, step

        assert artefact is not None  # the core refuses to apply what was not prepared
        request = data.support
        table = torch.cat([artefact.tensors["unknown"], artefact.private_tensors.get("known", artefact.tensors["unknown"][:0])])
        h = _network(model, context, len(table) - 1)
        h.load_state_dict({k: v for k, v in artefact.tensors.items() if k != "unknown"} | {"embedding.weight": table})
        person = _rows(request, artefact, options)
        photos = Photos(request.pixels, targets(request.labels, context.task), person.to(context.device))
        theta = movable(model, options.move_tokens)
        g, _ = gradient(model, theta, h.to(context.device).eval(), photos, context.task.kind)
        scale = norm(parameters(model)).item()
        share = artefact.values["length"] if options.length is None else options.length
        normalised = options.step == "normalised"
        _, factor = step(theta, g, share * scale if normalised else options.eta, normalised)
        context.report |= {"step_length": factor * norm(g).item(), "unknown_people": int((person == 0).sum())}
        return moved(model, g, -factor)


def _network(model: nn.Module, context: Context, people: int) -> MetaLoss:
    """Return a loss network of the model's size, its weights drawn from the seed."""
    from oneshui_hf.methods import head_inputs

    from .meta_loss import MetaLoss

    labels = len(context.task.label_names)
    with seeded(context.seed, "phi"):
        return MetaLoss(labels + head_inputs(model), labels, people)


def _plan(data: DataAccess, options: MetaUnlearnOptions, context: Context) -> list[list[Simulated]]:
    """Return the requests of every meta-step, the same on every process."""
    from oneshui_hf.methods import simulate

    size = max(1, context.request_size)
    sizes = (1, 2 * size) if options.vary_size else (size, size)
    group = max(options.requests_per_step, context.accelerator.num_processes)
    wanted = options.steps * group
    requests: list[Simulated] = []
    epoch = 0
    while epoch < options.epochs if options.epochs else len(requests) < wanted:
        draws = generator(context.seed, "requests", epoch)
        requests += simulate(data.train, sizes, draws, unseen=options.unseen_support)
        epoch += 1
    kept = requests if options.epochs else requests[:wanted]
    return [kept[i : i + group] for i in range(0, len(kept), group)]


def _photos(request: Simulated, rows: dict[int, int], options: MetaUnlearnOptions, context: Context, words: tuple[Any, ...]) -> Photos:
    """Return the photos of a simulated request; some people, or all where none has a row, are treated as unknown."""
    import torch

    from oneshui_hf.methods import targets

    from .meta_loss import UNKNOWN, Photos

    pixels, labels = request.support_set.batch(request.support, context.device)
    person = torch.tensor([rows.get(p, UNKNOWN) for p in request.people])
    dropped = torch.rand(len(person), generator=generator(context.seed, "identity", *words)) < options.identity_dropout
    person = torch.where(dropped, UNKNOWN, person)
    return Photos(pixels, targets(labels, context.task), person.to(context.device))


def _strangers(model: nn.Module, data: DataAccess, context: Context) -> torch.Tensor:
    """Return theta's logits on val, which never change during preparation."""
    from oneshui_hf.methods import predict

    return predict(model, data.val, context.accelerator)


def _objective(
    request: Simulated,
    data: DataAccess,
    strangers: torch.Tensor,
    options: MetaUnlearnOptions,
    context: Context,
    words: tuple[Any, ...],
) -> Any:
    """Return the meta-objective of a request: as many strangers as forget images, drawn for this request."""
    from oneshui_hf.methods import losses, sample

    from .meta_loss import Alignment, weight

    draws = generator(context.seed, "objective", *words)
    forget = sample(request.forget, options.photos, draws)
    val = sample(len(data.val), len(forget), draws)
    labels = data.val.labels[val]
    before = losses(strangers[val], labels, context.task.kind).mean().item() * weight(strangers[val], labels, context.task)
    return Alignment(data.train, forget, data.val, val, before, context.task, options.chunk)


def _unit(model: nn.Module, theta: Weights, h: MetaLoss, photos: Photos, context: Context) -> Weights:
    """Return the unit direction of the step that unlearns."""
    from oneshui_hf.methods import unit

    from .meta_loss import gradient

    return unit({name: -part for name, part in gradient(model, theta, h, photos, context.task.kind)[0].items()})


def _rows(request: Request, artefact: Artefact, options: MetaUnlearnOptions) -> torch.Tensor:
    """Return each photo's embedding row.

    Raises:
        OneshuiError: A named person has none, or an unnamed one would need the row that this artefact never trained.
    """
    import torch

    from .meta_loss import UNKNOWN

    known: dict[str, int] = artefact.private_values.get("rows", {})
    rows = []
    for person in request.people:
        if person is not None and person not in known:
            raise OneshuiError(
                f"Identity '{person}' is not among the {len(known)} training people of this artefact; leave --identity out."
                if known
                else "This artefact came without its table of people, so --identity means nothing to it; leave it out."
            )
        row = UNKNOWN if person is None else known[person]
        if row == UNKNOWN and options.identity_dropout == 0:
            raise OneshuiError(
                "This artefact was prepared without identity dropout, so it serves only people whom it simulated; "
                "name one with --identity, or prepare with --identity-dropout 0.5."
            )
        rows.append(row)
    return torch.tensor(rows)
