"""Let `Accelerator.save_state` write below PLACE with its automatic names, and as the scripts of diffusers do."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.utils import ProjectConfiguration  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def prepared(place):
    accelerator = Accelerator(
        cpu=True, project_config=ProjectConfiguration(project_dir=str(place), automatic_checkpoint_naming=True)
    )
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    accelerator.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()
    return accelerator


def main(place):
    accelerator = prepared(place / "named")
    for _ in range(4):
        accelerator.save_state()
    accelerator = prepared(place / "diffusers")
    accelerator.project_configuration.automatic_checkpoint_naming = False

    def hook(models, weights, output_dir):
        for model in models:
            (Path(output_dir) / "unet").mkdir()
            save_file(model.state_dict(), Path(output_dir) / "unet/diffusion_pytorch_model.safetensors")
            weights.pop()

    accelerator.register_save_state_pre_hook(hook)
    for step in (500, 1000, 1500, 2000):
        accelerator.save_state(str(place / f"diffusers/checkpoint-{step}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
