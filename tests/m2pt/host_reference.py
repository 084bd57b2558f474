"""M²PT written down literally for every kind of host, for one row without padding. Shares no code with mmpt.m2pt.

As in reference.py prompts are concatenated and cut off by hand at every layer of the host's frozen layers. What is its
own here is the way from the tower's rows to the LLM's tokens, where a prompt counts as a cell of the grid filled with
itself: the host's own connector is given a whole grid of it.
"""

import torch
import transformers
from packaging.version import Version


def tower(model, pixels, prompts, config, shown=None):
    """One crop (1, 3, H, W) -> slots (P, D_vision) and patches (N, D_vision) as the projector gets them.

    `shown` (H, W) are the pixels that are no padding, which Idefics3 knows.
    """
    host = model.model
    encoder = getattr(host, "vision_tower", None) or host.vision_model
    seen = None
    if hasattr(host, "connector"):
        shown = torch.ones(pixels.shape[2:]) if shown is None else shown.float()
        seen = torch.nn.functional.max_pool2d(shown[None], encoder.patch_size)[0] > 0
    x = encoder.embeddings(pixels) if seen is None else encoder.embeddings(pixels, patch_attention_mask=seen[None])
    x = encoder.pre_layrnorm(x) if hasattr(encoder, "pre_layrnorm") else x
    layers = encoder.encoder.layer if hasattr(encoder.encoder, "layer") else encoder.encoder.layers
    feature_layer = getattr(host.config, "vision_feature_layer", -1)
    N, slots = x.shape[1], x[:, :0]
    for i, layer in enumerate(layers[: len(layers) + 1 + feature_layer]):
        if i in prompts:
            p = prompts[i][None]
            slots = p + slots if config.visual_update == "carry" and slots.shape[1] else p
        x = torch.cat([x[:, :N], slots], 1)
        mask = None
        if seen is not None:  # padding is seen by nobody, slots by all
            hidden = torch.cat([~seen.flatten(), torch.zeros(slots.shape[1], dtype=torch.bool)])
            mask = torch.zeros(1, 1, len(hidden), len(hidden)).masked_fill(hidden, torch.finfo(x.dtype).min)
        x = layer(x) if hasattr(layer, "layernorm_before") else layer(x, mask)
        slots = x[:, N:]
    if type(host).__name__ not in ("LlavaModel", "LlavaNextModel", "LlavaOnevisionModel"):
        x = getattr(encoder, "post_layernorm", getattr(encoder, "layernorm", None))(x)
    slots, patches = x[0, N:], x[0, :N]
    if getattr(host.config, "vision_feature_select_strategy", "full") == "default":
        patches = patches[1:]
    if config.visual_readout == "parameter" and prompts:
        slots = prompts[max(prompts)]
    return slots[: 0 if config.visual_readout == "none" else None], patches


def connect(model, rows, projector):
    """(B, N, D_vision) -> (B, n, D_text): shuffled or pooled as the host does it, and projected."""
    host = model.model
    if hasattr(host, "pixel_shuffle"):
        side = int(rows.shape[1] ** 0.5)
        rows = host.pixel_shuffle(rows.unflatten(1, (side, side)), host.config.downsample_ratio).flatten(1, 2)
    return projector(rows)


def features(model, config, crops, prompts, projector, sizes=None, counts=None, shown=None):
    """Crops (B, 3, H, W) of a row -> the runs of features that stand for its placeholders, [(slots, patches)]."""
    shown = [None] * len(crops) if shown is None else shown
    seen = [tower(model, crop[None], prompts, config, pixels) for crop, pixels in zip(crops, shown, strict=True)]
    if not seen:
        return []
    N = seen[0][1].shape[0]
    cells = [[connect(model, s.repeat(1, N, 1), projector)[0, 0] for s in slots] for slots, _ in seen]
    runs = list(connect(model, torch.stack([patches for _, patches in seen]), projector))
    if counts is not None:  # the crops of a picture are packed, and only the first one's prompts are read
        starts = [sum(counts[:i]) for i in range(len(counts))]
        pictures = [torch.stack(runs[a : a + n]) for a, n in zip(starts, counts)]
        options = {"image_newline": model.model.image_newline}
        if hasattr(model.config, "vision_aspect_ratio"):
            options |= {"vision_aspect_ratio": model.config.vision_aspect_ratio}
        else:
            options |= {"vision_feature_select_strategy": "default"}
        runs = model.model.pack_image_features(pictures, sizes, **options)[0]
        cells = [cells[a] for a in starts]
    return list(zip(cells, runs, strict=True))


def packed_features(model, config, pictures, grids, prompts, projector):
    """Qwen's: pictures as patches (N, values), cell after cell, with their grids (rows, columns) of cells.

    Prompts join each picture, or each window of it, unrotated; what becomes of one is the mean over the windows.
    """
    encoder, runs = model.model.visual, []
    for patches, (rows, columns) in zip(pictures, grids, strict=True):
        cell = torch.arange(rows * columns).repeat_interleave(4)
        r, c = cell // columns, cell % columns
        corner = torch.arange(4).repeat(rows * columns)
        places = torch.stack([2 * r + corner // 2, 2 * c + corner % 2], -1)
        x = encoder.patch_embed(patches)
        cos, sin = encoder.rotary_pos_emb(x, places)
        slots = x[:0]
        for i, layer in enumerate(encoder.blocks):
            if i in prompts:
                slots = prompts[i] + slots if config.visual_update == "carry" and len(slots) else prompts[i]
            whole = i in getattr(encoder, "fullatt_block_indexes", range(len(encoder.blocks)))
            window = torch.zeros_like(cell) if whole else (r // 2) * columns + c // 2
            out, become = torch.empty_like(x), []
            for w in window.unique():
                here = window == w
                both = torch.cat([x[here], slots])
                rope = torch.cat([cos[here], torch.ones(len(slots), cos.shape[1])])
                rope = rope, torch.cat([sin[here], torch.zeros(len(slots), sin.shape[1])])
                seen = layer(both, cu_seqlens=torch.tensor([0, len(both)]), position_embeddings=rope)
                out[here], n = seen[: int(here.sum())], int(here.sum())
                become.append(seen[n:])
            x, slots = out, torch.stack(become).mean(0)
        read = prompts[max(prompts)] if config.visual_readout == "parameter" and prompts else slots
        read = read[: 0 if config.visual_readout == "none" else None]
        runs.append(([projector(slot.repeat(4, 1))[0] for slot in read], projector(x)))
    return runs


def visible(lm, positions, types, late, layer):
    """(S, S) bool: what each place may look at."""
    kinds = getattr(lm.config, "layer_types", None)
    distance = positions[:, None] - positions[None]
    see = distance >= 0
    same = (types[:, None] == types[None]) & (types[:, None] >= 0)
    if kinds is None or kinds[layer] != "sliding_attention":
        return see | same
    window = distance < lm.config.sliding_window
    return (see & window) | same if late == "or" else (see | same) & window


def language(model, config, tokens, runs, prompts, blocks, grids=None):
    """Logits (T, V) at the given tokens (T,). `blocks` (T,) are numbers: equal ones see each other both ways.

    `grids`, of hosts that tell where on a grid (rows, columns) a picture's token is: those of the pictures.
    """
    host = model.model
    lm = getattr(host, "language_model", None) or host.text_model
    P = len(next(iter(prompts.values()))) if prompts else 0
    is_image = tokens == host.config.image_token_id
    embeds = lm.embed_tokens(tokens.masked_fill(is_image, 0))
    rows, given, numbers, after_image, queue, t = [], [], [], 0, list(runs), 0
    steps = []  # of each of `rows`: how far down and to the right of where its picture begins, and how far on then
    while t < len(tokens):
        n = 1
        if is_image[t]:
            slots, patches = queue.pop(0)
            rows += [*slots, *patches]
            n = len(patches)
            given += [False] * len(slots)
            numbers += [int(blocks[t])] * len(slots)
            after_image = len(rows)
            steps += [(0, 0, 1)] * len(slots)
            h, w = (1, 1) if grids is None else grids[len(runs) - len(queue) - 1]
            onward = [0] * (n - 1) + [max(h, w)]
            steps += [(0, 0, 1)] * n if grids is None else [(k // w, k % w, onward[k]) for k in range(n)]
        else:
            rows.append(embeds[t])
            steps.append((0, 0, 1))
        given += [True] * n
        numbers += blocks[t : t + n].tolist()
        t += n
    at = after_image if config.textual_position == "before_instruction" else 0
    left, right = torch.stack(rows)[:at], torch.stack(rows)[at:]
    slots = left[:0]
    paligemma = type(host).__name__ == "PaliGemmaModel"
    own = 0 if paligemma and 0 in numbers else -1  # prompts stand in PaliGemma's prefix, which sees itself both ways
    places = [torch.arange(at), at + torch.arange(P), torch.arange(at, len(rows)) + P]
    steps = torch.tensor(steps[:at] + [(0, 0, 1)] * P + steps[at:])
    begins = steps[:, 2].cumsum(0) - steps[:, 2]
    where = torch.stack([begins, begins + steps[:, 0], begins + steps[:, 1]])  # (3, S)
    numbers = [torch.tensor(numbers[:at]), torch.full((P,), own), torch.tensor(numbers[at:])]

    for j, layer in enumerate(lm.layers):
        if j in prompts:
            slots = prompts[j] + slots if config.textual_update == "carry" and len(slots) else prompts[j]
        x = torch.cat([left, slots, right])[None]
        keep = [places[0], places[1][: len(slots)], places[2]]
        positions = torch.cat(keep)
        types = torch.cat([n[: len(k)] for n, k in zip(numbers, keep)]).long()
        see = visible(lm, positions, types, "or" if paligemma else "and", j)
        mask = torch.zeros(see.shape).masked_fill(~see, torch.finfo(x.dtype).min)[None, None]
        kind = (lm.config.layer_types[j],) if type(lm).__name__ == "Gemma3TextModel" else ()
        turned = positions[None] + paligemma if grids is None else where[:, None, positions]
        rope = lm.rotary_emb(x, turned, *kind)
        out = layer(x, attention_mask=mask, position_embeddings=rope)
        out = (out[0] if isinstance(out, tuple) else out)[0]
        left, slots, right = out[:at], out[at : at + len(slots)], out[at + len(slots) :]
    logits = model.lm_head(lm.norm(torch.cat([left, right])[torch.tensor(given)]))
    cap = getattr(lm.config, "final_logit_softcapping", None)
    capped = cap and paligemma and Version(transformers.__version__) >= Version("5.21")  # before, the host forgot it
    return cap * torch.tanh(logits / cap) if capped else logits
