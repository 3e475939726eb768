"""`posttrain sft`: light supervised fine-tuning on the demonstrations that pruning kept, with TRL's `SFTTrainer`.

Light on purpose: what is trained too heavily here, RL can no longer explore away from. The loss is on what the
assistant says (`Renderer.labelled`), whether or not the chat template marks it.
"""

from __future__ import annotations

import glob
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from curricula.datasets import Demonstration
from posttrain import data
from posttrain.config import Config, resolve_model
from posttrain.progress import bar, say
from posttrain.rundir import RunDir, write_json
from rollouts.errors import CheckpointError, DataError
from rollouts.recorder import read_shards
from rollouts.renderer import IGNORED, Renderer
from rollouts.types import Message

EVALUATED = 256
"""Demonstrations on which entropy and loss are measured before and after."""

ROWS_AT_A_TIME = 1000
_COLUMNS = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})

Conversation = tuple[str, Sequence[Message]]
"""Where it is from, `replies.jsonl:17`, and its turns."""


def training_rows(config: Config, rundir: RunDir, rows: Sequence[Demonstration]) -> list[Conversation]:
    """The conversations to train on: what `prune` kept of all demonstrations, or all where pruning is off.

    Raises:
        CheckpointError: pruning is on and has not been run in this run directory.
        DataError: there is nothing to train on.
    """
    kept = rundir.stage("sft") / "kept.parquet"
    if not config.prune.enabled:
        found: list[Conversation] = [(row.place, row.messages) for row in rows]
    elif kept.is_file():
        places = {row.row_id: row.place for row in rows}
        found = [(places.get(row["row_id"], str(kept)), json.loads(row["messages"])) for row in read_shards([kept])]
    else:
        raise CheckpointError(
            f"{kept}: missing; run `posttrain prune` into this run directory first, or set prune.enabled=false"
        )
    if not found:
        raise DataError(f"{kept}: no demonstration to train on; raise prune.keep_ratio")
    return found


def evaluation_rows(rows: Sequence[Demonstration]) -> list[Conversation]:
    """Demonstrations, kept or not, the same ones whatever was kept: what arms of an experiment can be compared on."""
    chosen = random.Random(0).sample(rows, min(EVALUATED, len(rows)))
    return [(row.place, row.messages) for row in chosen]


@dataclass(frozen=True)
class Tokenized:
    """What a file of tokens holds: conversations, tokens, and those that the loss is on."""

    path: Path
    rows: int = 0
    tokens: int = 0
    assistant_tokens: int = 0


def tokenize(rows: Sequence[Conversation], renderer: Renderer, max_length: int, path: Path) -> Tokenized:
    """Writes the tokens of conversations to a Parquet file. Those of more than `max_length` are left out and not cut: a
    cut answer never shows how to end.

    Raises:
        DataError: the chat template refuses a conversation, whose place is named.
    """
    count = tokens = assistant = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with ParquetWriter(path, _COLUMNS) as writer, bar(f"sft: tokens of {path.stem}", len(rows), "row") as progress:
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            part = []
            for place, messages in rows[start : start + ROWS_AT_A_TIME]:
                try:
                    ids, labels = renderer.labelled(messages)
                except DataError as error:
                    raise DataError(f"{place}: {error}") from None
                if len(ids) <= max_length:
                    part.append({"input_ids": ids, "labels": labels})
                    tokens += len(ids)
                    assistant += sum(label != IGNORED for label in labels)
                progress.advance()
            count += len(part)
            writer.write_table(pa.Table.from_pylist(part, _COLUMNS))
    return Tokenized(path, count, tokens, assistant)


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
    demonstrations = data.demonstrations(config)
    rows, started = training_rows(config, rundir, demonstrations), time.monotonic()
    rundir.save_config()
    renderer, folder, longest = Renderer(parent), rundir.stage("sft") / "trainer", config.sft.max_length
    found = tokenize(rows, renderer, longest, folder / "training.parquet")
    if not found.rows:
        raise DataError(f"every demonstration is longer than sft.max_length={longest} tokens; raise it")
    if found.rows < len(rows):
        lost = f"{len(rows) - found.rows} of {len(rows)} demonstrations left out"
        say(f"sft: {lost}: longer than sft.max_length={longest}")
    evaluation = tokenize(evaluation_rows(demonstrations), renderer, longest, folder / "evaluation.parquet")

    import datasets
    import torch
    from trl import SFTConfig, SFTTrainer

    from posttrain.adapters import lora_config
    from posttrain.trl_stage import StageCallback, common_arguments, on_one_device, stage_model, train

    def read(of: Tokenized) -> datasets.Dataset:
        return datasets.Dataset.from_parquet(glob.escape(str(of.path)), cache_dir=str(folder / "cache"))

    torch.set_num_threads(config.sft.threads)
    datasets.disable_progress_bars()
    callback = StageCallback(rundir, "sft", parent, config.sft.save_total_limit, renderer.tokenizer)
    arguments = common_arguments(config.sft, rundir, "sft") | {"max_length": None}
    trainer = SFTTrainer(
        model=stage_model(config, parent),
        args=on_one_device(
            SFTConfig(
                logging_steps=config.sft.logging_steps,
                save_steps=config.sft.save_steps,
                per_device_eval_batch_size=config.sft.per_device_train_batch_size,
                **arguments,
            )
        ),
        train_dataset=read(found),
        eval_dataset=read(evaluation if evaluation.rows else found),
        processing_class=renderer.tokenizer,
        peft_config=lora_config(config.lora) if config.lora else None,
        callbacks=[callback],
    )
    say(f"sft: {found.rows} demonstrations, {config.sft.num_train_epochs:g} epochs, from {parent}")
    newest = train(trainer, callback, checkpoint)
    summary = {
        "demonstrations": found.rows,
        "tokens": round(found.tokens * config.sft.num_train_epochs),
        "assistant_tokens": round(found.assistant_tokens * config.sft.num_train_epochs),
        "share_kept": len(rows) / len(demonstrations),
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


def _before_and_after(evaluations: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Entropy and loss in nats a token: where entropy falls to nothing, RL has nothing to choose from."""
    names = {"entropy": "eval_entropy", "loss": "eval_loss", "token_accuracy": "eval_mean_token_accuracy"}
    return {name: [each[key] for each in evaluations] for name, key in names.items()}
