"""What the modules of Hugging Face's models are, by their names, and the sizes that each must then have."""

from collections.abc import Mapping
from typing import NamedTuple

from opnorm.checkpoints.config import ModelConfig

# Sizes: H features between blocks, Q of all query heads, K of all key heads, F of queries, keys and values together,
# I inside of a feed-forward layer, J twice that, V tokens, E experts, N query heads, R the
# rank of a projection in two steps, P anything.
Sizes = Mapping[str, frozenset[int]]
Ways = tuple[tuple[str, str], ...]  # from, to

LINEAR: Mapping[str, Ways] = {  # by the module's name, or its parent's and its own
    **dict.fromkeys(("q_proj", "query", "q_lin", "q"), (("H", "Q"),)),
    **dict.fromkeys(("k_proj", "key", "k_lin", "k", "v_proj", "value", "v_lin", "v"), (("H", "K"),)),
    **dict.fromkeys(("o_proj", "out_lin", "out_proj", "o"), (("Q", "H"),)),
    **dict.fromkeys(("qkv_proj", "query_key_value", "Wqkv", "c_attn"), (("H", "F"),)),
    **dict.fromkeys(("gate_proj", "up_proj", "fc1", "fc_in", "w1", "w3", "lin1"), (("H", "I"),)),
    **dict.fromkeys(("dense_h_to_4h", "intermediate.dense", "wi", "wi_0", "wi_1", "c_fc"), (("H", "I"),)),
    **dict.fromkeys(("gate_up_proj", "Wi"), (("H", "J"),)),
    **dict.fromkeys(("down_proj", "fc2", "fc_out", "w2", "lin2", "dense_4h_to_h", "wo"), (("I", "H"),)),
    **dict.fromkeys(("output.dense", "c_proj", "Wo"), (("Q", "H"), ("I", "H"))),
    **dict.fromkeys(("dense", "pre_classifier", "vocab_transform"), (("Q", "H"), ("H", "H"))),
    **dict.fromkeys(("lm_head", "embed_out", "decoder", "vocab_projector"), (("H", "V"),)),
    **dict.fromkeys(("gate", "router"), (("H", "E"),)),
    **dict.fromkeys(("classifier", "score", "qa_outputs", "text_projection", "visual_projection"), (("H", "P"),)),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), (("H", "P"),)),
    **dict.fromkeys(("q_b_proj", "kv_b_proj"), (("R", "P"),)),
    "crossattention.c_attn": (("H", "J"),),
    "q_attn": (("H", "Q"),),
}
TOKENS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "token_embedding", "tok_embeddings", "shared")
_PLACES = ("wpe", "position_embeddings", "embed_positions", "position_embedding", "token_type_embeddings")
EMBEDDINGS: Mapping[str, Ways] = {
    **dict.fromkeys(TOKENS, (("V", "H"),)),
    **dict.fromkeys(_PLACES, (("P", "H"),)),
    "relative_attention_bias": (("P", "N"),),
}
ALWAYS = ""
SCALED: Mapping[str, str] = {  # whose layer of tokens multiplies by sqrt(H), and the setting that says whether it does
    **dict.fromkeys(("embedding_gemma", "gemma", "gemma2", "gemma3_text", "gemma3n_text"), ALWAYS),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text", "vaultgemma"), ALWAYS),
    **dict.fromkeys(("bart", "bigbird_pegasus", "biogpt", "blenderbot", "m2m_100", "mbart"), "scale_embedding"),
    **dict.fromkeys(("nllb-moe", "pegasus_x", "plbart", "seamless_m4t", "seamless_m4t_v2"), "scale_embedding"),
    **dict.fromkeys(("trocr", "xglm"), "scale_embedding"),
}
CONV1D = ("gpt2", "imagegpt", "decision_transformer", "openai-gpt")  # whose c_attn, c_fc, c_proj are stored (in, out)
FAMILIES = frozenset({  # whose modules of those names are torch.nn.Linear and Embedding and nothing more
    *CONV1D, "albert", "apertus", "arcee", "beit", "bert", "bloom", "camembert", "clip", "clip_text_model",
    "clip_vision_model", "codegen", "cohere", "cohere2", "deberta-v2", "deepseek_v2", "deepseek_v3", "deit",
    "dinov2", "dinov3_vit", "distilbert", "electra", "ernie4_5", "exaone4", "falcon", "glm", "glm4", "glm4_moe",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "helium", "llama",
    "longformer", "marian", "minimax_m2", "mistral", "mixtral", "modernbert", "mpnet", "mpt", "mt5", "nemotron",
    "nomic_bert", "olmo", "olmo2", "olmo3", "olmoe", "opt", "pegasus", "persimmon", "phi", "phi3", "phimoe",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "roberta", "seed_oss", "siglip", "siglip_text_model",
    "siglip_vision_model", "smollm3", "stablelm", "starcoder2", "t5", "umt5", "vit", "vit_mae", "vit_msn",
    "whisper", "xlm-roberta",
    "bart", "gemma", "gemma2", "gemma3_text", "mbart",
})  # fmt: skip
OUT_IN, IN_OUT = "(out, in)", "(in, out)"
EXPERTS: Mapping[str, str] = {  # how the matrix of each expert stands in a stack of them
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), OUT_IN),
    **dict.fromkeys(("gpt_oss", "llama4_text"), IN_OUT),
}


class Sliding(NamedTuple):
    """A convolution of some families of models, from the features of a setting to those between their blocks."""

    families: tuple[str, ...]
    inputs: str = "num_channels"
    taps: tuple[int, ...] | None = None  # None: patches of an image, of the size that the configuration gives
    strides: int | None = None  # None: as many as taps
    zeros: int = 0  # added at either end


CONVOLUTIONS: Mapping[str, Sliding] = {
    "patch_embeddings.projection": Sliding(("beit", "deit", "dinov2", "vit", "vit_mae", "vit_msn")),
    "embeddings.patch_embedding": Sliding(("clip", "clip_vision_model", "siglip", "siglip_vision_model")),
    "encoder.conv1": Sliding(("whisper",), "num_mel_bins", (3,), 1, 1),
    "encoder.conv2": Sliding(("whisper",), "d_model", (3,), 2, 1),
}
MASKED = ("gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "decision_transformer", "openai-gpt", "imagegpt")
EPSILONS: Mapping[str, float | str] = {  # of all batch normalizations of a model; a text is the name of the setting
    "resnet": 1e-5, "regnet": 1e-5, "efficientnet": "batch_norm_eps", "textnet": "batch_norm_eps",
    "swiftformer": "batch_norm_eps", "mobilenet_v1": "layer_norm_eps",
}  # fmt: skip


class Role(NamedTuple):
    """What a module is to the blocks of a model: its sizes are to be found in the configuration."""

    module: str  # its own name
    ways: Ways
    table: bool = False  # an embedding


def role_of(name: str) -> Role | None:
    """Return the role of the weight of that name; None where the module is none that is known."""
    parts = name.split(".")
    if len(parts) < 2 or parts[-1] != "weight":
        return None
    module = parts[-2]
    if module in EMBEDDINGS:
        return Role(module, EMBEDDINGS[module], True)
    ways = LINEAR.get(".".join(parts[-3:-1])) or LINEAR.get(module)
    return Role(module, ways) if ways else None


def sizes_of(config: ModelConfig) -> Sizes:
    """Return the sizes that a configuration gives; those that it does not tell are empty."""
    queries, keys = config.heads * config.head_dim, config.key_value_heads * config.head_dim
    latent = config.size("qk_nope_head_dim") + config.size("qk_rope_head_dim")
    several = {
        "H": {config.hidden},
        "Q": {queries, config.heads * latent, config.heads * config.size("v_head_dim")},
        "K": {keys},
        "F": {queries + 2 * keys},
        "I": config.inner,
        "J": {2 * inner for inner in {*config.inner, config.hidden}},
        "V": {config.size("vocab_size")},
        "E": {config.experts},
        "N": {config.heads},
        "R": {config.size("q_lora_rank"), config.size("kv_lora_rank")},
    }
    return {name: frozenset(found) - {0} for name, found in several.items()}
