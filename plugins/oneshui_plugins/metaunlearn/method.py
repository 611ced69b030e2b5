"""MetaUnlearn: learn, while training data exists, a loss whose one gradient step on a photo forgets the person on it.

De Min, Mancini, Lathuiliere, Roy, Ricci: "Unlearning Personal Data from a Single Image", TMLR 2025. The mathematics is in `meta_loss`,
and what is learned for in `meta_objective`.
The preset `paper` is the original recipe. The defaults differ where that is known to be wrong or unsafe: the step has a given length,
learned and then chosen on simulated requests; all parameters take it; requests of varied size are simulated; a person without an
embedding is served by an 'unknown' row; and the simulated photo is one that the model was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from oneshui_hf.methods import (
    Context,
    Cost,
    DataAccess,
    Method,
    Needs,
    OneshuiError,
    StepOptions,
    UsageError,
    derive,
    generator,
    option,
    seeded,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, Request, Simulated

    from .loss_network import MetaLoss, Photos, Weights
    from .objectives import Alignment, Disobedience

LENGTH_RATE = 0.05  # of the logarithm of the step length, for Adam
LEARNED, DRAWN = "learned", "drawn"  # what a person's embedding is called, by whether they asked in a simulated request
START_LENGTH = 2e-4  # share of the model's norm at which the length starts to be learned


@dataclass(frozen=True)
class MetaUnlearnOptions(StepOptions):
    """Options of MetaUnlearn."""

    steps: int = option(100, "Meta-steps, each on its own simulated requests.", minimum=1)
    epochs: int = option(0, "Passes over the people who can ask, in place of a number of steps; 0 leaves it to --steps.", minimum=0)
    lr: float = option(1e-3, "Peak learning rate of the loss network (AdamW with amsgrad, cosine to 0).", minimum=0, search=(1e-4, 1e-2))
    step: str = option("normalised", "A step of learned length, or eta times the gradient as it is.", choices=("normalised", "raw"))
    eta: float = option(0.1, "Factor of the raw step.", minimum=0, search=(1e-4, 1.0))
    unlearning_steps: int = option(
        1, "Gradient steps of one unlearning, each of the whole eta or of an equal share of the learned length.", minimum=1
    )
    see_features: bool = option(
        True, "Let the loss network see the input of the model's head, beside the probabilities that it always sees."
    )
    see_targets: bool = option(True, "Let the loss network see the photo's labels.")
    see_identity: bool = option(
        True, "Let the loss network see an embedding of the person; without it nobody has a row and --identity-dropout means nothing."
    )
    identity_dropout: float = option(0.5, "How often a simulated person is treated as unknown.", minimum=0, maximum=1)
    move_tokens: bool = option(True, "Let class token and position embedding take the step too.")
    objective: str = option(
        "both",
        "Bring the forget images' loss after the step to that of strangers before it (original), after it (unlearned), or both; retain and "
        "val also hold the loss on retain or val images where it was; scrub, as SCRUB does, keeps the model's answers on retain images and "
        "leaves them on forget images.",
        choices=("both", "original", "unlearned", "retain", "val", "scrub"),
    )
    distance: str = option(
        "smooth-l1",
        "How two losses are compared; l2 is the squared difference, and the objective scrub compares none.",
        choices=("smooth-l1", "l1", "l2"),
    )
    weigh_by_score: bool = option(
        True, "Compare losses times (1 - score), the batch's score from 0 to 1; the objective scrub weighs nothing."
    )
    simulated_size: int | None = option(None, "People of a simulated request; as many as the run's own has where null.", minimum=1)
    vary_size: bool = option(True, "Simulate requests of 1 to twice as many people, not of that size only.")
    requests_per_step: int = option(1, "Simulated requests a meta-step, which processes share.", minimum=1)
    photos: int = option(128, "Most images of a kind (forget, val, retain) of a meta-step.", minimum=2)
    chunk: int = option(32, "Images a forward-backward pass; memory grows with it, the result does not change.", minimum=1)


class MetaUnlearn(Method[MetaUnlearnOptions]):
    """A learned loss, and one step of it."""

    summary = "one step of a loss learned for forgetting, on the photos handed in"
    paper = "De Min et al., Unlearning Personal Data from a Single Image, TMLR 2025"
    needs = Needs(prepare=frozenset({"train", "val"}), apply=frozenset({"support"}))
    options = MetaUnlearnOptions
    prepares = "required"
    presets = ("oneshui_plugins.presets", "metaunlearn.json")

    @classmethod
    def idle(cls, options: MetaUnlearnOptions) -> frozenset[str]:
        """A raw step has no length of its own, a normalised one no eta."""
        return frozenset({"length" if options.step == "raw" else "eta"})

    def prepare(self, model: nn.Module, data: DataAccess, options: MetaUnlearnOptions, context: Context) -> Artefact:
        """Learn phi, and the length of the step, on simulated requests."""
        import torch

        from oneshui_hf.methods import Artefact, choose_length

        _check_length(options)
        plan = _plan(data, options, context)
        learning = Learning(model, data, plan, options, context)
        h, scale, normalised = learning.h, learning.scale, options.step == "normalised"
        log_length = torch.tensor(START_LENGTH * scale, dtype=torch.float64).log()
        rate = torch.optim.AdamW(h.parameters(), lr=options.lr, amsgrad=True)
        length_rate = torch.optim.Adam([log_length], lr=LENGTH_RATE)
        optimizers = [rate, length_rate] if normalised else [rate]
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(plan)) for optimizer in optimizers]

        history = []
        for number, requests in enumerate(context.reporter.track(plan, "Learning the loss")):
            length = log_length.exp().item() if normalised else options.eta
            value, parts, by_length = learning.gradient(requests, number, length)
            for parameter, part in zip(h.parameters(), parts, strict=True):
                parameter.grad = part
            log_length.grad = torch.tensor(by_length * length, dtype=torch.float64)  # dA/dlog r = r dA/dr
            for turn in (*optimizers, *schedules):
                turn.step()
            history.append({"objective": value} | ({"length": length / scale} if normalised else {}))

        h.eval()
        learned = length = log_length.exp().item()
        calibration: list[dict[str, Any]] = []
        if normalised and options.calibration:
            length, calibration = choose_length(model, data, partial(learning.direction, length=learned), options, context)
        values: dict[str, float | None] = {"length": length / scale}
        if normalised and options.unlearning_steps > 1:  # where several steps lead depends on their length; one has one direction
            values = {"length": length / scale if options.calibration else None, "walked": learned / scale}
        artefact = Artefact(
            tensors=h.state_dict(), values=values, report={"meta_steps": len(plan), "history": history, "calibration": calibration}
        )
        if options.see_identity:
            table = artefact.tensors.pop("embedding.weight")
            artefact.tensors["unknown"] = table[:1]
            artefact.people = {
                data.train.people[person]: {LEARNED if person in learning.simulated else DRAWN: table[row]}
                for person, row in learning.rows.items()
            }
        return artefact

    def cost(self, model: nn.Module, data: DataAccess, options: MetaUnlearnOptions, context: Context) -> Cost:
        """Return the photos of all meta-steps, and the choice of the length.

        A Jacobian-vector product counts as one gradient, a Hessian product (there is one a step but the first) as two.
        """
        import dataclasses

        from oneshui_hf.methods import length_cost

        from .objectives import read_after, read_before

        _check_length(options)
        photos = {"forget": 0, "val": 0, "retain": 0}
        handed_in = 0
        for request in (request for group in _plan(data, options, context) for request in group):
            forget = min(options.photos, len(request.forget))
            others = len(data.train) - sum(len(data.train.positions_of[person]) for person in request.people)
            photos["forget"] += forget
            photos["val"] += min(forget, len(data.val))
            photos["retain"] += min(forget, others)
            handed_in += len(request.support)
        before = photos | {"val": len(data.val)}  # strangers' logits are computed once for all
        chosen = length_cost(data, options, context) if options.step == "normalised" else Cost()
        steps = options.unlearning_steps
        network = _network(model, context, len(data.train.positions_of), options)
        return dataclasses.replace(
            chosen,
            forward=chosen.forward + sum(before[name] for name in read_before(options.objective)),
            backward=steps * chosen.backward
            + sum(photos[name] for name in read_after(options.objective))
            + (2 * steps + 2 * (steps - 1)) * handed_in,
            bytes=4 * sum(part.numel() for part in network.parameters()),
        )

    def apply(
        self,
        model: nn.Module,
        data: DataAccess,
        artefact: Artefact | None,
        options: MetaUnlearnOptions,
        context: Context,
    ) -> nn.Module:
        """Return the model after the step, or steps, of the learned loss on the photos."""
        import torch

        from oneshui_hf.methods import moved, norm, parameters, targets

        from .loss_network import UNKNOWN, Photos, factor, movable, uphill, walk

        assert artefact is not None  # the core refuses to apply what was not prepared
        _check_length(options)
        request, state = data.support, dict(artefact.tensors)
        photos = Photos(request.pixels, targets(request.labels, context.task))
        people = 0
        if options.see_identity:
            rows = _rows(request, artefact, options)
            known = [row for row in rows if row is not None]  # of the people on the photos alone: nobody else's is read
            state["embedding.weight"] = torch.cat([state.pop("unknown"), *(row.unsqueeze(0) for row in known)])
            people = len(known)
            numbers = iter(range(1, people + 1))
            photos.person = torch.tensor([UNKNOWN if row is None else next(numbers) for row in rows], device=context.device)
        h = _network(model, context, people, options)
        h.load_state_dict(state)

        scale = norm(parameters(model)).item()
        share = artefact.values["length"] if options.length is None else options.length
        walked = artefact.values.get("walked", share)
        normalised = options.step == "normalised"
        path = walk(
            model,
            movable(model, options.move_tokens),
            h.to(context.device).eval(),
            photos,
            context.task.kind,
            length=walked * scale if normalised else options.eta,
            normalised=normalised,
            steps=options.unlearning_steps,
        )
        up = uphill(path)
        # The path itself, or, where a length was chosen or given, the way to its end at that length.
        by_up = factor(up, share * scale, True) if normalised and share is not None else path[-1].by_g
        context.report["step_length"] = by_up * norm(up).item()
        if photos.person is not None:
            context.report["unknown_people"] = int((photos.person == UNKNOWN).sum())
        return moved(model, up, -by_up)


def _network(model: nn.Module, context: Context, people: int, options: MetaUnlearnOptions) -> MetaLoss:
    """Return a loss network of the model's size, its weights drawn from the seed."""
    from oneshui_hf.methods import head_inputs

    from .loss_network import MetaLoss, Sees

    labels = len(context.task.label_names)
    sees = Sees(features=options.see_features, identity=options.see_identity, targets=options.see_targets)
    with seeded(context.seed, "phi"):
        return MetaLoss(labels + head_inputs(model) * sees.features, labels, people, sees)


def _check_length(options: MetaUnlearnOptions) -> None:
    """Refuse a length for a step that has none of its own."""
    if options.step == "raw" and options.length is not None:
        raise UsageError("--length sets a normalised step; a raw one is --eta times the gradient, whatever its length.")


def _plan(data: DataAccess, options: MetaUnlearnOptions, context: Context) -> list[list[Simulated]]:
    """Return the requests of every meta-step, the same on every process.

    Raises:
        UsageError: Fewer people can ask than a request is to have, or a request leaves nobody whom the objective could retain.
    """
    from oneshui_hf.methods import simulate

    from .objectives import read_after

    size = options.simulated_size or max(1, context.request_size)
    sizes = (1, 2 * size) if options.vary_size else (size, size)
    group = options.requests_per_step
    if context.accelerator.num_processes > group:
        processes = context.accelerator.num_processes
        context.reporter.note(f"{processes} processes have {group} request a meta-step to share; --requests-per-step {processes} uses all.")
    wanted = options.steps * group
    requests: list[Simulated] = []
    epoch = 0
    while epoch < options.epochs if options.epochs else len(requests) < wanted:
        draws = generator(context.seed, "requests", epoch)
        requests += simulate(data.train, sizes, draws, unseen=options.unseen_support)
        epoch += 1
        if epoch == 1 and options.simulated_size and (able := sum(len(request.people) for request in requests)) < size:
            raise UsageError(f"--simulated-size {size} is more than the {able} people who can ask in a simulation.")
    kept = requests if options.epochs else requests[:wanted]
    everybody = len(data.train.positions_of)
    if "retain" in read_after(options.objective) and any(len(request.people) == everybody for request in kept):
        raise UsageError(
            f"A simulated request takes in all {everybody} training people, so --objective {options.objective} finds nobody to retain; "
            "simulate requests of fewer, with a smaller --simulated-size or --no-vary-size."
        )
    return [kept[i : i + group] for i in range(0, len(kept), group)]


class Learning:
    """What learning phi works with: the network, and what never changes while it learns.

    Attributes:
        h: The loss network, in training mode.
        theta: The parameters that take the steps.
        rows: Embedding row of each training person.
        simulated: Those of them who ask in a simulated request, so that their row is learned.
        scale: The model's norm, of which lengths are shares.
    """

    def __init__(
        self, model: nn.Module, data: DataAccess, plan: list[list[Simulated]], options: MetaUnlearnOptions, context: Context
    ) -> None:
        from oneshui_hf.methods import norm, parameters, predict

        from .loss_network import movable
        from .objectives import read_before

        self.model, self.data, self.options, self.context = model, data, options, context
        self.rows = {person: row for row, person in enumerate(sorted(data.train.positions_of), start=1)}
        self.simulated = {person for requests in plan for request in requests for person in request.people}
        self.theta = movable(model, options.move_tokens)
        self.scale = norm(parameters(model)).item()
        self.h = _network(model, context, len(self.rows), options).to(context.device).train()
        if "val" in read_before(options.objective):
            self.strangers = predict(model, data.val, context.accelerator)  # theta's logits on val

    def gradient(self, requests: list[Simulated], number: int, length: float) -> tuple[float, list[torch.Tensor], float]:
        """Return A, dA/dphi and dA/dr, means over the requests of meta-step `number`; processes share the requests."""
        import torch

        from .loss_network import meta_gradient

        accelerator = self.context.accelerator
        totals = torch.zeros(2)
        sums = [torch.zeros_like(parameter) for parameter in self.h.parameters()]
        for turn in self.context.mine(range(len(requests))):
            words = (number, turn)
            value, parts, by_length = meta_gradient(
                self.model,
                self.theta,
                self.h,
                self.photos(requests[turn], words),
                self.objective(requests[turn], words),
                self.context.task.kind,
                length=length,
                normalised=self.options.step == "normalised",
                seed=derive(self.context.seed, "dropout", *words),
                steps=self.options.unlearning_steps,
            )
            totals += torch.tensor([value, by_length])
            sums = [a + b for a, b in zip(sums, parts, strict=True)]
        value, by_length = (accelerator.reduce(totals.to(self.context.device), "sum") / len(requests)).tolist()
        return value, [accelerator.reduce(part, "sum") / len(requests) for part in sums], by_length

    def photos(self, request: Simulated, words: tuple[Any, ...], dropout: float | None = None) -> Photos:
        """Return the photos handed in with a simulated request; some people are treated as unknown."""
        import torch

        from oneshui_hf.methods import targets

        from .loss_network import UNKNOWN, Photos

        pixels, labels = request.support_set.batch(request.support, self.context.device)
        photos = Photos(pixels, targets(labels, self.context.task))
        if self.options.see_identity:
            person = torch.tensor([self.rows[p] for p in request.people])
            share = self.options.identity_dropout if dropout is None else dropout
            dropped = torch.rand(len(person), generator=generator(self.context.seed, "identity", *words)) < share
            photos.person = torch.where(dropped, UNKNOWN, person).to(self.context.device)
        return photos

    def objective(self, request: Simulated, words: tuple[Any, ...]) -> Alignment | Disobedience:
        """Return the meta-objective of a request: as many strangers, and others who stay, as forget images, drawn for this request."""
        from oneshui_hf.methods import sample

        from .objectives import SCRUB, Alignment, Disobedience, answers, level, read_after, read_before

        options, task, train, val = self.options, self.context.task, self.data.train, self.data.val
        draws = generator(self.context.seed, "objective", *words)
        forget = sample(request.forget, options.photos, draws)
        strangers = sample(len(val), len(forget), draws)
        sets = {"forget": train.subset(forget), "val": val.subset(strangers)}
        if "retain" in read_after(options.objective):
            sets["retain"] = train.subset(sample(train.without(request.people), len(forget), draws))

        before = {
            name: self.strangers[strangers] if name == "val" else answers(self.model, sets[name], self.context.device, options.chunk)
            for name in read_before(options.objective)
        }
        if options.objective == SCRUB:
            return Disobedience(sets, before, task, options.chunk)
        levels = {name: level(logits, sets[name].labels, task, options.weigh_by_score) for name, logits in before.items()}
        return Alignment(sets, levels, task, options.chunk, options.objective, options.distance, options.weigh_by_score)

    def direction(self, request: Simulated, length: float) -> Weights:
        """Return the unit direction in which the steps of unlearning lead, of a path of this length.

        People are served as real ones will be: by the unknown row, unless only their own rows were trained.
        """
        from oneshui_hf.methods import unit

        from .loss_network import uphill, walk

        photos = self.photos(request, ("calibration",), dropout=1.0 if self.options.identity_dropout else 0.0)
        steps, kind = self.options.unlearning_steps, self.context.task.kind
        path = walk(self.model, self.theta, self.h, photos, kind, length=length, normalised=True, steps=steps)
        return unit({name: -part for name, part in uphill(path).items()})


def _rows(request: Request, artefact: Artefact, options: MetaUnlearnOptions) -> list[torch.Tensor | None]:
    """Return each photo's embedding of its person, None where the unknown row serves.

    Raises:
        OneshuiError: A named person has none, or an unnamed one would need the row that this artefact never trained.
    """
    rows: list[torch.Tensor | None] = []
    for person in request.people:
        own = {} if person is None else artefact.people.get(person)
        if own is None:
            raise OneshuiError(
                f"Identity '{person}' is not among the {len(artefact.people)} training people of this artefact; leave --identity out."
                if artefact.people
                else "This artefact came without its table of people, so --identity means nothing to it; leave it out."
            )
        if person is None and options.identity_dropout == 0:
            raise OneshuiError(
                "This artefact was prepared without identity dropout, so it cannot serve an unnamed person; "
                "name one with --identity, or prepare with --identity-dropout 0.5."
            )
        # Without the dropout there is no learned unknown row, and a person's own row, even one left as drawn, is all there is.
        rows.append(own.get(LEARNED, own.get(DRAWN) if options.identity_dropout == 0 else None))
    return rows
