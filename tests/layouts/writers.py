"""Checkpoints of every layout, as its framework leaves them: whole, half written, and whole but for damaged bytes.

What a framework writes where is told by the source that its row in ckptd.core.layouts names; nothing here knows what
ckptd should decide about it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..conftest import dcp_metadata, safetensors, torch_zip
from ..test_hdf5 import hdf5

Content = bytes | dict[str, bytes]  # of a file; of the files in a directory, in the order of writing
Write = Callable[[Path, int], None]


@dataclass(frozen=True)
class Writer:
    """How one framework names and writes checkpoints.

    layout: the row of the table; what: which of its ways, where it has several. name: of the checkpoint of the n-th
    save. content: what is in that; without its last file a directory is half.
    """

    layout: str
    what: str
    name: Callable[[int], str]
    content: Callable[[int], Content]

    def __str__(self) -> str:
        return f"{self.layout} {self.what}".rstrip()

    @property
    def by_itself(self) -> bool:
        """Whether ckptd is to recognise it without being asked."""
        return self.layout in BY_ITSELF and self.what != "with text in front"

    @property
    def needed(self) -> list[str]:
        """The files of a directory without each of which it is no whole checkpoint."""
        content, pattern = self.content(1), NEEDED.get(self.content, ".*")
        return [] if isinstance(content, bytes) else [name for name in content if re.fullmatch(pattern, name)]

    @property
    def marked(self) -> bool:
        """Whether it says itself that all of it is there."""
        return self.content not in UNMARKED

    @property
    def pointer(self) -> Callable[[Path, str, int], None] | None:
        """What lets the framework's own pointer name a checkpoint."""
        return None if self.what in ("of diffusers", "with text in front") else POINTERS.get(self.layout)

    def whole(self, place: Path, step: int) -> None:
        """Write all of a checkpoint."""
        put(place, self.content(step))

    def half(self, place: Path, step: int) -> None:
        """Write it without its last file, or the end of it."""
        put(place, half(self.content(step)))

    @property
    def damaged(self) -> Write | None:
        """What writes all of it, but with some bytes of a tensor changed; None where no format has a checksum."""
        if damaged(self.content(1)) is None:
            return None
        return lambda place, step: put(place, damaged(self.content(step)) or {})


def half(content: Content) -> Content:
    """A directory without its last file, or a file cut short."""
    return content[:-30] if isinstance(content, bytes) else without(content, list(content)[-1])


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    """A directory without one file; the directory that it was in stays, as after a crash."""
    way = name.rpartition("/")[0]
    return {
        **{other: content for other, content in files.items() if other != name},
        **({f"{way}/": b""} if way else {}),
    }


def damaged(content: Content) -> Content | None:
    """With zeros in the middle of the last torch zip; a file that has no checksum ends a byte too soon."""
    if isinstance(content, bytes):
        return zeroed(content) if content.startswith(b"PK") else content[:-1]
    zips = [name for name, inside in content.items() if inside.startswith(b"PK")]
    return {**content, zips[-1]: zeroed(content[zips[-1]])} if zips else None


def zeroed(content: bytes) -> bytes:
    """A torch zip of which some bytes in the middle of a tensor never reached the disk."""
    at = content.index(b"w" * 100)
    return content[: at + 10] + bytes(50) + content[at + 60 :]


def zeroed_at(path: Path) -> None:
    """The same in a real torch zip: zeros in the middle of its first member that is not, its size and times kept."""
    content, info = path.read_bytes(), path.stat()
    with zipfile.ZipFile(path) as archive:
        member = next(each for each in archive.infolist() if each.file_size >= 4)
    name, extra = struct.unpack_from("<HH", content, member.header_offset + 26)
    start = member.header_offset + 30 + name + extra
    path.write_bytes(content[:start] + bytes(member.file_size) + content[start + member.file_size :])
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def put(place: Path, content: Content) -> None:
    """Write a file, or a directory; what ends in "/" is a directory in it."""
    if isinstance(content, bytes):
        place.write_bytes(content)
        return
    for name, inside in content.items():
        path = place / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(inside)


def dcp(*shards: str) -> dict[str, bytes]:
    return {**dict.fromkeys(shards, b"s" * 300), ".metadata": dcp_metadata(dict.fromkeys(shards, 300))}


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}}).encode()


# --- what is in a directory, in the order of writing; the last file is the one without which it is half ------------


def trainer(step: int) -> dict[str, bytes]:
    return {
        "config.json": b"{}", "model.safetensors": safetensors(), "training_args.bin": torch_zip(),
        "optimizer.pt": torch_zip(), "scheduler.pt": torch_zip(), "rng_state.pth": torch_zip(),
        "trainer_state.json": json.dumps({"global_step": step, "best_model_checkpoint": None}).encode(),
    }  # fmt: skip


def accelerate(step: int) -> dict[str, bytes]:
    return {
        "model.safetensors": safetensors(), "optimizer.bin": torch_zip(), "scheduler.bin": torch_zip(),
        "random_states_1.pkl": torch_zip(), "random_states_0.pkl": torch_zip(),
    }  # fmt: skip


def diffusers(step: int) -> dict[str, bytes]:
    return {
        "unet/config.json": b"{}", "unet/diffusion_pytorch_model.safetensors": safetensors(),
        "optimizer.bin": torch_zip(), "scheduler.bin": torch_zip(), "random_states_0.pkl": torch_zip(),
    }  # fmt: skip


def trainer_deepspeed(step: int) -> dict[str, bytes]:
    inside = {f"global_step{step}/{name}": content for name, content in deepspeed(step).items()}
    *inside_first, last = inside.items()
    beside = trainer(step)
    del beside["optimizer.pt"], beside["model.safetensors"]
    return {"latest": f"global_step{step}".encode(), **dict(inside_first), **beside, last[0]: last[1]}


def accelerate_deepspeed(step: int) -> dict[str, bytes]:
    inside = {f"pytorch_model/{name}": content for name, content in deepspeed(step).items()}
    *inside_first, last = inside.items()
    return {"latest": b"pytorch_model", **dict(inside_first), "random_states_0.pkl": torch_zip(), last[0]: last[1]}


def accelerate_fsdp(step: int) -> dict[str, bytes]:
    parts = {f"{name}/{file}": content for name in ("pytorch_model_fsdp_0", "optimizer_0")
             for file, content in dcp("__0_0.distcp", "__1_0.distcp").items()}  # fmt: skip
    *first, last = parts.items()
    random_states = {f"random_states_{rank}.pkl": torch_zip() for rank in (0, 1)}
    return {**dict(first), "scheduler.bin": torch_zip(), **random_states, last[0]: last[1]}


def lightning_sharded(step: int) -> dict[str, bytes]:
    return {**dcp("__0_0.distcp", "__1_0.distcp"), "meta.pt": torch_zip()}


def deepspeed(step: int) -> dict[str, bytes]:
    states = {f"mp_rank_0{model}_model_states.pt": torch_zip() for model in (0, 1)}
    optimizers = {f"bf16_zero_pp_rank_{data}_mp_rank_0{model}_optim_states.pt": torch_zip()
                  for data in (0, 2, 1) for model in (0, 1)}  # fmt: skip
    return {**states, **optimizers}


def lightning_deepspeed(step: int) -> dict[str, bytes]:
    inside = {f"checkpoint/{name}": content for name, content in deepspeed(step).items()}
    return {"latest": b"checkpoint", "zero_to_fp32.py": b"pass", **inside}


def mmengine_ranks(step: int) -> dict[str, bytes]:
    return {f"rank{rank}.pth": torch_zip() for rank in (0, *range(11, 0, -1))}


def mmengine_colossal(step: int) -> dict[str, bytes]:
    return {
        "model/pytorch_model.bin.index.json": index("a.bin"), "model/a.bin": torch_zip(),
        "optimizer/o.bin": torch_zip(), "scheduler/scheduler_0.pth": torch_zip(), "meta.pth": torch_zip(),
    }  # fmt: skip


def megatron_distributed(step: int) -> dict[str, bytes]:
    metadata = json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}).encode()
    return {"common.pt": torch_zip(), **dcp("__0_0.distcp", "__1_0.distcp"), "metadata.json": metadata}


def megatron_sharded_only(step: int) -> dict[str, bytes]:
    every = megatron_distributed(step)
    del every["common.pt"]
    return {"mp.pt": torch_zip(), **every}


def megatron_legacy(step: int) -> dict[str, bytes]:
    ranks = [f"mp_rank_{tp:02d}_{pp:03d}" for tp, pp in ((0, 0), (0, 1), (1, 1), (1, 0))]
    return {f"{rank}/model_optim_rng.pt": torch_zip() for rank in ranks}


def orbax(step: int) -> dict[str, bytes]:
    """As 0.12.8 leaves it; it ignores the absence of its commit_success.txt on a local disk."""
    metadata = {
        "item_handlers": {"default": "...", "metadata": "..."},
        "init_timestamp_nsecs": 1,
        "commit_timestamp_nsecs": 2,
    }
    return {
        "_CHECKPOINT_METADATA": json.dumps(metadata).encode(),
        "default/_METADATA": b'{"tree_metadata": {}, "use_ocdbt": true}',
        "commit_success.txt": b"", "default/commit_success.txt": b"", "metadata/metadata": b"{}",
        "default/d/819941f67e5933f9": b"d" * 50, "default/ocdbt.process_0/d/3dc6c776a652f9dc": b"d" * 50,
        "default/ocdbt.process_0/manifest.ocdbt": b"m" * 50,
        "default/manifest.ocdbt": b"m" * 50,
    }  # fmt: skip


def torchtune(step: int) -> dict[str, bytes]:
    return {
        "config.json": b"{}", "recipe_state/recipe_state.pt": torch_zip(),
        "model-00001-of-00002.safetensors": safetensors(), "model-00002-of-00002.safetensors": safetensors(),
    }  # fmt: skip


def torchtune_unsharded(step: int) -> dict[str, bytes]:
    return {"recipe_state.pt": torch_zip(), "model.safetensors": safetensors()}


def verl(step: int) -> dict[str, bytes]:
    files = {
        f"{role}/{what}_world_size_{size}_rank_{rank}.pt": torch_zip()
        for role, size in (("actor", 2), ("critic", 3))
        for what in ("model", "optim", "extra_state") for rank in range(size)
    }  # fmt: skip
    return {**files, "actor/huggingface/config.json": b"{}", "data.pt": torch_zip()}


def easy_r1(step: int) -> dict[str, bytes]:
    *files, (_, data) = verl(step).items()
    return {**dict(files), "dataloader.pt": data}


def verl_sft(step: int) -> dict[str, bytes]:
    files = {f"{what}_world_size_2_rank_{rank}.pt": torch_zip()
             for what in ("model", "optim", "extra_state") for rank in (0, 1)}  # fmt: skip
    return {**files, "huggingface/config.json": b"{}", "data_1.pt": torch_zip(), "data_0.pt": torch_zip()}


def verl_megatron(step: int) -> dict[str, bytes]:
    return {**verl_megatron_role("actor"), **verl_megatron_role("critic"), "data.pt": torch_zip()}


def verl_megatron_sft(step: int) -> dict[str, bytes]:
    """As its asynchronous saves leave it: the contents come when all is done."""
    return {"data_0.pt": torch_zip(), **verl_megatron_role("")}


def verl_megatron_role(role: str) -> dict[str, bytes]:
    whats = ("model", "optimizer", "extra")
    contents = {what: {"path": f"{what}/dist_ckpt", "format": "megatron_dist_checkpoint"} for what in whats}
    contents["transformer_config"] = {"path": "transformer_config.json", "format": "json"}
    shards = {
        f"{what}/dist_ckpt/{name}": content for what in whats for name, content in megatron_distributed(1).items()
    }
    manifest = json.dumps({"schema_version": 2, "contents": contents}).encode()
    files = {**shards, "transformer_config.json": b"{}", "ckpt_contents.json": manifest}
    return {f"{role}/{name}".lstrip("/"): content for name, content in files.items()}


def nemo(step: int) -> dict[str, bytes]:
    inside = {f"weights/{name}": content for name, content in megatron_distributed(step).items()}
    return {"context/io.json": b"{}", "context/model.yaml": b"a: 1", **inside}


def speechbrain(step: int) -> dict[str, bytes]:
    """A file for each of what it was told to save; of a counter, that holds its number."""
    files = {"CKPT.yaml": b"end-of-epoch: true\nunixtime: 1714566645.0\n", "counter.ckpt": b"3"}
    return {**files, "optimizer.ckpt": torch_zip(), "model.ckpt": torch_zip()}


def keras_zip(step: int) -> bytes:
    return zip_of({"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": hdf5() + b"w" * 300})


def keras_hdf5(step: int) -> bytes:
    return hdf5()


def zip_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def olmo_core(step: int) -> dict[str, bytes]:
    inside = {f"model_and_optim/{name}": content for name, content in dcp("__0_0.distcp").items()}
    return {"config.json": b"{}", **inside, "train/rank0.pt": torch_zip(), ".metadata.json": b"{}"}


def olmo_unsharded(step: int) -> dict[str, bytes]:
    return {"config.yaml": b"a: 1", "model.pt": torch_zip(), "optim.pt": torch_zip(), "train.pt": torch_zip()}


def paddle(step: int) -> dict[str, bytes]:
    """As PaddleNLP's Trainer leaves it: its weights and states are pickles."""
    pickled = pickle.dumps({"w": b"w" * 300}, protocol=4)
    names = ("model_state.pdparams", "optimizer.pdopt", "scheduler.pdparams", "training_args.bin")
    state = json.dumps({"global_step": step, "best_model_checkpoint": None}).encode()
    return {**dict.fromkeys(names, pickled), "trainer_state.json": state}


# --- pointers --------------------------------------------------------------------------------------------------


def line(file: str, text: Callable[[Path, str, int], str]) -> Callable[[Path, str, int], None]:
    def write(work_dir: Path, name: str, step: int) -> None:
        (work_dir / file).write_text(text(work_dir, name, step))

    return write


def link(file: str) -> Callable[[Path, str, int], None]:
    return lambda work_dir, name, step: (work_dir / file).symlink_to(name)


def best(work_dir: Path, name: str, step: int) -> None:
    newest = max(work_dir.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime_ns)
    info = newest.stat()
    newest.write_text(json.dumps({"global_step": 4, "best_model_checkpoint": f"runs/elsewhere/{name}"}))
    os.utime(newest, ns=(info.st_atime_ns, info.st_mtime_ns))


TRACKER = line("latest_checkpointed_iteration.txt", lambda work_dir, name, step: f"{step}")

POINTERS = {
    "mmcv": link("latest.pth"),
    "mmengine": line("last_checkpoint", lambda work_dir, name, step: f"{work_dir / name}"),
    "lightning": link("last.ckpt"),
    "transformers": best,
    "deepspeed": line("latest", lambda work_dir, name, step: name),
    "megatron": TRACKER,
    "verl": TRACKER,
    "detectron2": line("last_checkpoint", lambda work_dir, name, step: name),
    "olmo": link("latest"),
}
BY_ITSELF = {"mmcv", "mmengine", "lightning", "transformers", "accelerate", "torchtitan"}


def titan(step: int) -> dict[str, bytes]:
    return dcp("__0_0.distcp", "__1_0.distcp")


def indexed(step: int) -> dict[str, bytes]:
    shards = ("model-1.safetensors", "model-2.safetensors")
    return {"model.safetensors.index.json": index(*shards), **dict.fromkeys(shards, safetensors())}


def torch_file(step: int) -> bytes:
    return torch_zip()


def tensors_file(step: int) -> bytes:
    return safetensors()


# Without which of its files a directory is no whole checkpoint, by their names; in the others it is each of them. What
# is missing of the rest cannot be told, or is not needed.
NEEDED = {
    mmengine_ranks: r"rank(?!11).*",
    mmengine_colossal: r"model/a\.bin|meta\.pth",
    lightning_deepspeed: r"checkpoint/.*",
    trainer: r"model\.safetensors|trainer_state\.json",
    trainer_deepspeed: r"global_step.*|trainer_state\.json",
    paddle: r"model_state\.pdparams|trainer_state\.json",
    diffusers: r"unet/diff.*|random_states_0\.pkl",
    accelerate: r"model\..*|random_states_0\.pkl",
    accelerate_deepspeed: r"pytorch_model/.*|random_states_0\.pkl",
    accelerate_fsdp: r"(pytorch_model_fsdp|optimizer)_0/.*|random_states_0\.pkl",
    indexed: r".*\.safetensors",
    megatron_distributed: r"(?!common\.pt).*",
    megatron_sharded_only: r"(?!mp\.pt).*",
    orbax: r".*(_METADATA|manifest\.ocdbt)|metadata/.*",
    torchtune: r"model-.*",
    torchtune_unsharded: r"model\..*",
    verl: r"(?!actor/huggingface/).*",
    easy_r1: r"(?!actor/huggingface/).*",
    verl_sft: r"model_.*|optim_.*|extra_.*|data_0\.pt",
    verl_megatron: r"(?!.*(common\.pt|config\.json)).*",
    verl_megatron_sft: r"(?!.*(common\.pt|/metadata\.json)).*",
    nemo: r"weights/(?!common\.pt).*",
    speechbrain: r"CKPT\.yaml|model\.ckpt",
    olmo_core: r"model_and_optim/.*|\.metadata\.json",
    olmo_unsharded: r".*\.pt",
}
# Those in which no file says that all of it is there.
UNMARKED = {
    mmengine_ranks, mmengine_colossal, deepspeed, lightning_deepspeed, diffusers, accelerate, accelerate_deepspeed,
    accelerate_fsdp, indexed, megatron_legacy, torchtune, torchtune_unsharded, olmo_core, olmo_unsharded,
    verl_sft, nemo, speechbrain,
}  # fmt: skip

WRITERS = [
    Writer("mmcv", "", lambda n: f"epoch_{n}.pth", torch_file),
    Writer("mmengine", "", lambda n: f"iter_{n}.pth", torch_file),
    Writer("mmengine", "with FSDP", lambda n: f"epoch_{n}.pth", mmengine_ranks),
    Writer("mmengine", "with DeepSpeed", lambda n: f"epoch_{n}.pth", deepspeed),
    Writer("mmengine", "with ColossalAI", lambda n: f"iter_{n}.pth", mmengine_colossal),
    Writer("lightning", "", lambda n: f"epoch={n}-step={n * 10}.ckpt", torch_file),
    Writer("lightning", "with a metric", lambda n: f"epoch={n:02d}-val_loss={n / 10:.2f}.ckpt", torch_file),
    Writer("lightning", "sharded", lambda n: f"epoch={n}-step={n * 10}.ckpt", lightning_sharded),
    Writer("lightning", "with DeepSpeed", lambda n: f"epoch={n}-step={n * 10}.ckpt", lightning_deepspeed),
    Writer("lightning", "with text in front", lambda n: f"sample-mnist-epoch={n:02d}-val_loss=0.5.ckpt", torch_file),
    Writer("transformers", "", lambda n: f"checkpoint-{n * 500}", trainer),
    Writer("transformers", "of diffusers", lambda n: f"checkpoint-{n * 500}", diffusers),
    Writer("transformers", "of PaddleNLP", lambda n: f"checkpoint-{n * 500}", paddle),
    Writer("accelerate", "", lambda n: f"checkpoint_{n - 1}", accelerate),
    Writer("transformers", "with DeepSpeed", lambda n: f"checkpoint-{n * 500}", trainer_deepspeed),
    Writer("accelerate", "with DeepSpeed", lambda n: f"checkpoint_{n - 1}", accelerate_deepspeed),
    Writer("accelerate", "with FSDP", lambda n: f"checkpoint_{n - 1}", accelerate_fsdp),
    Writer("torchtitan", "", lambda n: f"step-{n * 100}", titan),
    Writer("torchtitan", "as safetensors", lambda n: f"step-{n * 100}", indexed),
    Writer("deepspeed", "", lambda n: f"global_step{n * 10}", deepspeed),
    Writer("megatron", "", lambda n: f"iter_{n * 500:07d}", megatron_distributed),
    Writer("megatron", "without common.pt", lambda n: f"iter_{n * 500:07d}", megatron_sharded_only),
    Writer("megatron", "by rank", lambda n: f"iter_{n * 500:07d}", megatron_legacy),
    Writer("orbax", "", lambda n: f"{(n - 1) * 5}", orbax),
    Writer("orbax", "padded", lambda n: f"ckpt_{n + 7:02d}", orbax),
    Writer("torchtune", "by epoch", lambda n: f"epoch_{n - 1}", torchtune),
    Writer("torchtune", "by step", lambda n: f"step_{n * 10}", torchtune_unsharded),
    Writer("verl", "", lambda n: f"global_step_{n * 10}", verl),
    Writer("verl", "by EasyR1", lambda n: f"global_step_{n * 10}", easy_r1),
    Writer("verl", "by SFT", lambda n: f"global_step_{n * 10}", verl_sft),
    Writer("verl", "with Megatron", lambda n: f"global_step_{n * 10}", verl_megatron),
    Writer("verl", "by SFT with Megatron", lambda n: f"global_step_{n * 10}", verl_megatron_sft),
    Writer("ultralytics", "", lambda n: f"epoch{n}.pt", torch_file),
    Writer("detectron2", "", lambda n: f"model_{n * 5000 - 1:07d}.pth", torch_file),
    Writer("timm", "", lambda n: f"checkpoint-{n}.pth.tar", torch_file),
    Writer("fairseq", "by epoch", lambda n: f"checkpoint{n}.pt", torch_file),
    Writer("fairseq", "by update", lambda n: f"checkpoint_{n}_{n * 500}.pt", torch_file),
    Writer("icefall", "by epoch", lambda n: f"epoch-{n}.pt", torch_file),
    Writer("icefall", "by batch", lambda n: f"checkpoint-{n * 4000}.pt", torch_file),
    Writer("yolov7", "", lambda n: f"epoch_{n * 25 - 1:03d}.pt", torch_file),
    Writer("yolox", "", lambda n: f"epoch_{n}_ckpt.pth", torch_file),
    Writer("keras", "", lambda n: f"{n:02d}-{1 / n:.2f}.keras", keras_zip),
    Writer("keras", "weights", lambda n: f"weights.{n:02d}-{1 / n:.2f}.weights.h5", keras_hdf5),
    Writer("keras", "without a score", lambda n: f"model.{n:02d}.h5", keras_hdf5),
    Writer("nemo", "", lambda n: f"gpt--val_loss=2.{n}0-step={n * 100}-consumed_samples={n * 800}.0.ckpt", torch_file),
    Writer("nemo", "2", lambda n: f"model_name=0--val_loss=2.{n}0-step={n * 100}-consumed_samples={n * 800}.0", nemo),
    Writer("composer", "sharded", lambda n: f"ep0-ba{n * 10}", titan),
    Writer("speechbrain", "", lambda n: f"CKPT+2024-05-0{n}+12-30-45+00", speechbrain),
    Writer("olmo", "", lambda n: f"step{n * 1000}", olmo_core),
    Writer("olmo", "unsharded", lambda n: f"step{n * 1000}-unsharded", olmo_unsharded),
    Writer("kohya", "by epoch", lambda n: f"my lora-{n:06d}.safetensors", tensors_file),
    Writer("kohya", "by step", lambda n: f"lora.v2-step{n * 500:08d}.safetensors", tensors_file),
    Writer("kohya", "state", lambda n: f"lora-{n:06d}-state", accelerate),
]


@dataclass(frozen=True)
class Together:
    """How one framework writes a checkpoint of several files: their names at the n-th save, in the order of writing."""

    layout: str
    names: Callable[[int], tuple[str, ...]]

    def __str__(self) -> str:
        return self.layout


TOGETHER = [
    Together("vits", lambda n: (f"G_{n * 800}.pth", f"D_{n * 800}.pth")),
    Together("composer", lambda n: (f"ep0-ba{n * 10}-rank0.pt", f"ep0-ba{n * 10}-rank1.pt")),
    Together("allennlp", lambda n: (f"model_state_epoch_{n}.th", f"training_state_epoch_{n}.th")),
    Together("returnn", lambda n: (f"epoch.{n:03d}.pt", f"epoch.{n:03d}.opt.pt")),
]


def the(name: str) -> Writer:
    """One of them, by its row of the table and which of its ways."""
    return next(writer for writer in WRITERS if str(writer) == name)


def number_in(name: str) -> int:
    """The number at the end of a name, as a tracker holds it."""
    return int("".join(c if c.isdigit() else " " for c in name).split()[-1])


@dataclass
class Run:
    """A work dir that a framework fills: saves a minute apart, the last of them an hour ago unless it is `young`."""

    work_dir: Path
    writer: Writer
    at_ns: int = field(default_factory=lambda: time.time_ns() - 10 * 3600 * 10**9)

    def save(self, step: int, write: Write | None = None, *, young: bool = False) -> str:
        name = self.writer.name(step)
        (write or self.writer.whole)(self.work_dir / name, step)
        self.at_ns += 60 * 10**9
        at_ns = time.time_ns() if young else self.at_ns
        for path in [*(self.work_dir / name).rglob("*"), self.work_dir / name]:
            os.utime(path, ns=(at_ns, at_ns))
        return name

    def saves(self, steps: Iterable[int]) -> list[str]:
        return [self.save(step) for step in steps]
