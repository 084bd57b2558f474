"""Validation of MPT4LMConfig, and its file."""

import copy
import json
import pickle
from types import SimpleNamespace

import pytest
from peft import PeftConfig

from mmpt.mpt4lm import MPT4LMConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_visual_prompts": -1}, "num_visual_prompts=-1: must be an integer of 0 or more; 0 leaves this part out"),
        ({"num_instruction_tokens": 2.0}, "num_instruction_tokens=2.0: must be an integer"),
        ({"adapter_rank": True}, "adapter_rank=True: must be an integer"),
        ({"cross_attention_width": 0}, r"cross_attention_width=0: must be an integer of 1 or more\.$"),
        ({"cross_attention_heads": 5}, "cross_attention_width=576 cannot be cut into cross_attention_heads=5 equal"),
        (
            {"num_visual_prompts": 0, "num_instruction_tokens": 0, "adapter_rank": 0},
            "num_visual_prompts=0, num_instruction_tokens=0, adapter_rank=0 leave nothing to tune",
        ),
        ({"condition_on_question": 1}, "condition_on_question=1: must be True or False"),
        ({"adapter_placement": "none"}, "adapter_placement='none': must be one of attention, mlp, both"),
        ({"init_token_ids": []}, r"init_token_ids=\[\]: .*from_text"),
        ({"init_token_ids": ["a"]}, r"init_token_ids=\['a'\]"),
        ({"init_token_ids": [3, 4]}, "num_instruction_tokens=20: .* has 2; set num_instruction_tokens=2"),
        ({"task_type": "VQA"}, "Invalid task type"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_validation(fields, message):
    with pytest.raises(ValueError, match=message):
        MPT4LMConfig(**fields)


def test_from_text():
    def tokenizer(text, add_special_tokens):
        return SimpleNamespace() if add_special_tokens else {"input_ids": [len(word) for word in text.split()]}

    config = MPT4LMConfig.from_text(tokenizer, "Answer in one word", adapter_rank=8)
    assert (config.num_instruction_tokens, config.init_token_ids) == (4, [6, 2, 3, 4])
    assert (config.init_text, config.adapter_rank) == ("Answer in one word", 8)


def test_config_is_found_by_its_type(tmp_path):
    config = MPT4LMConfig(num_visual_prompts=4, adapter_placement="mlp", condition_on_question=False)
    config.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MPT4LMConfig) and "target_modules" not in json.loads(file.read_text())
    for other in (loaded, copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other.to_dict() == config.to_dict()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        assert PeftConfig.from_pretrained(tmp_path).num_visual_prompts == 4
