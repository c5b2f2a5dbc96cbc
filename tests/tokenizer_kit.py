"""Tiny tokenizers of each language model family, with the family's special tokens and template.

Trained here on a few sentences, but of the published ones' kind: what they do to spaces, line
breaks and bytes that no sentence has is what decides whether ids agree. The chat templates are
written down from the published ones' behaviour; an answer and its end are marked as generated.
"""

from dataclasses import dataclass

from manyeyes.data.loading.templates import CAMBRIAN_SYSTEM, LLAVA_SYSTEM, VICUNA_SYSTEM

SENTENCES = (
    VICUNA_SYSTEM,
    LLAVA_SYSTEM,
    *CAMBRIAN_SYSTEM,
    "system user model assistant USER: ASSISTANT: [INST] [/INST] Answer the questions.",
    "How many circles are there in the picture? There are four of them.",
    "What does the sign say?\n\nIt says: stop, now!\nAnd 12 more words, isn't it?",
)
IMAGE = "<image>"
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA_3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Family:
    """What the tokenizers of one family have in common."""

    kind: str
    """``sentencepiece`` or ``bytes``."""
    special: tuple[str, ...]
    bos: str | None
    eos: str
    own_space: bool = True
    """A SentencePiece vocabulary puts a space before every piece of text."""
    split: str = ""
    """How a byte-level vocabulary cuts text into words."""
    strip: tuple[str, ...] = ()
    """Tokens that swallow the white space after them."""


LLAMA_3_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
PHI_3_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

FAMILIES = {
    "llama_2": Family("sentencepiece", ("<unk>", "<s>", "</s>"), "<s>", "</s>"),
    "llama_3": Family(
        "bytes", LLAMA_3_TOKENS, "<|begin_of_text|>", "<|eot_id|>", split=LLAMA_3_SPLIT
    ),
    "gemma": Family(
        "sentencepiece",
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        own_space=False,
    ),
    "yi": Family(
        "sentencepiece",
        ("<unk>", "<|startoftext|>", *CHATML_TOKENS),
        "<|startoftext|>",
        "<|im_end|>",
        own_space=False,
    ),
    "qwen": Family("bytes", CHATML_TOKENS, None, "<|im_end|>", split=QWEN_SPLIT),
    "phi_3": Family(
        "sentencepiece",
        ("<unk>", "<s>", "</s>", "<|endoftext|>", *PHI_3_TOKENS),
        "<s>",
        "<|endoftext|>",
        strip=PHI_3_TOKENS,
    ),
    "smollm2": Family("bytes", CHATML_TOKENS, "<|im_start|>", "<|im_end|>", split=QWEN_SPLIT),
}


def make_tokenizer(name, chat_template=None, unwanted=()):
    """Return a tiny Hugging Face tokenizer of a family; ``unwanted`` special tokens are left out."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[name]
    special = [token for token in family.special if token not in unwanted]
    core = _sentencepiece(family) if family.kind == "sentencepiece" else _byte_level(family)
    core.add_special_tokens(
        [
            AddedToken(token, normalized=False, rstrip=token in family.strip)
            for token in (*special, IMAGE)
        ]
    )
    known = {"bos_token": family.bos, "eos_token": family.eos}
    if "<unk>" in special:
        known["unk_token"] = "<unk>"
    if "<pad>" in special:
        known["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=chat_template, **known)


def _sentencepiece(family):
    """Train a BPE over marked spaces that spells unknown characters in bytes."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    space = "\u2581"
    learner = Tokenizer(BPE())
    learner.normalizer = normalizers.Sequence(
        [normalizers.Prepend(space), normalizers.Replace(" ", space)]
    )
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(f"(?={space})"), "isolated")
    trainer = BpeTrainer(vocab_size=300, show_progress=False)
    learner.train_from_iterator([text for line in SENTENCES for text in line.split("\n")], trainer)
    learned = _model(learner)
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    own = [] if family.own_space else ["\n", "\n\n"]
    merges = [] if family.own_space else [("\n", "\n")]
    tokens = dict.fromkeys([*family.special, *spelled, *own, *learned["vocab"]])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges += [tuple(pair) for pair in learned["merges"]]
    core = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    mark = [normalizers.Prepend(space)] if family.own_space else []
    core.normalizer = normalizers.Sequence([*mark, normalizers.Replace(" ", space)])
    core.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return core


def _byte_level(family):
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(family.split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=500, show_progress=False, initial_alphabet=alphabet)
    core.train_from_iterator(SENTENCES, trainer)
    return core


def _model(tokenizer):
    import json

    return json.loads(tokenizer.to_str())["model"]
