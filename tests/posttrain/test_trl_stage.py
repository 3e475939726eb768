"""What the two TRL stages share."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from posttrain.config import resolve_model
from posttrain.trl_stage import on_one_device

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
