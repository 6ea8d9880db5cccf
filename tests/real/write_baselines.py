"""Let Stable-Baselines3's CheckpointCallback write below PLACE: the model alone, and with its buffer and statistics."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

SMALL = {"net_arch": [4]}


def world():
    return VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))


def main(place):
    alone = CheckpointCallback(16, str(place / "alone"))
    PPO("MlpPolicy", world(), n_steps=16, batch_size=16, policy_kwargs=SMALL).learn(64, callback=alone)
    every = CheckpointCallback(50, str(place / "all"), save_replay_buffer=True, save_vecnormalize=True)
    SAC("MlpPolicy", world(), buffer_size=200, learning_starts=400, policy_kwargs=SMALL).learn(200, callback=every)


def read(checkpoint):
    """Load it, and the files that belong to it; say how many steps it has seen, and whether any is in the buffer."""
    model = SAC.load(checkpoint)
    prefix, _, rest = checkpoint.name.removesuffix(".zip").partition("_model_")
    model.load_replay_buffer(checkpoint.with_name(f"{prefix}_model_replay_buffer_{rest}.pkl"))
    VecNormalize.load(str(checkpoint.with_name(f"{prefix}_model_vecnormalize_{rest}.pkl")), world().venv)
    print(model.num_timesteps, model.replay_buffer.size() > 0)


if __name__ == "__main__":
    if sys.argv[1] == "read":
        read(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
