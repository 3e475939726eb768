"""The run directory and the checkpoints in it.

A checkpoint is a Hugging Face model directory, or peft's of an adapter, with the stage's own state beside it. It is
written under a temporary name, its manifest last, and renamed: a directory with a manifest that fits is complete,
anything else is not.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from posttrain.adapters import merged_path, whole_model
from posttrain.config import Config, config_hash
from rollouts.errors import CheckpointError, ConfigError, first_line

MANIFEST = "manifest.json"
STAGES = ("sft", "rl", "dpo")
_locks: dict[Path, int] = {}
"""Run directories that this process has taken, with the open files that hold them."""


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_lines(path, [json.dumps(value, indent=2, ensure_ascii=False)])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@dataclass(frozen=True)
class Manifest:
    """What a complete checkpoint says of itself; written last.

    `files` maps each file's name to its sha256.
    """

    stage: str
    step: int
    policy_version: int
    parent: str
    config_hash: str
    files: dict[str, str]

    @classmethod
    def read(cls, checkpoint: Path) -> Self:
        """Reads and checks a checkpoint's manifest.

        Raises:
            CheckpointError: there is none, it cannot be read, or a file that it lists is missing or another size.
        """
        path = checkpoint / MANIFEST
        if not checkpoint.is_dir():
            raise CheckpointError(f"{checkpoint}: no such checkpoint directory")
        if not path.is_file():
            raise CheckpointError(
                f"{checkpoint}: incomplete checkpoint (no {MANIFEST}); choose another one or delete it"
            )
        try:
            manifest = cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: not a manifest: {error}") from None
        for name, digest in manifest.files.items():
            if not (checkpoint / name).is_file():
                raise CheckpointError(f"{checkpoint}: incomplete checkpoint ({name} is missing); choose another one")
            if _sha256(checkpoint / name) != digest:
                raise CheckpointError(f"{checkpoint}: damaged checkpoint ({name} has changed since it was written)")
        return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_new_file(path: Path) -> None:
    """Raises ConfigError unless a file of this name can be made: nothing is written over, no work is for nothing."""
    if path.exists():
        raise ConfigError(
            f"{path}: exists already, and is not written over; name another file with --out, or remove it"
        )
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: no such directory {path.parent}; make it first")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: {path.parent} cannot be written to; name another file with --out")


def _check_known(model: str, directory: bool) -> None:
    """Whether transformers has the architecture: code that comes with a model is not run."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = first_line(error).rstrip(".")
        where = "" if directory else ", or a hub name that this machine can load (HF_TOKEN for a gated one)"
        raise CheckpointError(f"{model}: {reason}; expected a model directory{where}") from None


def check_model(model: str) -> None:
    """Checks that a directory holds a whole model, or that the hub has one, before an engine is started on it.

    Raises:
        CheckpointError: a file is missing, cut off or has changed; the hub cannot be reached, has no such model, or
            does not give it to this account.
    """
    directory = Path(model)
    if not directory.is_dir():
        _check_known(model, directory=False)
        return
    if (directory / MANIFEST).is_file():
        Manifest.read(directory)
        return
    if re.fullmatch(r"\.?step-\d+(\.tmp)?", directory.name):
        raise CheckpointError(f"{directory}: incomplete checkpoint (no {MANIFEST}); choose another one")
    index = directory / "model.safetensors.index.json"
    try:
        listed = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: not an index of weights; choose another checkpoint") from None
    for name in sorted(listed):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: incomplete checkpoint ({name} is missing); choose another one")
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        others = any(directory.glob("*.bin"))
        why = "; *.bin are pickles, which are not loaded: convert them" if others else "; choose another one"
        raise CheckpointError(f"{directory}: incomplete checkpoint (no *.safetensors){why}")
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged weights ({error}); choose another checkpoint") from None
    if (directory / "config.json").is_file():  # an adapter has none
        _check_known(model, directory=True)


def identity(checkpoint: Path) -> str:
    """What tells a checkpoint from another one in its place: a hash of its files' hashes."""
    return _sha256(checkpoint / MANIFEST)


def complete_checkpoints(run: Path, stage: str) -> list[Path]:
    """The complete checkpoints of a stage of a run, oldest first."""
    found = [
        path
        for path in (run / stage / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d+", path.name) and (path / MANIFEST).is_file()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_checkpoint(run: Path, stage: str) -> Path | None:
    """The newest complete checkpoint of a stage of a run."""
    return next(reversed(complete_checkpoints(run, stage)), None)


class RunDir:
    """The directory of one run: `config.json`, one folder for each stage, metrics, ledger, summary."""

    def __init__(self, path: str | Path, config: Config) -> None:
        """Creates the directory, or takes an existing one up again."""
        self.path, self.config = Path(path).resolve(), config
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: the run directory is a file; choose another --run")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / "config.json").is_file():
            raise ConfigError(f"{self.path}: not empty and not a run directory; choose another --run")
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "config.json").is_file():
            self.save_config()

    def lock(self) -> None:
        """Takes the directory for this process, until it ends, however it ends.

        Raises:
            ConfigError: another command is at work in it.
        """
        if self.path in _locks:
            return
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(directory)
            problem = "another command is at work in this run directory"
            raise ConfigError(f"{self.path}: {problem}; wait for its end, or choose another --run") from None
        except OSError:  # a file system without locks
            pass
        _locks[self.path] = directory

    def save_config(self) -> None:
        """Records the settings; called when a stage begins, so that a mistaken command writes nothing over."""
        write_json(self.path / "config.json", self.config.resolved())

    def stage(self, name: str) -> Path:
        """The folder of a stage, made if need be."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder

    def checkpoints(self, stage: str) -> list[Path]:
        """The complete checkpoints of a stage, oldest first."""
        return complete_checkpoints(self.path, stage)

    def newest(self, stage: str) -> Path | None:
        """The newest complete checkpoint of a stage."""
        return newest_checkpoint(self.path, stage)

    def begin(self, stage: str, base: str, resume: str | None) -> tuple[str, Path | None]:
        """What a stage trains: the checkpoint that it starts (or once started) from, and its own to continue from.

        Args:
            stage: a stage's name.
            base: the model of a run that has no earlier stage.
            resume: `auto`, a checkpoint directory of this stage, or None to start anew.

        Raises:
            CheckpointError: a checkpoint is incomplete, damaged or another stage's.
            ConfigError: the stage has checkpoints already and is not to be continued.
        """
        checkpoint = self.resume_point(stage, resume)
        if checkpoint is not None:
            return Manifest.read(checkpoint).parent, checkpoint
        self.refuse_to_overwrite(stage)
        return self.start_of(stage, base), None

    def start_of(self, stage: str, base: str) -> str:
        """The checkpoint that a stage starts from: the newest of the nearest stage before it, or the base model.

        Raises:
            CheckpointError: it is damaged.
        """
        for previous in reversed(STAGES[: STAGES.index(stage)]):
            if (found := self.newest(previous)) is not None:
                base = str(found)
                break
        check_model(base)
        return whole_model(base)

    def resume_point(self, stage: str, resume: str | None) -> Path | None:
        """The checkpoint to continue a stage from: `auto` is the newest, anything else a directory.

        Raises:
            CheckpointError: the directory is not a complete checkpoint of this stage of this run.
        """
        if resume is None:
            return None
        found = self.newest(stage) if resume == "auto" else Path(resume)
        if found is None:
            return None
        manifest = Manifest.read(found)
        if manifest.stage != stage:
            raise CheckpointError(f"{found}: a checkpoint of stage '{manifest.stage}', not '{stage}'")
        if found.absolute().parent.resolve() != (self.path / stage / "checkpoints").resolve():
            problem = f"a checkpoint of another run than {self.path}"
            raise CheckpointError(f"{found}: {problem}; name that one by --run, or start a new run with model={found}")
        return found

    def give_up_after(self, checkpoint: Path) -> None:
        """Takes the checkpoints of its stage that are later than the one to go on from out of the way: they keep their
        files as `step-000100-given-up`, and count no more.
        """
        manifest = Manifest.read(checkpoint)
        for later in self.checkpoints(manifest.stage):
            if int(later.name.removeprefix("step-")) > manifest.step:
                aside = later.with_name(f"{later.name}-given-up")
                _remove(aside)  # of an earlier time
                later.rename(aside)

    def refuse_to_overwrite(self, stage: str) -> None:
        """A stage that has checkpoints is resumed or given another run directory, never written over."""
        if (found := self.newest(stage)) is not None:
            raise ConfigError(
                f"{self.path}: stage '{stage}' already has {found.name}; continue it with --resume auto, "
                "or choose another --run"
            )

    @contextmanager
    def new_checkpoint(self, stage: str, step: int, parent: str, keep: int) -> Iterator[Path]:
        """A directory to write a checkpoint into; complete when the context ends, gone if it ends by an error.

        Args:
            stage: a stage's name.
            step: the step that it is taken after, which is its policy version.
            parent: the checkpoint that the stage started from.
            keep: how many checkpoints of the stage to keep; the oldest beyond are dropped.
        """
        folder = self.stage(stage) / "checkpoints"
        folder.mkdir(exist_ok=True)
        final = folder / f"step-{step:06d}"
        temporary = folder / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            files = {str(path.relative_to(temporary)): path for path in sorted(temporary.rglob("*")) if path.is_file()}
            for path in files.values():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            digests = {name: _sha256(path) for name, path in files.items()}
            manifest = Manifest(stage, step, step, parent, config_hash(self.config), digests)
            write_json(temporary / MANIFEST, asdict(manifest))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _remove(final)
        temporary.rename(final)
        for old in self.checkpoints(stage)[:-keep]:
            _remove(old)


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint and what was merged from it."""
    shutil.rmtree(merged_path(checkpoint), ignore_errors=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
