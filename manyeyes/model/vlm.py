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

from manyeyes.errors import UserError
from manyeyes.model import checkpoint_errors, overview
from manyeyes.model.encoders import Encoder, encoder_from_spec, find_spec
from manyeyes.model.encoders.spec import spec_from_json, spec_to_json
from manyeyes.model.fusion import Eyes, build_fusion, fusion_from_json, is_trainable
from manyeyes.model.loss import VisionLanguageOutput, supervised_loss
from manyeyes.model.projector import build_projector
from manyeyes.model.splice import Spliced, splice
from manyeyes.model.transformer import (
    build_language_model,
    decoder_of,
    head_of,
    load_language_model,
    load_language_model_config,
)
from manyeyes.model.vlm_config import VisionLanguageConfig
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
        cls, model: ModelSection, *, seed: int, load: bool = True
    ) -> VisionLanguageModel:
        """Build the model a recipe describes.

        Args:
            model: the recipe's section.
            seed: of what is initialised at random (the projector, and ``random`` encoders).
            load: read the pretrained weights; False builds random ones of the same shapes.

        Raises:
            UserError: an unknown spec, weights that cannot be loaded, or lengths beyond the
                language model's positions.
        """
        text_config = load_language_model_config(model.llm.weights)
        _check_length(model, text_config)
        _check_names(model)
        config = VisionLanguageConfig(
            encoders=[
                {
                    "name": section.name,
                    "spec": spec_to_json(find_spec(section.spec)),
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
        cls, directory: str | Path, *, dtype: torch.dtype = torch.float32
    ) -> VisionLanguageModel:
        """Load a saved model in evaluation mode, completely or not at all.

        Not transformers' loader: that one initialises what is missing and warns, and it visits the
        removed parts of the towers to do so.

        Raises:
            UserError: the folder holds no such model, or a broken or incomplete one.
        """
        folder = Path(directory)
        checkpoint_errors.check_kind(folder, VisionLanguageConfig.model_type)
        with checkpoint_errors.as_user_errors(folder):
            config = VisionLanguageConfig.from_pretrained(folder)
            with no_init_weights():
                vlm = cls(config)
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
        maps: list[Tensor] | None = None,
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
            maps: what ``see`` would return for the pictures, in place of ``pixels``.

        Returns:
            ``loss`` and ``num_supervised`` when labels are given, else ``logits``.

        Raises:
            UserError: placeholders and images do not match.
        """
        maps_ICHW = self.see(pixels) if maps is None else maps
        visual_IVD = self.project(maps_ICHW)
        idle_IVD = self.project(self.see(idle_pixels))
        spliced = self.splice_inputs(input_ids, visual_IVD, attention_mask, labels, side="right")
        embeddings_BMD = spliced.embeddings
        if idle_IVD is not None:
            # Through the language model, as pictures go: backward must meet it, too.
            embeddings_BMD = embeddings_BMD + (0.0 * idle_IVD).sum().to(embeddings_BMD.dtype)
        decoder = decoder_of(self.llm)
        with self.fusion.inside(decoder, spliced, maps_ICHW):
            hidden_BMD = decoder(inputs_embeds=embeddings_BMD, use_cache=False).last_hidden_state
        head = head_of(self.llm)
        masks = {"visual_mask": spliced.visual_mask, "attention_mask": spliced.attention_mask}
        if labels is None:
            return VisionLanguageOutput(logits=head(hidden_BMD), **masks)
        vocabulary = int(self.llm.config.vocab_size)
        loss, num_supervised = supervised_loss(hidden_BMD, spliced.labels, head, vocabulary)
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
        return self.fusion.arrange(self.projector(self.fusion(maps_ICHW)))

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
        stop, pad = self._stop_and_pad()
        settings: dict[str, Any] = {
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
            "eos_token_id": stop,
            "pad_token_id": pad,
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

    def _stop_and_pad(self) -> tuple[int | list[int] | None, int | None]:
        stop = self.llm.generation_config.eos_token_id or self.llm.config.eos_token_id
        pad = self.llm.config.pad_token_id
        if pad is None and stop is not None:
            pad = stop[0] if isinstance(stop, list) else stop
        return stop, pad


@contextmanager
def seeded(seed: int, part: str) -> Iterator[None]:
    """Run a block with random numbers of its own, derived from the seed and a part's name."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"{seed}/{part}".encode()))
        yield


def _check_length(model: ModelSection, text_config: PreTrainedConfig) -> None:
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and model.max_length > positions:
        raise UserError(
            f"model.max_length is {model.max_length}, but the language model "
            f"{model.llm.weights!r} has {positions} positions: lower max_length."
        )


def _check_names(model: ModelSection) -> None:
    for section in model.encoders:
        if "." in section.name or hasattr(nn.ModuleDict, section.name):
            raise UserError(
                f"An encoder cannot be called {section.name!r}, because parameters are named "
                "after it: use a name without dots, like 'clip'."
            )
