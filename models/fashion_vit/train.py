"""The training recipe of the bundled model. Resumes from its checkpoint.

    python models/fashion_vit/train.py [--epochs 20] [--checkpoint train_state.pt]
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
import data
from model import WEIGHTS, FashionViT

BATCH, PEAK_RATE, WEIGHT_DECAY, SMOOTHING, WARM_UP = 128, 1.5e-3, 0.05, 0.05, 0.06
# For the first part of the run half of the patches are dropped: an epoch costs half, and it regularises.
KEPT_PATCHES, DROP_UNTIL = 24, 0.7


def augment(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Random mirror and a shift of up to one pixel, one draw an image; (B, 1, 28, 28) in and out."""
    count = images.shape[0]
    mirrored = torch.where(torch.rand(count, 1, 1, 1, generator=rng) < 0.5, images.flip(3), images)
    padded = functional.pad(mirrored, (1, 1, 1, 1), value=float(-data.MEAN / data.STD))
    rows = torch.randint(0, 3, (count, 1), generator=rng) + torch.arange(28)
    columns = torch.randint(0, 3, (count, 1), generator=rng) + torch.arange(28)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def accuracy(model: FashionViT, images: torch.Tensor, labels: torch.Tensor) -> float:
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


def train_epoch(
    model: FashionViT,
    optimiser: torch.optim.Optimizer,
    examples: tuple[torch.Tensor, torch.Tensor],
    epoch: int,
    epochs: int,
) -> float:
    """One pass over the training images; the mean loss."""
    images, labels = examples
    rng = torch.Generator().manual_seed(epoch)
    batches = torch.randperm(len(images), generator=rng).split(BATCH)
    model.train()
    total = 0.0
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = rate_at((epoch + step / len(batches)) / epochs)
        tokens = model.embed(augment(images[batch], rng))
        if (epoch + step / len(batches)) / epochs < DROP_UNTIL:
            kept = torch.randperm(tokens.shape[1] - 1, generator=rng)[:KEPT_PATCHES] + 1
            tokens = torch.cat([tokens[:, :1], tokens[:, kept]], dim=1)
        logits = model.classify(tokens)
        loss = functional.cross_entropy(logits, labels[batch], label_smoothing=SMOOTHING)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        total += loss.item()
    return total / len(batches)


def main() -> None:
    """Train, then write the weights and print the test accuracy once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, default=Path("train_state.pt"))
    args = parser.parse_args()

    torch.manual_seed(data.SEED)
    images, labels = data.read("train")
    x, y = torch.from_numpy(data.normalise(images)), torch.from_numpy(labels.astype(np.int64))
    train, _, validation = (torch.from_numpy(index) for index in data.split_indices(len(images)))
    model = FashionViT()
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    start = 0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["epoch"]
    for epoch in range(start, args.epochs):
        began = time.perf_counter()
        loss = train_epoch(model, optimiser, (x[train], y[train]), epoch, args.epochs)
        score = accuracy(model, x[validation], y[validation])
        print(f"epoch {epoch + 1}: loss {loss:.4f}, validation {score:.2f} %, {time.perf_counter() - began:.0f} s", flush=True)
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}
        torch.save(state, args.checkpoint)
    torch.save(model.state_dict(), WEIGHTS)
    test_images, test_labels = data.read("t10k")
    test = torch.from_numpy(data.normalise(test_images)), torch.from_numpy(test_labels.astype(np.int64))
    print(f"test top-1 {accuracy(model, *test):.2f} % of {len(test_labels)}")


if __name__ == "__main__":
    main()
