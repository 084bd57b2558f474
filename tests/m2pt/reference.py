"""M²PT written down literally, for one row without padding: the equations of arXiv 2409.15657 and nothing else.

    Z¹ = L₁(Pv¹, E);              Zⁱ = Lᵢ(Pvⁱ, Zⁱ⁻¹)
    T¹ = M₁(Pt¹, f_in(Zᴺ), X);    Tʲ = Mⱼ(Ptʲ, Tʲ⁻¹)

It takes a model without adapters, whose frozen layers are Lᵢ, Mⱼ, and shares no code with mmpt.m2pt. Prompts are
concatenated and cut off by hand at every layer; before the first listed layer the sequence does not contain them.
"""

import torch


def vision(model, pixel_values, prompts, update="replace", readout="output", projector=None):
    """One picture (1, 3, H, W) -> (P + N, D_text): projected prompts, then projected patches."""
    tower = model.model.vision_tower
    depth = len(tower.encoder.layers) + 1 + model.config.vision_feature_layer
    x = tower.embeddings(pixel_values)
    if hasattr(tower, "pre_layrnorm"):
        x = tower.pre_layrnorm(x)
    patches, slots = x, x[:, :0]
    for i, layer in enumerate(tower.encoder.layers[:depth]):
        if i in prompts:
            p = prompts[i][None]
            slots = p + slots if update == "carry" and slots.shape[1] else p
        out = layer(torch.cat([slots, patches], 1), None)
        slots, patches = out[:, : slots.shape[1]], out[:, slots.shape[1] :]
    if model.config.vision_feature_select_strategy == "default":
        patches = patches[:, 1:]
    if readout == "parameter" and prompts:
        slots = prompts[max(prompts)][None]
    if readout == "none":
        slots = slots[:, :0]
    return (projector or model.model.multi_modal_projector)(torch.cat([slots, patches], 1))[0]


def language(model, tokens, images, prompts, position="first", update="replace"):
    """One row of token ids (T,) and its images [(P + N, D)] -> (hidden states (T, D) before the head, logits (T, V)).

    Hidden states and logits are those at the given tokens, placeholders included, prompts cut out.
    """
    lm = model.model.language_model
    P = len(next(iter(prompts.values()))) if prompts else 0
    image_id = model.config.image_token_id
    embeds = lm.embed_tokens(tokens)
    N = int((tokens == image_id).sum()) // len(images) if images else 0

    rows, given, t, after_image = [], [], 0, 0  # rows of the sequence, which of them the caller gave
    queue = list(images)
    while t < len(tokens):
        if queue and tokens[t] == image_id:
            features = queue.pop(0)
            rows += list(features)
            given += [False] * (len(features) - N) + [True] * N
            t += N
            after_image = len(rows)
        else:
            rows.append(embeds[t])
            given.append(True)
            t += 1
    at = after_image if position == "before_instruction" else 0
    left, right, slots = torch.stack(rows)[:at], torch.stack(rows)[at:], embeds[:0]
    left_positions, right_positions = torch.arange(at), torch.arange(at, len(rows)) + P

    for j, layer in enumerate(lm.layers):
        if j in prompts:
            slots = prompts[j] + slots if update == "carry" and len(slots) else prompts[j]
        x = torch.cat([left, slots, right])[None]
        positions = torch.cat([left_positions, at + torch.arange(len(slots)), right_positions])[None]
        length = x.shape[1]
        mask = torch.full((length, length), torch.finfo(x.dtype).min).triu(1)[None, None]
        out = layer(x, attention_mask=mask, position_embeddings=lm.rotary_emb(x, positions))[0]
        left, slots, right = out[:at], out[at : at + len(slots)], out[at + len(slots) :]
    hidden = lm.norm(torch.cat([left, right])[torch.tensor(given)])
    return hidden, model.lm_head(hidden)


def forward(model, config, visual, textual, tokens, pixel_values, projector=None):
    """Logits (T, V) of one row with its pictures (n, 3, H, W)."""
    images = [
        vision(model, p[None], visual, config.visual_update, config.visual_readout, projector) for p in pixel_values
    ]
    return language(model, tokens, images, textual, config.textual_position, config.textual_update)[1]
