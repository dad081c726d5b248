"""What a component inside a weight file is built from: what the file says, held against what its tensors are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from candela.checkpoints.headers import Header, json_text
from candela.errors import DamagedFile, MismatchedModel

if TYPE_CHECKING:
    from candela.checkpoints.contents import Found

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")


def configuration(found: Found) -> dict[str, Any]:
    """From the file's own metadata, or a config.json beside a file of diffusers' name, else from the shapes.

    Raises:
        MismatchedModel: the shapes do not tell, tensors that should are missing, or what is said is not what is there.
    """
    path, architecture = found.header.path, found.architecture
    if architecture.component == "controlnet":
        raise MismatchedModel(f"{path} is a {found.title}, which is known here, but not run yet")
    if (shard := SHARD.search(path.name)) and int(shard[2]) > 1:
        raise MismatchedModel(
            f"{path} is one of {int(shard[2])} parts of a {found.title}. Give the folder with all of them, its index "
            "and its config.json"
        )
    try:
        sizes = architecture.sizes(found.shapes)
        given = given_configuration(found)
        config = given or architecture.config(found.shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise MismatchedModel(
            f"{path} holds only a part of a {found.title}: {str(error)[:200]} is missing or of another shape. "
            "Download it again"
        ) from error
    if given:
        for key, size in sizes.items():
            if key in given and given[key] != size:
                raise MismatchedModel(
                    f"{path}: its configuration says {key} = {str(given[key])[:40]}, and its tensors are of {size}. "
                    "The configuration and the weights must come from the same model"
                )
        return given
    if not config:
        raise MismatchedModel(
            f"{path} holds a {found.title} of a size that is not among the published ones, and a file of weights does "
            "not tell the rest (norms, scales, heads). Give the folder that has its config.json too"
        )
    _check_layers(found, config)
    return config | (_of_gguf(found.header, config) if found.header.format == "gguf" else {})


def given_configuration(found: Found) -> dict[str, Any]:
    """What the file, or the file beside it, says; empty where neither does."""
    given = config_metadata(found.header).get(found.architecture.component)
    beside = found.header.path.parent / "config.json"
    if not given and found.header.path.name.startswith(("diffusion_pytorch_model", "model")) and beside.is_file():
        from candela.checkpoints.folder import read_json

        config = read_json(beside)
        listed = config.get("architectures")
        named = [config.get("_class_name"), *(listed if isinstance(listed, list) else [])]
        # A language model's configuration names the class with the output head.
        if found.architecture.class_name in [str(name).replace("ForCausalLM", "Model") for name in named]:
            given = config
    if not isinstance(given, dict):
        return {}
    return {key: value for key, value in given.items() if not key.startswith("_")}


def _check_layers(found: Found, config: dict[str, Any]) -> None:
    """Of a published width, fewer layers than published are a piece, though it could be built and would draw."""
    width = next((config[key] for key in ("dim", "hidden_size") if key in config), None)
    layers = next((config[key] for key in ("n_layers", "num_layers", "num_hidden_layers") if key in config), None)
    published = found.architecture.published.get(width) if isinstance(width, int) else None
    if published and layers != published:
        raise MismatchedModel(
            f"{found.header.path} holds {layers} layers of a {found.title} of width {width}, which has {published}: "
            "a part of it, or a changed model. Give the folder that has its config.json too"
        )


def _of_gguf(header: Header, config: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp's metadata say of a language model beyond its shapes."""
    name = header.metadata.get("general.architecture")
    scaling = header.metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling != "none":
        raise MismatchedModel(
            f"{header.path}: its positions are scaled ({str(scaling)[:40]}), so it is not the model that image models "
            "were trained with. Take the plain version"
        )
    changed: dict[str, Any] = {}
    theta = header.metadata.get(f"{name}.rope.freq_base")
    if isinstance(theta, float) and "rope_parameters" in config:
        changed["rope_parameters"] = config["rope_parameters"] | {"rope_theta": theta}
    epsilon = header.metadata.get(f"{name}.attention.layer_norm_rms_epsilon")
    if isinstance(epsilon, float) and "rms_norm_eps" in config:
        changed["rms_norm_eps"] = float(f"{epsilon:.6g}")
    return changed


def config_metadata(header: Header) -> dict[str, Any]:
    """The configurations by component that some files carry in their metadata, as JSON under `config`.

    Raises:
        DamagedFile: it is there, and no JSON object.
    """
    text = header.metadata.get("config")
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return {}
    try:
        return json_text.parse(text.encode())
    except ValueError as error:
        raise DamagedFile(f"{header.path}: the metadata 'config' is no JSON ({error}). Download it again") from error
