"""Block after block is made to put out what the float block puts out, from what the quantized network before it gives it.

What a block learned is kept only if its error on held-out samples, measured on the written block in onnxruntime, is lower
than that of the closed form it started from.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxvitq.learn.block import Learned, QuantizedUnit
from onnxvitq.learn.network import Unit, cut
from onnxvitq.learn.samples import Samples
from onnxvitq.plan import Problem, QuantPlan
from onnxvitq.rewrite.qdq import planned_linear
from onnxvitq.spec import FloatArray
from onnxvitq.steps.step import is_held_out

RATES = {"codes": 1e-2, "scales": 3e-3, "zeros": 1e-2, "biases": 1e-1, "branch": 1e-2}
Progress = Callable[[int, int, float], None]  # iterations done, of how many, loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """How blocks are learned.

    learned: which parameters. iterations: a block. batch: samples an iteration. rates: of Adam, by kind. curriculum: easy
    samples first, the share used growing linearly from ``share`` to all of them at half time. positions: weight of each
    token (T,) in the loss. seed: of every draw. threads: of onnxruntime and torch.
    """

    learned: Learned = field(default_factory=Learned)
    iterations: int = 400
    batch: int = 16
    rates: Mapping[str, float] = field(default_factory=lambda: dict(RATES))
    curriculum: bool = False
    share: float = 0.25
    drop: float = 0.0
    positions: FloatArray | None = None
    seed: int = 0
    threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOutcome:
    """One unit: held-out SQNR in dB before and after, whether it is kept, and why nothing was learned where so."""

    unit: int
    before: float
    after: float
    kept: bool
    reason: str = ""


def reconstruct(
    graph: gs.Graph,
    problem: Problem,
    plan: QuantPlan,
    feeds: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    options: Reconstruction,
    progress: Progress = lambda done, total, loss: None,
) -> tuple[QuantPlan, tuple[BlockOutcome, ...]]:
    """Learn every unit that has a planned linear.

    Args:
        graph: canonical; never changed.
        problem: what was found in it.
        plan: the closed form to start from, with parameters for every site.
        feeds: calibration samples; one in four judges.
        folder: for files; the caller removes it.
        options: see there.
        progress: told now and then.
    """
    units = cut(graph, problem.blockmap)
    samples = Samples(graph, problem, feeds, folder, options.threads)
    total = len(units) * options.iterations
    outcomes = []
    for unit in units:
        samples.run_exact(unit)
        start = samples.run_coded(unit, plan)

        def report(done: int, loss: float, unit: Unit = unit) -> None:
            progress(unit.index * options.iterations + done, total, loss)

        learned, outcome, found = _learn_unit(unit, problem, plan, samples, start, options, report)
        outcomes.append(outcome)
        plan = learned
        later = {name for one in units[unit.index + 1 :] for name in one.inputs}
        samples.keep(found, later)
    return plan, tuple(outcomes)


def _learn_unit(unit, problem, plan, samples, start, options, report):  # type: ignore
    names = {node.name for node in unit.nodes}
    judge = _Judge(unit, samples, options.positions)
    before = judge.sqnr(start)
    if unit.refused:
        reason = f"block {unit.index} cannot be reconstructed: op {', '.join(unit.refused)}"
        return plan, BlockOutcome(unit=unit.index, before=before, after=before, kept=False, reason=reason), start
    if not any(planned_linear(plan, one) for one in problem.blockmap.linears if one.name in names):
        return plan, BlockOutcome(unit=unit.index, before=before, after=before, kept=False, reason="nothing planned"), start
    torch.manual_seed(options.seed)
    module = QuantizedUnit(unit, problem, plan, options.learned)
    train = _Training(module, samples, options)
    train.run(report)
    proposed = module.result()
    found = samples.run_coded(unit, proposed)
    after = judge.sqnr(found)
    kept = after > before
    outcome = BlockOutcome(unit=unit.index, before=before, after=after, kept=kept)
    return (proposed, outcome, found) if kept else (plan, outcome, start)


class _Judge:
    """Held-out SQNR of a unit's outputs, tokens weighted."""

    def __init__(self, unit: Unit, samples: Samples, positions: FloatArray | None) -> None:
        self._outputs = unit.outputs
        held = [index for index in range(samples.count) if is_held_out(index)]
        self._held = held or list(range(samples.count))
        self._samples, self._positions = samples, positions

    def sqnr(self, found: Mapping[str, Sequence[np.ndarray]]) -> float:
        ratio = 0.0
        for name in self._outputs:
            noise = signal = 0.0
            for sample in self._held:
                exact = self._samples.exact.get(name, sample)
                if exact.dtype != np.float32:
                    continue
                weights = token_weights(exact.shape, self._positions)
                noise += float((weights * (found[name][sample] - exact) ** 2).sum(dtype=np.float64))
                signal += float((weights * exact**2).sum(dtype=np.float64))
            ratio += noise / max(signal, 1e-30)
        return -10 * math.log10(max(ratio, 1e-12))


def token_weights(shape: Sequence[int], positions: FloatArray | None) -> np.ndarray:
    """(T, 1) where a tensor (.., T, C) has a weight for each token, else ()."""
    if positions is None or len(shape) < 3 or shape[-2] != len(positions):
        return np.ones((), np.float32)
    return positions[:, None]


class _Training:
    """Adam on one unit."""

    def __init__(self, module: QuantizedUnit, samples: Samples, options: Reconstruction) -> None:
        self.module, self.options = module, options
        unit = module.unit
        fit = [index for index in range(samples.count) if not is_held_out(index)]
        self.inputs = [{name: torch.from_numpy(samples.coded.get(name, one)) for name in unit.inputs} for one in fit]
        self.targets = [{name: torch.from_numpy(samples.exact.get(name, one)) for name in unit.outputs} for one in fit]
        self.targets = [{n: v for n, v in one.items() if v.is_floating_point()} for one in self.targets]
        self.power = {
            name: float(np.mean([float(_weighted(one[name] ** 2, options.positions)) for one in self.targets]))
            for name in self.targets[0]
        }
        self.joined = self._can_join()

    def _can_join(self) -> bool:
        """Whether several samples are one batch for this unit."""
        if len(self.inputs) < 2:
            return False
        try:
            with torch.no_grad():
                single = [self.module(one) for one in self.inputs[:2]]
                both = self.module(_join(self.inputs[:2]))
            return all(torch.allclose(both[n], torch.cat([one[n] for one in single]), atol=1e-4, rtol=1e-3) for n in self.power)
        except (RuntimeError, IndexError):
            return False

    def loss(self, chosen: Sequence[int]) -> Tensor:
        """Mean over the samples of the squared error over the mean power of each output."""
        if self.joined:
            found = self.module(_join([self.inputs[one] for one in chosen]))
            targets = _join([self.targets[one] for one in chosen])
            return sum(_weighted((found[n] - targets[n]) ** 2, self.options.positions) / self.power[n] for n in self.power)
        losses = []
        for one in chosen:
            found = self.module(self.inputs[one])
            losses.append(sum(_weighted((found[n] - t) ** 2, self.options.positions) / self.power[n] for n, t in self.targets[one].items()))
        return torch.stack(losses).mean()

    def run(self, report: Callable[[int, float], None]) -> None:
        options = self.options
        groups = self.module.parameter_groups(options.rates)
        if not groups:
            return
        optimiser = torch.optim.Adam(groups)
        self.module.train()
        self.module.set_drop(options.drop)
        total = options.iterations
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
        draws = self._draws()
        for step in range(total):
            loss = self.loss(next(draws)(step))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % 20 == 0:
                report(step, float(loss.detach()))
        self.module.eval()

    def _draws(self) -> Iterator[Callable[[int], list[int]]]:
        options, rng = self.options, np.random.default_rng(self.options.seed)
        order = np.arange(len(self.inputs))
        if options.curriculum:
            with torch.no_grad():
                order = np.argsort([float(self.loss([one])) for one in order], kind="stable")

        def draw(step: int) -> list[int]:
            share = min(1.0, options.share + (1 - options.share) * 2 * step / options.iterations) if options.curriculum else 1.0
            pool = order[: max(1, math.ceil(share * len(order)))]
            return [int(one) for one in rng.choice(pool, min(options.batch, len(pool)), replace=False)]

        while True:
            yield draw


def _weighted(errors: Tensor, positions: FloatArray | None) -> Tensor:
    weights = torch.from_numpy(token_weights(errors.shape, positions))
    return (errors * weights).mean() / weights.mean()


def _join(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in samples]) for name in samples[0]}
