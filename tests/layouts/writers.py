"""Checkpoints of every layout, as its framework leaves them: whole, half written, and whole but for damaged bytes.

What a framework writes where is told by the source that its row in ckptd.core.layouts names; nothing here knows what
ckptd should decide about it.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..conftest import dcp_metadata, safetensors, torch_zip

Write = Callable[[Path, int], None]


@dataclass(frozen=True)
class Writer:
    """How one framework names and writes checkpoints.

    layout: the row of the table; what: which of its ways, where it has several. name: of the checkpoint of the n-th
    save. whole, half: write it at a path. damaged: so, too, but for some bytes; None where no format has a checksum.
    """

    layout: str
    what: str
    name: Callable[[int], str]
    whole: Write
    half: Write
    damaged: Write | None

    def __str__(self) -> str:
        return f"{self.layout} {self.what}".rstrip()

    @property
    def by_itself(self) -> bool:
        """Whether ckptd is to recognise it without being asked."""
        return self.layout in BY_ITSELF and self.what != "with text in front"

    @property
    def pointer(self) -> Callable[[Path, str, int], None] | None:
        """What lets the framework's own pointer name a checkpoint."""
        return None if self.what in ("of diffusers", "with text in front") else POINTERS.get(self.layout)


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


def put(place: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def of_files(files: Callable[[int], dict[str, bytes]]) -> tuple[Write, Write, Write | None]:
    """Writers of a directory: whole, without its last file, and with zeros in the middle of its last torch zip."""

    def whole(place: Path, step: int) -> None:
        put(place, files(step))

    def half(place: Path, step: int) -> None:
        every = files(step)
        every.popitem()
        put(place, every)

    def damaged(place: Path, step: int) -> None:
        every = files(step)
        name = [name for name, content in every.items() if content.startswith(b"PK")][-1]
        put(place, {**every, name: zeroed(every[name])})

    has_checksum = any(content.startswith(b"PK") for content in files(1).values())
    return whole, half, damaged if has_checksum else None


def of_file(content: Callable[[], bytes] = torch_zip) -> tuple[Write, Write, Write]:
    """Writers of one file: whole, cut short, and with zeros in its middle, or a byte less where it has no checksum."""

    def damaged(place: Path, step: int) -> None:
        place.write_bytes(zeroed(content()) if content is torch_zip else content()[:-1])

    return lambda p, s: place_bytes(p, content()), lambda p, s: place_bytes(p, content()[:-30]), damaged


def place_bytes(place: Path, content: bytes) -> None:
    place.write_bytes(content)


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
        "random_states_0.pkl": torch_zip(),
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
    ranks = {f"bf16_zero_pp_rank_{r}_mp_rank_00_optim_states.pt": torch_zip() for r in (0, 2, 1)}
    return {"mp_rank_00_model_states.pt": torch_zip(), **ranks}


def lightning_deepspeed(step: int) -> dict[str, bytes]:
    inside = {f"checkpoint/{name}": content for name, content in deepspeed(step).items()}
    return {"latest": b"checkpoint", "zero_to_fp32.py": b"pass", **inside}


def mmengine_ranks(step: int) -> dict[str, bytes]:
    return {"rank0.pth": torch_zip(), "rank2.pth": torch_zip(), "rank1.pth": torch_zip()}


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
    metadata = {"item_handlers": {"default": "..."}, "init_timestamp_nsecs": 1, "commit_timestamp_nsecs": 2}
    return {
        "_CHECKPOINT_METADATA": json.dumps(metadata).encode(),
        "default/_METADATA": b'{"tree_metadata": {}, "use_ocdbt": true}',
        "commit_success.txt": b"", "default/commit_success.txt": b"",
        "default/d/819941f67e5933f9": b"d" * 50, "default/ocdbt.process_0/d/3dc6c776a652f9dc": b"d" * 50,
        "default/ocdbt.process_0/manifest.ocdbt": b"m" * 50,
        "default/manifest.ocdbt": b"m" * 50,
    }  # fmt: skip


def torchtune(step: int) -> dict[str, bytes]:
    return {
        "config.json": b"{}", "recipe_state/recipe_state.pt": torch_zip(),
        "model-00001-of-00002.safetensors": safetensors(), "model-00002-of-00002.safetensors": safetensors(),
    }  # fmt: skip


def verl(step: int) -> dict[str, bytes]:
    files = {
        f"{role}/{what}_world_size_2_rank_{rank}.pt": torch_zip()
        for role in ("actor", "critic") for what in ("model", "optim", "extra_state") for rank in (0, 1)
    }  # fmt: skip
    return {**files, "actor/huggingface/config.json": b"{}", "data.pt": torch_zip()}


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


WRITERS = [
    Writer("mmcv", "", lambda n: f"epoch_{n}.pth", *of_file()),
    Writer("mmengine", "", lambda n: f"iter_{n}.pth", *of_file()),
    Writer("mmengine", "with FSDP", lambda n: f"epoch_{n}.pth", *of_files(mmengine_ranks)),
    Writer("mmengine", "with DeepSpeed", lambda n: f"epoch_{n}.pth", *of_files(deepspeed)),
    Writer("mmengine", "with ColossalAI", lambda n: f"iter_{n}.pth", *of_files(mmengine_colossal)),
    Writer("lightning", "", lambda n: f"epoch={n}-step={n * 10}.ckpt", *of_file()),
    Writer("lightning", "with a metric", lambda n: f"epoch={n:02d}-val_loss={n / 10:.2f}.ckpt", *of_file()),
    Writer("lightning", "sharded", lambda n: f"epoch={n}-step={n * 10}.ckpt", *of_files(lightning_sharded)),
    Writer("lightning", "with DeepSpeed", lambda n: f"epoch={n}-step={n * 10}.ckpt", *of_files(lightning_deepspeed)),
    Writer("lightning", "with text in front", lambda n: f"sample-mnist-epoch={n:02d}-val_loss=0.5.ckpt", *of_file()),
    Writer("transformers", "", lambda n: f"checkpoint-{n * 500}", *of_files(trainer)),
    Writer("transformers", "of diffusers", lambda n: f"checkpoint-{n * 500}", *of_files(diffusers)),
    Writer("transformers", "of PaddleNLP", lambda n: f"checkpoint-{n * 500}", *of_files(paddle)),
    Writer("accelerate", "", lambda n: f"checkpoint_{n - 1}", *of_files(accelerate)),
    Writer("transformers", "with DeepSpeed", lambda n: f"checkpoint-{n * 500}", *of_files(trainer_deepspeed)),
    Writer("accelerate", "with DeepSpeed", lambda n: f"checkpoint_{n - 1}", *of_files(accelerate_deepspeed)),
    Writer("accelerate", "with FSDP", lambda n: f"checkpoint_{n - 1}", *of_files(accelerate_fsdp)),
    Writer("torchtitan", "", lambda n: f"step-{n * 100}", *of_files(titan)),
    Writer("deepspeed", "", lambda n: f"global_step{n * 10}", *of_files(deepspeed)),
    Writer("megatron", "", lambda n: f"iter_{n * 500:07d}", *of_files(megatron_distributed)),
    Writer("megatron", "without common.pt", lambda n: f"iter_{n * 500:07d}", *of_files(megatron_sharded_only)),
    Writer("megatron", "by rank", lambda n: f"iter_{n * 500:07d}", *of_files(megatron_legacy)),
    Writer("orbax", "", lambda n: f"{(n - 1) * 5}", *of_files(orbax)),
    Writer("orbax", "padded", lambda n: f"ckpt_{n + 7:02d}", *of_files(orbax)),
    Writer("torchtune", "by epoch", lambda n: f"epoch_{n - 1}", *of_files(torchtune)),
    Writer("torchtune", "by step", lambda n: f"step_{n * 10}", *of_files(torchtune)),
    Writer("verl", "", lambda n: f"global_step_{n * 10}", *of_files(verl)),
    Writer("ultralytics", "", lambda n: f"epoch{n}.pt", *of_file()),
    Writer("detectron2", "", lambda n: f"model_{n * 5000 - 1:07d}.pth", *of_file()),
    Writer("timm", "", lambda n: f"checkpoint-{n}.pth.tar", *of_file()),
    Writer("fairseq", "by epoch", lambda n: f"checkpoint{n}.pt", *of_file()),
    Writer("fairseq", "by update", lambda n: f"checkpoint_{n}_{n * 500}.pt", *of_file()),
    Writer("olmo", "", lambda n: f"step{n * 1000}", *of_files(olmo_core)),
    Writer("olmo", "unsharded", lambda n: f"step{n * 1000}-unsharded", *of_files(olmo_unsharded)),
    Writer("kohya", "by epoch", lambda n: f"my lora-{n:06d}.safetensors", *of_file(safetensors)),
    Writer("kohya", "by step", lambda n: f"lora.v2-step{n * 500:08d}.safetensors", *of_file(safetensors)),
    Writer("kohya", "state", lambda n: f"lora-{n:06d}-state", *of_files(accelerate)),
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
