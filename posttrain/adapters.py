"""LoRA adapters: what the checkpoints of a run with `lora` hold, and when an adapter becomes part of its model.

A checkpoint holds the adapter and names the model beneath it, the one that its stage started from. It is merged when it
is handed on: to the next stage, which starts from a whole model and puts a new adapter on it, to an evaluation, to the
export. Only within RL the engines are given the adapter alone, after each train step.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollouts.errors import CheckpointError

if TYPE_CHECKING:
    import peft

    from posttrain.config import LoRAConfig

ADAPTER = "adapter_config.json"
OF = "merged_of.json"
"""In a merged model: which adapter it is of."""


def is_adapter(model: str | Path) -> bool:
    """Whether a directory holds an adapter and not a whole model."""
    return (Path(model) / ADAPTER).is_file()


def lora_config(config: LoRAConfig) -> peft.LoraConfig:
    """The settings in peft's form."""
    import peft

    modules = config.target_modules if isinstance(config.target_modules, str) else list(config.target_modules)
    return peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=modules, task_type="CAUSAL_LM")


def with_adapter(model: Any, config: LoRAConfig, checkpoint: str | None) -> Any:
    """A transformers model with a new adapter, which changes nothing yet, or that of a checkpoint; to be trained."""
    import peft

    if checkpoint is None:
        return peft.get_peft_model(model, lora_config(config))
    return peft.PeftModel.from_pretrained(model, checkpoint, is_trainable=True)


def merged_path(checkpoint: Path) -> Path:
    """Where the model that an adapter's checkpoint makes is kept, once it was needed."""
    return checkpoint.with_name(f"{checkpoint.name}-merged")


def whole_model(checkpoint: str | Path) -> str:
    """A whole model's directory as it is; of an adapter, the model that it makes with the one beneath it.

    The merged model is written once, beside the checkpoint (`step-000040-merged`).

    Raises:
        CheckpointError: the model beneath the adapter is not there.
    """
    directory = Path(checkpoint)
    if not is_adapter(directory):
        return str(checkpoint)
    merged, of = merged_path(directory), _times(directory)
    if merged.is_dir() and (merged / OF).is_file() and (merged / OF).read_text() == of:
        return str(merged)
    base = json.loads((directory / ADAPTER).read_text())["base_model_name_or_path"]
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise CheckpointError(f"{directory}: the model beneath this adapter, {base}, is not there; put it back")
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(whole_model(base), dtype=torch.float32, use_safetensors=True)
    whole = peft.PeftModel.from_pretrained(model, str(directory)).merge_and_unload()
    temporary = merged.with_name(f".{merged.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    whole.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / OF).write_text(of)
    shutil.rmtree(merged, ignore_errors=True)  # of another adapter that was there
    temporary.rename(merged)
    return str(merged)


def _times(directory: Path) -> str:
    """Tells an adapter's weights from others in the same place."""
    files = sorted(directory.glob("*.safetensors"))
    return json.dumps([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])
