"""What the two TRL stages share: progress, checkpoints in our form, a stop at the next step, metrics."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.config import SCHEDULES, Config, DPOConfig, SFTConfig
from posttrain.interrupt import Stopped, on_interrupt
from posttrain.metrics import MetricsLog
from posttrain.policy import load_model
from posttrain.progress import bar, say
from posttrain.rundir import Manifest, RunDir


def common_arguments(config: SFTConfig | DPOConfig, rundir: RunDir, stage: str) -> dict[str, Any]:
    """Arguments of TRL's configurations that both stages set alike."""
    return {
        "output_dir": str(rundir.stage(stage) / "trainer"),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": SCHEDULES[config.lr_scheduler_type],
        "warmup_steps": config.warmup_ratio,  # below 1 it is a share of the steps
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "num_train_epochs": config.num_train_epochs,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_length": config.max_length,
        "seed": rundir.config.seed,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available() and rundir.config.dtype == "bfloat16",
        "gradient_checkpointing": torch.cuda.is_available(),
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_only_model": False,
        "logging_strategy": "steps",
        "dataloader_pin_memory": False,
    }


def stage_model(config: Config, path: str) -> Any:
    """The model of a stage: beneath an adapter in the engines' number format on a GPU, which halves its memory."""
    narrow = config.lora is not None and torch.cuda.is_available()
    return load_model(path, getattr(torch, config.dtype) if narrow else torch.float32)


def on_one_device(arguments: Any) -> Any:
    """TRL's configuration, for one device: with several visible, transformers would use `DataParallel`; TRL refuses."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class StageCallback(TrainerCallback):
    """Turns a TRL trainer's events into bars, metrics and checkpoints of the run directory."""

    def __init__(self, rundir: RunDir, stage: str, parent: str, keep: int, tokenizer: Any) -> None:
        """`parent` is the checkpoint that the stage started from, `keep` how many of its own are kept."""
        self.rundir, self.stage, self.parent, self.keep, self.tokenizer = rundir, stage, parent, keep, tokenizer
        self.log = MetricsLog(rundir.path, rundir.config.metrics, stage)
        self.advance: Callable[[], None] = lambda: None
        self.stopped = False
        self.evaluations: list[dict[str, float]] = []  # before and after, where there is something to evaluate on

    def stop(self) -> None:
        """Asks for a checkpoint and an end after the current step."""
        self.stopped = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Advances the bar; ends the training with a checkpoint if asked to, and checkpoints the last step."""
        self.advance()
        if self.stopped:
            control.should_training_stop = True
        if self.stopped or state.global_step >= state.max_steps:
            control.should_save = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes scalars and one line."""
        scalars = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, int | float)}
        self.log.write(state.global_step, scalars)
        if "loss" in scalars:
            shown = {"loss": ".4f", "rewards/accuracies": ".3f", "mean_token_accuracy": ".3f", "learning_rate": ".1e"}
            parts = [f"{key.split('/')[-1]} {scalars[key]:{form}}" for key, form in shown.items() if key in scalars]
            say(f"step {state.global_step:4d}  " + "  ".join(parts))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves what TRL saved into a checkpoint of the run directory."""
        saved = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        with self.rundir.new_checkpoint(self.stage, state.global_step, self.parent, self.keep) as directory:
            for path in saved.iterdir():
                shutil.move(path, directory / path.name)
            self.tokenizer.save_pretrained(directory)
        shutil.rmtree(saved)


def train(trainer: Any, callback: StageCallback, resume: Path | None) -> Path:
    """Runs a TRL trainer to its end, or to the next step boundary when interrupted; evaluates before and after.

    Raises:
        Stopped: by the user; a checkpoint was written.
    """
    trainer.remove_callback(PrinterCallback)  # StageCallback says the same in one line
    per_epoch = math.ceil(len(trainer.train_dataset) / trainer.args.per_device_train_batch_size)
    per_epoch = math.ceil(per_epoch / trainer.args.gradient_accumulation_steps)
    total = math.ceil(per_epoch * trainer.args.num_train_epochs)
    done = Manifest.read(resume).step if resume else 0
    if resume:
        callback.rundir.give_up_after(resume)
    callback.log.drop_after(done if resume else None)
    if trainer.eval_dataset is not None:
        callback.evaluations.append(trainer.evaluate())  # of a resumed stage, too: the model is the parent's still
    with on_interrupt(callback.stop), bar(callback.stage, total, "step", done) as progress:
        callback.advance = progress.advance
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finished = not callback.stopped or trainer.state.global_step >= trainer.state.max_steps
    if trainer.eval_dataset is not None and finished:
        callback.evaluations.append(trainer.evaluate())
    callback.log.close()
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    newest = callback.rundir.checkpoints(callback.stage)[-1]
    if not finished:
        raise Stopped(f"{callback.stage} stopped after step {trainer.state.global_step} of {trainer.state.max_steps}")
    return newest
