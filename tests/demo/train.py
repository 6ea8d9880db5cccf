"""Train a small network to tell two spirals apart, with a checkpoint after each epoch.

An ordinary training script: it saves, and deletes nothing. Of ckptd it knows one command, `ckptd latest`,
which says what to resume from.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small network to tell two spirals apart.")
    parser.add_argument("work_dir", type=Path, help="where checkpoints go")
    parser.add_argument("--epochs", type=int, default=12, help="the epoch to end with")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)

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

    first = 1
    if saved := newest_checkpoint(options.work_dir):
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1
        print(f"resuming after {saved.name}", flush=True)

    for epoch in range(first, options.epochs + 1):
        loss = train_one_epoch(model, optimizer, inputs, labels)
        accuracy = accuracy_of(model, held_inputs, held_labels)
        state = {
            "epoch": epoch,
            "accuracy": accuracy,
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        path = options.work_dir / f"epoch_{epoch}.pth"
        save(state, path)
        print(f"epoch {epoch:2}  loss {loss:.3f}  accuracy {accuracy:6.1%}  saved {path.name}", flush=True)


def newest_checkpoint(work_dir: Path) -> Path | None:
    """What `ckptd latest` names; it exits with 1 and prints nothing where there is no complete checkpoint."""
    asked = subprocess.run(["ckptd", "latest", work_dir], capture_output=True, text=True)
    if asked.returncode not in (0, 1):
        raise SystemExit(f"ckptd latest {work_dir}: {asked.stderr.strip()}")
    return Path(asked.stdout.rstrip("\n")) if asked.returncode == 0 else None


def save(state: dict[str, Any], path: Path) -> None:
    """Write aside, then rename: the final name is never that of half a checkpoint."""
    aside = path.with_name(f"{path.name}.tmp")
    with aside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


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
