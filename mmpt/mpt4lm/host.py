"""The host of MPT4LM: a text-only LLM with a vision tower beside it, and nothing between the two.

Shapes: B rows, T text tokens, N patches, Dv width of the tower.
"""

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Cache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ModelOutput

from mmpt.m2pt.slots import added_columns

_OURS = ("pixel_values", "has_image", "question_mask")  # inputs that the LLM itself does not know


class VisionBesideLMConfig(PreTrainedConfig):
    """Configurations of the tower and the LLM, and which of the tower's features are the picture's.

    Args:
        vision_config, text_config: of the two models.
        vision_feature_layer: which hidden state of the tower; -1 is the last.
        vision_feature_select_strategy: "default" drops the first position (CLIP's CLS), "full" keeps all (SigLIP).
    """

    model_type = "vision_beside_lm"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_feature_layer: int = -2
    vision_feature_select_strategy: str = "default"

    def __post_init__(self, **kwargs):
        for name in self.sub_configs:
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, AutoConfig.for_model(**value))
        if self.text_config is not None:
            self.is_encoder_decoder = self.text_config.is_encoder_decoder
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)


class VisionBesideLM(PreTrainedModel, GenerationMixin):
    """A text-only LLM, decoder-only or encoder-decoder, with a vision tower beside it.

    It is the LLM: pictures may be passed, and nobody looks at them. A method tuned on it, held as its child `mpt4lm`,
    puts what it makes of them before the text. Make one with `VisionBesideLM.of(tower, llm)`.
    """

    config_class = VisionBesideLMConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True

    def __init__(
        self, config: VisionBesideLMConfig, tower: PreTrainedModel | None = None, llm: PreTrainedModel | None = None
    ):
        super().__init__(config)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        self.vision_tower = AutoModel.from_config(config.vision_config) if tower is None else tower
        self.language_model = kind.from_config(config.text_config) if llm is None else llm
        # The models' own from here on: a setting such as the kind of attention is then one for both.
        config.vision_config, config.text_config = self.vision_tower.config, self.language_model.config
        self.generation_config = self.language_model.generation_config
        self.post_init()

    @classmethod
    def of(cls, tower: PreTrainedModel, llm: PreTrainedModel, **features) -> "VisionBesideLM":
        """The two models themselves, not copies; `features` are the other fields of `VisionBesideLMConfig`."""
        configs = {"vision_config": tower.config.to_dict(), "text_config": llm.config.to_dict()}
        config = VisionBesideLMConfig(**configs, **features)
        return cls(config, tower, llm).train(llm.training)

    def train(self, mode: bool = True) -> "VisionBesideLM":
        """Training mode for the LLM; the tower is frozen and stays as it is in use."""
        super().train(mode)
        self.vision_tower.eval()
        return self

    @property
    def accepts_loss_kwargs(self) -> bool:
        """For transformers' Trainer: whether the loss heeds num_items_in_batch; that of encoder-decoders does not."""
        return not self.config.is_encoder_decoder

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.language_model.get_encoder() if modality is None else super().get_encoder(modality)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """What the decoder of an encoder-decoder reads, from what it is to say."""
        return self.language_model.prepare_decoder_input_ids_from_labels(labels)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) → patch features V (B, N, Dv)."""
        output = self.vision_tower(pixel_values.to(self.vision_tower.dtype), output_hidden_states=True)
        features = output.hidden_states[self.config.vision_feature_layer]
        return features[:, 1:] if self.config.vision_feature_select_strategy == "default" else features

    def llm_inputs(self, inputs: dict) -> dict:
        """From the caller's inputs to the LLM's."""
        if (method := getattr(self, "mpt4lm", None)) is not None:
            inputs = method.read(inputs)
        return {name: value for name, value in inputs.items() if value is not None and name not in _OURS}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        has_image: Tensor | None = None,
        question_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: ModelOutput | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor | None = None,
        **kwargs,
    ) -> ModelOutput:
        """As the LLM's own, with the picture's inputs beside it.

        Args:
            pixel_values: (B, 3, H, W) one picture a row.
            has_image: (B,) bool, False for a row that has no picture, whose pixels are not looked at; None: all have.
            question_mask: (B, up to T) which tokens are the question; what it leaves out at the end is not. None:
                those before a row's first label (decoder-only), or all.
        """
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "has_image": has_image,
            "question_mask": question_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "encoder_outputs": encoder_outputs,
            "labels": labels,
            "logits_to_keep": None if self.config.is_encoder_decoder else logits_to_keep,
        }
        return self.language_model(**self.llm_inputs(named | kwargs))

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs) -> Tensor | ModelOutput:
        """As in transformers. What is passed is the question; what is said in answer does not change the prompts."""
        if inputs is not None:
            kwargs["input_ids"] = inputs
        text = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        if text is None or kwargs.get("encoder_outputs") is not None:
            return super().generate(**kwargs)
        if not self.config.is_encoder_decoder:
            kwargs.setdefault("question_mask", torch.ones(text.shape[:2], dtype=torch.long, device=text.device))
            return super().generate(**kwargs)
        if kwargs.get("attention_mask") is None and text.ndim == 2:
            kwargs["attention_mask"] = (text != self.generation_config.pad_token_id).long()
        return super().generate(**self.llm_inputs(kwargs))

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs,
    ) -> dict:
        """Going on from a cache, transformers takes its columns for tokens; prompts are columns that are none."""
        if next_sequence_length is not None and kwargs.get("is_first_iteration") and past_key_values is not None:
            next_sequence_length += added_columns(past_key_values)
        return super().prepare_inputs_for_generation(
            input_ids, next_sequence_length, past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
