"""The conversation templates: one row of strings per way of writing a conversation.

Where the words are facts of others they are written as their tokenizers and released models expect
them, to the space; ``tests/unit/test_templates.py`` compares every row with the family's own chat
template. Where a released system deviates from its language model's template, it has a row of its
own: a system's weights answer best in the words they were tuned with.

All text that is not learned is tokenised in one go between two answers, and so is an answer with
the end behind it. So spaces stand where the authors' text has them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from manyeyes.errors import unknown


@dataclass(frozen=True)
class Template:
    """How a conversation is written; every string but the answers' end is context, not learned."""

    question: str
    """Stands before the human's words."""
    answer: str
    """Stands before an answer."""
    system: str = ""
    """Stands before the first turn."""
    question_gap: str = ""
    """Joins the question's header, or a picture, to the words after it."""
    answer_gap: str = ""
    """Joins the answer's header to the answer."""
    image_end: str = "\n"
    """Stands after each picture."""
    answer_end: str = ""
    """Ends an answer and is learned."""
    stop: str = ""
    """The token of ``answer_end`` at which a generation ends; none: the tokenizer's end token."""
    round_end: str = ""
    """Stands between an answer and the next question; after the last answer it is left out,
    because nothing would be learned from it."""
    end_token: bool = False
    """The tokenizer's end token follows each answer and is learned."""
    start_token: bool = True
    """The tokenizer's start token, if it has one, opens the conversation."""
    keep_question: bool = True
    """False drops the human's words and keeps only the pictures."""
    version: int = 1
    """Rises when the template is written otherwise."""


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
CAMBRIAN_SYSTEM = (
    "You are Cambrian, a highly intelligent multimodal AI trained by NYU Vision X.",
    "As a multimodal AI, you have the ability to process and analyze images. Whenever an image is "
    "present in the conversation, very carefully examine it and consider its content when "
    "formulating your response.",
    "You should give concise responses to very simple questions, but provide thorough responses "
    "to more complex and open-ended questions.",
)


def _llama_3(system: str) -> Template:
    """Return Meta's headers (meta-llama/Meta-Llama-3-8B-Instruct) with a system message."""
    return Template(
        system=f"<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        question="<|start_header_id|>user<|end_header_id|>\n\n",
        answer="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        answer_end="<|eot_id|>",
        stop="<|eot_id|>",
    )


def _chatml(system: str, between: str) -> Template:
    """Return ChatML; ``between`` stands between one message's end and the next one's start."""
    return Template(
        system=f"<|im_start|>system\n{system}<|im_end|>{between}",
        question="<|im_start|>user\n",
        answer=f"<|im_end|>{between}<|im_start|>assistant\n",
        answer_end="<|im_end|>",
        stop="<|im_end|>",
        round_end=between,
        start_token=False,
    )


_GEMMA = Template(
    question="<start_of_turn>user\n",
    answer="<end_of_turn>\n<start_of_turn>model\n",
    answer_end="<end_of_turn>",
    stop="<end_of_turn>",
    round_end="\n",
)

TEMPLATES: dict[str, Template] = {
    # LLaVA's caption stage: picture, caption, line break; the question is thrown away.
    "plain": Template(question="", answer="", image_end="", answer_end="\n", keep_question=False),
    # The tiny language model's format: one word per header, the end token after each answer.
    "plain_chat": Template(
        question=" user",
        answer=" assistant",
        question_gap=" ",
        answer_gap=" ",
        image_end="",
        end_token=True,
    ),
    # Vicuna v1.1 (lm-sys/FastChat), as LLaVA-1.5 uses it: the end token separates the rounds.
    "vicuna_v1": Template(
        system=f"{VICUNA_SYSTEM} ",
        question="USER: ",
        answer=" ASSISTANT:",
        answer_gap=" ",
        end_token=True,
    ),
    # SmolLM2-Instruct's ChatML with its own system prompt. <|im_start|> is its start token and is
    # written out in every header.
    "smollm2": _chatml(
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "\n"
    ),
    # meta-llama/Llama-2-*-chat without a system message; every round opens with the start token.
    "llama_2": Template(
        question="<s>[INST] ",
        answer=" [/INST]",
        answer_gap=" ",
        answer_end=" ",
        end_token=True,
        start_token=False,
    ),
    # Meta's roles with the system message of LLaVA-NeXT and MGM: for new training.
    "llama_3": _llama_3(LLAVA_SYSTEM),
    # Eagle's released Llama-3 models: Vicuna's system message.
    "llama_3_eagle": _llama_3(VICUNA_SYSTEM),
    # MGM's released 8B: the assistant's header says "system".
    "llama_3_mgm_released": replace(
        _llama_3(LLAVA_SYSTEM), answer="<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n"
    ),
    # Cambrian-8B: no blank line after a header, its own words with their line breaks and indents.
    "llama_3_cambrian": Template(
        system=(
            f"<|start_header_id|>system<|end_header_id|>{CAMBRIAN_SYSTEM[0]} \n"
            f"    {CAMBRIAN_SYSTEM[1]}\n    {CAMBRIAN_SYSTEM[2]} <|eot_id|>"
        ),
        question="<|start_header_id|>user<|end_header_id|>",
        answer="<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
        answer_end="<|eot_id|>",
        stop="<|eot_id|>",
    ),
    # google/gemma-*-it: no system message.
    "gemma": _GEMMA,
    # MGM's released 2B: the sequence's end token between the rounds. (Its authors also learn the
    # line break and that token; here they are context, and generation ends before them.)
    "gemma_mgm_released": replace(_GEMMA, round_end="\n<eos>"),
    # mistralai/Mixtral-8x7B-Instruct-v0.1: Llama-2's brackets, one start token for all.
    "mistral_instruct": Template(
        question="[INST] ", answer=" [/INST]", answer_gap=" ", end_token=True
    ),
    # NousResearch/Nous-Hermes-2-Yi-34B as LLaVA-1.6, MGM and Eagle write it: no line break between
    # messages, and their system message.
    "chatml_yi": _chatml("Answer the questions.", ""),
    # Cambrian-34B: the same with Cambrian's words, here without line breaks.
    "chatml_yi_cambrian": _chatml(" ".join(CAMBRIAN_SYSTEM), ""),
    # Qwen2-Instruct and its system message (Qwen2.5's own one names its maker).
    "qwen": _chatml("You are a helpful assistant.", "\n"),
    # microsoft/Phi-3-*-instruct with the system message of Cambrian's phi3. Its tokens swallow the
    # line break after them, so none is written between an answer's end and the next question.
    "phi_3": Template(
        system="<|system|>\nYou are a helpful AI assistant.<|end|>\n",
        question="<|user|>\n",
        answer="<|end|>\n<|assistant|>\n",
        answer_end="<|end|>",
        stop="<|end|>",
    ),
}


def template_named(name: str) -> Template:
    """Return a template of the table.

    Raises:
        UserError: there is none of this name.
    """
    if name not in TEMPLATES:
        raise unknown("conversation template", name, TEMPLATES)
    return TEMPLATES[name]
