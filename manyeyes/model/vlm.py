"""The vision-language model: a mixture of encoders in front of a causal language model.

One image's journey, which ``forward`` follows line by line:

    canvas (I, 3, S, S) uint8 -> each encoder (I, C_i, H, W) -> fusion (I, V, C)
    -> projector (I, V, D) -> splice (B, M, D) -> decoder (B, M, D)
    -> last layer and head, on supervised positions only (K, vocabulary) -> loss

With the patch embedding fusion V depends on the picture, whose size ``image_sizes`` says.

Decisions:

- A Hugging Face citizen: config, ``save_pretrained``, ``from_pretrained``, ``generate``. The config
  holds every encoder's full spec, so that a checkpoint loads without a recipe or the table.
- Parameter names are the recipe's: ``encoders.NAME.*``, ``fusion.*``, ``projector.*``, ``llm.*``.
- Frozen means frozen: an encoder without a trainable parameter runs without autograd, and when
  nothing in front of the language model trains, neither do its activations enter a graph.
- Batches are padded on the right for training, so that plain causal attention needs no mask (a
  token never looks ahead at padding), and on the left for generation.
- Text-only batches cost no vision forward.
- What only training needs (``alignment``) is attached by who trains, and not loaded otherwise.
- Parts are initialised from generators of their own, derived from the seed and the part's name:
  adding an expert does not change the projector's first weights of the others' experiments.

Shapes: I images, B samples, N input tokens, M spliced tokens, V visual tokens, D language width.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from manyeyes.config.recipe import MlpProjector, ModelSection
from manyeyes.errors import UserError
from manyeyes.model import overview
from manyeyes.model.alignment import PatchAligningLayer, build_alignment, lesson_of, listen
from manyeyes.model.building import build_encoders, config_of, eyes_of, seeded
from manyeyes.model.documents import packed_arguments
from manyeyes.model.encoders import Encoder
from manyeyes.model.fusion import build_fusion, fusion_from_json, is_trainable
from manyeyes.model.last_layer import last_layer_at
from manyeyes.model.loss import Learned, VisionLanguageOutput, supervised_loss
from manyeyes.model.projector import build_projector
from manyeyes.model.router import router_loss, router_options
from manyeyes.model.splice import Spliced, splice, widened
from manyeyes.model.transformer import (
    build_language_model,
    decoder_of,
    embedding_scale,
    greedy_settings,
    head_of,
    load_language_model,
    load_language_model_config,
)
from manyeyes.model.vlm_config import VisionLanguageConfig
from manyeyes.model.weights import checkpoint_errors
from manyeyes.model.weights.foreign_code import refuse_foreign_code
from manyeyes.model.weights.loading import fill, find_safetensors, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from manyeyes.model.overview import ModuleSummary, TracedShape


class VisionLanguageModel(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Encoders, fusion, projector, splice, language model."""

    config: VisionLanguageConfig
    config_class = VisionLanguageConfig
    main_input_name = "input_ids"
    base_model_prefix = ""
    _supports_sdpa = True
    alignment: PatchAligningLayer | None
    """Compares hidden states with a teacher's features; only while training, only for EVE."""
    length_multiple = 1
    """Where a loss is asked for, batches are padded to a multiple of so many positions."""

    def __init__(
        self, config: VisionLanguageConfig, llm: PreTrainedModel | None = None, seed: int = 0
    ) -> None:
        super().__init__(config)
        self.encoders = build_encoders(config, seed)
        language_width = int(config.language.hidden_size)
        with seeded(seed, "fusion"):
            eyes = eyes_of(self.experts, config)
            self.fusion = build_fusion(fusion_from_json(config.fusion or {}), eyes)
        config.num_visual_tokens = self.fusion.num_tokens
        with seeded(seed, "projector"):
            section = MlpProjector.model_validate({"kind": config.projector})
            self.projector = build_projector(section, self.fusion.group_widths, language_width)
        with seeded(seed, "llm"):
            self.llm = llm if llm is not None else build_language_model(config.language)
        self.alignment = None
        self.post_init()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        # Saved beside the weights: which ids stop a generation may stand only there.
        self.generation_config = self.llm.generation_config

    @classmethod
    def from_recipe(
        cls,
        model: ModelSection,
        *,
        seed: int,
        load: bool = True,
        text_config: PreTrainedConfig | None = None,
    ) -> VisionLanguageModel:
        """Build the model a recipe describes.

        Args:
            model: the recipe's section.
            seed: of what is initialised at random (the projector, and ``random`` encoders).
            load: read the pretrained weights; False builds random ones of the same shapes.
            text_config: of the language model, where that of its weights is not wanted.

        Raises:
            UserError: an unknown spec, weights that cannot be loaded, or lengths beyond the
                language model's positions.
        """
        config = config_of(model, text_config or load_language_model_config(model.llm.weights))
        llm = load_language_model(model.llm.weights) if load else None
        vlm = cls(config, llm=llm, seed=seed)
        if load:
            for section in model.encoders:
                load_weights(vlm.encoders[section.name], section.weights)
        vlm.attach_alignment(model, seed=seed, load=load)
        return vlm

    @classmethod
    def from_pretrained(  # type: ignore[override]  # narrower than transformers' on purpose
        cls,
        directory: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        training: ModelSection | None = None,
        config: VisionLanguageConfig | None = None,
        **passed: Any,  # noqa: ANN401  # transformers' own
    ) -> VisionLanguageModel:
        """Load a saved model in evaluation mode, completely or not at all.

        Not transformers' loader: that one initialises what is missing, and only warns.

        Args:
            directory: where ``save_model`` wrote.
            dtype: of the parameters.
            training: the recipe's section, for its sizes and what only training needs.
            config: in place of the one in the folder; ``AutoModel`` has read it already.
            passed: what ``AutoModel`` adds by itself; anything else is refused.

        Raises:
            UserError: the folder holds no such model, or a broken or incomplete one.
        """
        checkpoint_errors.refuse_options(passed)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"dtype is {dtype!r}: give one of torch's, as torch.bfloat16.")
        folder = Path(directory)
        refuse_foreign_code(str(folder), str(folder))
        checkpoint_errors.check_kind(folder, VisionLanguageConfig.model_type)
        with checkpoint_errors.as_user_errors(folder):
            if config is None:
                config = VisionLanguageConfig.from_pretrained(folder, trust_remote_code=False)
            if training is not None:
                assert isinstance(config.text_config, PreTrainedConfig)
                config = config_of(training, config.text_config)
            with no_init_weights():
                vlm = cls(config)
            vlm.llm.tie_weights()
            stops = GenerationConfig.from_pretrained(folder)
        if training is not None:
            vlm.attach_alignment(training, seed=0)
        dropped = () if vlm.alignment is not None else ("alignment.",)
        files = find_safetensors(str(folder.absolute()))
        fill(vlm, files, str(folder), lambda key: None if key.startswith(dropped) else key)
        vlm.generation_config = vlm.llm.generation_config = stops
        nn.Module.to(vlm, dtype)  # transformers' own wraps the types away
        return vlm.train(mode=False)

    @property
    def experts(self) -> dict[str, Encoder]:
        """The encoders by name, in channel order, with their type."""
        return {name: cast("Encoder", encoder) for name, encoder in self.encoders.items()}

    def attach_alignment(self, model: ModelSection, *, seed: int, load: bool = True) -> None:
        """Build what the recipe's ``alignment`` asks for, if it does.

        Raises:
            UserError: the teacher does not fit, or its weights cannot be read.
        """
        if model.alignment is not None:
            config = self.llm.config
            with seeded(seed, "alignment"):
                self.alignment = build_alignment(model.alignment, self.fusion, config, load=load)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pixels: Tensor | None = None,
        image_sizes: Tensor | None = None,
        idle_pixels: Tensor | None = None,
        document_lengths: tuple[int, ...] | None = None,
        maps: list[Tensor] | None = None,
    ) -> VisionLanguageOutput:
        """Run the whole path.

        Args:
            input_ids: (B, N), ``IMAGE_TOKEN`` (-200) at images. They, the mask and the labels may
                be on the CPU wherever the model is, which then never waits to be asked about them.
            attention_mask: (B, N), 0 at padding; None for no padding.
            labels: (B, N), -100 where there is no loss; labels[t] is the token at t.
            pixels: (I, 3, S, S) canvases, uint8 or 0..1, in reading order over the batch; None or
                empty for text-only batches.
            image_sizes: (I, 2) widths and heights of the pictures before they were laid out on
                canvases, on the CPU; None for squares.
            idle_pixels: canvases (I', 3, S, S) that go through the vision path and add nothing to
                the loss: in training by several processes, all must meet the same modules.
            document_lengths: spliced lengths of samples end to end in one row, B = 1; else None.
            maps: what ``see`` would return for the pictures, in place of ``pixels``.

        Returns:
            ``loss`` and ``num_supervised`` when labels are given, and ``alignment_loss`` where
            there is such a layer and a picture; without labels ``logits``.

        Raises:
            UserError: placeholders and images do not match.
        """
        maps_ICHW = self.see(pixels, image_sizes) if maps is None else maps
        idle_ICHW = self.see(idle_pixels)
        visual_IVD, idle_IVD = self.project(maps_ICHW), self.project(idle_ICHW)
        spliced = self.splice_inputs(
            input_ids, visual_IVD, attention_mask, labels, image_sizes=image_sizes, side="right"
        )
        if labels is not None and self.length_multiple > 1:
            spliced, document_lengths = self._widened(spliced, document_lengths)
        embeddings_BMD = spliced.embeddings
        if idle_IVD is not None:
            # Through the language model, as pictures go: backward must meet it, too.
            embeddings_BMD = embeddings_BMD + (0.0 * idle_IVD).sum().to(embeddings_BMD.dtype)
        decoder = decoder_of(self.llm)
        layer = None if labels is None else self.alignment
        lesson = lesson_of(layer, self.fusion, pixels, image_sizes)
        listening = listen(lesson, decoder, spliced.embeddings, spliced.image_starts)
        learned = None if labels is None else Learned.of(spliced.labels, embeddings_BMD.device)
        # A lesson also reads what the last layer says of pictures.
        read_K = None if learned is None or lesson is not None else learned.places_K
        inside = self.fusion.inside(decoder, spliced, maps_ICHW, idle_ICHW)
        with inside, last_layer_at(decoder, read_K), listening as heard:
            output = decoder(
                inputs_embeds=embeddings_BMD,
                use_cache=False,
                **packed_arguments(self.llm, document_lengths, embeddings_BMD.device),
                **router_options(self.config.language, trains=is_trainable(self.llm)),
            )
        hidden_BMD: Tensor = output.last_hidden_state
        head = head_of(self.llm)
        masks = {"visual_mask": spliced.visual_mask, "attention_mask": spliced.attention_mask}
        if learned is None:
            return VisionLanguageOutput(logits=head(hidden_BMD), **masks)
        vocabulary = int(self.llm.config.vocab_size)
        loss, num_supervised = supervised_loss(hidden_BMD, learned, head, vocabulary)
        balance = router_loss(self.config.language, output, spliced.attention_mask)
        loss = loss if balance is None else loss + balance
        aligned = None
        if lesson is not None and heard is not None:
            aligned = lesson.loss(heard, hidden_BMD)
        elif idle_IVD is not None:
            idle = lesson_of(layer, self.fusion, idle_pixels, None)
            aligned = None if idle is None else idle.idle_loss(idle_IVD)
        return VisionLanguageOutput(loss, num_supervised, aligned, **masks)

    def see(self, pixels: Tensor | None, image_sizes: Tensor | None = None) -> list[Tensor]:
        """Map canvases (I, 3, S, S) to the experts' maps (I, C_i, H_i, H_i); none for no images."""
        if pixels is None or pixels.shape[0] == 0:
            return []
        return self.fusion.see(self.experts, pixels, image_sizes)

    def project(self, maps_ICHW: list[Tensor]) -> Tensor | None:
        """Map the experts' maps to visual tokens (I, V, D); None when there are no images."""
        if not maps_ICHW:
            return None
        visual_IVD = self.fusion.arrange(self.projector(self.fusion(maps_ICHW)))
        return visual_IVD * embedding_scale(self.llm)

    def splice_inputs(
        self,
        input_ids: Tensor,
        visual_embeddings: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        *,
        image_sizes: Tensor | None = None,
        side: Literal["left", "right"],
    ) -> Spliced:
        """Embed the text and put the visual tokens (I, V, D) at their placeholders."""
        counts_I = None
        if visual_embeddings is not None:
            counts_I = self.fusion.token_counts(image_sizes)
        return splice(
            input_ids,
            self.llm.get_input_embeddings(),
            visual_embeddings,
            num_visual=self.config.num_visual_tokens if counts_I is None else counts_I,
            attention_mask=attention_mask,
            labels=labels,
            side=side,
            device=self.device,
        )

    def _widened(
        self, spliced: Spliced, document_lengths: tuple[int, ...] | None
    ) -> tuple[Spliced, tuple[int, ...] | None]:
        """Pad to ``length_multiple``; in a row of documents the padding is one more of them."""
        length = spliced.labels.shape[1]
        limit = getattr(self.llm.config, "max_position_embeddings", None)
        packed = document_lengths is not None  # positions begin anew in each document
        wide = widened(spliced, self.length_multiple, None if packed else limit)
        added = wide.labels.shape[1] - length
        if document_lengths is not None and added:
            document_lengths = (*document_lengths, added)
        return wide, document_lengths

    @torch.no_grad()
    def generate(  # type: ignore[override]  # new tokens only, which transformers' cannot promise
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixels: Tensor | None = None,
        image_sizes: Tensor | None = None,
        *,
        max_new_tokens: int,
        **options: Any,  # noqa: ANN401  (generation options of transformers)
    ) -> Tensor:
        """Continue each prompt, greedily unless ``options`` say otherwise.

        The images are encoded once, before the first token; decoding uses the language model's
        cache.

        Args:
            input_ids: (B, N) prompts, padded on either side.
            attention_mask: (B, N), 0 at padding; None for no padding.
            pixels: as in ``forward``.
            image_sizes: as in ``forward``.
            max_new_tokens: longest continuation.
            options: any of transformers' generation options.

        Returns:
            (B, at most max_new_tokens) *new* ids; rows that stopped early are padded.

        Raises:
            UserError: placeholders and images do not match.
        """
        maps_ICHW = self.see(pixels, image_sizes)
        visual_IVD = self.project(maps_ICHW)
        spliced = self.splice_inputs(
            input_ids, visual_IVD, attention_mask, None, image_sizes=image_sizes, side="left"
        )
        settings = {**greedy_settings(self.llm), **options}
        generate = cast("Callable[..., Tensor]", self.llm.generate)
        with self.fusion.inside(decoder_of(self.llm), spliced, maps_ICHW):
            return generate(
                inputs_embeds=spliced.embeddings,
                attention_mask=spliced.attention_mask.long(),
                max_new_tokens=max_new_tokens,
                **settings,
            )

    def train(self, mode: bool = True) -> VisionLanguageModel:
        """Set the mode; wholly frozen parts stay in evaluation mode (no dropout in them)."""
        super().train(mode)
        for part in (*self.encoders.values(), self.llm):
            if not is_trainable(part):
                part.eval()
        return self

    def picture_tokens(self, width: int, height: int) -> int:
        """Return how many visual tokens a picture of a size in pixels takes."""
        return self.fusion.picture_tokens(width, height)

    def describe(self) -> list[ModuleSummary]:
        """Return one line per encoder, then fusion, projector and language model."""
        return overview.describe(self)

    def trace_shapes(self, canvas_size: int) -> list[TracedShape]:
        """Return the shapes that real tensors have along the path; see ``overview``."""
        return overview.trace_shapes(self, canvas_size)

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's embedding table."""
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head."""
        return head_of(self.llm)

    def _init_weights(self, module: nn.Module) -> None:
        """Leave our own parts as their constructors made them (transformers' hook)."""


AutoConfig.register(VisionLanguageConfig.model_type, VisionLanguageConfig, exist_ok=True)
AutoModel.register(VisionLanguageConfig, VisionLanguageModel, exist_ok=True)
AutoModelForImageTextToText.register(VisionLanguageConfig, VisionLanguageModel, exist_ok=True)
