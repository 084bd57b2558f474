"""Make a method of this package known to PEFT.

PEFT's `register_peft_method` accepts only names that are members of its `PeftType` enum, and an enum that has members
cannot be subclassed. A plain string as key works almost everywhere, but transformers' `model.load_adapter` reads
`peft_type.value`; hence the member is added to the enum itself.
"""

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method


def register(name: str, config_cls: type, model_cls: type) -> PeftType:
    """Add `name` to `PeftType` and to PEFT's tables; a second call with the same name changes nothing.

    Args:
        name: lower-case name of the method; the enum member is its upper case.
        config_cls: the method's `PeftConfig`.
        model_cls: the method's `BaseTuner`; its `prefix` must be `name + "_"`.

    Returns:
        The enum member.
    """
    key = name.upper()
    if key not in PeftType.__members__:
        member = str.__new__(PeftType, key)
        member._name_, member._value_, member._sort_order_ = key, key, len(PeftType)
        type.__setattr__(PeftType, key, member)
        PeftType._member_names_.append(key)
        PeftType._member_map_[key] = member
        PeftType._value2member_map_[key] = member
    if PeftType[key] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
    return PeftType[key]
