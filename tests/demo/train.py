"""Train a small network to tell two spirals apart, with a checkpoint after each epoch.

An ordinary training script: it saves through ckptd's hook, resumes through it, and deletes nothing.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import nn

from ckptd.shim import CheckpointHook


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small network to tell two spirals apart.")
    parser.add_argument("work_dir", type=Path, help="where checkpoints go")
    parser.add_argument("--epochs", type=int, default=12, help="the epoch to end with")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a network is slower on several
    inputs, labels = spirals(12000)
    held_inputs, held_labels = spirals(2000)
    model = nn.Sequential(
        nn.Linear(2, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 2),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    record = {"accuracy": 0.0}  # saved as it is at that moment
    with CheckpointHook(options.work_dir, interval=1, max_epochs=options.epochs) as hook:
        progress = hook.resume(model=model, optimizer=optimizer, record=record)
        if progress.path:
            print(f"resuming after {progress.path.name}", flush=True)
        for epoch in range(progress.epoch, options.epochs):
            loss = train_one_epoch(model, optimizer, inputs, labels)
            record["accuracy"] = accuracy_of(model, held_inputs, held_labels)
            saved = hook.after_train_epoch(epoch)
            assert saved is not None  # interval=1: every epoch
            told = f"epoch {epoch + 1:2}  loss {loss:.3f}  accuracy {record['accuracy']:6.1%}"
            print(f"{told}  saved {saved.name}", flush=True)


def train_one_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor
) -> float:
    """One pass over the data in shuffled batches; the mean loss."""
    model.train()
    losses = []
    for batch in torch.randperm(len(inputs)).split(64):
        loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy_of(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    return (model(inputs).argmax(1) == labels).float().mean().item()


def spirals(points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points on two spirals, one inside the other, and which of the two each is on."""
    labels = torch.arange(points) % 2
    radius = torch.rand(points).sqrt()
    angle = radius * 4 * math.pi + labels * math.pi
    inputs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return inputs + 0.015 * torch.randn(points, 2), labels


if __name__ == "__main__":
    main()
