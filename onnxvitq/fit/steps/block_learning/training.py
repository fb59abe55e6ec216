"""How one block is trained: the loss, which samples come when, the optimiser.

What was tried, on validation images (bundled model, W4A4, and its twin with outliers, W3A3; 1000 times the divergence of the
answers from the float model's, which moves by 2 at W3A3 and by 0.5 at W4A4 from one seed to the next; closed form 13.5 and
37.7). Made: mixtures of two samples: none 10.5 and 38.1, 4 for each sample 9.2 and 33.7 (both of 100 iterations), 8 8.8 and
33.4, 16 7.9 and 30.5 (32: 30.4); with 16, the order of the curriculum taken with all activations quantized, 29.2; without
dropping 9.6, without the curriculum 31.9 (three draws on the test images tell no difference: it is off). Not made, with 16
mixtures: of three samples 35.2 on the twin; 400 iterations 8.6; 32
samples an iteration 8.4; half the rates 32.5; weights averaged over the second half 34.0; weights drawn to the start 32.2; the
whole network at once on fresh mixtures, against the outputs, 8.4 after the blocks and 10.5 instead of them; half of the loss
weighted by the squared gradients of the output 8.0 and 33.3 (on the bundled model at W3A3 33.7 against 37.1).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.steps.block_learning.block import Learned, QuantizedBlock
from onnxvitq.fit.steps.block_learning.network import Values
from onnxvitq.fit.steps.block_learning.samples import BlockSamples
from onnxvitq.targets.registry import DEFAULT_TARGET
from onnxvitq.targets.target import Target

# Rows of a block's largest output in an iteration: 32 images of 50 tokens, 8 of 197. A step costs what its rows cost.
ROWS = 1600
RATES = {"codes": 2e-2, "scales": 6e-3, "zeros": 2e-2, "biases": 2e-1, "branch": 2e-2}


Progress = Callable[[int, int, float], None]  # iterations done, of how many, loss


def _silent(done: int, total: int, loss: float) -> None:
    del done, total, loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """How blocks are learned.

    Attributes:
        learned: which parameters.
        iterations: of a block.
        batch: samples an iteration, at most.
        rates: learning rates of Adam, by kind of parameter (``RATES``).
        curriculum: easy samples first, the share that is used growing linearly from ``share`` to all of them at half time
            (Paper B). It was worth 1 to 2 dB at W3A3 before there were mixtures, and nothing that stands out since
            (tools/results/aiqvit_parts.md).
        share: of the samples that a curriculum begins with, 0 to 1.
        drop: share of the activations that are not quantized in an iteration, 0 to 1.
        mixtures: of two samples, for each sample that is learned from, to learn from as well.
        positions: (T,) weight of each token in the loss, where a tensor has T tokens; None weighs all alike.
        seed: of every draw.
        threads: of onnxruntime; 0 takes one a core.
        target: that blocks are written for.
        checkpoint: folder for blocks that are done; None keeps none.
        progress: called every few iterations with those done, of how many, and the loss.
    """

    learned: Learned = field(default_factory=Learned)
    iterations: int = 200
    batch: int = 16
    rates: Mapping[str, float] = field(default_factory=lambda: dict(RATES))
    curriculum: bool = False
    share: float = 0.25
    drop: float = 0.5
    mixtures: float = 16.0
    positions: FloatArray | None = None
    seed: int = 0
    threads: int = 0
    target: Target = DEFAULT_TARGET
    checkpoint: Path | None = None
    progress: Progress = _silent

    @property
    def described(self) -> dict[str, object]:
        """What decides the result; JSON-able but for what has a text of its own."""
        positions = None if self.positions is None else self.positions.tolist()
        apart = {"positions": positions, "learned": asdict(self.learned), "rates": dict(self.rates)}
        apart["target"] = self.target.name
        names = ("iterations", "batch", "curriculum", "share", "drop", "mixtures", "seed")
        return {**{name: getattr(self, name) for name in names}, **apart}


def weights_of_rows(shape: Sequence[int], positions: FloatArray | None) -> np.ndarray:
    """Weights of a tensor's rows: (T, 1) where it is (.., T, C) and each token has one, else ()."""
    if positions is None or len(shape) < 3 or shape[-2] != len(positions):
        return np.ones((), np.float32)
    return positions[:, None]


class Training:
    """Adam on one block.

    Args:
        module: the block.
        samples: of which it learns from those not held out, and the mixtures.
        options: see there.

    Attributes:
        count: samples that are learned from; they are numbered by their place among these.
        joined: whether several are one batch for this block.
        batch: samples an iteration: as many as asked for, but of no more than ``ROWS`` rows.
    """

    def __init__(self, module: QuantizedBlock, samples: BlockSamples, options: Reconstruction) -> None:
        self.module, self.options = module, options
        self.count, self._samples, self._numbers = len(samples.learned_from), samples, samples.learned_from
        powers, shapes = [], set()
        for place in range(self.count):
            targets = self._targets(place)
            powers.append({name: float(_weighted(value**2, options.positions)) for name, value in targets.items()})
            shapes.add(tuple(value.shape for value in (*self._inputs(place).values(), *targets.values())))
        self.power = {name: float(np.mean([power[name] for power in powers])) for name in powers[0]}
        self.joined = len(shapes) == 1 and self._can_join()
        rows = max(math.prod(value.shape[:-1]) for value in self._targets(0).values())  # images are no rows
        self.batch = max(1, min(options.batch, ROWS // max(rows, 1)))

    def _inputs(self, place: int) -> Values:
        """What the quantized network before this block gives it of a sample; read again each time, as it may be in a file."""
        number = self._numbers[place]
        return {name: torch.from_numpy(self._samples.quantized.get(name, number)) for name in self.module.block.inputs}

    def _targets(self, place: int) -> Values:
        """What the float block puts out of a sample."""
        values = {name: self._samples.float.get(name, self._numbers[place]) for name in self.module.block.outputs}
        return {name: torch.from_numpy(value) for name, value in values.items() if value.dtype.kind == "f"}

    def _can_join(self) -> bool:
        """Whether several samples are one batch for this block."""
        if self.count < 2:
            return False
        try:
            with torch.no_grad():
                first = [self._inputs(0), self._inputs(1)]
                single = [self.module(inputs) for inputs in first]
                both = self.module(_join(first))
            return all(
                torch.allclose(both[name], torch.cat([outputs[name] for outputs in single]), atol=1e-4, rtol=1e-3)
                for name in self.power
            )
        except (RuntimeError, IndexError):
            return False

    def loss(self, chosen: Sequence[int]) -> Tensor:
        """Mean over the samples of the squared error over the mean power of each output."""
        return self.losses(chosen).mean()

    def losses(self, chosen: Sequence[int]) -> Tensor:
        """Of each sample (n,)."""
        if self.joined:
            inputs, targets = (_join([read(place) for place in chosen]) for read in (self._inputs, self._targets))
            return self._errors(inputs, targets, len(chosen))
        weights = self.module.weights()
        return torch.cat([self._errors(self._inputs(place), self._targets(place), 1, weights) for place in chosen])

    def _errors(
        self,
        inputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        count: int,
        weights: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Of ``count`` samples that are one batch (count,)."""
        outputs, positions, total = self.module(inputs, weights), self.options.positions, torch.zeros(count)
        for name, target in targets.items():
            total = total + _weighted((outputs[name] - target) ** 2, positions, count) / self.power[name]
        return total

    def run(self, report: Callable[[int, float], None]) -> None:
        """All iterations; ``report`` is called with the iteration and the loss every twenty."""
        options = self.options
        groups = self.module.parameter_groups(options.rates)
        if not groups:
            return
        optimiser = torch.optim.Adam(groups, foreach=True)
        draw = self.draws()
        self.module.train()
        self.module.set_drop(options.drop)
        total = options.iterations
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
        for step in range(total):
            loss = self.loss(draw(step))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % 20 == 0:
                report(step, float(loss.detach()))
        self.module.eval()

    def draws(self) -> Callable[[int], list[int]]:
        """Iteration -> the samples it takes. The easy ones are those on which the block, as it is, errs least."""
        options, rng = self.options, np.random.default_rng(self.options.seed)
        order = np.arange(self.count)
        if options.curriculum:
            self.module.eval()
            with torch.no_grad():
                starts = range(0, self.count, self.batch)
                parts = [self.losses(range(self.count)[start : start + self.batch]) for start in starts]
            order = torch.cat(parts).argsort(stable=True).numpy()

        def draw(step: int) -> list[int]:
            share = (
                min(1.0, options.share + (1 - options.share) * 2 * step / options.iterations)
                if options.curriculum
                else 1.0
            )
            pool = order[: max(1, math.ceil(share * len(order)))]
            return [int(place) for place in rng.choice(pool, min(self.batch, len(pool)), replace=False)]

        return draw


def _weighted(errors: Tensor, positions: FloatArray | None, count: int = 1) -> Tensor:
    """Mean of each of ``count`` samples that are one batch (count,)."""
    weights = torch.from_numpy(weights_of_rows(errors.shape, positions))
    return (errors * weights).reshape(count, -1).mean(1) / weights.mean()


def _join(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
