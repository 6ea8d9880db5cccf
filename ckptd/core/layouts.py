"""The table of layouts: how each framework names its checkpoints, what they are made of, and its own pointers.

Pure. Each row says what the framework itself writes, and where that was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..errors import UsageError
from . import kinds
from .naming import Template
from .trackers import OTHERS, Pointer, by_file

_ENDING = re.compile(r"\.(?![0-9]+\Z)")  # `.0` is the end of a number
FREE = "<name>"  # in a form: any text
KEYED = "<key>={}.ckpt"  # the form of Lightning's names


class Form(NamedTuple):
    """One way to name checkpoints, and whether it is files that bear such names, or directories.

    text: a template's, in which `<name>` stands for a text of the user's own. marker: what has to be in a directory
    before one that nobody asked for is taken for one of these at all, where the name alone says too little. least: of
    several files, the first step that is a save, where one below is what training began with.
    """

    text: str
    files: bool = False
    directories: bool = False
    marker: str = ""
    least: int = 0


class Layout(NamedTuple):
    """One row of the table.

    name: what `--layout` calls it. title: what its framework is called. kinds: which bytes count. by_itself: whether
    it is recognised without being asked for. aside: whether the framework trips over files of others beside its
    checkpoints. source: what was read.
    """

    name: str
    title: str
    forms: tuple[Form, ...]
    kinds: frozenset[str]
    pointers: tuple[Pointer, ...] = ()
    by_itself: bool = False
    aside: bool = False
    source: str = ""


def _file(*texts: str) -> tuple[Form, ...]:
    return tuple(Form(text, files=True) for text in texts)


def _directory(*texts: str, marker: str = "") -> tuple[Form, ...]:
    return tuple(Form(text, directories=True, marker=marker) for text in texts)


_GENERIC = kinds.FILES | {kinds.DCP, kinds.INDEX, kinds.TRAINER, kinds.ACCELERATE}
_TRACKER = "latest_checkpointed_iteration.txt"
_UNITS = ("epoch", "iter")
_NEMO = "val_loss={val_loss:.2f}-step={step}-consumed_samples={seen:.1f}"
_KERAS = ("{epoch:02d}-{val_loss:.2f}", "{:02d}")

LAYOUTS = (
    Layout(
        "mmcv", "mmcv",
        (
            *_file(*(f"{unit}_{{}}{end}" for unit in _UNITS for end in (".pth", ".pt", ".ckpt", ".safetensors"))),
            *(Form(f"{unit}_{{}}", files=True, directories=True) for unit in _UNITS),
        ),
        _GENERIC, (Pointer("last_ckpt", latest=False),), by_itself=True,
        source="mmcv 1.7.2, runner/hooks/checkpoint.py; other loops write the same names with other endings",
    ),
    Layout(
        "mmengine", "mmengine",
        tuple(Form(f"{unit}_{{}}.pth", files=True, directories=True) for unit in _UNITS),
        kinds.FILES | {kinds.MMENGINE, kinds.DEEPSPEED}, (Pointer("last_checkpoint"),), by_itself=True,
        source="mmengine 0.10.7, hooks/checkpoint_hook.py, _strategy/{fsdp,deepspeed,colossalai}.py",
    ),
    Layout(
        "lightning", "Lightning", (Form(KEYED, files=True, directories=True),),
        kinds.FILES | {kinds.LIGHTNING, kinds.DEEPSPEED}, by_itself=True,
        source="lightning 2.6.6, callbacks/model_checkpoint.py, strategies/{fsdp,model_parallel,deepspeed}.py",
    ),
    Layout(
        "transformers", "Transformers", _directory("checkpoint-{}"),
        frozenset({kinds.TRAINER, kinds.ACCELERATE, kinds.DCP}), by_itself=True,  # an index alone: a save cut short
        source="transformers 5.23.0, trainer.py::_save_checkpoint; the training scripts of diffusers",
    ),
    Layout(
        "accelerate", "Accelerate", _directory("checkpoint_{}"), frozenset({kinds.ACCELERATE}), by_itself=True,
        aside=True, source="accelerate 1.15.0, accelerator.py::save_state, checkpointing.py",
    ),
    Layout(
        "torchtitan", "torchtitan", _directory("step-{}"), frozenset({kinds.DCP, kinds.INDEX}), by_itself=True,
        source="torchtitan 0.3.0, components/checkpointer/dcp.py; torch 2.13, distributed/checkpoint/filesystem.py",
    ),
    Layout(
        "deepspeed", "DeepSpeed", _directory("global_step{}"), frozenset({kinds.DEEPSPEED}),
        (Pointer("latest"), Pointer("latest_universal", latest=False)),
        source="DeepSpeed, runtime/engine.py::save_checkpoint",
    ),
    Layout(
        "megatron", "Megatron-LM", _directory("iter_{:07d}"), frozenset({kinds.MEGATRON}),
        (Pointer(_TRACKER, "iter_{:07d}"),),
        source="Megatron-LM, training/checkpointing.py, core/dist_checkpointing/serialization.py",
    ),
    Layout(
        "orbax", "Orbax", _directory("{}", f"{FREE}_{{}}", marker="_CHECKPOINT_METADATA"), frozenset({kinds.ORBAX}),
        source="orbax-checkpoint 0.12.8, _src/path/{step,atomicity}.py",
    ),
    Layout(
        "torchtune", "torchtune", _directory("epoch_{}", "step_{}"), frozenset({kinds.TORCHTUNE, kinds.INDEX}),
        source="torchtune, training/checkpointing/_utils.py",
    ),
    Layout(
        "verl", "verl", _directory("global_step_{}"), frozenset({kinds.VERL}),
        (Pointer(_TRACKER, "global_step_{}"),),
        source="verl, utils/checkpoint/, trainer/ppo/ray_trainer.py",
    ),
    Layout(
        "ultralytics", "Ultralytics", _file("epoch{}.pt"), kinds.FILES,
        source="ultralytics 8.4.190, engine/trainer.py::save_model",
    ),
    Layout(
        "detectron2", "detectron2", _file("model_{:07d}.pth"), kinds.FILES, (Pointer("last_checkpoint"),),
        source="fvcore 0.1.5, common/checkpoint.py",
    ),
    Layout(
        "timm", "timm", _file("checkpoint-{}.pth.tar"), kinds.FILES,
        source="timm 1.0.31, utils/checkpoint_saver.py: last and model_best are hard links to these",
    ),
    Layout(
        "fairseq", "fairseq", _file("checkpoint{}.pt", "checkpoint_{}_{}.pt"), kinds.FILES,
        source="fairseq, checkpoint_utils.py",
    ),
    Layout(
        "icefall", "icefall", _file("epoch-{}.pt", "checkpoint-{}.pt"), kinds.FILES,
        source="icefall, checkpoint.py: best-train-loss.pt and best-valid-loss.pt are copies",
    ),
    Layout(
        "yolov7", "YOLOv7", _file("epoch_{:03d}.pt"), kinds.FILES,
        source="YOLOv7, train.py: beside last.pt, best.pt and best_200.pt and on, which are not saves to choose from",
    ),
    Layout(
        "yolox", "YOLOX", _file("epoch_{}_ckpt.pth"), kinds.FILES,
        source="YOLOX, core/trainer.py, utils/checkpoint.py: beside latest_ckpt.pth and best_ckpt.pth",
    ),
    Layout(
        "keras", "Keras", _file(*(f"{front}{name}{end}" for front in ("", "weights.", "model.") for name in _KERAS
                                  for end in (".keras", ".h5", ".weights.h5", ".hdf5"))),
        frozenset({kinds.KERAS, kinds.HDF5}),
        source="Keras 3.15.1, callbacks/model_checkpoint.py: the names that its documentation has, now and for Keras 2",
    ),
    Layout(
        "nemo", "NeMo",
        (Form(KEYED, files=True), *_file(f"{{name}}--{_NEMO}.ckpt"), *_directory(f"{{name}}--{_NEMO}", _NEMO)),
        kinds.FILES | {kinds.NEMO},
        source="NeMo 2.5, lightning/pytorch/callbacks/model_checkpoint.py, utils/exp_manager.py",
    ),
    Layout(
        "composer", "Composer",
        (*_file("ep{epoch}-ba{batch}-rank{rank}.pt"), *_directory("ep{epoch}-ba{batch}")), kinds.FILES | {kinds.DCP},
        source="Composer 0.32.1, callbacks/checkpoint_saver.py: a file of each rank, or a directory of shards",
    ),
    Layout(
        "speechbrain", "SpeechBrain", _directory("CKPT+{time}"), frozenset({kinds.SPEECHBRAIN}),
        source="SpeechBrain 1.0, utils/checkpoints.py",
    ),
    Layout(
        "vits", "VITS", (Form("G_{}.pth + D_{}.pth", files=True, least=1),), kinds.FILES,
        source="RVC, infer/modules/train/train.py; so-vits-svc 4.1, train.py: G_0.pth and D_0.pth are the base",
    ),
    Layout(
        "allennlp", "AllenNLP", _file("model_state_epoch_{}.th + training_state_epoch_{}.th"), kinds.FILES,
        source="AllenNLP 2.10, training/checkpointer.py: best.th is a copy",
    ),
    Layout(
        "returnn", "RETURNN", _file("epoch.{:03d}.pt + epoch.{:03d}.opt.pt"), kinds.FILES,
        source="RETURNN, torch/engine.py: the model's prefix is `epoch` where nobody says otherwise",
    ),
    Layout(
        "olmo", "OLMo", _directory("step{}", "step{}-unsharded"), frozenset({kinds.OLMO}),
        source="OLMo and OLMo-core: names as their users show them; `latest` is a symlink",
    ),
    Layout(
        "kohya", "kohya",
        (
            *_file(f"{FREE}-{{:06d}}.safetensors", f"{FREE}-step{{:08d}}.safetensors"),
            *_directory(f"{FREE}-{{:06d}}-state", f"{FREE}-step{{:08d}}-state"),
        ),
        frozenset({kinds.SAFETENSORS, kinds.ACCELERATE}),
        source="sd-scripts, library/train_util.py; its -state directories are Accelerate's",
    ),
)  # fmt: skip

DEFAULT_LAYOUTS = tuple(layout for layout in LAYOUTS if layout.by_itself)

# The names of mmcv's hook and of every loop that has taken them over.
DEFAULT_TEMPLATES = tuple(Template(form.text) for form in LAYOUTS[0].forms)

# Names beside which nothing of ours may stand.
ASIDE = tuple(Template(form.text) for layout in LAYOUTS if layout.aside for form in layout.forms)

# Sibling files that are one checkpoint together; to delete one of them is to break it. By regular expression.
GROUPS = (
    ("Composer", r"ep[0-9]+-ba[0-9]+-rank[0-9]+\.pt(?:\.(?:gz|zst|lz4|bz2|xz))?"),
    ("TensorFlow", r".+-[0-9]+\.(?:index|meta|data-[0-9]{5}-of-[0-9]{5})"),
    ("nanochat", r"(?:model_[0-9]{6}\.pt|meta_[0-9]{6}\.json|optim_[0-9]{6}(?:_rank[0-9]+)?\.pt)"),
    ("guided-diffusion", r"(?:(?:model|opt)[0-9]{6}|ema_0?\.?[0-9]+_[0-9]{6})\.pt"),
    ("fairseq", r"checkpoint[0-9_]+-(?:rank-|shard)[0-9]+\.pt"),
)

FRAMEWORK_POINTERS = tuple(dict.fromkeys((*(each for layout in LAYOUTS for each in layout.pointers), *OTHERS)))
TRACKERS = by_file(FRAMEWORK_POINTERS)

# Which pointer is believed when a work dir is met for the first time and its order of writing is in doubt.
FIRST_CONTACT_POINTERS = ("last_ckpt", "last_checkpoint", "latest.pth")  # the last: mmcv 1.x, a symlink


def layouts_called(names: Iterable[str]) -> tuple[Layout, ...]:
    """The rows of the table by their names. Raises UsageError, with the names there are, for one that is not there."""
    by_name = {layout.name: layout for layout in LAYOUTS}
    for name in (names := tuple(names)):
        if name not in by_name:
            raise UsageError(f"layout {name!r}: choose one of {', '.join(by_name)}")
    return tuple(by_name[name] for name in dict.fromkeys(names))


def takes_directories(template: str) -> bool:
    """Whether a directory may bear a name of `template`: only where the name has no file ending."""
    return _ENDING.search(template.rpartition("}")[2]) is None
