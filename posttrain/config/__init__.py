"""One YAML holds the settings of all stages; `load_config` reads a preset or a file and validates it.

Loads no engine: neither torch, ray nor vllm, so that the command line answers at once.
"""

from posttrain.config.load import config_hash, load_config, preset_names, resolve_data, resolve_model
from posttrain.config.schema import (
    GROUP_RELATIVE,
    Config,
    CriterionConfig,
    DataConfig,
    DataSource,
    DPOConfig,
    EvalConfig,
    GeneratorsConfig,
    InstructionConfig,
    InstructionsConfig,
    JudgeConfig,
    LoRAConfig,
    MetricsConfig,
    PreferenceConfig,
    PruneConfig,
    RLConfig,
    RubricConfig,
    SamplingConfig,
    SandboxConfig,
    SFTConfig,
    TrainerConfig,
)

__all__ = [
    "GROUP_RELATIVE",
    "Config",
    "CriterionConfig",
    "DPOConfig",
    "DataConfig",
    "DataSource",
    "EvalConfig",
    "GeneratorsConfig",
    "InstructionConfig",
    "InstructionsConfig",
    "JudgeConfig",
    "LoRAConfig",
    "MetricsConfig",
    "PreferenceConfig",
    "PruneConfig",
    "RLConfig",
    "RubricConfig",
    "SFTConfig",
    "SamplingConfig",
    "SandboxConfig",
    "TrainerConfig",
    "config_hash",
    "load_config",
    "preset_names",
    "resolve_data",
    "resolve_model",
]
