"""What the bytes of a checkpoint can be: one word for each writer whose files and directories are told apart.

Pure. The words stand in messages, so they read as `a ... checkpoint`.
"""

from __future__ import annotations

TORCH = "torch"  # a torch zip
LEGACY = "legacy torch"  # of before 1.6
SAFETENSORS = "safetensors"
FILES = frozenset({TORCH, LEGACY, SAFETENSORS})
HDF5 = "HDF5"
KERAS = "Keras"  # its own zip
BASELINES = "Stable-Baselines3"

DCP = "torch.distributed"
INDEX = "Hugging Face"  # shards with an index
TRAINER = "Trainer"  # of Hugging Face Transformers
ACCELERATE = "Accelerate"
LIGHTNING = "Lightning"
MMENGINE = "mmengine"
DEEPSPEED = "DeepSpeed"
MEGATRON = "Megatron"
ORBAX = "Orbax"
TORCHTUNE = "torchtune"
VERL = "verl"
OLMO = "OLMo"
NEMO = "NeMo"
SPEECHBRAIN = "SpeechBrain"


def a(kind: str) -> str:
    """The word with its article."""
    return f"{'an' if kind.startswith(('A', 'O', 'HDF')) else 'a'} {kind}"
