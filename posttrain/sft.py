"""`posttrain sft`: light supervised fine-tuning on the demonstrations that pruning kept, with TRL's `SFTTrainer`.

Light on purpose: what is trained too heavily here, RL can no longer explore away from. The loss is on the
assistant's tokens only, marked by `{% generation %}` in the chat template.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain import data
from posttrain.config import Config, resolve_model
from posttrain.progress import say
from posttrain.rundir import RunDir, write_json
from rollouts.errors import CheckpointError, DataError
from rollouts.recorder import read_shards

EVALUATED = 256
"""Demonstrations on which entropy and loss are measured before and after."""


def training_rows(config: Config, rundir: RunDir) -> list[list[dict[str, str]]]:
    """The conversations to train on: what `prune` kept, or every demonstration where pruning is off.

    Raises:
        CheckpointError: pruning is on and has not been run in this run directory.
        DataError: there is nothing to train on.
    """
    kept = rundir.stage("sft") / "kept.parquet"
    if not config.prune.enabled:
        rows = [list(row.messages) for row in data.demonstrations(config)]
    elif kept.is_file():
        rows = [json.loads(row["messages"]) for row in read_shards([kept])]
    else:
        raise CheckpointError(
            f"{kept}: missing; run `posttrain prune` into this run directory first, or set prune.enabled=false"
        )
    if not rows:
        raise DataError(f"{kept}: no demonstration to train on; raise prune.keep_ratio")
    return rows


def evaluation_rows(config: Config) -> list[list[dict[str, str]]]:
    """Demonstrations, kept or not, the same ones whatever was kept: what arms of an experiment can be compared on."""
    rows = data.demonstrations(config)
    chosen = random.Random(0).sample(rows, min(EVALUATED, len(rows)))
    return [list(row.messages) for row in chosen]


def train_sft(config: Config, rundir: RunDir, resume: str | None = None) -> Path:
    """Runs the stage; returns its last checkpoint.

    Args:
        config: of the run.
        rundir: with the kept rows of `prune`.
        resume: `auto`, or a checkpoint directory of this stage to continue from.

    Raises:
        UserError: wrong data or checkpoint.
        Stopped: by the user; a checkpoint was written.
    """
    parent, checkpoint = rundir.begin("sft", resolve_model(config.model), resume)
    rows = training_rows(config, rundir)
    rundir.save_config()

    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from trl.chat_template_utils import get_training_chat_template

    from posttrain.adapters import lora_config
    from posttrain.trl_stage import StageCallback, common_arguments, on_one_device, train

    torch.set_num_threads(config.sft.threads)
    tokenizer = AutoTokenizer.from_pretrained(parent)
    try:
        training_template = get_training_chat_template(tokenizer)
    except ValueError:
        raise DataError(
            f"{parent}: the chat template does not mark the assistant's words with {{% generation %}}, and TRL has no "
            "version that does; add the marks, or the loss would be on the user's words as well"
        ) from None
    datasets.disable_progress_bars()
    shipped_template = tokenizer.chat_template
    tokenizer.chat_template = training_template or shipped_template
    callback, started = StageCallback(rundir, "sft", parent, config.sft.save_total_limit, tokenizer), time.monotonic()
    arguments: dict[str, Any] = common_arguments(config.sft, rundir, "sft", len(rows))
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32, use_safetensors=True),
        args=on_one_device(
            SFTConfig(
                assistant_only_loss=True,
                logging_steps=config.sft.logging_steps,
                save_steps=config.sft.save_steps,
                per_device_eval_batch_size=config.sft.per_device_train_batch_size,
                **arguments,
            )
        ),
        train_dataset=datasets.Dataset.from_list([{"messages": row} for row in rows]),
        eval_dataset=datasets.Dataset.from_list([{"messages": row} for row in evaluation_rows(config)]),
        processing_class=tokenizer,
        peft_config=lora_config(config.lora) if config.lora else None,
        callbacks=[callback],
    )
    say(f"sft: {len(rows)} demonstrations, {config.sft.num_train_epochs:g} epochs, from {parent}")
    newest = train(trainer, callback, checkpoint)
    summary = {
        **_size(trainer.train_dataset, config.sft.num_train_epochs),
        "share_kept": len(rows) / len(data.demonstrations(config)),
        "steps": trainer.state.global_step,
        "seconds": round(time.monotonic() - started, 1),
        **_before_and_after(callback.evaluations),
    }
    write_json(rundir.stage("sft") / "summary.json", summary)
    say(
        f"sft: {summary['steps']} steps on {summary['tokens']:,} tokens ({summary['assistant_tokens']:,} of answers), "
        f"{summary['share_kept']:.0%} of the demonstrations; entropy {summary['entropy'][0]:.3f} before, "
        f"{summary['entropy'][1]:.3f} after"
    )
    return newest


def _size(dataset: Any, epochs: float) -> dict[str, int]:
    """What was trained on: demonstrations, tokens, and those that the loss is on."""
    return {
        "demonstrations": len(dataset),
        "tokens": round(sum(map(len, dataset["input_ids"])) * epochs),
        "assistant_tokens": round(sum(label != -100 for labels in dataset["labels"] for label in labels) * epochs),
    }


def _before_and_after(evaluations: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """In nats a token: where entropy falls to nothing, RL has nothing to choose from."""
    names = {"entropy": "eval_entropy", "loss": "eval_loss", "token_accuracy": "eval_mean_token_accuracy"}
    return {name: [each[key] for each in evaluations] for name, key in names.items()}
