"""The training recipe of the bundled model: as in DeiT, a small convolutional teacher first, then the transformer learns from
the labels and from the teacher's soft answers. Resumes from its checkpoint.

    python models/fashion_vit/train.py [--epochs 18] [--checkpoint train_state.pt]
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
import data
from model import WEIGHTS, FashionViT

BATCH, PEAK_RATE, WEIGHT_DECAY, WARM_UP = 128, 1.5e-3, 0.05, 0.06
TEACHER_EPOCHS, TEMPERATURE, SOFT_SHARE = 6, 2.0, 0.7
Examples = tuple[torch.Tensor, torch.Tensor]


def teacher() -> nn.Module:
    """A convolutional network of 0.13 M weights; it is not part of the bundled model."""

    def stage(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    stages = [*stage(1, 32, 1), *stage(32, 64, 2), *stage(64, 64, 1), *stage(64, 128, 2)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def augment(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """A random half of the images mirrored; (B, 1, 28, 28) in and out."""
    return torch.where(torch.rand(images.shape[0], 1, 1, 1, generator=rng) < 0.5, images.flip(3), images)


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 in per cent."""
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(part).argmax(1) for part in images.split(500)])
    return 100 * (guesses == labels).float().mean().item()


def rate_at(progress: float) -> float:
    """Learning rate at a fraction of the run: linear warm-up, then a half cosine to zero."""
    if progress < WARM_UP:
        return PEAK_RATE * progress / WARM_UP
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def loss_of(logits: torch.Tensor, labels: torch.Tensor, soft: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy to the labels; with a teacher's logits, mixed with the divergence from its softened answers."""
    hard = functional.cross_entropy(logits, labels)
    if soft is None:
        return hard
    wanted = functional.log_softmax(soft / TEMPERATURE, dim=1)
    got = functional.log_softmax(logits / TEMPERATURE, dim=1)
    divergence = functional.kl_div(got, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (1 - SOFT_SHARE) * hard + SOFT_SHARE * divergence


def train(
    model: nn.Module, examples: tuple[Examples, Examples], epochs: int, checkpoint: Path, guide: nn.Module | None
) -> None:
    """Train on the first examples, print the accuracy on the second after each epoch, keep a checkpoint."""
    (images, labels), validation = examples
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["epoch"]
    for epoch in range(start, epochs):
        began, total = time.perf_counter(), 0.0
        rng = torch.Generator().manual_seed(epoch)
        batches = torch.randperm(len(images), generator=rng).split(BATCH)
        model.train()
        for step, batch in enumerate(batches):
            for group in optimiser.param_groups:
                group["lr"] = rate_at((epoch + step / len(batches)) / epochs)
            inputs = augment(images[batch], rng)
            soft = None
            if guide is not None:
                with torch.no_grad():
                    soft = guide(inputs)
            loss = loss_of(model(inputs), labels[batch], soft)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            total += loss.item()
        score, seconds = accuracy(model, *validation), time.perf_counter() - began
        print(
            f"epoch {epoch + 1}: loss {total / len(batches):.4f}, validation {score:.2f} %, {seconds:.0f} s", flush=True
        )
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}
        torch.save(state, checkpoint)


def main() -> None:
    """Train both networks, write the transformer's weights, and print its test accuracy once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--checkpoint", type=Path, default=Path("train_state.pt"))
    args = parser.parse_args()

    torch.manual_seed(data.SEED)
    images, labels = data.read("train")
    x, y = torch.from_numpy(data.normalise(images)), torch.from_numpy(labels.astype(np.int64))
    parts, _, held_out = (torch.from_numpy(index) for index in data.split_indices(len(images)))
    examples = ((x[parts], y[parts]), (x[held_out], y[held_out]))
    guide, model = teacher(), FashionViT()
    train(guide, examples, TEACHER_EPOCHS, args.checkpoint.with_suffix(".teacher.pt"), None)
    train(model, examples, args.epochs, args.checkpoint, guide.eval())
    torch.save(model.state_dict(), WEIGHTS)
    test_images, test_labels = data.read("t10k")
    test = torch.from_numpy(data.normalise(test_images)), torch.from_numpy(test_labels.astype(np.int64))
    print(f"test top-1 {accuracy(model, *test):.2f} % of {len(test_labels)}")


if __name__ == "__main__":
    main()
