"""MPT4LM written down literally, for one row without padding; it shares no code with mmpt.mpt4lm.

    Q¹ = Q + A(LN(Q), LN(X));  Q² = Q¹ + A(LN(Q¹), LN(V));  P = LN(Q²) W + b
    the LLM reads [instruction ; P ; X];  behind every attention and MLP  h + W_up GELU(W_down h)

It takes a host without adapters, for its frozen layers, and the tuned tensors by the names they are saved under.
"""

import torch


def norm(x, weight, bias):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def attention(queries, source, tensors, name, heads):
    """Q + A(LN(Q), LN(S)) for queries (m, w) and source (S, D), head by head."""

    def get(key):
        return tensors[f"{name}.{key}"]

    w = queries.shape[1]
    q = norm(queries, get("query_norm.weight"), get("query_norm.bias"))
    s = norm(source, get("source_norm.weight"), get("source_norm.bias"))
    bq, bk, bv = get("attention.in_proj_bias").split(w)
    if f"{name}.attention.in_proj_weight" in tensors:  # torch's layout where source and queries are equally wide
        wq, wk, wv = get("attention.in_proj_weight").split(w)
    else:
        wq, wk, wv = (get(f"attention.{n}_proj_weight") for n in "qkv")
    q, k, v = q @ wq.T + bq, s @ wk.T + bk, s @ wv.T + bv
    size, out = w // heads, []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[:, part] @ k[:, part].T / size**0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        out.append(weights @ v[:, part])
    return queries + torch.cat(out, -1) @ get("attention.out_proj.weight").T + get("attention.out_proj.bias")


def features(host, pixels):
    """(1, 3, H, W) -> V (N, Dv), layer by layer through the tower."""
    tower, config = host.vision_tower, host.config
    x = tower.embeddings(pixels)
    if hasattr(tower, "pre_layrnorm"):
        x = tower.pre_layrnorm(x)
    for layer in tower.encoder.layers[: len(tower.encoder.layers) + 1 + config.vision_feature_layer]:
        x = layer(x, None)
    return x[0, 1:] if config.vision_feature_select_strategy == "default" else x[0]


def inputs(host, config, tensors, tokens, pixels, question=None):
    """[instruction ; P ; X]: (K + m + T, D). `question` (T,) bool: which tokens the queries read."""
    x = host.get_input_embeddings()(tokens)
    parts = [tensors["mpt4lm.mpt4lm_instruction"]] if config.num_instruction_tokens else []
    if config.num_visual_prompts and pixels is not None:
        name, heads = "mpt4lm.mpt4lm_cross_attention", config.cross_attention_heads
        q = tensors[f"{name}.queries"]
        if config.condition_on_question:
            q = attention(q, x if question is None else x[question], tensors, f"{name}.question", heads)
        q = attention(q, features(host, pixels), tensors, f"{name}.picture", heads)
        q = norm(q, tensors[f"{name}.norm.weight"], tensors[f"{name}.norm.bias"])
        parts.append(q @ tensors[f"{name}.output.weight"].T + tensors[f"{name}.output.bias"])
    return torch.cat([*parts, x])


def adapted(tensors, name, h):
    key = f"mpt4lm.mpt4lm_adapters.{name}"
    if f"{key}.down.weight" not in tensors:
        return h
    z = h @ tensors[f"{key}.down.weight"].T + tensors[f"{key}.down.bias"]
    z = z * 0.5 * (1 + torch.erf(z / 2**0.5))
    return h + z @ tensors[f"{key}.up.weight"].T + tensors[f"{key}.up.bias"]


def causal(length):
    return torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]


def llama(host, tensors, sequence, given):
    """Logits (T, V) at the last `given` positions of a sequence of vectors."""
    lm, x = host.language_model, sequence[None]
    rope = lm.model.rotary_emb(x, torch.arange(len(sequence))[None])
    mask = causal(len(sequence))
    for j, layer in enumerate(lm.model.layers):
        h = layer.self_attn(layer.input_layernorm(x), position_embeddings=rope, attention_mask=mask)[0]
        x = x + adapted(tensors, f"{j}_attention", h)
        x = x + adapted(tensors, f"{j}_mlp", layer.mlp(layer.post_attention_layernorm(x)))
    return lm.lm_head(lm.model.norm(x))[0, -given:]


def t5(host, tensors, sequence, said):
    """Logits (Td, V) of the decoder that has read `said` (Td,)."""
    lm = host.language_model

    def sublayer(x, layer, attention, mask, bias, name, source=None):
        h = attention(layer.layer_norm(x), mask=mask, position_bias=bias, key_value_states=source)[0]
        return x + adapted(tensors, name, h)

    def mlp(x, layer, name):
        return x + adapted(tensors, name, layer.DenseReluDense(layer.layer_norm(x)))

    x, n = sequence[None], len(sequence)
    bias = lm.encoder.block[0].layer[0].SelfAttention.compute_bias(n, n)
    everything = torch.zeros(1, 1, n, n)
    for i, block in enumerate(lm.encoder.block):
        own, last = block.layer
        x = sublayer(x, own, own.SelfAttention, everything, bias, f"encoder_{i}_attention")
        x = mlp(x, last, f"encoder_{i}_mlp")
    read = lm.encoder.final_layer_norm(x)

    x, m = lm.shared(said)[None], len(said)
    bias = lm.decoder.block[0].layer[0].SelfAttention.compute_bias(m, m)
    everything, no_bias = torch.zeros(1, 1, m, n), torch.zeros(1, 4, m, n)
    for i, block in enumerate(lm.decoder.block):
        own, other, last = block.layer
        x = sublayer(x, own, own.SelfAttention, causal(m), bias, f"decoder_{i}_attention")
        x = sublayer(x, other, other.EncDecAttention, everything, no_bias, f"decoder_{i}_cross_attention", read)
        x = mlp(x, last, f"decoder_{i}_mlp")
    x = lm.decoder.final_layer_norm(x)
    if lm.config.scale_decoder_outputs:
        x = x * lm.config.d_model**-0.5
    return lm.lm_head(x)[0]


def forward(host, config, tensors, tokens, pixels=None, said=None, question=None):
    """Logits of one row: at its T tokens (decoder-only), or at the Td tokens that the decoder has `said`."""
    sequence = inputs(host, config, tensors, tokens, pixels, question)
    return llama(host, tensors, sequence, len(tokens)) if said is None else t5(host, tensors, sequence, said)
