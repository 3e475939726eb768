"""What the two TRL stages share."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from posttrain.config import resolve_model
from posttrain.dpo import _conversation, _without_end
from posttrain.trl_stage import on_one_device
from rollouts.env import turn_end

BASE = resolve_model("tiny:base")
PROMPT, ANSWER = [{"role": "user", "content": "1+1"}], [{"role": "assistant", "content": "2"}]


@pytest.mark.parametrize(("config", "trainer"), [(SFTConfig, SFTTrainer), (DPOConfig, DPOTrainer)])
def test_one_device_is_used_of_several(
    config: type, trainer: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def made(one: bool) -> SFTTrainer | DPOTrainer:
        arguments = config(output_dir=str(tmp_path), per_device_train_batch_size=3, report_to="none", bf16=False)
        assert arguments.n_gpu == 2
        row = {"prompt": PROMPT, "chosen": ANSWER, "rejected": ANSWER} if config is DPOConfig else {"messages": PROMPT}
        return trainer(
            model=AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32),
            args=on_one_device(arguments) if one else arguments,
            train_dataset=Dataset.from_list([row] * 4),
            processing_class=AutoTokenizer.from_pretrained(BASE),
        )

    with pytest.raises(ValueError, match="DataParallel"):
        made(one=False)
    found = made(one=True)
    assert (found.args.n_gpu, found.args.train_batch_size) == (1, 3)
    assert isinstance(found._wrap_model(found.model), type(found.model))


def test_what_was_cut_off_is_rejected_without_an_end(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    stored = {"messages": json.dumps(PROMPT), "chosen": "2", "reason": "run_on"}
    rows = [{**stored, "rejected": text, "cut_off": cut} for text in ("2 and 3", "") for cut in (True, False)]
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32),
        args=DPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=64),
        train_dataset=Dataset.from_list(rows).map(_conversation, remove_columns=list(rows[0])),
        processing_class=tokenizer,
    )
    tokenized = trainer.train_dataset.map(partial(_without_end, end=turn_end(tokenizer)))
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    words = tokenizer("2 and 3")["input_ids"]
    assert tokenized["rejected_ids"][:] == [words, [*words, end], [], [end]]
    assert tokenized["chosen_ids"][:] == [[*tokenizer("2")["input_ids"], end]] * 4
    trainer.train_dataset = tokenized
    inputs = next(iter(trainer.get_train_dataloader()))
    assert inputs["input_ids"].shape[0] == 2 * 4
    old = {key: value for key, value in rows[0].items() if key != "cut_off"}
    assert not _conversation(old)["cut_off"]
