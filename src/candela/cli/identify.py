"""`candela identify`: what files are, and whether they form one model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from candela.checkpoints.identity import Component, Identity, identify
from candela.checkpoints.together import fit
from candela.cli.output import error_report, plain, print_json, say, size
from candela.errors import CandelaError, CheckpointError


def run(paths: list[str], as_json: bool) -> int:
    """-> exit code: 0 all known and, of several, fitting; 2 otherwise."""
    identities: list[Identity] = []
    failures: list[tuple[str, CandelaError]] = []
    for path in paths:
        try:
            identities.append(identify(path))
        except CheckpointError as error:
            failures.append((path, error))
    refused = any(i.lora and (i.lora.text_encoder_tensors or i.lora.unknown_tensors) for i in identities)
    bad = refused or any(
        identity.kind == "unknown" or any(c.problem for c in identity.components) for identity in identities
    )
    code = 2 if failures or bad else 0
    files = [asdict(identity) for identity in identities]
    report: dict[str, Any] = {
        "files": files + [{"path": path, "error": error_report(error)} for path, error in failures]
    }
    verdict = ""
    if len(paths) > 1 and not failures:
        fitting = fit(paths)
        report["fit"] = {**asdict(fitting), "complete": fitting.complete}
        code = 2 if fitting.problem else code
        names = " and ".join(name.replace("_", " ") for name in fitting.missing)
        if fitting.problem:
            verdict = f"do not fit: {fitting.problem}"
        elif fitting.family and not fitting.missing:
            verdict = f"together: a whole {fitting.family} model"
        elif fitting.family:
            verdict = f"together: they fit; for a whole {fitting.family} model, the {names} is still missing"
        else:
            verdict = f"together: no whole model; the {names} is missing"
    if as_json:
        print_json(report)
        return code
    for identity in identities:
        print(described(identity), end="\n\n" if len(paths) > 1 else "\n")
    for _, failure in failures:
        say(str(failure))
    if verdict:
        print(plain(verdict))
    return code


def described(identity: Identity) -> str:
    """A few aligned lines for people."""
    what = f"{identity.format}, {size(identity.bytes)}, {identity.tensors} tensors"
    if identity.pipeline:
        what += f", {identity.pipeline}"
    lines = [identity.path, f"  {what}"]
    for component in identity.components:
        lines += _lines(component)
    if identity.lora:
        lora = identity.lora
        ranks = ", ".join(map(str, lora.ranks)) or "of whole factors"
        lines.append(f"  {'LoRA':14}for {lora.family or 'a model that its names do not tell'}, {', '.join(lora.kinds)}")
        lines.append(f"  {'':14}rank {ranks}, {lora.modules} modules ({_some(lora.some)}, ...)")
        lines.append(f"  {'':14}names: {f'below {lora.naming}' if lora.naming else 'bare'}")
        if lora.text_encoder_tensors:
            lines.append(
                f"  {'problem':14}{lora.text_encoder_tensors} tensors are for a text encoder: the file will be refused"
            )
    if identity.kind == "unknown":
        lines += _unknown(identity)
    if identity.rest:
        some = _some(identity.rest[:3]) + (", ..." if len(identity.rest) > 3 else "")
        lines.append(f"  {'left over':14}{len(identity.rest)} tensors of no component: {some}")
    for key, value in identity.metadata.items():
        lines.append(f"  {key + ' ':14}{value}")
    return "\n".join(map(plain, lines))


def _some(names: Iterable[str]) -> str:
    return ", ".join(name[:120] for name in names)


def _lines(component: Component) -> list[str]:
    name = component.family
    if component.variant:
        name += f" {component.variant} (by {component.evidence})"
    if component.known_as:
        name += f", {component.known_as}"
    facts = [f"{component.parameters / 1e9:.2f} B parameters" if component.parameters >= 1e8 else
             f"{component.parameters / 1e6:.2f} M parameters", component.precision, size(component.bytes)]  # fmt: skip
    if component.layers:
        facts.append(f"{component.layers} layers")
    if component.text_width:
        verb = "gives" if component.component == "text_encoder" else "expects"
        facts.append(f"{verb} text features of width {component.text_width}")
    if component.latent_channels:
        facts.append(f"{component.latent_channels} latent channels")
    label = component.component.replace("_", " ").replace("vae", "VAE")
    lines = [f"  {label:14}{name}", f"  {'':14}{', '.join(facts)}", f"  {'':14}names: {component.names}"]
    return lines + ([f"  {'problem':14}{component.problem}"] if component.problem else [])


def _unknown(identity: Identity) -> list[str]:
    near = identity.resembles
    if identity.method:
        return [f"  no model and no LoRA, but {identity.method}, which Candela does not apply"]
    if near is None:
        return ["  unknown: none of its tensors belong to a model that Candela knows"]
    keys = _some(near.keys)
    return [f"  unknown to Candela; most resembles {near.name}: {near.share:.0%} of its marks, by {keys}"]
