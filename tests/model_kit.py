"""What the tests of the model share: a tiny language model and tokenizer on disk, a mixture."""

from manyeyes.config.recipe import (
    ChannelConcat,
    EncoderSection,
    LanguageModelSection,
    MlpProjector,
    ModelSection,
)

NAMES = ("clip", "convnext", "sam", "eva02", "pix2struct")
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "what", "is", "this", "red", "blue", "circle", "a", "the")


def llama_config(**changes):
    """Return the config of a Llama with random weights; ``changes`` replace its fields."""
    from transformers import LlamaConfig

    values = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaConfig(**{**values, **changes})


def write_llama(folder, **changes):
    """Write a tiny language model with its tokenizer; return the folder as text."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(llama_config(**changes)).save_pretrained(folder)
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), WORDS, strict=False))
    ids = {word: i for i, word in enumerate(WORDS)}
    words = Tokenizer(WordLevel(ids, **{"unk_token": special["unk_token"]}))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return str(folder)


def model_section(llm, names=NAMES, **changes):
    """Return a mixture of tiny encoders with random weights in front of ``llm``."""
    values = {
        "encoders": tuple(
            EncoderSection(name=name, spec=f"{name}-tiny", weights="random") for name in names
        ),
        "grid": 4,
        "normalization": "per_encoder",
        "fusion": ChannelConcat(kind="channel_concat"),
        "projector": MlpProjector(kind="mlp2x_gelu"),
        "llm": LanguageModelSection(weights=llm, template="plain_chat"),
        "max_length": 256,
    }
    return ModelSection(**{**values, **changes})


def pictures(num, size=128, seed=0):
    """Return ``num`` random uint8 canvases."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=generator)
