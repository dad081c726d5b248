"""The nodes: what each shows, and a few lines that call the engine."""

from __future__ import annotations

import logging
import secrets
import time

import torch
from comfy.model_management import intermediate_device
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from candela.comfyui import names

log = logging.getLogger("candela")

CATEGORY = "Candela"
MAX_SEED = 2**64 - 1  # the engine's, which is not imported before a node runs
ModelType = io.Custom("CANDELA_MODEL")
PromptType = io.Custom("CANDELA_PROMPT")
PRECISIONS = ["auto", "bfloat16", "float16", "float32"]
FAST = ["off", "auto", "int8", "fp8"]

GUIDANCE = (
    "How strongly the picture follows the prompt, as the model's authors count: Z-Image is off at 0 (ComfyUI's cfg is "
    "guidance + 1), the Lumina models are off at 1 (the same number as cfg). -1: the model's own."
)


def _fingerprint(model: str | None) -> str | float | None:
    """Changes with the model's files. None where a link gives the name, which is not known yet."""
    from candela.errors import CandelaError

    try:
        return None if model is None else names.fingerprint(model)
    except CandelaError:
        return float("nan")  # never equal: look again next time


def _model_input() -> io.Combo.Input:
    return io.Combo.Input(
        "model",
        options=names.listed(),
        default="demo",
        tooltip="demo needs no download. Folders in diffusers layout under models/diffusers appear here, and weight "
        "files (safetensors, GGUF) under models/diffusion_models and models/checkpoints; a model that is not on this "
        "machine says what to run.",
    )


def _settings() -> list[io.Input]:
    """The sampling widgets that two nodes share."""
    return [
        io.Int.Input("width", default=0, min=0, max=16384, step=16, tooltip="Pixels. 0: the model's own."),
        io.Int.Input("height", default=0, min=0, max=16384, step=16, tooltip="Pixels. 0: the model's own."),
        io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Pictures at once; picture k takes seed + k."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="The same seed gives the same picture, here, from the shell and from Python.",
        ),
        io.Int.Input("steps", default=0, min=0, max=1000, tooltip="Model evaluations. 0: the model's own."),
        io.Float.Input("guidance", default=-1.0, min=-1.0, max=100.0, step=0.1, tooltip=GUIDANCE),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="With a latent picture: 1 ignores it, 0.5 keeps its layout. An empty latent needs 1.",
        ),
    ]


def _prompt_inputs() -> list[io.Input]:
    return [
        io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="What the picture shows."),
        io.String.Input(
            "negative_prompt",
            multiline=True,
            default="",
            dynamic_prompts=True,
            tooltip="What it should not show. Read only where guidance is on.",
        ),
    ]


class CandelaLoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CandelaLoadModel",
            display_name="Load model (Candela)",
            category=CATEGORY,
            description="Loads Z-Image, a Lumina model, or another text-to-image model of diffusers, from a folder or "
            "from files. Nodes that ask for the same one share it.",
            inputs=[
                _model_input(),
                io.Combo.Input(
                    "precision",
                    options=PRECISIONS,
                    default="auto",
                    tooltip="auto: bfloat16 where the GPU has it, float32 elsewhere. float16 overflows in Z-Image.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=names.listed_parts("text_encoder"),
                    default=names.OWN,
                    optional=True,
                    tooltip="For a model from parts: a file under models/text_encoders, GGUF included.",
                ),
                io.Combo.Input(
                    "vae",
                    options=names.listed_parts("vae"),
                    default=names.OWN,
                    optional=True,
                    tooltip="For a model from parts: a file under models/vae.",
                ),
                io.Combo.Input(
                    "fast",
                    options=FAST,
                    default="off",
                    optional=True,
                    tooltip="Computes in 8-bit numbers, which changes pictures a little. auto: fp8 or int8, whichever "
                    "the GPU does best.",
                ),
            ],
            outputs=[
                ModelType.Output(display_name="model"),
                io.Vae.Output(display_name="vae", tooltip="For ComfyUI's own VAE Decode and VAE Encode."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model, text_encoder=names.OWN, vae=names.OWN):
        return True  # a name that is not in the list gets our own words when it runs, not "value not in list"

    @classmethod
    def fingerprint_inputs(cls, model, text_encoder=names.OWN, vae=names.OWN, **inputs):
        if None in (model, text_encoder, vae):
            return None
        return _fingerprint(names.chosen(model, text_encoder, vae))

    @classmethod
    def execute(cls, model, precision, text_encoder=names.OWN, vae=names.OWN, fast="off"):
        from candela.comfyui import models
        from candela.comfyui.vae import EngineVAE

        with models.unloading_when_full():
            loaded = models.load(names.chosen(model, text_encoder, vae), precision, fast)
        return io.NodeOutput(loaded, EngineVAE(loaded))


class CandelaLoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CandelaLoadLora",
            display_name="LoRA (Candela)",
            category=CATEGORY,
            description="Changes what the model has learnt by a LoRA file, all of it or with an error. Several in a "
            "row add up; the model without the node stays as it was.",
            inputs=[
                ModelType.Input("model"),
                io.Combo.Input(
                    "lora",
                    options=names.listed_loras(),
                    tooltip="Files under models/loras. One for another model says which it is for.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    tooltip="1: as it was trained. 0: not at all. Below 0: the other way.",
                ),
            ],
            outputs=[ModelType.Output(display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, lora):
        return True  # as in Load model: our own words

    @classmethod
    def fingerprint_inputs(cls, lora, **inputs):
        from candela.errors import CandelaError

        try:
            return None if lora is None else names.lora_fingerprint(lora)
        except CandelaError:
            return float("nan")

    @classmethod
    def execute(cls, model, lora, strength):
        from candela.engine import Lora

        chosen = Lora(names.lora_file(lora), strength)
        model.engine.check_loras([chosen])
        return io.NodeOutput(model._replace(loras=(*model.loras, chosen)))


class CandelaEncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CandelaEncodePrompt",
            display_name="Encode prompt (Candela)",
            category=CATEGORY,
            description="Turns the prompts into the model's text features. Nothing is cut: a prompt "
            "beyond the model's limit is an error that says by how much.",
            inputs=[ModelType.Input("model"), *_prompt_inputs()],
            outputs=[PromptType.Output(display_name="prompt")],
        )

    @classmethod
    def execute(cls, model, prompt, negative_prompt):
        from candela.comfyui.models import unloading_when_full

        began = time.perf_counter()
        with unloading_when_full():
            conditioning = model.engine.encode([prompt], [negative_prompt])
        log.info("[Candela] encoded the prompt in %.2f s", time.perf_counter() - began)
        return io.NodeOutput(conditioning)


class CandelaSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CandelaSampler",
            display_name="Sampler (Candela)",
            category=CATEGORY,
            description="Denoises to a LATENT that VAE Decode understands. A latent picture is the start for "
            "image-to-image, with a noise mask only the masked part is painted anew.",
            inputs=[
                ModelType.Input("model"),
                PromptType.Input("prompt"),
                *_settings(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Optional. Its size and number of pictures replace the widgets'. Empty (all zero, 4 or 16 "
                    "channels): only its size counts.",
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, model, prompt, width, height, batch_size, seed, steps, guidance, denoise, latent=None):
        from candela.comfyui import latents, models, progress
        from candela.engine import Request
        from candela.errors import InvalidRequest

        engine = model.engine
        given = None if latent is None else latents.read(latent, engine.latent_channels, engine.family.latent_factor)
        if given is not None:
            width, height, batch_size = given.width, given.height, given.number
        start = None if given is None else given.latents
        if start is None and denoise < 1:
            raise InvalidRequest(
                f"denoise {denoise:g} needs a picture to start from, and the latent is "
                f"{'not connected' if latent is None else 'empty'}: connect VAE Encode, or set denoise to 1"
            )
        request = Request(
            prompt.prompts,
            width=width or None,
            height=height or None,
            steps=steps or None,
            guidance=None if guidance < 0 else guidance,
            seed=[seed + k for k in given.offsets] if given else seed,
            count=batch_size,
            latents=start,
            strength=None if start is None else denoise,
            mask=None if given is None else given.mask,
        )
        began = time.perf_counter()
        with models.unloading_when_full():
            engine.prepare_preview()
            for lora in engine.set_loras(model.loras):
                log.info("[Candela] %s at %g: all %d modules", lora.path, lora.strength, lora.modules)
            samples = engine.denoise(request, prompt, on_step=progress.reporter(), cancelled=progress.interrupted)
        log.info("[Candela] sampled %d picture(s) in %.2f s", batch_size, time.perf_counter() - began)
        return io.NodeOutput(latents.write(latent, samples.to(intermediate_device()), given))


class CandelaDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CandelaDecode",
            display_name="Decode (Candela)",
            category=CATEGORY,
            description="LATENT to IMAGE, rounded to the 8 bits of a PNG: a picture saved here has the same pixels "
            "as one made from the shell. Outside an inpainting mask the first picture is put back.",
            inputs=[ModelType.Input("model"), io.Latent.Input("latent")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, model, latent):
        import numpy as np

        from candela.comfyui.latents import Repainted, flat
        from candela.comfyui.models import unloading_when_full

        with unloading_when_full():
            pictures = model.engine.decode(flat(latent["samples"]))
            if repainted := Repainted.of(latent):
                repainted.put_back(pictures, model.engine.decode)
        pixels = np.stack([np.asarray(picture) for picture in pictures])
        return io.NodeOutput(torch.from_numpy(pixels).float() / 255)


def _expand(model: str, precision: str, prompt: str, negative_prompt: str, decode: bool, **settings) -> io.NodeOutput:
    """One node as the four: ComfyUI runs and caches each, so that a new seed neither loads nor encodes again."""
    graph = GraphBuilder()
    loaded = graph.node("CandelaLoadModel", model=model, precision=precision)
    encoded = graph.node("CandelaEncodePrompt", model=loaded.out(0), prompt=prompt, negative_prompt=negative_prompt)
    sampled = graph.node("CandelaSampler", model=loaded.out(0), prompt=encoded.out(0), **settings)
    outputs = [sampled.out(0)]
    if decode:
        outputs.insert(0, graph.node("CandelaDecode", model=loaded.out(0), latent=sampled.out(0)).out(0))
    return io.NodeOutput(*outputs, expand=graph.finalize())


class LuminaNextDiffusersWrapper(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LuminaNextDiffusersWrapper",
            display_name="Text to image (Candela)",
            category=CATEGORY,
            description="Prompt in, picture out, with the chosen model's own settings.",
            inputs=[
                _model_input(),
                *_prompt_inputs(),
                *_settings(),
                io.Latent.Input("latent", optional=True, tooltip="Optional: a size, or a picture to start from."),
            ],
            outputs=[io.Image.Output(), io.Latent.Output()],
            enable_expand=True,
        )

    @classmethod
    def validate_inputs(cls, model):
        return True

    @classmethod
    def fingerprint_inputs(cls, model, **inputs):
        return _fingerprint(model)

    @classmethod
    def execute(cls, model, prompt, negative_prompt, latent=None, **settings):
        if latent is not None:
            settings["latent"] = latent
        return _expand(model, "auto", prompt, negative_prompt, decode=True, **settings)


class LuminaDiffusersNode(io.ComfyNode):
    """The inputs of Excidos' ComfyUI-Lumina-Next-SFT-DiffusersWrapper (2024), in their order: workflows keep
    widget values by position."""

    @classmethod
    def define_schema(cls):
        unused = "Kept so that older workflows open; it has no effect."
        return io.Schema(
            node_id="LuminaDiffusersNode",
            display_name="Lumina-Next-SFT Diffusers",
            category=CATEGORY,
            description="For workflows of ComfyUI-Lumina-Next-SFT-DiffusersWrapper. New ones are better made with "
            "Text to image (Candela).",
            inputs=[
                io.String.Input(
                    "model_path",
                    default="Alpha-VLLM/Lumina-Next-SFT-diffusers",
                    tooltip="A folder below models/diffusers, a hub id already downloaded, or a known name.",
                ),
                io.String.Input("prompt", multiline=True, tooltip="What the picture shows."),
                io.String.Input("negative_prompt", multiline=True, tooltip="What it should not show."),
                io.Int.Input("num_inference_steps", default=30, min=1, max=200, tooltip="Model evaluations."),
                io.Float.Input("guidance_scale", default=4.0, min=0.1, max=20.0, step=0.1, tooltip=GUIDANCE),
                io.Int.Input(
                    "seed", default=-1, min=-1, max=MAX_SEED, control_after_generate=True, tooltip="-1: a random one."
                ),
                io.Int.Input("batch_size", default=1, min=1, max=4, tooltip="Pictures at once."),
                io.Float.Input("scaling_watershed", default=0.3, min=0.0, max=1.0, step=0.01, tooltip=unused),
                io.Boolean.Input("proportional_attn", default=True, tooltip=unused + " Lumina-Next always has it."),
                io.Boolean.Input("clean_caption", default=True, tooltip=unused),
                io.Int.Input("max_sequence_length", default=256, min=64, max=512, tooltip=unused),
                io.Boolean.Input("use_time_shift", default=False, tooltip=unused),
                io.Int.Input("t_shift", default=4, min=1, max=20, tooltip=unused),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="With a latent picture: 1 ignores it, 0.5 keeps its layout.",
                ),
                io.Latent.Input("latents", optional=True, tooltip="A size, or a picture to start from."),
            ],
            outputs=[io.Latent.Output()],
            enable_expand=True,
            is_deprecated=True,
        )

    @classmethod
    def fingerprint_inputs(cls, model_path, seed, **inputs):
        return float("nan") if seed == -1 else _fingerprint(model_path)

    @classmethod
    def execute(
        cls, model_path, prompt, negative_prompt, num_inference_steps, guidance_scale, seed, batch_size, strength,
        use_time_shift=False, latents=None, **unused,
    ):  # fmt: skip
        if use_time_shift:
            log.warning("[Candela] LuminaDiffusersNode: use_time_shift has no effect")
        if seed == -1:
            seed = secrets.randbelow(2**32)
            log.info("[Candela] LuminaDiffusersNode: seed %d", seed)
        if strength < 1 and (latents is None or not latents["samples"].any()):
            log.warning("[Candela] LuminaDiffusersNode: strength has no effect without a picture to start from")
            strength = 1.0
        settings = {
            "width": 0,
            "height": 0,
            "batch_size": batch_size,
            "seed": seed,
            "steps": num_inference_steps,
            "guidance": guidance_scale,
            "denoise": strength,
        }
        if latents is not None:
            settings["latent"] = latents
        return _expand(model_path, "auto", prompt, negative_prompt, decode=False, **settings)


NODES: list[type[io.ComfyNode]] = [
    CandelaLoadModel,
    CandelaLoadLora,
    CandelaEncodePrompt,
    CandelaSampler,
    CandelaDecode,
    LuminaNextDiffusersWrapper,
    LuminaDiffusersNode,
]
