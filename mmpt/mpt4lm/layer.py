"""The adapter module: instruction, cross-attention and bottleneck adapters, for all adapters of one host.

Shapes: B rows, K instruction vectors, m visual prompts, S columns of both, T caller's tokens, N patches, D width.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from mmpt.m2pt.slots import SLOTS
from mmpt.mpt4lm.bottleneck import Bottleneck, sublayers
from mmpt.mpt4lm.config import PLACEMENTS, MPT4LMConfig
from mmpt.mpt4lm.cross_attention import CrossAttention
from mmpt.mpt4lm.host import VisionBesideLM
from mmpt.mpt4lm.prefix import Prefix, question_tokens
from mmpt.tuner import RootLayer, check_words


class MPT4LMLayer(RootLayer):
    """All adapters of one host.

    Parameters are named mpt4lm_instruction.<adapter> (K, D), mpt4lm_cross_attention.<adapter>.* and
    mpt4lm_adapters.<adapter>.<sublayer>.*.
    """

    METHOD = "MPT4LM"
    NO_MERGE = (
        "MPT4LM cannot be merged into the base weights: prompts are extra tokens and adapters are not linear. "
        "Keep the adapter beside the model, or use `unload()` to get the plain base model back."
    )
    adapter_layer_names = ("mpt4lm_instruction", "mpt4lm_cross_attention", "mpt4lm_adapters")
    settings: dict[str, MPT4LMConfig]

    def __init__(self, host: VisionBesideLM):
        super().__init__()
        self._host = (host,)  # in a tuple, so that it is not a child
        self.mpt4lm_instruction = nn.ParameterDict()
        self.mpt4lm_cross_attention = nn.ModuleDict()
        self.mpt4lm_adapters = nn.ModuleDict()
        self._handles = []

    # ---- adapters ----------------------------------------------------------------------------------------------

    @property
    def host(self) -> VisionBesideLM:
        return self._host[0]

    def update_layer(self, adapter_name: str, config: MPT4LMConfig) -> None:
        """Add an adapter. On an error nothing has changed.

        Raises:
            ValueError: the configuration does not fit the host.
        """
        table = self.host.get_input_embeddings()
        if config.num_visual_prompts and config.cross_attention_width >= table.embedding_dim:
            raise ValueError(
                f"cross_attention_width={config.cross_attention_width}: must be below the width of the LLM, "
                f"{table.embedding_dim}, since the cross-attention is of low rank."
            )
        check_words(config.init_token_ids, table)
        instruction, cross_attention, adapters = build(config, self.host)
        self._put(adapter_name, config, instruction, cross_attention, adapters or None)

    @torch.no_grad()
    def reset_parameters(self, adapter_name: str) -> None:
        """Instruction and visual prompts start as large as token embeddings, adapters as the identity.

        The instruction is drawn from N(0, root mean square of all embeddings), or is the embeddings of
        `init_token_ids`; as they leave their module, which in some LLMs (Gemma) scales them.
        """
        table, ids = self.host.get_input_embeddings(), self.settings[adapter_name].init_token_ids
        weight = table.weight
        every = table(torch.arange(len(weight), device=weight.device))
        size = 1.0 if weight.is_meta else every.float().square().mean().sqrt().item()
        if adapter_name in self.mpt4lm_instruction:
            instruction = self.mpt4lm_instruction[adapter_name]
            if ids is None:
                nn.init.normal_(instruction, std=size)
            elif not instruction.is_meta:
                instruction.copy_(every[ids])
        if adapter_name in self.mpt4lm_cross_attention:
            self.mpt4lm_cross_attention[adapter_name].reset_parameters(size)
        if adapter_name in self.mpt4lm_adapters:
            for adapter in self.mpt4lm_adapters[adapter_name].values():
                adapter.reset_parameters()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        places, table = sublayers(self.host.language_model), self.host.get_input_embeddings()
        for name, parameter in self.named_parameters():
            part, adapter, *rest = name.split(".")
            if adapter == adapter_name and not parameter.is_meta:
                near = places[rest[0]] if part == "mpt4lm_adapters" else table
                parameter.data = parameter.data.to(device or _device(near))

    # ---- how they act ------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Put the hooks on the LLM, once."""
        if self._handles:
            return
        llm, add = self.host.language_model, self._handles.append
        for name, sublayer in sublayers(llm).items():
            add(sublayer.register_forward_hook(partial(self._after_sublayer, name)))
        if not llm.config.is_encoder_decoder:
            add(llm.get_decoder().register_forward_hook(self._after_decoder, with_kwargs=True))
            for block in llm.get_decoder().layers:
                add(block.register_forward_pre_hook(_before_block, with_kwargs=True))

    def detach(self) -> None:
        """Leave the LLM as it was found."""
        while self._handles:
            self._handles.pop().remove()

    def _after_sublayer(self, name: str, sublayer: nn.Module, args: tuple, output: Any) -> Any:
        adapter = self.active
        if adapter not in self.mpt4lm_adapters or name not in self.mpt4lm_adapters[adapter]:
            return None
        bottleneck = self.mpt4lm_adapters[adapter][name]
        return (bottleneck(output[0]), *output[1:]) if isinstance(output, tuple) else bottleneck(output)

    def _after_decoder(self, decoder: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Strip the prompts before the output head, and let the cache remember them."""
        prefix: Prefix | None = kwargs.get(SLOTS)
        if prefix is None:
            return None
        if output.past_key_values is not None:
            setattr(output.past_key_values, SLOTS, prefix)
        output.last_hidden_state = output.last_hidden_state[:, prefix.added :]
        return output

    def read(self, inputs: dict) -> dict:
        """From the caller's inputs to the LLM's: [instruction ; visual prompts ; text] in the place of the text.

        Raises:
            ValueError: what cannot be right: a cache of another adapter, a static cache, pictures after a cache was
                begun, pictures that do not match the rows, a row without a question, more than a sliding window.
        """
        adapter, encoder = self.active, self.host.config.is_encoder_decoder
        cache = None if encoder else inputs.get("past_key_values")
        seen = 0 if cache is None else cache.get_seq_length()
        known: Prefix | None = getattr(cache, SLOTS, None)
        self.check_inputs(cache, known, inputs.get("attention_mask"))
        if adapter is None or inputs.get("encoder_outputs") is not None:
            return inputs
        if seen == 0:
            return self._begin(adapter, inputs)
        if inputs.get("pixel_values") is not None:
            raise ValueError(
                f"The cache already holds {seen} columns: MPT4LM makes visual prompts in the first call of a cache "
                "only; start from an empty cache with the whole conversation."
            )
        return self._within_window(known.continued(inputs, seen)) if known.added else inputs

    def _begin(self, adapter: str, inputs: dict) -> dict:
        encoder, ids, text = self.host.config.is_encoder_decoder, inputs.get("input_ids"), inputs.get("inputs_embeds")
        text = self.host.get_input_embeddings()(ids) if text is None else text  # X (B, T, D)
        mask = inputs.get("attention_mask")
        mask = text.new_ones(text.shape[:2], dtype=torch.long) if mask is None else mask.long()
        parts, visible = [text[:, :0]], [mask[:, :0]]
        if adapter in self.mpt4lm_instruction:
            parts.append(self.mpt4lm_instruction[adapter].to(text).expand(len(text), -1, -1))  # (B, K, D)
            visible.append(mask.new_ones(parts[-1].shape[:2]))
        pixels = inputs.get("pixel_values")
        if pixels is not None and adapter in self.mpt4lm_cross_attention:
            if len(pixels) != len(text):
                raise ValueError(
                    f"pixel_values holds {len(pixels)} pictures for {len(text)} rows: give one a row, and has_image "
                    "with False for the rows that have none."
                )
            has = inputs.get("has_image")
            has = mask.new_ones(len(text)) if has is None else has.to(mask)
            read = has.bool() & self.settings[adapter].condition_on_question
            question = question_tokens(inputs, mask, read, labelled=not encoder)
            pixels = pixels.masked_fill((has == 0).to(pixels.device)[:, None, None, None], 0)
            patches = self.host.get_image_features(pixels)  # V (B, N, Dv)
            parts.append(self.mpt4lm_cross_attention[adapter](text, question, patches))  # (B, m, D)
            visible.append(has[:, None].expand(parts[-1].shape[:2]))
        prefix = Prefix(adapter, torch.cat(visible, 1))
        if prefix.added == 0:
            return inputs if encoder else inputs | {SLOTS: prefix}
        embeds, inputs = torch.cat([*parts, text], 1), inputs | {"input_ids": None}
        if encoder:
            return inputs | prefix.before_encoder(embeds, mask)
        return self._within_window(inputs | prefix.before_decoder(embeds, mask, inputs.get("position_ids")))

    def _within_window(self, inputs: dict) -> dict:
        """Sliding windows count columns, so padding between prompts and text would push the prompts out of them."""
        columns = inputs["attention_mask"].shape[1]
        window = getattr(self.host.language_model.config, "sliding_window", None)
        if window is not None and columns > window:
            raise ValueError(
                f"Prompts and text take {columns} columns, and the LLM has sliding windows of {window}, out of which "
                "the prompts would slip: give shorter texts, or use an LLM without sliding windows."
            )
        return inputs


def build(
    config: MPT4LMConfig, host: VisionBesideLM, **factory: Any
) -> tuple[nn.Parameter | None, CrossAttention | None, nn.ModuleDict]:
    """The three parts of an adapter, on the devices of the host's parts unless `factory` says otherwise."""
    table = host.get_input_embeddings().weight
    width, factory = table.shape[1], {"device": table.device, "dtype": table.dtype} | factory
    instruction = cross_attention = None
    if config.num_instruction_tokens:
        instruction = nn.Parameter(torch.empty(config.num_instruction_tokens, width, **factory))
    if config.num_visual_prompts:
        cross_attention = CrossAttention(
            config.num_visual_prompts,
            config.cross_attention_width,
            config.cross_attention_heads,
            width,
            host.config.vision_config.hidden_size,
            config.condition_on_question,
            **factory,
        )
    adapters = {
        name: Bottleneck(width, config.adapter_rank, **{"device": _device(sublayer)} | factory)
        for name, sublayer in sublayers(host.language_model).items()
        if config.adapter_rank and name.endswith(PLACEMENTS[config.adapter_placement])
    }
    return instruction, cross_attention, nn.ModuleDict(adapters)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _before_block(block: nn.Module, args: tuple, kwargs: dict) -> tuple:
    kwargs.pop(SLOTS, None)
    return args, kwargs
