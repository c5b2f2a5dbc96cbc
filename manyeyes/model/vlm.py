"""The vision-language model: a mixture of encoders in front of a causal language model.

One image's journey, which ``forward`` follows line by line:

    canvas (I, 3, S, S) uint8 -> each encoder (I, C_i, H, W) -> fusion (I, V, C)
    -> projector (I, V, D) -> splice (B, M, D) -> decoder (B, M, D)
    -> head, on supervised positions only (K, vocabulary) -> loss

Decisions:

- A Hugging Face citizen: config, ``save_pretrained``, ``from_pretrained``, ``generate``. The config
  holds every encoder's full spec, so that a checkpoint loads without a recipe or the table.
- Parameter names are the recipe's: ``encoders.NAME.*``, ``fusion.*``, ``projector.*``, ``llm.*``.
- Frozen means frozen: an encoder without a trainable parameter runs without autograd, and when
  nothing in front of the language model trains, neither do its activations enter a graph.
- Batches are padded on the right for training, so that plain causal attention needs no mask (a
  token never looks ahead at padding), and on the left for generation.
- Text-only batches cost no vision forward.
- Parts are initialised from generators of their own, derived from the seed and the part's name:
  adding an expert does not change the projector's first weights of the others' experiments.

Shapes: I images, B samples, N input tokens, M spliced tokens, V visual tokens, D language width.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from manyeyes.model import checkpoint_errors, overview
from manyeyes.model.encoders import Encoder, encoder_from_spec, section_spec
from manyeyes.model.encoders.spec import spec_from_json, spec_to_json
from manyeyes.model.fusion import Eyes, build_fusion, fusion_from_json, is_trainable
from manyeyes.model.loss import VisionLanguageOutput, supervised_loss
from manyeyes.model.projector import build_projector
from manyeyes.model.router import router_loss, router_options, set_router_weight
from manyeyes.model.splice import Spliced, splice
from manyeyes.model.transformer import (
    build_language_model,
    decoder_of,
    embedding_scale,
    head_of,
    load_language_model,
    load_language_model_config,
    stop_ids,
)
from manyeyes.model.vlm_config import VisionLanguageConfig, check_length, check_names
from manyeyes.model.weights import fill, find_safetensors, load_weights
from manyeyes.recipe import MlpProjector, ModelSection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from manyeyes.model.overview import ModuleSummary, TracedShape


class VisionLanguageModel(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Encoders, fusion, projector, splice, language model."""

    config: VisionLanguageConfig
    config_class = VisionLanguageConfig
    main_input_name = "input_ids"
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(
        self, config: VisionLanguageConfig, llm: PreTrainedModel | None = None, seed: int = 0
    ) -> None:
        super().__init__(config)
        self.encoders = nn.ModuleDict()
        for row in config.encoders or []:
            name, spec = str(row["name"]), spec_from_json(row["spec"])
            normalization = cast("Literal['per_encoder', 'shared']", config.normalization)
            with seeded(seed, f"encoders.{name}"):
                self.encoders[name] = encoder_from_spec(
                    spec, grid=row.get("grid") or config.grid, normalization=normalization
                )
        assert isinstance(config.text_config, PreTrainedConfig)
        language_width = int(config.text_config.hidden_size)
        with seeded(seed, "fusion"):
            eyes = Eyes(
                names=tuple(self.experts),
                families=tuple(expert.spec.family for expert in self.experts.values()),
                widths=tuple(expert.spec.width for expert in self.experts.values()),
                grids=tuple(expert.grid for expert in self.experts.values()),
                grid=config.grid,
                language_width=language_width,
                language_layers=int(config.text_config.num_hidden_layers),
            )
            self.fusion = build_fusion(fusion_from_json(config.fusion or {}), eyes)
        config.num_visual_tokens = self.fusion.num_tokens
        with seeded(seed, "projector"):
            section = MlpProjector.model_validate({"kind": config.projector})
            self.projector = build_projector(section, self.fusion.group_widths, language_width)
        with seeded(seed, "llm"):
            self.llm = llm if llm is not None else build_language_model(config.text_config)
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
        text_config = text_config or load_language_model_config(model.llm.weights)
        if model.llm.router_loss is not None:
            set_router_weight(text_config, model.llm.router_loss)
        check_length(model, text_config)
        check_names(model)
        config = VisionLanguageConfig(
            encoders=[
                {
                    "name": section.name,
                    "spec": spec_to_json(section_spec(section)),
                    "grid": section.grid or model.grid,
                }
                for section in model.encoders
            ],
            grid=model.grid,
            normalization=model.normalization,
            fusion=model.fusion.model_dump(mode="json"),
            projector=model.projector.kind,
            max_length=model.max_length,
            text_config=text_config,
        )
        llm = load_language_model(model.llm.weights) if load else None
        vlm = cls(config, llm=llm, seed=seed)
        if load:
            for section in model.encoders:
                load_weights(vlm.encoders[section.name], section.weights)
        return vlm

    @classmethod
    def from_pretrained(  # type: ignore[override]  # narrower than transformers' on purpose
        cls,
        directory: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        model: ModelSection | None = None,
    ) -> VisionLanguageModel:
        """Load a saved model in evaluation mode, completely or not at all.

        Not transformers' loader: that one initialises what is missing and warns, and it visits the
        removed parts of the towers to do so.

        Args:
            directory: of the checkpoint.
            dtype: of the weights in memory.
            model: another model to fill with these weights, by name; the language model's config
                and everything else that is not in the section come from the checkpoint.

        Raises:
            UserError: the folder holds no such model, or a broken or incomplete one.
        """
        folder = Path(directory)
        checkpoint_errors.check_kind(folder, VisionLanguageConfig.model_type)
        with checkpoint_errors.as_user_errors(folder):
            config = VisionLanguageConfig.from_pretrained(folder)
            with no_init_weights():
                vlm = _like(cls, config, model)
            vlm.llm.tie_weights()
            stops = GenerationConfig.from_pretrained(folder)
        fill(vlm, find_safetensors(str(folder.absolute())), str(folder), lambda key: key)
        vlm.generation_config = vlm.llm.generation_config = stops
        nn.Module.to(vlm, dtype)  # transformers' own wraps the types away
        return vlm.train(mode=False)

    @property
    def experts(self) -> dict[str, Encoder]:
        """The encoders by name, in channel order, with their type."""
        return {name: cast("Encoder", encoder) for name, encoder in self.encoders.items()}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pixels: Tensor | None = None,
        idle_pixels: Tensor | None = None,
    ) -> VisionLanguageOutput:
        """Run the whole path.

        Args:
            input_ids: (B, N), ``IMAGE_TOKEN`` (-200) at images.
            attention_mask: (B, N), 0 at padding; None for no padding.
            labels: (B, N), -100 where there is no loss; labels[t] is the token at t.
            pixels: (I, 3, S, S) canvases, uint8 or 0..1, in reading order over the batch; None or
                empty for text-only batches.
            idle_pixels: canvases (I', 3, S, S) that go through the vision path and add nothing to
                the loss: in training by several processes, all must meet the same modules.

        Returns:
            ``loss`` and ``num_supervised`` when labels are given, else ``logits``.

        Raises:
            UserError: placeholders and images do not match.
        """
        maps_ICHW = self.see(pixels)
        visual_IVD = self.project(maps_ICHW)
        idle_ICHW = self.see(idle_pixels)
        idle_IVD = self.project(idle_ICHW)
        spliced = self.splice_inputs(input_ids, visual_IVD, attention_mask, labels, side="right")
        embeddings_BMD = spliced.embeddings
        if idle_IVD is not None:
            # Through the language model, as pictures go: backward must meet it, too.
            embeddings_BMD = embeddings_BMD + (0.0 * idle_IVD).sum().to(embeddings_BMD.dtype)
        decoder = decoder_of(self.llm)
        with self.fusion.inside(decoder, spliced, maps_ICHW, idle_ICHW):
            output = decoder(
                inputs_embeds=embeddings_BMD,
                use_cache=False,
                **router_options(self.config.text_config, trains=is_trainable(self.llm)),
            )
        hidden_BMD: Tensor = output.last_hidden_state
        head = head_of(self.llm)
        masks = {"visual_mask": spliced.visual_mask, "attention_mask": spliced.attention_mask}
        if labels is None:
            return VisionLanguageOutput(logits=head(hidden_BMD), **masks)
        loss, num_supervised = supervised_loss(hidden_BMD, spliced.labels, head)
        balance = router_loss(self.config.text_config, output, spliced.attention_mask)
        loss = loss if balance is None else loss + balance
        return VisionLanguageOutput(loss=loss, num_supervised=num_supervised, **masks)

    def see(self, pixels: Tensor | None) -> list[Tensor]:
        """Map canvases (I, 3, S, S) to the experts' maps (I, C_i, H_i, H_i); none for no images."""
        if pixels is None or pixels.shape[0] == 0:
            return []
        return self.fusion.see(self.experts, pixels)

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
        side: Literal["left", "right"],
    ) -> Spliced:
        """Embed the text and put the visual tokens (I, V, D) at their placeholders."""
        text_BND = self.llm.get_input_embeddings()(input_ids.clamp_min(0))
        return splice(
            input_ids,
            text_BND,
            visual_embeddings,
            num_visual=self.config.num_visual_tokens,
            attention_mask=attention_mask,
            labels=labels,
            side=side,
        )

    @torch.no_grad()
    def generate(  # type: ignore[override]  # new tokens only, which transformers' cannot promise
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixels: Tensor | None = None,
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
            max_new_tokens: longest continuation.
            options: any of transformers' generation options.

        Returns:
            (B, at most max_new_tokens) *new* ids; rows that stopped early are padded.

        Raises:
            UserError: placeholders and images do not match.
        """
        maps_ICHW = self.see(pixels)
        visual_IVD = self.project(maps_ICHW)
        spliced = self.splice_inputs(input_ids, visual_IVD, attention_mask, None, side="left")
        stops = stop_ids(self.llm)
        pad = self.llm.config.pad_token_id
        settings: dict[str, Any] = {
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
            "eos_token_id": list(stops) or None,
            "pad_token_id": next(iter(stops), None) if pad is None else pad,
            **options,
        }
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


@contextmanager
def seeded(seed: int, part: str) -> Iterator[None]:
    """Run a block with random numbers of its own, derived from the seed and a part's name."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"{seed}/{part}".encode()))
        yield


def _like(
    kind: type[VisionLanguageModel], config: VisionLanguageConfig, model: ModelSection | None
) -> VisionLanguageModel:
    """Build what a checkpoint's config describes, or another model around its language model."""
    if model is None:
        return kind(config)
    assert isinstance(config.text_config, PreTrainedConfig)
    return kind.from_recipe(model, seed=0, load=False, text_config=config.text_config)
