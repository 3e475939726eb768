"""`posttrain tiny build`: the whole tiny world from one seed."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from judges.scorer import load_scorer
from posttrain.progress import say
from posttrain.tiny import chat, data
from posttrain.tiny.pretrain import Conversation, batches, new_model, train, train_in_parallel
from posttrain.tiny.tasks import CAPABILITIES, LEVELS
from posttrain.tiny.tokenizer import train_tokenizer
from posttrain.tiny.writing import JUDGED_HABITS, TRAIN_INSTRUCTIONS, write_solution
from rollouts.errors import ConfigError
from rollouts.generator import EngineSettings, Generator, Request
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Sampling

RANKS = 2
BASE_TOKENS, BASE_LEARNING_RATE, BASE_BATCH = 11_000_000, 2.5e-3, 2048
JUDGE_PROBLEMS, JUDGE_SAMPLES, JUDGE_EPOCHS = 3000, 8, 8
JUDGE_LEARNING_RATE, JUDGE_BATCH = 1.5e-3, 2048
EASY_FROM, HARD_TO = 0.6, 0.2
"""A problem that the base model solves at least this often is easy, at most that often hard."""
CHAT_TOKENS = 5_000_000
CHAT_TEMPLATE = "Well answered, yes or no?\n{prompt}\n{response}"
JUDGE_TEMPLATE = "Easy, medium or hard?\n{prompt}\n{response}"


def build_world(out: Path, seed: int) -> None:
    """Makes data, tokenizer, base and judge in a new directory, with a log of each step.

    Raises:
        ConfigError: the directory exists.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists; name a new directory")
    out.mkdir(parents=True)
    log = out / "build.jsonl"
    started = time.monotonic()
    heldout = write_data(out, seed)
    _log(log, step="data", seconds=round(time.monotonic() - started))
    say("pre-training the base model")
    build_base(out / "base", log, seed, heldout)
    _log(log, step="base", seconds=round(time.monotonic() - started))
    say("labelling problems by the base model's own pass rate, and training the judge on them")
    build_judge(out / "judge", out / "base", log, seed, heldout)
    _log(log, step="judge", seconds=round(time.monotonic() - started))
    say("training the judge of the chat")
    build_chat_judge(out / "chat-judge", out / "base", log, seed)
    _log(log, step="chat-judge", seconds=round(time.monotonic() - started))
    say(f"{out}: done after {(time.monotonic() - started) / 60:.0f} minutes")


def _log(path: Path, **line: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def write_data(out: Path, seed: int) -> set[str]:
    """Writes held-out prompts, RL prompts and demonstrations; returns the hashes of the held-out problems."""
    heldout_rows = data.heldout_rows(seed)
    heldout = {data.row_hash(row) for row in heldout_rows}
    files = {
        "heldout": heldout_rows,
        "rl": data.rl_rows(seed, heldout),
        "sft": data.demonstration_rows(seed, heldout),
    }
    files = {name: [row for row in rows if data.asked(row)] for name, rows in files.items()}
    for name, rows in {**files, "instructions": data.instruction_rows()}.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return heldout


def build_base(out: Path, log: Path, seed: int, heldout: set[str]) -> None:
    """Trains the tokenizer and the base model into a model directory."""
    sample = itertools.islice(data.corpus(seed, heldout, RANKS), 20_000)
    train_tokenizer(turn["content"] for conversation in sample for turn in conversation).save_pretrained(out)
    train_in_parallel(RANKS, functools.partial(_train_base, str(out), str(log), seed, heldout))


def _train_base(out: str, log: str, seed: int, heldout: set[str], rank: int) -> None:
    """One rank of the pre-training; rank 0 writes the model, as bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = new_model(tokenizer, seed)
    torch.manual_seed(seed + rank)
    stream = batches(data.corpus(seed, heldout, rank), tokenizer, BASE_BATCH, assistant_only=True)
    train(model, stream, BASE_TOKENS, BASE_LEARNING_RATE, _logger(log, "base") if rank == 0 else _silent)
    if rank == 0:
        model.to(torch.bfloat16).save_pretrained(out)


def _logger(log: str, model: str) -> Any:
    return lambda line: _log(Path(log), model=model, **line)


def _silent(line: dict[str, Any]) -> None:
    """Only rank 0 writes the log."""


def build_judge(out: Path, base: Path, log: Path, seed: int, heldout: set[str]) -> None:
    """Trains the judge: the base model, taught to tell what the base model itself can do.

    Its labels are not the generator's difficulty: each problem is sampled by the base model, and how often it solves
    it is the label. The judge sees a problem with a written solution, never the pass rate.
    """
    rng = random.Random(f"{seed}/judge")
    problems = [
        data.unseen(rng, rng.choice(CAPABILITIES), rng.choices(LEVELS, data.DEMONSTRATION_LEVELS)[0], heldout)
        for _ in range(JUDGE_PROBLEMS)
    ]
    rows = [(problem, rng.choice(TRAIN_INSTRUCTIONS)) for problem in problems]
    rates = _pass_rates(str(base), [data.as_prompt(problem, instruction) for problem, instruction in rows])
    conversations = []
    for (problem, instruction), rate in zip(rows, rates, strict=True):
        label = "easy" if rate >= EASY_FROM else "hard" if rate <= HARD_TO else "medium"
        response = write_solution(rng, problem, instruction, JUDGED_HABITS).text
        text = JUDGE_TEMPLATE.replace("{prompt}", problem.question).replace("{response}", response)
        conversations.append([{"role": "user", "content": text}, {"role": "assistant", "content": label}])
    _log(log, model="judge", labels=Counter(conversation[1]["content"] for conversation in conversations))

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    tokens = JUDGE_EPOCHS * sum(map(len, tokenizer.apply_chat_template(conversations)["input_ids"]))
    stream = batches(_epochs(conversations, rng), tokenizer, JUDGE_BATCH, assistant_only=True)
    train(model, stream, tokens, JUDGE_LEARNING_RATE, _logger(str(log), "judge"))
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "template.txt").write_text(JUDGE_TEMPLATE + "\n")


def build_chat_judge(out: Path, base: Path, log: Path, seed: int) -> None:
    """Trains the judge of the chat: the base model, taught to tell answers that are what was asked for.

    Its labels are what the writers of the answers did; see `chat.py`. It learns to read them as well (loss on all
    tokens): the base has never seen such words, and from the labels alone it learns their form and not their manner.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(out)
    (out / "template.txt").write_text(CHAT_TEMPLATE + "\n")
    train_in_parallel(RANKS, functools.partial(_train_chat_judge, str(out), str(base), str(log), seed))


def _train_chat_judge(out: str, base: str, log: str, seed: int, rank: int) -> None:
    """One rank; rank 0 writes the model, as bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed + rank)
    stream = batches(map(_as_judged, chat.judged(f"{seed}/{rank}")), tokenizer, BASE_BATCH)
    train(model, stream, CHAT_TOKENS, BASE_LEARNING_RATE, _logger(log, "chat-judge") if rank == 0 else _silent)
    if rank == 0:
        model.to(torch.bfloat16).save_pretrained(out)


def _as_judged(example: tuple[str, str, bool]) -> Conversation:
    question, answer, good = example
    text = CHAT_TEMPLATE.replace("{prompt}", question).replace("{response}", answer)
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "yes" if good else "no"}]


def _epochs(conversations: list[Conversation], rng: random.Random) -> Iterator[Conversation]:
    while True:
        yield from rng.sample(conversations, len(conversations))


def _pass_rates(model: str, prompts: list[Prompt]) -> list[float]:
    """How often a model solves each prompt, over `JUDGE_SAMPLES` samples."""
    renderer, scorer = Renderer(model), load_scorer("auto")
    engine = Generator(model, EngineSettings())
    requests = [
        Request(renderer.prompt_tokens(prompt.messages), Sampling(max_tokens=96), JUDGE_SAMPLES, seed=index)
        for index, prompt in enumerate(prompts)
    ]
    completions = asyncio.run(engine.generate_all(requests))
    return [
        sum(score.outcome for score in scorer(prompt, rollouts)) / JUDGE_SAMPLES
        for prompt, rollouts in zip(prompts, completions, strict=True)
    ]
