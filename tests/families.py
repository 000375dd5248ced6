"""Small folders of models as Hugging Face's libraries write them, without these libraries: names, shapes, settings."""

import json

import numpy as np
from safetensors.numpy import save_file

RNG = np.random.default_rng(5)


def draw(*shape):
    return RNG.standard_normal(shape).astype("float32")


def write(folder, tensors, config=None, name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


GPT2 = (
    {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 50, "n_inner": None},
    {
        "wte.weight": draw(50, 8),
        "wpe.weight": draw(16, 8),
        "h.0.attn.bias": np.tril(np.ones((1, 1, 16, 16), "float32")),
        "h.0.attn.c_attn.weight": draw(8, 24),
        "h.0.attn.c_proj.weight": draw(8, 8),
        "h.0.mlp.c_fc.weight": draw(8, 32),
        "h.0.mlp.c_proj.weight": draw(32, 8),
    },
)
LLAMA = (
    {
        "model_type": "llama", "hidden_size": 12, "num_attention_heads": 3, "num_key_value_heads": 1,
        "intermediate_size": 20, "vocab_size": 30,
    },
    {
        "model.embed_tokens.weight": draw(30, 12),
        "model.layers.0.self_attn.q_proj.weight": draw(12, 12),
        "model.layers.0.self_attn.k_proj.weight": draw(4, 12),
        "model.layers.0.mlp.up_proj.weight": draw(20, 12),
        "model.layers.0.mlp.down_proj.weight": draw(12, 20),
        "lm_head.weight": draw(30, 12),
    },
)  # fmt: skip
BLOOM = (
    {"model_type": "bloom", "hidden_size": 8, "n_head": 2, "vocab_size": 30},
    {"h.0.self_attention.query_key_value.weight": draw(24, 8), "h.0.mlp.dense_h_to_4h.weight": draw(32, 8)},
)
VIT = (
    {
        "model_type": "vit", "hidden_size": 6, "num_attention_heads": 2, "intermediate_size": 10, "patch_size": 4,
        "num_channels": 3,
    },
    {
        "embeddings.patch_embeddings.projection.weight": draw(6, 3, 4, 4),
        "encoder.layer.0.attention.attention.query.weight": draw(6, 6),
        "encoder.layer.0.output.dense.weight": draw(6, 10),
    },
)  # fmt: skip
MIXTURE = (
    {
        "model_type": "gpt_oss", "hidden_size": 6, "num_attention_heads": 2, "intermediate_size": 3,
        "num_local_experts": 5,
    },
    {
        "layers.0.mlp.experts.gate_up_proj": draw(5, 6, 6),
        "layers.0.mlp.experts.gate_up_proj_bias": draw(5, 6),
        "layers.0.mlp.experts.down_proj": draw(5, 3, 6),
        "layers.0.mlp.router.weight": draw(5, 6),
    },
)  # fmt: skip
RESNET = (
    {"model_type": "efficientnet", "batch_norm_eps": 0.001},
    {
        "bn.weight": draw(4),
        "bn.bias": draw(4),
        "bn.running_mean": draw(4),
        "bn.running_var": RNG.uniform(1e-4, 1, 4).astype("float32"),
    },
)
T5 = (
    {"model_type": "t5", "d_model": 8, "d_kv": 3, "d_ff": 10, "num_heads": 2, "vocab_size": 30},
    {
        "shared.weight": draw(30, 8),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": draw(32, 2),
        "encoder.block.0.layer.0.SelfAttention.q.weight": draw(6, 8),
        "encoder.block.0.layer.1.DenseReluDense.wi.weight": draw(10, 8),
    },
)
DEEPSEEK = (
    {
        "model_type": "deepseek_v3", "hidden_size": 10, "num_attention_heads": 2, "q_lora_rank": 4, "kv_lora_rank": 3,
        "qk_nope_head_dim": 2, "qk_rope_head_dim": 3, "v_head_dim": 6, "moe_intermediate_size": 7,
        "n_routed_experts": 5,
    },
    {
        "model.layers.0.self_attn.q_a_proj.weight": draw(4, 10),
        "model.layers.0.self_attn.q_b_proj.weight": draw(10, 4),
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": draw(6, 10),
        "model.layers.0.self_attn.kv_b_proj.weight": draw(16, 3),
        "model.layers.0.self_attn.o_proj.weight": draw(10, 12),
        "model.layers.1.mlp.experts.4.down_proj.weight": draw(10, 7),
        "model.layers.1.mlp.gate.weight": draw(5, 10),
    },
)  # fmt: skip
WHISPER = (
    {"model_type": "whisper", "d_model": 6, "num_mel_bins": 4, "encoder_attention_heads": 2},
    {"model.encoder.conv1.weight": draw(6, 4, 3), "model.encoder.conv2.weight": draw(6, 6, 3)},
)
UNET = (
    {
        "_class_name": "UNet2DConditionModel", "block_out_channels": [4, 8], "in_channels": 3, "out_channels": 3,
        "cross_attention_dim": 5,
    },
    {
        "conv_in.weight": draw(4, 3, 3, 3),
        "down_blocks.0.resnets.0.conv1.weight": draw(4, 4, 3, 3),
        "down_blocks.0.resnets.0.time_emb_proj.weight": draw(4, 16),
        "down_blocks.0.downsamplers.0.conv.weight": draw(4, 4, 3, 3),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": draw(4, 5),
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": draw(32, 4),
        "down_blocks.0.attentions.0.proj_in.weight": draw(4, 4, 1, 1),
        "up_blocks.0.resnets.0.conv1.weight": draw(8, 12, 3, 3),
        "up_blocks.0.upsamplers.0.conv.weight": draw(8, 8, 3, 3),
    },
)  # fmt: skip
AUTOENCODER = (
    {
        "_class_name": "AutoencoderKL", "block_out_channels": [4], "in_channels": 3, "out_channels": 3,
        "latent_channels": 2,
    },
    {
        "encoder.down_blocks.0.downsamplers.0.conv.weight": draw(4, 4, 3, 3),
        "encoder.conv_out.weight": draw(4, 4, 3, 3),
        "quant_conv.weight": draw(4, 4, 1, 1),
    },
)  # fmt: skip
